"""Preparing data: one module a command."""
