"""MXNet's operators in torch, one small function each, registered under MXNet's names in `OPERATORS`.

A builder takes a node and returns what is called with the node's inputs, tensors in MXNet's order; a builder refuses
what it does not take when the network is made, by a `UserError`. The values are MXNet's in training too.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from ddl_plugin.errors import UserError
from ddl_plugin.export.graph import Node
from ddl_plugin.pytorch.precision import without_autocast
from ddl_plugin.pytorch.torch_setup import torch

F = torch.nn.functional
Tensor = torch.Tensor
Shape = tuple[int, ...]
Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Operator:
    """How one MXNet operator is computed."""

    build: Callable[[Node], Function]
    parameters: Callable[[Node, Shape], tuple[Shape, ...]] | None  # shapes of the inputs after the first
    by_mode: bool  # whether the function takes `training`, because it does another thing then


OPERATORS: dict[str, Operator] = {}


def computes(
    *names: str,
    parameters: Callable[[Node, Shape], tuple[Shape, ...]] | None = None,
    by_mode: bool = False,
) -> Callable[[Callable[[Node], Function]], Callable[[Node], Function]]:
    """Register a builder for the MXNet operators of these names."""

    def register(build: Callable[[Node], Function]) -> Callable[[Node], Function]:
        for name in names:
            OPERATORS[name] = Operator(build, parameters, by_mode)
        return build

    return register


def _refuse(node: Node, what: str) -> NoReturn:
    raise UserError(f"node {node.name!r} ({node.op}): {what} is not supported with PyTorch")


def _pair(node: Node, key: str, default: int) -> tuple[int, int]:
    pair = node.wholes(key, (default, default))
    if len(pair) != 2:
        _refuse(node, f"{key} {pair}, not two numbers,")
    return pair


def _require_nchw(node: Node) -> None:
    if node.text("layout", "NCHW") != "NCHW":
        _refuse(node, f"layout {node.text('layout', '')}")


# -- layers with parameters ----------------------------------------------------------------------------


def _convolution_shapes(node: Node, data: Shape) -> tuple[Shape, ...]:
    filters, groups = node.whole("num_filter", 0), node.whole("num_group", 1)
    weight = (filters, data[1] // groups, *_pair(node, "kernel", 0))
    return (weight,) if node.flag("no_bias", False) else (weight, (filters,))


@computes("Convolution", "Convolution_v1", parameters=_convolution_shapes)
def convolution(node: Node) -> Function:
    _require_nchw(node)
    return partial(
        F.conv2d, stride=_pair(node, "stride", 1), padding=_pair(node, "pad", 0),
        dilation=_pair(node, "dilate", 1), groups=node.whole("num_group", 1),
    )  # fmt: skip


def _fully_connected_shapes(node: Node, data: Shape) -> tuple[Shape, ...]:
    hidden = node.whole("num_hidden", 0)
    size = math.prod(data[1:]) if node.flag("flatten", True) else data[-1]
    return ((hidden, size),) if node.flag("no_bias", False) else ((hidden, size), (hidden,))


@computes("FullyConnected", parameters=_fully_connected_shapes)
def fully_connected(node: Node) -> Function:
    return partial(_fully_connected, flatten=node.flag("flatten", True))


def _fully_connected(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, flatten: bool) -> Tensor:
    """In the weight's precision under autocast too: the embedding is not rounded to fewer bits on its way out."""
    with without_autocast(x):
        x = x.to(weight.dtype)
        return F.linear(x.flatten(1) if flatten else x, weight, bias)


def is_fixed(node: Node) -> bool:
    """Whether a BatchNorm takes its gamma for 1 whatever it holds: MXNet's default."""
    return node.flag("fix_gamma", True)


@computes(
    "BatchNorm", "BatchNorm_v1", "_contrib_SyncBatchNorm",
    parameters=lambda node, data: ((data[1],),) * 4, by_mode=True,
)  # fmt: skip
def batch_norm(node: Node) -> Function:
    if node.whole("axis", 1) not in (1, -1):
        _refuse(node, f"axis {node.whole('axis', 1)}")
    return partial(
        _batch_norm, last_axis=node.whole("axis", 1) == -1, fixed=is_fixed(node),
        frozen=node.flag("use_global_stats", False), momentum=node.number("momentum", 0.9),
        eps=node.number("eps", 1e-3),
    )  # fmt: skip


