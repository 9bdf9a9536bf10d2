"""Measuring models: one module a kind of evaluation."""
