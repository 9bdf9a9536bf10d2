"""Whether two models are the same graph: only weights differ, and names that nobody outside the graph sees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from ddl_plugin.errors import CheckError
from ddl_plugin.evaluation.onnx_model import normalises_itself


class _DepartsError(Exception):
    """The first difference, in words."""


class _Names:
    """A one-to-one renaming of one model's inner names to the other's, found while both are walked."""

    def __init__(self, fixed: set[str]):
        self.forward = {name: name for name in fixed}
        self.backward = dict(self.forward)

    def agree(self, first: str, second: str) -> bool:
        """Whether `first` may be `second`: both new, or already each other's."""
        return (
            self.forward.setdefault(first, second) == second
            and self.backward.setdefault(second, first) == first
        )

    @property
    def renamed(self) -> dict[str, str]:
        return {first: second for first, second in self.forward.items() if first != second}


def _value_info(values: Any) -> list[str]:
    """Inputs or outputs as 'name type[shape]'."""
    described = []
    for value in values:
        tensor = value.type.tensor_type
        shape = ", ".join(dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim)
        described.append(f"{value.name} {onnx.TensorProto.DataType.Name(tensor.elem_type)}[{shape}]")
    return described


def _attributes(node: onnx.NodeProto) -> list[str]:
    return [
        f"{a.name}={onnx.helper.get_attribute_value(a)}" for a in sorted(node.attribute, key=lambda a: a.name)
    ]


def _node_text(node: onnx.NodeProto) -> str:
    return (
        f"{node.op_type}({', '.join(_attributes(node))}) {node.name!r} from {', '.join(node.input)} "
        f"to {', '.join(node.output)}"
    )


def _tensor_text(tensor: onnx.TensorProto) -> str:
    """Type and shape; the value as well where it is no weight (scalars, shapes, axes)."""
    text = f"{onnx.TensorProto.DataType.Name(tensor.data_type)}{list(tensor.dims)}"
    whole = tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
    return f"{text} = {numpy_helper.to_array(tensor).tolist()}" if whole or not tensor.dims else text


def _same(what: str, first: list[str], second: list[str]) -> None:
    for a, b in zip(first, second, strict=False):
        if a != b:
            raise _DepartsError(f"{what}: {a} against {b}")
    if len(first) != len(second):
        raise _DepartsError(f"{len(first)} {what} against {len(second)}")


def _compare_node(place: int, a: onnx.NodeProto, b: onnx.NodeProto, values: _Names, nodes: _Names) -> None:
    alike = (
        (a.op_type, a.domain, _attributes(a)) == (b.op_type, b.domain, _attributes(b))
        and len(a.input) == len(b.input)
        and len(a.output) == len(b.output)
        and nodes.agree(a.name, b.name)
        and all(map(values.agree, [*a.input, *a.output], [*b.input, *b.output]))
    )
    if not alike:
        raise _DepartsError(f"node {place}: {_node_text(a)} against {_node_text(b)}")


def _compare(model: onnx.ModelProto, base: onnx.ModelProto) -> tuple[_Names, _Names]:
    """The renamings of values and nodes; _DepartsError at the first difference."""
    a, b = model.graph, base.graph
    _same(
        "operator sets",
        *([f"{x.domain or 'ai.onnx'} {x.version}" for x in m.opset_import] for m in (model, base)),
    )
    _same("inputs", _value_info(a.input), _value_info(b.input))
    _same("outputs", _value_info(a.output), _value_info(b.output))
    values = _Names({"", *(value.name for value in (*a.input, *a.output))})
    nodes = _Names({""})
    for place, (first, second) in enumerate(zip(a.node, b.node, strict=False), 1):
        _compare_node(place, first, second, values, nodes)
    _same("nodes", [""] * len(a.node), [""] * len(b.node))
    if normalises_itself(a.node) != normalises_itself(b.node):
        raise _DepartsError(
            "only one bears the node names by which insightface sees that it normalises its input"
        )
    for first, second in zip(a.initializer, b.initializer, strict=False):
        if not values.agree(first.name, second.name):
            raise _DepartsError(
                f"initializer {first.name} against {second.name}: not in the same place of the same nodes' inputs"
            )
        if _tensor_text(first) != _tensor_text(second):
            raise _DepartsError(
                f"initializer {first.name} {_tensor_text(first)} against {second.name} {_tensor_text(second)}"
            )
    _same("initializers", [""] * len(a.initializer), [""] * len(b.initializer))
    return values, nodes


def same_graph(model: onnx.ModelProto, base: onnx.ModelProto) -> list[str]:
    """The first difference of two models beside their weights, in words; empty when there is none.

    Compared in order: operator sets, inputs, outputs, nodes (operator, attributes, edges) and initializers (type,
    shape, and the value of those that are no weights, such as the input's mean and scale). Inner names may differ
    where one model's map one to one to the other's; those of inputs and outputs may not.
    """
    try:
        _compare(model, base)
    except _DepartsError as error:
        return [str(error)]
    return []


def check_same_graph(model: onnx.ModelProto, base: onnx.ModelProto, base_name: str) -> dict[str, Any]:
    """What was compared, and the names that differ; CheckError naming the first node that departs, both sides."""
    try:
        values, nodes = _compare(model, base)
    except _DepartsError as error:
        raise CheckError(f"the graph is not that of {base_name}: {error}") from None
    return {
        "base": base_name,
        "identical": True,
        "nodes": len(model.graph.node),
        "initializers": len(model.graph.initializer),
        "values": sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer),
        # base's name first, as one reads "what was ... is now ..."
        "renamed": [f"{old} -> {new}" for old, new in _pairs(values, nodes)],
    }


def _pairs(values: _Names, nodes: _Names) -> Iterator[tuple[str, str]]:
    seen = {}
    for names in (values, nodes):
        seen.update({(second, first): None for first, second in names.renamed.items()})
    yield from seen
