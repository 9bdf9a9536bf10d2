"""What the operators write into: the ONNX nodes and initializers of a graph under construction.

Shapes are known throughout: the batch axis is None, every other axis a number. That is what lets a weight of the
wrong shape be refused by name, and what MXNet's implicit flattening and (C,) PReLU slopes need.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from onnx import NodeProto, helper

from ddl_plugin.errors import UserError
from ddl_plugin.export.graph import Graph, Node

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Tensor:
    """A value of the ONNX graph. `array` is set for parameters, which enter the file only where they are used."""

    name: str
    shape: Shape
    array: np.ndarray | None = None


class Builder:
    """Collects ONNX nodes and initializers in order, with unique names; `reserved` ones are the parameters'.

    graph: what is converted; `index` is the node's that is being converted. params: where its parameters were read.
    spare: arrays of the checkpoint that the graph does not name.
    """

    def __init__(self, graph: Graph, params: str, reserved: set[str], spare: Mapping[str, np.ndarray]):
        self.graph = graph
        self.params = params
        self.spare = spare
        self.index = 0
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
        raise UserError(
            f"{self.graph.source}: node {node.name!r} ({node.op}): {what} cannot be converted; "
            f"it is {self.graph.place(self.index)}"
        )

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
            fitting = [name for name, array in self.spare.items() if array.shape == shape]
            near = difflib.get_close_matches(tensor.name, fitting, n=1)
            remedy = f"did you mean {near[0]!r}" if near else "does it belong to this symbol and image size"
            raise UserError(
                f"{self.params}: array {tensor.name!r}: expected shape {show(shape)} for node {node.name!r} "
                f"({node.op}), got {show(tensor.array.shape)}; {remedy}?"
            )
        return tensor.array


def show(shape: Shape) -> str:
    """A shape as text, with N for the batch."""
    return "(" + ", ".join("N" if size is None else str(size) for size in shape) + ")"


def spatial(node: Node, key: str, default: int) -> tuple[int, int]:
    """An attribute with one number for each of the two spatial axes."""
    pair = node.wholes(key, (default, default))
    if len(pair) != 2:
        raise UserError(f"node {node.name!r} ({node.op}): {key}: expected two numbers, got {pair}")
    return pair


def require_nchw(build: Builder, node: Node) -> None:
    """Refuse every other order of axes."""
    layout = node.text("layout", "NCHW")
    if layout != "NCHW":
        build.refuse(node, f"layout {layout}")
