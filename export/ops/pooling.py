"""Pooling and reductions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ddl_plugin.export.graph import Node
from ddl_plugin.export.ops.builder import Builder, Shape, Tensor, require_nchw, show, spatial
from ddl_plugin.export.ops.registry import converts


def _pooled(size: int, kernel: int, stride: int, pad: int, full: bool) -> tuple[int, int]:
    """(output size, how far the last window reaches past the padded input) along one axis."""
    span = size + 2 * pad - kernel
    count = (-(-span // stride) if full else span // stride) + 1
    return count, max(0, (count - 1) * stride + kernel - size - 2 * pad)


@converts(
    "Pooling",
    to=("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool", "Pad"),
    takes="two spatial axes, NCHW; max and avg; valid and full",
)  # fmt: skip
def pooling(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    data = build.data(node, inputs[0], rank=4)
    kind, rule = node.text("pool_type", "max"), node.text("pooling_convention", "valid")
    require_nchw(build, node)
    if kind not in ("max", "avg"):
        build.refuse(node, f"pool_type {kind!r}")
    if node.flag("global_pool", False):
        op = "GlobalMaxPool" if kind == "max" else "GlobalAveragePool"
        return build.add(op, node.name, [data.name], (*data.shape[:2], 1, 1))
    if rule not in ("valid", "full"):
        build.refuse(node, f"pooling_convention {rule!r}")
    kernel, stride, pad = spatial(node, "kernel", 0), spatial(node, "stride", 1), spatial(node, "pad", 0)
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


_REDUCTIONS = {"mean": "ReduceMean", "max": "ReduceMax", "min": "ReduceMin"}


@converts(*_REDUCTIONS, to=_REDUCTIONS, takes="exclude=False")
def reduce(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    data = build.data(node, inputs[0])
    axes, keep = _reduced_axes(build, node, data.shape), node.flag("keepdims", False)
    shape = _reduced(data.shape, axes, keep)
    return build.add(_REDUCTIONS[node.op], node.name, [data.name], shape, axes=axes, keepdims=int(keep))


@converts("sum", "sum_axis", to="ReduceSum", takes="exclude=False")
def reduce_sum(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    data = build.data(node, inputs[0])
    axes, keep = _reduced_axes(build, node, data.shape), node.flag("keepdims", False)
    operands = [data.name, build.wholes(f"{node.name}_axes", axes)]
    shape = _reduced(data.shape, axes, keep)
    return build.add("ReduceSum", node.name, operands, shape, keepdims=int(keep))


@converts("L2Normalization", to=("ReduceSumSquare", "Add", "Sqrt", "Div"))
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