def _batch_norm(
    x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor,
    *, training: bool, last_axis: bool, fixed: bool, frozen: bool, momentum: float, eps: float,
) -> Tensor:  # fmt: skip
    """MXNet's moving variance is of the batch as it is (n), torch's would be the estimate (n - 1)."""
    if last_axis and x.ndim != 2:
        raise UserError(f"BatchNorm: axis -1 of an input of {x.ndim} axes is not supported with PyTorch")
    if fixed:
        gamma = torch.ones_like(gamma)
    if frozen or not training:
        return F.batch_norm(x, mean, variance, gamma, beta, False, 0.0, eps)
    count = x.numel() // x.shape[1]
    batch_mean, batch_variance = torch.zeros_like(mean), torch.zeros_like(variance)
    # Not by torch.nn.functional, which refuses a batch of one vector; MXNet takes it, its variance is 0.
    y = torch.batch_norm(
        x, gamma, beta, batch_mean, batch_variance, True, 1.0, eps, torch.backends.cudnn.enabled
    )
    with torch.no_grad():
        mean.lerp_(batch_mean, 1 - momentum)
        if count > 1:
            variance.lerp_(batch_variance * ((count - 1) / count), 1 - momentum)
        else:
            variance.mul_(momentum)
    return y


# -- activations -----------------------------------------------------------------------------------------


def _slope_shapes(node: Node, data: Shape) -> tuple[Shape, ...]:
    return ((data[1],),) if node.text("act_type", "leaky") == "prelu" else ()


@computes("LeakyReLU", parameters=_slope_shapes)
def leaky_relu(node: Node) -> Function:
    kind, slope = node.text("act_type", "leaky"), node.number("slope", 0.25)
    if kind == "prelu":
        return _prelu
    if kind == "leaky":
        return partial(F.leaky_relu, negative_slope=slope)
    if kind == "elu":
        return partial(F.elu, alpha=slope)
    _refuse(node, f"act_type {kind!r}")


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return F.prelu(x, slope.to(x.dtype))


_ACTIVATIONS = {
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softrelu": F.softplus,
    "softsign": F.softsign,
}


@computes("Activation")
def activation(node: Node) -> Function:
    kind = node.text("act_type", "")
    if kind not in _ACTIVATIONS:
        _refuse(node, f"act_type {kind!r}")
    return _ACTIVATIONS[kind]


_UNARY = {
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softsign": F.softsign,
    "sqrt": torch.sqrt,
    "exp": torch.exp,
    "abs": torch.abs,
    "negative": torch.neg,
    "square": torch.square,
    "BlockGrad": torch.detach,
    "stop_gradient": torch.detach,
}


@computes(*_UNARY)
def unary(node: Node) -> Function:
    return _UNARY[node.op]


@computes("hard_sigmoid")
def hard_sigmoid(node: Node) -> Function:
    return partial(_hard_sigmoid, alpha=node.number("alpha", 0.2), beta=node.number("beta", 0.5))


def _hard_sigmoid(x: Tensor, *, alpha: float, beta: float) -> Tensor:
    return torch.clamp(x * alpha + beta, 0, 1)


@computes("clip")
def clip(node: Node) -> Function:
    return partial(
        torch.clamp, min=node.number("a_min", -math.inf), max=node.number("a_max", math.inf)
    )  # fmt: skip


# -- arithmetic ------------------------------------------------------------------------------------------

_BINARY = {
    **dict.fromkeys(
        ("elemwise_add", "_plus", "_Plus", "_add", "broadcast_add", "broadcast_plus"), operator.add
    ),
    **dict.fromkeys(
        ("elemwise_sub", "_minus", "_Minus", "_sub", "broadcast_sub", "broadcast_minus"), operator.sub
    ),
    **dict.fromkeys(("elemwise_mul", "_mul", "_Mul", "broadcast_mul"), operator.mul),
    **dict.fromkeys(("elemwise_div", "_div", "_Div", "broadcast_div"), operator.truediv),
}


@computes(*_BINARY)
def binary(node: Node) -> Function:
    return _BINARY[node.op]


