"""Graphs built anew, with the names that InsightFace's symbols give their parameters.

A pretrained checkpoint brings its own graph; these serve training from scratch (`network: 'tiny'`)
and checkpoints whose graph is not at hand (`network: 'y1'`). All take RGB 0..255 and end in `fc1`.
They are written as MXNet's `mx.sym` would write them, without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ddl_plugin.backbone.symbol_json import GraphBuilder
from ddl_plugin.errors import UserError, did_you_mean
from ddl_plugin.export.graph import Graph


@dataclass(frozen=True)
class Network:
    build: Callable[[GraphBuilder, int], int]  # (what it is built in, embedding size) -> the node fc1
    emb_size: int
    description: str


def _conv(
    g: GraphBuilder, x: int, name: str, filters: int, kernel: int = 1, stride: int = 1, groups: int = 1,
    *, act: bool = True,
) -> int:  # fmt: skip
    pad = kernel // 2 if kernel < 7 else 0  # the 7x7 kernels of the head cover the whole map
    x = g.convolution(x, f"{name}_conv2d", filters, kernel, stride, pad, groups)
    x = g.batch_norm(x, f"{name}_batchnorm", fix_gamma=False, momentum=0.9)
    return g.prelu(x, f"{name}_relu") if act else x


def _input(g: GraphBuilder) -> int:
    data = g.variable("data")
    return g.add("_mul_scalar", [g.add("_minus_scalar", [data], scalar=127.5)], scalar=0.0078125)


def _output(g: GraphBuilder, x: int, emb_size: int) -> int:
    x = g.fully_connected(x, "pre_fc1", emb_size)
    return g.batch_norm(x, "fc1", eps=2e-5, fix_gamma=True, momentum=0.9)


def mobilefacenet(g: GraphBuilder, blocks: tuple[int, int, int, int], emb_size: int) -> int:
    """MobileFaceNet (Chen et al. 2018) as InsightFace's y1 (blocks 1, 4, 6, 2) and y2 (2, 8, 16, 4)."""

    def bottleneck(x: int, name: str, filters: int, groups: int, stride: int) -> int:
        x = _conv(g, x, f"{name}_conv_sep", groups)
        x = _conv(g, x, f"{name}_conv_dw", groups, 3, stride, groups)
        return _conv(g, x, f"{name}_conv_proj", filters, act=False)

    def residuals(x: int, name: str, count: int, filters: int, groups: int) -> int:
        for i in range(count):
            x = g.add("elemwise_add", [bottleneck(x, f"{name}_block{i}", filters, groups, 1), x])
        return x

    x = _conv(g, _input(g), "conv_1", 64, 3, 2)
    if blocks[0] == 1:
        x = _conv(g, x, "conv_2_dw", 64, 3, groups=64)
    else:
        x = residuals(x, "res_2", blocks[0], 64, 64)
    x = residuals(bottleneck(x, "dconv_23", 64, 128, 2), "res_3", blocks[1], 64, 128)
    x = residuals(bottleneck(x, "dconv_34", 128, 256, 2), "res_4", blocks[2], 128, 256)
    x = residuals(bottleneck(x, "dconv_45", 128, 512, 2), "res_5", blocks[3], 128, 256)
    x = _conv(g, x, "conv_6sep", 512)
    # InsightFace's 'GDC' output: global depthwise convolution, then a linear layer with BatchNorm.
    return _output(g, _conv(g, x, "conv_6dw7_7", 512, 7, groups=512, act=False), emb_size)


def tiny(g: GraphBuilder, emb_size: int) -> int:
    """A small residual network for the demo and the tests: some hundred images/s in training on two cores."""
    x = _conv(g, _input(g), "stem", 16, 3, 2)
    for stage, filters in enumerate((32, 64, 128), 1):
        x = _conv(g, x, f"stage{stage}_down", filters, 3, 2)
        if stage > 1:
            inner = _conv(g, x, f"stage{stage}_unit_conv1", filters, 3)
            inner = _conv(g, inner, f"stage{stage}_unit_conv2", filters, 3, act=False)
            x = g.add("elemwise_add", [inner, x])
    return _output(g, _conv(g, x, "gdc", 128, 7, groups=128, act=False), emb_size)


NETWORKS: dict[str, Network] = {
    "y1": Network(lambda g, e: mobilefacenet(g, (1, 4, 6, 2), e), 128, "MobileFaceNet, InsightFace's y1"),
    "y2": Network(lambda g, e: mobilefacenet(g, (2, 8, 16, 4), e), 256, "MobileFaceNet, InsightFace's y2"),
    "tiny": Network(tiny, 64, "small residual network of the demo"),
}


def build_network(name: str, emb_size: int | None = None) -> Graph:
    """The graph `name` with an embedding of `emb_size` (its own default when None); `symbol_json` makes a symbol of it.

    Raises `UserError` for an unknown name.
    """
    if name not in NETWORKS:
        raise UserError(f"network: unknown {name!r}{did_you_mean(name, NETWORKS)}")
    builder = GraphBuilder(name)
    return builder.graph(NETWORKS[name].build(builder, emb_size or NETWORKS[name].emb_size))
