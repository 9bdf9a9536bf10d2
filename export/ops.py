"""MXNet's operators in ONNX, one small function each, registered under MXNet's names.

A function takes the node, its inputs and the `Builder`, adds ONNX nodes and returns the resulting `Tensor`.
Shapes are known throughout: the batch axis is None, every other axis a number. That is what lets a weight of the
wrong shape be refused by name, and what MXNet's implicit flattening and (C,) PReLU slopes need.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from ddl_plugin.errors import UserError
from ddl_plugin.export.graph import Node

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Tensor:
    """A value of the ONNX graph. `array` is set for parameters, which enter the file only where they are used."""

    name: str
    shape: Shape
    array: np.ndarray | None = None


class Builder:
    """Collects ONNX nodes and initializers in order, with unique names; `reserved` ones are the parameters'.

    `source` and `params` say where graph and parameters were read, for messages.
    """

    def __init__(self, source: str, params: str, reserved: set[str]):
        self.source = source
        self.params = params
        self.nodes: list[NodeProto] = []
        self.initializers: dict[str, np.ndarray] = {}
        self._reserved = frozenset(reserved)
        self._taken = set(reserved)

    def unique(self, name: str) -> str:
        """`name`, or `name` with a number when another value bears it (MXNet allows that, ONNX does not)."""
        candidate, number = name, 0
        while candidate in self._taken:
            number += 1
            candidate = f"{name}_{number}"
        self._taken.add(candidate)
        return candidate

    def initializer(self, name: str, array: np.ndarray) -> str:
        """Store a constant; the same one is stored once."""
        known = self.initializers.get(name)
        if known is not None and known.dtype == array.dtype and np.array_equal(known, array):
            return name
        if known is not None or name not in self._reserved:
            name = self.unique(name)
        self.initializers[name] = array
        return name

    def scalar(self, name: str, value: float) -> str:
        return self.initializer(name, np.array(value, np.float32))

    def wholes(self, name: str, values: Sequence[int]) -> str:
        return self.initializer(name, np.array(values, np.int64))

    def use(self, tensor: Tensor) -> str:
        """The name of an operand, storing it first when it is a parameter."""
        return tensor.name if tensor.array is None else self.initializer(tensor.name, tensor.array)

    def add(self, op: str, name: str, inputs: Sequence[str], shape: Shape, **attributes: Any) -> Tensor:
        """Append a node with one output that bears the node's name."""
        name = self.unique(name)
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return Tensor(name, shape)

    def refuse(self, node: Node, what: str) -> NoReturn:
        raise UserError(f"{self.source}: node {node.name!r} ({node.op}): {what} cannot be converted")

    def data(self, node: Node, tensor: Tensor, rank: int | None = None) -> Tensor:
        """The tensor itself, which must not be a parameter and, where given, must have this rank."""
        if tensor.array is not None:
            self.refuse(node, f"parameter {tensor.name!r} as its data")
        if rank is not None and len(tensor.shape) != rank:
            self.refuse(node, f"an input of shape {show(tensor.shape)}, expected {rank} axes,")
        return tensor

    def weight(self, node: Node, tensor: Tensor, shape: tuple[int, ...]) -> np.ndarray:
        """The parameter's array, which must have this shape."""
        if tensor.array is None:
            self.refuse(node, f"a computed value {tensor.name!r} in place of a parameter")
        if tensor.array.shape != shape:
            raise UserError(
                f"{self.params}: array {tensor.name!r}: expected shape {show(shape)} for node {node.name!r} "
                f"({node.op}), got {show(tensor.array.shape)}; does it belong to this symbol and image size?"
            )
        return tensor.array


def show(shape: Shape) -> str:
    """A shape as text, with N for the batch."""
    return "(" + ", ".join("N" if size is None else str(size) for size in shape) + ")"


Converter = Callable[[Builder, Node, list[Tensor]], Tensor]
CONVERTERS: dict[str, Converter] = {}


def converts(*names: str) -> Callable[[Converter], Converter]:
    """Register a function for the MXNet operators of these names."""

    def register(function: Converter) -> Converter:
        CONVERTERS.update(dict.fromkeys(names, function))
        return function

    return register


# Layers with weights.


def _spatial(node: Node, key: str, default: int) -> tuple[int, int]:
    pair = node.wholes(key, (default, default))
    if len(pair) != 2:
        raise UserError(f"node {node.name!r} ({node.op}): {key}: expected two numbers, got {pair}")
    return pair


def _layout(build: Builder, node: Node) -> None:
    layout = node.text("layout", "NCHW")
    if layout != "NCHW":
        build.refuse(node, f"layout {layout}")