@computes("add_n", "ElementWiseSum")
def add_n(node: Node) -> Function:
    return _sum_of


def _sum_of(*values: Tensor) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


_SCALAR = {
    **dict.fromkeys(("_plus_scalar", "_PlusScalar"), operator.add),
    **dict.fromkeys(("_minus_scalar", "_MinusScalar"), operator.sub),
    **dict.fromkeys(("_mul_scalar", "_MulScalar"), operator.mul),
    **dict.fromkeys(("_div_scalar", "_DivScalar"), operator.truediv),
    **dict.fromkeys(("_power_scalar", "_PowerScalar"), operator.pow),
}
_SCALAR_FIRST = {
    **dict.fromkeys(("_rminus_scalar", "_RMinusScalar"), operator.sub),
    **dict.fromkeys(("_rdiv_scalar", "_RDivScalar"), operator.truediv),
}


@computes(*_SCALAR, *_SCALAR_FIRST)
def scalar_arithmetic(node: Node) -> Function:
    scalar = node.number("scalar", 0.0)
    if node.op in _SCALAR:
        return partial(_with_scalar, by=_SCALAR[node.op], scalar=scalar)
    return partial(_from_scalar, by=_SCALAR_FIRST[node.op], scalar=scalar)


def _with_scalar(x: Tensor, *, by: Function, scalar: float) -> Tensor:
    return by(x, scalar)


def _from_scalar(x: Tensor, *, by: Function, scalar: float) -> Tensor:
    return by(scalar, x)


# -- pooling and reductions ------------------------------------------------------------------------------


@computes("Pooling")
def pooling(node: Node) -> Function:
    kind, rule = node.text("pool_type", "max"), node.text("pooling_convention", "valid")
    _require_nchw(node)
    if kind not in ("max", "avg"):
        _refuse(node, f"pool_type {kind!r}")
    if node.flag("global_pool", False):
        pool = F.adaptive_max_pool2d if kind == "max" else F.adaptive_avg_pool2d
        return partial(pool, output_size=1)
    if rule not in ("valid", "full"):
        _refuse(node, f"pooling_convention {rule!r}")
    window = {
        "kernel": _pair(node, "kernel", 0),
        "stride": _pair(node, "stride", 1),
        "pad": _pair(node, "pad", 0),
    }
    if kind == "max":
        return partial(_max_pool, full=rule == "full", **window)
    return partial(_average_pool, full=rule == "full", counted=node.flag("count_include_pad", True), **window)


def _widths(x: Tensor, kernel: Shape, stride: Shape, pad: Shape, full: bool) -> tuple[int, int, int, int]:
    """Padding (left, right, top, bottom); with `full` the last window may reach past what was asked for."""
    excess = [0, 0]
    if full:
        for axis in range(2):
            span = x.shape[2 + axis] + 2 * pad[axis] - kernel[axis]
            excess[axis] = -span % stride[axis]
    return pad[1], pad[1] + excess[1], pad[0], pad[0] + excess[0]


def _max_pool(x: Tensor, *, kernel: Shape, stride: Shape, pad: Shape, full: bool) -> Tensor:
    widths = _widths(x, kernel, stride, pad, full)
    if any(widths):
        x = F.pad(x, widths, value=-math.inf)
    return F.max_pool2d(x, kernel, stride)


def _average_pool(
    x: Tensor, *, kernel: Shape, stride: Shape, pad: Shape, full: bool, counted: bool
) -> Tensor:
    """Padding that was asked for counts if `counted`; what `full` adds at the end never does."""
    widths = _widths(x, kernel, stride, pad, full)
    if not any(widths):
        return F.avg_pool2d(x, kernel, stride)
    counts = x.new_ones((1, 1, *x.shape[2:]))
    if counted:
        counts = F.pad(counts, (pad[1], pad[1], pad[0], pad[0]), value=1.0)
    missing = (
        (0, widths[1] - pad[1], 0, widths[3] - pad[0]) if counted else widths
    )  # fmt: skip
    counts = F.avg_pool2d(F.pad(counts, missing), kernel, stride)
    return F.avg_pool2d(F.pad(x, widths), kernel, stride) / counts


_REDUCTIONS = {
    "mean": torch.mean,
    "sum": torch.sum,
    "sum_axis": torch.sum,
    "max": torch.amax,
    "min": torch.amin,
}


