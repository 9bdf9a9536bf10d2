"""MXNet's operators in ONNX, one small function each, registered under MXNet's names in `OPERATORS`.

A function takes the node, its inputs and the `Builder`, adds ONNX nodes and returns the resulting `Tensor`. What it may
write and what it takes stands beside its name, and nowhere else: the coverage table is made of it.
"""

from ddl_plugin.export.ops import activations, arithmetic, layers, pooling, shapes
from ddl_plugin.export.ops.builder import Builder, Shape, Tensor, show
from ddl_plugin.export.ops.registry import OPERATORS, Operator

#: Operators whose result at the input is its shift or scale.
SCALAR_OPS = arithmetic.SCALAR_OPS

__all__ = [
    "OPERATORS",
    "SCALAR_OPS",
    "Builder",
    "Operator",
    "Shape",
    "Tensor",
    "activations",
    "arithmetic",
    "layers",
    "pooling",
    "shapes",
    "show",
]
