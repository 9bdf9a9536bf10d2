"""Graphs built anew, with the names that InsightFace's symbols give their parameters.

A pretrained checkpoint brings its own graph; these serve training from scratch (`network: 'tiny'`)
and checkpoints whose graph is not at hand (`network: 'y1'`). All take RGB 0..255 and end in `fc1`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ddl_plugin.errors import UserError, did_you_mean
from ddl_plugin.mxnet_setup import mx

_BN = {"fix_gamma": False, "momentum": 0.9}


@dataclass(frozen=True)
class Network:
    build: Callable[[int], mx.sym.Symbol]  # embedding size -> symbol whose output is fc1_output
    emb_size: int
    description: str


def _conv(x, name: str, filters: int, kernel: int = 1, stride: int = 1, groups: int = 1, *, act: bool = True):
    pad = kernel // 2 if kernel < 7 else 0  # the 7x7 kernels of the head cover the whole map
    x = mx.sym.Convolution(
        x, num_filter=filters, kernel=(kernel, kernel), stride=(stride, stride), pad=(pad, pad),
        num_group=groups, no_bias=True, name=f"{name}_conv2d",
    )  # fmt: skip
    x = mx.sym.BatchNorm(x, name=f"{name}_batchnorm", **_BN)
    return mx.sym.LeakyReLU(x, act_type="prelu", name=f"{name}_relu") if act else x


def _input():
    return (mx.sym.Variable("data") - 127.5) * 0.0078125


def _head(x, emb_size: int):
    """InsightFace's 'GDC' output: global depthwise convolution, then a linear layer with BatchNorm."""
    x = _conv(x, "conv_6dw7_7", 512, 7, groups=512, act=False)
    x = mx.sym.FullyConnected(x, num_hidden=emb_size, name="pre_fc1")
    return mx.sym.BatchNorm(x, fix_gamma=True, eps=2e-5, momentum=0.9, name="fc1")


def mobilefacenet(blocks: tuple[int, int, int, int], emb_size: int) -> mx.sym.Symbol:
    """MobileFaceNet (Chen et al. 2018) as InsightFace's y1 (blocks 1, 4, 6, 2) and y2 (2, 8, 16, 4)."""

    def bottleneck(x, name: str, filters: int, groups: int, stride: int):
        x = _conv(x, f"{name}_conv_sep", groups)
        x = _conv(x, f"{name}_conv_dw", groups, 3, stride, groups)
        return _conv(x, f"{name}_conv_proj", filters, act=False)

    def residuals(x, name: str, count: int, filters: int, groups: int):
        for i in range(count):
            x = bottleneck(x, f"{name}_block{i}", filters, groups, 1) + x
        return x

    x = _conv(_input(), "conv_1", 64, 3, 2)
    if blocks[0] == 1:
        x = _conv(x, "conv_2_dw", 64, 3, groups=64)
    else:
        x = residuals(x, "res_2", blocks[0], 64, 64)
    x = residuals(bottleneck(x, "dconv_23", 64, 128, 2), "res_3", blocks[1], 64, 128)
    x = residuals(bottleneck(x, "dconv_34", 128, 256, 2), "res_4", blocks[2], 128, 256)
    x = residuals(bottleneck(x, "dconv_45", 128, 512, 2), "res_5", blocks[3], 128, 256)
    return _head(_conv(x, "conv_6sep", 512), emb_size)


def tiny(emb_size: int) -> mx.sym.Symbol:
    """A small residual network for the demo and the tests: some hundred images/s in training on two cores."""
    x = _conv(_input(), "stem", 16, 3, 2)
    for stage, filters in enumerate((32, 64, 128), 1):
        x = _conv(x, f"stage{stage}_down", filters, 3, 2)
        if stage > 1:
            inner = _conv(x, f"stage{stage}_unit_conv1", filters, 3)
            x = _conv(inner, f"stage{stage}_unit_conv2", filters, 3, act=False) + x
    x = _conv(x, "gdc", 128, 7, groups=128, act=False)
    x = mx.sym.FullyConnected(x, num_hidden=emb_size, name="pre_fc1")
    return mx.sym.BatchNorm(x, fix_gamma=True, eps=2e-5, momentum=0.9, name="fc1")


NETWORKS: dict[str, Network] = {
    "y1": Network(lambda e: mobilefacenet((1, 4, 6, 2), e), 128, "MobileFaceNet, InsightFace's y1"),
    "y2": Network(lambda e: mobilefacenet((2, 8, 16, 4), e), 256, "MobileFaceNet, InsightFace's y2"),
    "tiny": Network(tiny, 64, "small residual network of the demo"),
}


def build_network(name: str, emb_size: int | None = None) -> mx.sym.Symbol:
    """The graph `name` with an embedding of `emb_size` (its own default when None)."""
    if name not in NETWORKS:
        raise UserError(f"network: unknown {name!r}{did_you_mean(name, NETWORKS)}")
    # Auto-generated names count up within a process; a fresh scope names every build alike.
    with mx.name.NameManager():
        return NETWORKS[name].build(emb_size or NETWORKS[name].emb_size)
