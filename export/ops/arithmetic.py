"""Arithmetic of two values, of several, and with a scalar."""

from __future__ import annotations

from ddl_plugin.export.graph import Node
from ddl_plugin.export.ops.builder import Builder, Shape, Tensor, show
from ddl_plugin.export.ops.registry import converts


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


@converts(*_BINARY_OF, to=_BINARY_OF)
def binary(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    first, second = inputs
    shape = _broadcast(build, node, first.shape, second.shape)
    return build.add(_BINARY_OF[node.op], node.name, [build.use(first), build.use(second)], shape)


@converts("add_n", "ElementWiseSum", to="Sum")
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


@converts(*_SCALAR, to={name: op for name, (op, _) in _SCALAR.items()})
def scalar_arithmetic(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    op, scalar_first = _SCALAR[node.op]
    scalar = build.scalar(f"{node.name}_scalar", node.number("scalar", 0.0))
    operands = [build.use(inputs[0]), scalar]
    return build.add(op, node.name, operands[::-1] if scalar_first else operands, inputs[0].shape)
