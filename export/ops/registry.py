"""Which MXNet operators are taken, what they become and on what condition: one entry each, beside its function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ddl_plugin.export.graph import Node
from ddl_plugin.export.ops.builder import Builder, Tensor

Converter = Callable[[Builder, Node, list[Tensor]], Tensor]


@dataclass(frozen=True)
class Operator:
    """How one MXNet operator is converted."""

    convert: Converter
    becomes: tuple[str, ...]  # every ONNX operator that it may write; () for one that falls away
    takes: str  # what it is limited to, in words; '' where every use is taken


OPERATORS: dict[str, Operator] = {}


def converts(
    *names: str, to: str | Sequence[str] | Mapping[str, str], takes: str = ""
) -> Callable[[Converter], Converter]:
    """Register a function for the MXNet operators of these names.

    to: the ONNX operators it may write, or {MXNet's name: the ONNX operator}. takes: its conditions.
    """

    def register(function: Converter) -> Converter:
        for name in names:
            becomes = to[name] if isinstance(to, Mapping) else to
            OPERATORS[name] = Operator(
                function, (becomes,) if isinstance(becomes, str) else tuple(becomes), takes
            )
        return function

    return register
