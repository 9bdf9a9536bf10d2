"""Networks with the modules of arcface_torch's, by their names and arithmetic, written for the tests."""

from __future__ import annotations

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, entering, filters, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(entering)
        self.conv1 = nn.Conv2d(entering, filters, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.prelu = nn.PReLU(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(filters)
        if stride > 1:
            side = nn.Conv2d(entering, filters, 1, stride, bias=False)
            self.downsample = nn.Sequential(side, nn.BatchNorm2d(filters))
        self.shrinks = stride > 1

    def forward(self, x):
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(y)) + (self.downsample(x) if self.shrinks else x)


class IResNet(nn.Module):
    def __init__(self, counts, emb_size):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1, self.prelu = nn.BatchNorm2d(64), nn.PReLU(64)
        entering = 64
        for stage, (count, filters) in enumerate(zip(counts, (64, 128, 256, 512), strict=True), 1):
            blocks = [Block(entering, filters, 2)] + [Block(filters, filters, 1) for _ in range(count - 1)]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            entering = filters
        self.bn2 = nn.BatchNorm2d(512)
        self.fc = nn.Linear(512 * 7 * 7, emb_size)
        self.features = nn.BatchNorm1d(emb_size)

    def forward(self, x):
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.features(self.fc(self.bn2(x).flatten(1)))


class Layers(nn.Module):
    """A module whose parts are called `layers`, as most there."""

    def __init__(self, *parts, residual=False):
        super().__init__()
        self.layers = nn.Sequential(*parts)
        self.residual = residual

    def forward(self, x):
        return self.layers(x) + x if self.residual else self.layers(x)


def conv(entering, filters, kernel=1, stride=1, groups=1, act=True):
    pad = 0 if kernel == 7 else kernel // 2
    parts = [
        nn.Conv2d(entering, filters, kernel, stride, pad, groups=groups, bias=False),
        nn.BatchNorm2d(filters),
    ]
    return Layers(*parts, *([nn.PReLU(filters)] if act else []))


def bottleneck(entering, filters, wide, stride, residual=False):
    return Layers(
        conv(entering, wide),
        conv(wide, wide, 3, stride, wide),
        conv(wide, filters, act=False),
        residual=residual,
    )


def residuals(filters, count, wide):
    return Layers(*(bottleneck(filters, filters, wide, 1, True) for _ in range(count)))


class MobileFaceNet(nn.Module):
    def __init__(self, blocks, scale, emb_size):
        super().__init__()
        a, b = 64 * scale, 128 * scale
        first = conv(a, a, 3, 1, 64) if blocks[0] == 1 else residuals(a, blocks[0], 128)
        self.layers = nn.ModuleList(
            [
                conv(3, a, 3, 2), first, bottleneck(a, a, 128, 2), residuals(a, blocks[1], 128),
                bottleneck(a, b, 256, 2), residuals(b, blocks[2], 256),
                bottleneck(b, b, 512, 2), residuals(b, blocks[3], 256),
            ]
        )  # fmt: skip
        self.conv_sep = conv(b, 512)
        head = conv(512, 512, 7, groups=512, act=False)
        self.features = Layers(
            head, nn.Flatten(), nn.Linear(512, emb_size, bias=False), nn.BatchNorm1d(emb_size)
        )

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.features(self.conv_sep(x))


def randomised(net, seed=0):
    """Weights that keep the values' size, and statistics and counts of their own."""
    draw = torch.Generator().manual_seed(seed)
    for name, tensor in net.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(7)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=draw)
        elif tensor.ndim > 1:
            tensor.normal_(0, (1.5 / tensor[0].numel()) ** 0.5, generator=draw)
        elif name.endswith(("bias", "mean")):
            tensor.normal_(0, 0.1, generator=draw)
        else:
            tensor.uniform_(0.2, 1.2, generator=draw)
    if isinstance(net, IResNet):
        net.features.weight.data.fill_(1.0)  # theirs is never trained
    return net.eval()
