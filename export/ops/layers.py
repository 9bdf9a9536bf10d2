"""Layers with weights: convolution, batch normalisation, fully connected."""

from __future__ import annotations

import numpy as np

from ddl_plugin.export.graph import Node
from ddl_plugin.export.ops.builder import Builder, Tensor, require_nchw, show, spatial
from ddl_plugin.export.ops.registry import converts
from ddl_plugin.export.ops.shapes import flattened


@converts("Convolution", "Convolution_v1", to="Conv", takes="two spatial axes, NCHW")
def convolution(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    data = build.data(node, inputs[0], rank=4)
    require_nchw(build, node)
    kernel, stride = spatial(node, "kernel", 0), spatial(node, "stride", 1)
    dilate, pad = spatial(node, "dilate", 1), spatial(node, "pad", 0)
    filters, groups = node.whole("num_filter", 0), node.whole("num_group", 1)
    channels = data.shape[1]
    if channels % groups or filters % groups:
        build.refuse(node, f"{channels} channels to {filters} filters in {groups} groups")
    build.weight(node, inputs[1], (filters, channels // groups, *kernel))
    operands = [data.name, build.use(inputs[1])]
    if not node.flag("no_bias", False):
        build.weight(node, inputs[2], (filters,))
        operands.append(build.use(inputs[2]))
    sizes = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, d, p in zip(data.shape[2:], kernel, stride, dilate, pad, strict=True)
    ]
    return build.add(
        "Conv", node.name, operands, (data.shape[0], filters, *sizes),
        kernel_shape=kernel, strides=stride, dilations=dilate, pads=(*pad, *pad), group=groups,
    )  # fmt: skip


@converts(
    "BatchNorm", "BatchNorm_v1", "_contrib_SyncBatchNorm",
    to="BatchNormalization", takes="normalises axis 1; fix_gamma makes gamma 1, whatever is stored",
)  # fmt: skip
def batch_norm(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    data = build.data(node, inputs[0])
    axis = node.whole("axis", 1)
    if axis not in (1, 1 - len(data.shape)):
        build.refuse(node, f"axis {axis} of an input of shape {show(data.shape)}")
    channels = (data.shape[1],)
    arrays = [build.weight(node, tensor, channels) for tensor in inputs[1:5]]
    names = [tensor.name for tensor in inputs[1:5]]
    # MXNet's default is True, and whatever is stored as gamma then counts as 1.
    if node.flag("fix_gamma", True):
        arrays[0] = np.ones_like(arrays[0])
    operands = [build.initializer(name, array) for name, array in zip(names, arrays, strict=True)]
    epsilon = node.number("eps", 1e-3)
    return build.add("BatchNormalization", node.name, [data.name, *operands], data.shape, epsilon=epsilon)


@converts("FullyConnected", to=("Flatten", "Gemm"), takes="flatten=False of matrices only")
def fully_connected(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    data = build.data(node, inputs[0])
    if len(data.shape) > 2:
        if not node.flag("flatten", True):
            build.refuse(node, f"flatten=False on an input of shape {show(data.shape)}")
        data = flattened(build, f"{node.name}_flatten", data)
    hidden = node.whole("num_hidden", 0)
    build.weight(node, inputs[1], (hidden, data.shape[1]))
    operands = [data.name, build.use(inputs[1])]
    if not node.flag("no_bias", False):
        build.weight(node, inputs[2], (hidden,))
        operands.append(build.use(inputs[2]))
    return build.add("Gemm", node.name, operands, (data.shape[0], hidden), transB=1)
