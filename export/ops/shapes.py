"""Operators that move values about, and those that fall away."""

from __future__ import annotations

import math

from ddl_plugin.export.graph import Node
from ddl_plugin.export.ops.builder import Builder, Tensor, show
from ddl_plugin.export.ops.registry import converts


def flattened(build: Builder, name: str, data: Tensor) -> Tensor:
    return build.add("Flatten", name, [data.name], (data.shape[0], math.prod(data.shape[1:])), axis=1)


@converts("Flatten", "flatten", to="Flatten")
def flatten(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    data = build.data(node, inputs[0])
    return data if len(data.shape) == 2 else flattened(build, node.name, data)


@converts("Reshape", "reshape", to="Reshape", takes="sizes, 0 and one -1; the batch axis stays the first")
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


@converts("transpose", to="Transpose", takes="the batch axis stays the first")
def transpose(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    data = build.data(node, inputs[0])
    order = node.wholes("axes", tuple(reversed(range(len(data.shape)))))
    if order[0] != 0:
        build.refuse(node, f"axes {order}, which move the batch axis,")
    return build.add("Transpose", node.name, [data.name], tuple(data.shape[i] for i in order), perm=order)


@converts("Concat", "concat", to="Concat", takes="not along the batch axis")
def concat(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    first, axis = inputs[0].shape, node.whole("dim", 1) % len(inputs[0].shape)
    for tensor in inputs:
        same = len(tensor.shape) == len(first)
        if axis == 0 or not same or any(tensor.shape[i] != first[i] for i in range(len(first)) if i != axis):
            build.refuse(node, f"shapes {', '.join(show(t.shape) for t in inputs)} along axis {axis}")
    shape = (*first[:axis], sum(tensor.shape[axis] for tensor in inputs), *first[axis + 1 :])
    return build.add("Concat", node.name, [build.use(tensor) for tensor in inputs], shape, axis=axis)


@converts("tile", to="Tile", takes="not along the batch axis")
def tile(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    data, reps = build.data(node, inputs[0]), node.wholes("reps", ())
    reps = (1,) * (len(data.shape) - len(reps)) + reps
    if len(reps) > len(data.shape) or reps[0] != 1:
        build.refuse(node, f"reps {reps} of {show(data.shape)}")
    sizes = tuple(size * times for size, times in zip(data.shape[1:], reps[1:], strict=True))
    operands = [data.name, build.wholes(f"{node.name}_reps", reps)]
    return build.add("Tile", node.name, operands, (data.shape[0], *sizes))


@converts("Pad", "pad", to="Pad", takes="not along the batch axis; mode constant, edge, reflect")
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


@converts("Dropout", to=(), takes="mode training")
def dropout(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    if node.text("mode", "training") != "training":
        build.refuse(node, f"mode {node.text('mode', '')!r}, which drops at inference too,")
    return inputs[0]


@converts("_copy", "identity", "BlockGrad", "stop_gradient", to=())
def dropped(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    """They do nothing at inference: the input takes their place, so that no Identity nodes are left."""
    return inputs[0]


@converts("Cast", "cast", to=(), takes="between float types")
def cast(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    """Casts between float types belong to mixed-precision training; the exported graph is float32 throughout."""
    dtype = node.text("dtype", "")
    if dtype not in ("float16", "float32", "float64"):
        build.refuse(node, f"a cast to {dtype}")
    return inputs[0]