@converts("Convolution", "Convolution_v1")
def convolution(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    data = build.data(node, inputs[0], rank=4)
    _layout(build, node)
    kernel, stride = _spatial(node, "kernel", 0), _spatial(node, "stride", 1)
    dilate, pad = _spatial(node, "dilate", 1), _spatial(node, "pad", 0)
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


@converts("BatchNorm", "BatchNorm_v1", "CuDNNBatchNorm", "_contrib_SyncBatchNorm")
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


@converts("FullyConnected")
def fully_connected(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    data = build.data(node, inputs[0])
    if len(data.shape) > 2:
        if not node.flag("flatten", True):
            build.refuse(node, f"flatten=False on an input of shape {show(data.shape)}")
        data = _flatten(build, f"{node.name}_flatten", data)
    hidden = node.whole("num_hidden", 0)
    build.weight(node, inputs[1], (hidden, data.shape[1]))
    operands = [data.name, build.use(inputs[1])]
    if not node.flag("no_bias", False):
        build.weight(node, inputs[2], (hidden,))
        operands.append(build.use(inputs[2]))
    return build.add("Gemm", node.name, operands, (data.shape[0], hidden), transB=1)


# Activations.


@converts("LeakyReLU")
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


@converts("Activation")
def activation(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    data, kind = build.data(node, inputs[0]), node.text("act_type", "")
    if kind not in _ACTIVATIONS:
        build.refuse(node, f"act_type {kind!r}")
    return build.add(_ACTIVATIONS[kind], node.name, [data.name], data.shape)


@converts("hard_sigmoid")
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


@converts(*_UNARY)
def unary(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    return build.add(_UNARY[node.op], node.name, [build.use(inputs[0])], inputs[0].shape)


@converts("square")
def square(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    name = build.use(inputs[0])
    return build.add("Mul", node.name, [name, name], inputs[0].shape)


@converts("clip")
def clip(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    data = build.data(node, inputs[0])
    low = build.scalar(f"{node.name}_min", node.number("a_min", -math.inf))
    high = build.scalar(f"{node.name}_max", node.number("a_max", math.inf))
    return build.add("Clip", node.name, [data.name, low, high], data.shape)


# Arithmetic.


def _broadcast(build: Builder, node: Node, first: Shape, second: Shape) -> Shape:
    rank = max(len(first), len(second))
    pairs = zip((1,) * (rank - len(first)) + first, (1,) * (rank - len(second)) + second, strict=True)
    sizes = []
    for a, b in pairs:
        if a != b and 1 not in (a, b):
            build.refuse(node, f"shapes {show(first)} and {show(second)} together")
        sizes.append(b if a == 1 else a)
    return tuple(sizes)


_BINARY = {
    "Add": ("elemwise_add", "_plus", "_Plus", "_add", "broadcast_add", "broadcast_plus"),
    "Sub": ("elemwise_sub", "_minus", "_Minus", "_sub", "broadcast_sub", "broadcast_minus"),
    "Mul": ("elemwise_mul", "_mul", "_Mul", "broadcast_mul"),
    "Div": ("elemwise_div", "_div", "_Div", "broadcast_div"),
}
_BINARY_OF = {name: op for op, names in _BINARY.items() for name in names}


@converts(*_BINARY_OF)
def binary(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    first, second = inputs
    shape = _broadcast(build, node, first.shape, second.shape)
    return build.add(_BINARY_OF[node.op], node.name, [build.use(first), build.use(second)], shape)


@converts("add_n", "ElementWiseSum")
def add_n(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    return build.add("Sum", node.name, [build.use(tensor) for tensor in inputs], inputs[0].shape)


#: MXNet's name -> (ONNX operator, whether the scalar is the first operand).
_SCALAR = {
    "_plus_scalar": ("Add", False),
    "_PlusScalar": ("Add", False),
    "_minus_scalar": ("Sub", False),
    "_MinusScalar": ("Sub", False),
    "_rminus_scalar": ("Sub", True),
    "_RMinusScalar": ("Sub", True),
    "_mul_scalar": ("Mul", False),
    "_MulScalar": ("Mul", False),
    "_div_scalar": ("Div", False),
    "_DivScalar": ("Div", False),
    "_rdiv_scalar": ("Div", True),
    "_RDivScalar": ("Div", True),
    "_power_scalar": ("Pow", False),
    "_PowerScalar": ("Pow", False),
}
SCALAR_OPS = tuple(_SCALAR)


@converts(*_SCALAR)
def scalar_arithmetic(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    op, scalar_first = _SCALAR[node.op]
    scalar = build.scalar(f"{node.name}_scalar", node.number("scalar", 0.0))
    operands = [build.use(inputs[0]), scalar]
    return build.add(op, node.name, operands[::-1] if scalar_first else operands, inputs[0].shape)


# Pooling and reductions.


def _pooled(size: int, kernel: int, stride: int, pad: int, full: bool) -> tuple[int, int]:
    """(output size, how far the last window reaches past the padded input) along one axis."""
    span = size + 2 * pad - kernel
    count = (-(-span // stride) if full else span // stride) + 1
    return count, max(0, (count - 1) * stride + kernel - size - 2 * pad)


@converts("Pooling", "Pooling_v1")
def pooling(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    data = build.data(node, inputs[0], rank=4)
    kind, rule = node.text("pool_type", "max"), node.text("pooling_convention", "valid")
    _layout(build, node)
    if kind not in ("max", "avg"):
        build.refuse(node, f"pool_type {kind!r}")
    if node.flag("global_pool", False):
        op = "GlobalMaxPool" if kind == "max" else "GlobalAveragePool"
        return build.add(op, node.name, [data.name], (*data.shape[:2], 1, 1))
    if rule not in ("valid", "full"):
        build.refuse(node, f"pooling_convention {rule!r}")
    kernel, stride, pad = _spatial(node, "kernel", 0), _spatial(node, "stride", 1), _spatial(node, "pad", 0)
    axes = zip(data.shape[2:], kernel, stride, pad, strict=True)
    sizes, excess = zip(*(_pooled(*axis, rule == "full") for axis in axes), strict=True)
    # Runtimes disagree about ceil_mode, so the excess of 'full' is written as padding at the end.
    name, begin = data.name, pad
    counted = kind == "avg" and any(pad) and node.flag("count_include_pad", True)
    if counted and any(excess):
        # MXNet counts the padding it was asked for, never the excess; ONNX counts all of it or none.
        widths = build.wholes(f"{node.name}_pads", (0, 0, *pad, 0, 0, *pad))
        padded = (*data.shape[:2], *(size + 2 * p for size, p in zip(data.shape[2:], pad, strict=True)))
        name = build.add("Pad", f"{node.name}_pad", [name, widths], padded).name
        begin, counted = (0, 0), False
    end = tuple(p + e for p, e in zip(begin, excess, strict=True))
    if any(p >= k for p, k in zip((*begin, *end), kernel * 2, strict=True)):
        build.refuse(node, f"a window of {kernel} that lies wholly in the padding {(*begin, *end)}")
    window: dict[str, Any] = {"kernel_shape": kernel, "strides": stride, "pads": (*begin, *end)}
    if kind == "avg":
        window["count_include_pad"] = int(counted)
    op = "MaxPool" if kind == "max" else "AveragePool"
    return build.add(op, node.name, [name], (*data.shape[:2], *sizes), **window)


def _reduced_axes(build: Builder, node: Node, shape: Shape) -> tuple[int, ...]:
    axes = tuple(axis % len(shape) for axis in node.wholes("axis", tuple(range(len(shape)))))
    if node.flag("exclude", False):
        build.refuse(node, "exclude=True")
    return tuple(sorted(axes))


def _reduced(shape: Shape, axes: Sequence[int], keep: bool) -> Shape:
    kept = (1 if axis in axes else size for axis, size in enumerate(shape))
    return tuple(size for axis, size in enumerate(kept) if keep or axis not in axes)


@converts("mean", "max", "min")
def reduce(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    data = build.data(node, inputs[0])
    axes, keep = _reduced_axes(build, node, data.shape), node.flag("keepdims", False)
    op = {"mean": "ReduceMean", "max": "ReduceMax", "min": "ReduceMin"}[node.op]
    shape = _reduced(data.shape, axes, keep)
    return build.add(op, node.name, [data.name], shape, axes=axes, keepdims=int(keep))


@converts("sum", "sum_axis")
def reduce_sum(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    data = build.data(node, inputs[0])
    axes, keep = _reduced_axes(build, node, data.shape), node.flag("keepdims", False)
    operands = [data.name, build.wholes(f"{node.name}_axes", axes)]
    shape = _reduced(data.shape, axes, keep)
    return build.add("ReduceSum", node.name, operands, shape, keepdims=int(keep))


@converts("L2Normalization")
def l2_normalization(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    """x / sqrt(sum(x^2) + eps): ONNX's LpNormalization has no eps and would divide 0 by 0."""
    data, mode = build.data(node, inputs[0]), node.text("mode", "instance")
    rank = len(data.shape)
    axes = {"instance": range(1, rank), "channel": (1,), "spatial": range(2, rank)}.get(mode)
    if not axes:
        build.refuse(node, f"mode {mode!r} of an input of shape {show(data.shape)}")
    shape = _reduced(data.shape, axes, keep=True)
    norm = build.add(
        "ReduceSumSquare", f"{node.name}_square", [data.name], shape, axes=tuple(axes), keepdims=1
    )
    eps = build.scalar(f"{node.name}_eps", node.number("eps", 1e-10))
    norm = build.add("Add", f"{node.name}_add", [norm.name, eps], shape)
    norm = build.add("Sqrt", f"{node.name}_sqrt", [norm.name], shape)
    return build.add("Div", node.name, [data.name, norm.name], data.shape)


# Shapes.


def _flatten(build: Builder, name: str, data: Tensor) -> Tensor:
    return build.add("Flatten", name, [data.name], (data.shape[0], math.prod(data.shape[1:])), axis=1)


@converts("Flatten", "flatten")
def flatten(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    data = build.data(node, inputs[0])
    return data if len(data.shape) == 2 else _flatten(build, node.name, data)


@converts("Reshape", "reshape")
def reshape(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    """Of MXNet's codes 0 (copy) and -1 (infer) are known; the batch axis must stay the first."""
    data, wanted = build.data(node, inputs[0]), node.wholes("shape", ())
    total = math.prod(data.shape[1:])
    if node.flag("reverse", False) or min(wanted, default=-9) < -1 or wanted.count(-1) > 1:
        build.refuse(node, f"shape {wanted}")
    copied = [data.shape[i] if size == 0 and i < len(data.shape) else size for i, size in enumerate(wanted)]
    rest = copied[1:]
    if copied[0] not in (None, -1) or None in rest or 0 in rest:
        build.refuse(node, f"shape {wanted} of {show(data.shape)}, which does not keep the batch axis,")
    known = math.prod(size for size in rest if size != -1)
    sizes = tuple(total // known if size == -1 else size for size in rest)
    if math.prod(sizes) != total:
        build.refuse(node, f"shape {wanted} of {show(data.shape)}, which does not keep the batch axis,")
    target = build.wholes(f"{node.name}_shape", (0, *sizes))
    return build.add("Reshape", node.name, [data.name, target], (data.shape[0], *sizes))


@converts("transpose")
def transpose(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    data = build.data(node, inputs[0])
    order = node.wholes("axes", tuple(reversed(range(len(data.shape)))))
    if order[0] != 0:
        build.refuse(node, f"axes {order}, which move the batch axis,")
    return build.add("Transpose", node.name, [data.name], tuple(data.shape[i] for i in order), perm=order)


@converts("Concat", "concat")
def concat(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    first, axis = inputs[0].shape, node.whole("dim", 1) % len(inputs[0].shape)
    for tensor in inputs:
        same = len(tensor.shape) == len(first)
        if axis == 0 or not same or any(tensor.shape[i] != first[i] for i in range(len(first)) if i != axis):
            build.refuse(node, f"shapes {', '.join(show(t.shape) for t in inputs)} along axis {axis}")
    shape = (*first[:axis], sum(tensor.shape[axis] for tensor in inputs), *first[axis + 1 :])
    return build.add("Concat", node.name, [build.use(tensor) for tensor in inputs], shape, axis=axis)


@converts("tile")
def tile(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    data, reps = build.data(node, inputs[0]), node.wholes("reps", ())
    reps = (1,) * (len(data.shape) - len(reps)) + reps
    if len(reps) > len(data.shape) or reps[0] != 1:
        build.refuse(node, f"reps {reps} of {show(data.shape)}")
    sizes = tuple(size * times for size, times in zip(data.shape[1:], reps[1:], strict=True))
    operands = [data.name, build.wholes(f"{node.name}_reps", reps)]
    return build.add("Tile", node.name, operands, (data.shape[0], *sizes))


@converts("Pad", "pad")
def pad(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    data, widths, mode = build.data(node, inputs[0]), node.wholes("pad_width", ()), node.text("mode", "")
    if mode not in ("constant", "edge", "reflect") or len(widths) != 2 * len(data.shape) or any(widths[:2]):
        build.refuse(node, f"mode {mode!r} with pad_width {widths}")
    before, after = widths[0::2], widths[1::2]
    operands = [data.name, build.wholes(f"{node.name}_pads", (*before, *after))]
    if mode == "constant":
        operands.append(build.scalar(f"{node.name}_value", node.number("constant_value", 0.0)))
    sizes = (size + b + a for size, b, a in zip(data.shape[1:], before[1:], after[1:], strict=True))
    return build.add("Pad", node.name, operands, (data.shape[0], *sizes), mode=mode)


# Operators that do nothing at inference: their input takes their place, so that no Identity nodes are left.


@converts("Dropout", "_copy", "identity", "BlockGrad", "stop_gradient")
def dropped(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    return inputs[0]


@converts("Cast", "cast")
def cast(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    """Casts between float types belong to mixed-precision training; the exported graph is float32 throughout."""
    dtype = node.text("dtype", "")
    if dtype not in ("float16", "float32", "float64"):
        build.refuse(node, f"a cast to {dtype}")
    return inputs[0]


def constant_tensor(name: str, array: np.ndarray) -> TensorProto:
    """An initializer's protobuf."""
    return numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