@computes(*_REDUCTIONS)
def reduce(node: Node) -> Function:
    if node.flag("exclude", False):
        _refuse(node, "exclude=True")
    axes, keep = node.wholes("axis", ()), node.flag("keepdims", False)
    return partial(_reduce, by=_REDUCTIONS[node.op], axes=axes, keep=keep)


def _reduce(x: Tensor, *, by: Function, axes: Shape, keep: bool) -> Tensor:
    result = by(x, dim=axes or tuple(range(x.ndim)), keepdim=keep)
    return result if result.ndim else result.reshape(1)  # MXNet has no scalars


@computes("L2Normalization")
def l2_normalization(node: Node) -> Function:
    mode = node.text("mode", "instance")
    if mode not in ("instance", "channel", "spatial"):
        _refuse(node, f"mode {mode!r}")
    return partial(_l2_normalization, mode=mode, eps=node.number("eps", 1e-10))


def _l2_normalization(x: Tensor, *, mode: str, eps: float) -> Tensor:
    axes = {"instance": range(1, x.ndim), "channel": (1,), "spatial": range(2, x.ndim)}[mode]
    return x / torch.sqrt(x.square().sum(tuple(axes), keepdim=True) + eps)


# -- shapes ----------------------------------------------------------------------------------------------


@computes("Flatten", "flatten")
def flatten(node: Node) -> Function:
    return partial(torch.flatten, start_dim=1)


@computes("Reshape", "reshape")
def reshape(node: Node) -> Function:
    wanted = node.wholes("shape", ())
    if node.flag("reverse", False) or min(wanted, default=-9) < -1 or wanted.count(-1) > 1:
        _refuse(node, f"shape {wanted}")
    return partial(_reshape, wanted=wanted)


def _reshape(x: Tensor, *, wanted: Shape) -> Tensor:
    """0 copies the size of that axis, -1 infers one."""
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)])


@computes("transpose")
def transpose(node: Node) -> Function:
    return partial(_transpose, axes=node.wholes("axes", ()))


def _transpose(x: Tensor, *, axes: Shape) -> Tensor:
    return x.permute(axes or tuple(reversed(range(x.ndim))))


@computes("Concat", "concat")
def concat(node: Node) -> Function:
    return partial(_concat, axis=node.whole("dim", 1))


def _concat(*values: Tensor, axis: int) -> Tensor:
    return torch.cat(values, axis)


@computes("tile")
def tile(node: Node) -> Function:
    return partial(torch.tile, dims=node.wholes("reps", ()))


_PADDING = {"constant": "constant", "edge": "replicate", "reflect": "reflect"}


@computes("Pad", "pad")
def pad(node: Node) -> Function:
    widths, mode = node.wholes("pad_width", ()), node.text("mode", "")
    if mode not in _PADDING or len(widths) not in (6, 8, 10) or any(widths[:4] if mode != "constant" else ()):
        _refuse(node, f"mode {mode!r} with pad_width {widths}")
    # torch begins with the last axis; of edge and reflect, the batch and the channels are left out.
    pairs = [widths[i : i + 2] for i in range(0, len(widths), 2)][::-1]
    if mode != "constant":
        pairs = pairs[:-2]
    options = {"value": node.number("constant_value", 0.0)} if mode == "constant" else {}
    return partial(
        F.pad, pad=tuple(width for pair in pairs for width in pair), mode=_PADDING[mode], **options
    )


@computes("Dropout", by_mode=True)
def dropout(node: Node) -> Function:
    always = node.text("mode", "training") != "training"
    return partial(_dropout, p=node.number("p", 0.5), always=always)


def _dropout(x: Tensor, *, training: bool, p: float, always: bool) -> Tensor:
    return F.dropout(x, p, training or always)


@computes("_copy", "identity")
def copy(node: Node) -> Function:
    return _itself


@computes("Cast", "cast")
def cast(node: Node) -> Function:
    """Casts between float types fall away: which precision a layer has is autocast's to say."""
    if node.text("dtype", "") not in ("float16", "float32", "float64"):
        _refuse(node, f"a cast to {node.text('dtype', '')}")
    return _itself


def _itself(x: Tensor) -> Tensor:
    return x
