"""One small network, without BatchNorm: its gradient does not depend on how a batch is divided."""

from torch import nn


def get_model(name, dropout=0.0, fp16=False, num_features=16):
    if name != "small":
        raise ValueError(name)
    return nn.Sequential(
        nn.AvgPool2d(16), nn.Flatten(), nn.Linear(147, 32), nn.Tanh(), nn.Linear(32, num_features)
    )
