"""Joining InsightFace's own trainers, unmodified: MXNet's as `--loss ddl`, PyTorch's as `config.loss = 'ddl'`."""
