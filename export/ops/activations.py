"""Activations and other functions of one value."""

from __future__ import annotations

import math

import numpy as np

from ddl_plugin.export.graph import Node
from ddl_plugin.export.ops.builder import Builder, Tensor
from ddl_plugin.export.ops.registry import converts


@converts(
    "LeakyReLU", to=("LeakyRelu", "Elu", "PRelu"), takes="act_type leaky, elu, prelu; slopes (C,) or (1,)"
)
def leaky_relu(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    data = build.data(node, inputs[0])
    kind, slope = node.text("act_type", "leaky"), node.number("slope", 0.25)
    if kind == "leaky":
        return build.add("LeakyRelu", node.name, [data.name], data.shape, alpha=slope)
    if kind == "elu":
        return build.add("Elu", node.name, [data.name], data.shape, alpha=slope)
    if kind != "prelu":
        build.refuse(node, f"act_type {kind!r}")
    # ONNX broadcasts the slope from the right, and TensorRT asks for one slope per channel: (C, 1, 1).
    channels = data.shape[1]
    shared = inputs[1].array is not None and inputs[1].array.shape == (1,)
    array = build.weight(node, inputs[1], (1,) if shared else (channels,))
    array = np.broadcast_to(array, (channels,)).reshape(channels, *[1] * (len(data.shape) - 2))
    return build.add("PRelu", node.name, [data.name, build.initializer(inputs[1].name, array)], data.shape)


_ACTIVATIONS = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "softrelu": "Softplus",
    "softsign": "Softsign",
}


@converts("Activation", to=tuple(_ACTIVATIONS.values()), takes=f"act_type {', '.join(_ACTIVATIONS)}")
def activation(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    data, kind = build.data(node, inputs[0]), node.text("act_type", "")
    if kind not in _ACTIVATIONS:
        build.refuse(node, f"act_type {kind!r}")
    return build.add(_ACTIVATIONS[kind], node.name, [data.name], data.shape)


@converts("hard_sigmoid", to="HardSigmoid")
def hard_sigmoid(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    data = build.data(node, inputs[0])
    alpha, beta = node.number("alpha", 0.2), node.number("beta", 0.5)
    return build.add("HardSigmoid", node.name, [data.name], data.shape, alpha=alpha, beta=beta)


_UNARY = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "softsign": "Softsign",
    "sqrt": "Sqrt",
    "exp": "Exp",
    "abs": "Abs",
    "negative": "Neg",
}


@converts(*_UNARY, to=_UNARY)
def unary(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    return build.add(_UNARY[node.op], node.name, [build.use(inputs[0])], inputs[0].shape)


@converts("square", to="Mul")
def square(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    name = build.use(inputs[0])
    return build.add("Mul", node.name, [name, name], inputs[0].shape)


@converts("clip", to="Clip")
def clip(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    data = build.data(node, inputs[0])
    low = build.scalar(f"{node.name}_min", node.number("a_min", -math.inf))
    high = build.scalar(f"{node.name}_max", node.number("a_max", math.inf))
    return build.add("Clip", node.name, [data.name, low, high], data.shape)
