"""Joining InsightFace's PyTorch trainer, unmodified, by one line in its config: `config.loss = 'ddl'`."""
