"""Joining InsightFace's own MXNet trainers, unmodified, as `--loss ddl`."""
