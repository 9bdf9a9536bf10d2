"""Figures of models and runs: one module a kind."""
