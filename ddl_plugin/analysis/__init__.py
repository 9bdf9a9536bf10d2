"""Distributions of similarities, measured and drawn."""
