"""Embeddings turned into numbers: verification, identification, metrics."""
