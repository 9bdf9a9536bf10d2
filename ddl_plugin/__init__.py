"""Distribution Distillation Loss for InsightFace-style face-recognition training."""

__version__ = "0.1.0"
