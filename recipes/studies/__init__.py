"""Studies: one file is one table."""
