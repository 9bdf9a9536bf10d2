"""A graph as MXNet's own `tojson` writes it, without MXNet: same text, and therefore the same fingerprint."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from ddl_plugin.export.graph import Graph, Node

#: The version of MXNet whose text this is, as its JSON counts: nothing of it is upgraded on loading.
_VERSION = 10901

#: Operator -> which of its inputs are auxiliary states: BatchNorm's moving mean and variance.
STATES = dict.fromkeys(("BatchNorm", "BatchNorm_v1", "_contrib_SyncBatchNorm"), (3, 4))

#: Operators with more than one output, hidden ones included; the text counts them.
_OUTPUTS = {
    "BatchNorm": 3, "BatchNorm_v1": 3, "_contrib_SyncBatchNorm": 3,
    "Dropout": 2, "L2Normalization": 2,
}  # fmt: skip

#: What MXNet before 1.0 wrote without underscores, and renames on loading such a file.
_HIDDEN = ("ctx_group", "lr_mult", "wd_mult", "force_mirroring", "mirror_stage", "profiler_scope")


def symbol_json(graph: Graph) -> str:
    """The text that `mx.sym.load` and `parse_symbol` read; nodes in MXNet's order (each after its inputs, depth first)."""
    order = _depth_first(graph)
    place = {old: new for new, old in enumerate(order)}
    nodes = [graph.nodes[old] for old in order]

    def entry(of: tuple[int, int], version: int = 0) -> str:
        return f"[{place[of[0]]}, {of[1]}, {version}]"

    texts = []
    for node in nodes:
        attributes = f'\n      "attrs": {_attributes(node.attrs)}, ' if node.attrs else ""
        texts.append(
            f'    {{\n      "op": {_quoted(node.op)}, \n      "name": {_quoted(node.name)}, {attributes}'
            f'\n      "inputs": {_listed(map(entry, node.inputs, _versions(node)), 6)}\n    }}'
        )
    variables = [number for number, node in enumerate(nodes) if node.op == "null"]
    outputs = accumulate(map(_outputs, nodes), initial=0)
    return (
        '{\n  "nodes": [\n' + ", \n".join(texts) + "\n  ], \n"
        f'  "arg_nodes": {_listed(map(str, variables), 2)}, \n  "node_row_ptr": {_listed(map(str, outputs), 2)}, \n'
        f'  "heads": {_listed(map(entry, graph.heads), 2)}, \n'
        f'  "attrs": {{"mxnet_version": ["int", {_VERSION}]}}\n}}'
    )


def _depth_first(graph: Graph) -> list[int]:
    """Numbers of the nodes that the heads need, every node after its inputs, those in their order."""
    order, seen = [], set()
    stack = [(head, False) for head, _ in reversed(graph.heads)]
    while stack:
        number, complete = stack.pop()
        if complete:
            order.append(number)
        elif number not in seen:
            seen.add(number)
            stack.append((number, True))
            stack += [(source, False) for source, _ in reversed(graph.nodes[number].inputs)]
    return order


def _outputs(node: Node) -> int:
    if node.op == "Pooling":  # oneDNN, with which MXNet is built, keeps where each maximum was
        return 2 if node.text("pool_type", "max") == "max" else 1
    return _OUTPUTS.get(node.op, 1)


def _versions(node: Node) -> list[int]:
    """1 for what the operator writes to, its moving statistics."""
    return [int(i in STATES.get(node.op, ())) for i in range(len(node.inputs))]


def _attributes(attributes: Mapping[str, str]) -> str:
    named = {f"__{key}__" if key in _HIDDEN else key: value for key, value in attributes.items()}
    items = [f"{_quoted(key)}: {_quoted(named[key])}" for key in sorted(named)]
    if len(items) == 1:
        return f"{{{items[0]}}}"
    return "{\n" + ", \n".join(f"        {item}" for item in items) + "\n      }"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _listed(items: Iterable[str], indent: int) -> str:
    """More than ten items have a line each."""
    items = list(items)
    if len(items) <= 10:
        return f"[{', '.join(items)}]"
    space = " " * indent
    return "[\n" + ", \n".join(f"{space}  {item}" for item in items) + f"\n{space}]"


#: How `mx.sym` calls the operators that Python's signs stand for.
_UNNAMED = {"_minus_scalar": "_minusscalar", "_mul_scalar": "_mulscalar", "elemwise_add": "_plus"}


class GraphBuilder:
    """Collects operators, and the variables that they bring, under the names that `mx.sym` gives them.

    A value is the number of its node. A builder names unnamed operators from 0, as a fresh process does.
    """

    def __init__(self, source: str):
        self._source = source
        self._nodes: list[Node] = []
        self._unnamed: dict[str, int] = {}

    def variable(self, name: str, attributes: Mapping[str, str] = {}) -> int:
        self._nodes.append(Node(name, "null", dict(attributes), ()))
        return len(self._nodes) - 1

    def add(
        self,
        op: str,
        inputs: Sequence[int],
        *,
        name: str | None = None,
        parameters: Mapping[str, Mapping[str, str]] = {},
        **attributes: object,
    ) -> int:
        """One operator. `parameters`: suffix of each variable that it brings -> what more that variable says of itself.

        A variable has its operator's attributes too, as those have that `mx.sym` makes by itself.
        """
        if name is None:
            prefix = _UNNAMED[op]
            name = f"{prefix}{self._unnamed.get(op, 0)}"
            self._unnamed[op] = self._unnamed.get(op, 0) + 1
        texts = {key: str(value) for key, value in attributes.items()}
        own = [self.variable(f"{name}_{suffix}", {**texts, **more}) for suffix, more in parameters.items()]
        entries = tuple((number, 0) for number in (*inputs, *own))
        self._nodes.append(Node(name, op, texts, entries))
        return len(self._nodes) - 1

    def graph(self, head: int) -> Graph:
        return Graph(tuple(self._nodes), ((head, 0),), self._source)

    # -- the layers of our networks; `attributes` are what more an operator says of itself -----------------

    def convolution(
        self, x: int, name: str, filters: int, kernel: int, stride: int = 1, pad: int = 0, groups: int = 1,
        **attributes: object,
    ) -> int:  # fmt: skip
        return self.add(
            "Convolution", [x], name=name, parameters={"weight": {}},
            kernel=(kernel, kernel), no_bias=True, num_filter=filters, num_group=groups, pad=(pad, pad),
            stride=(stride, stride), **attributes,
        )  # fmt: skip

    def batch_norm(self, x: int, name: str, **attributes: object) -> int:
        states = {"moving_mean": {"__init__": '["zero", {}]'}, "moving_var": {"__init__": '["one", {}]'}}
        return self.add(
            "BatchNorm", [x], name=name, parameters={"gamma": {}, "beta": {}, **states}, **attributes
        )

    def prelu(self, x: int, name: str, **attributes: object) -> int:
        slope = {"__init__": '["Constant", {"value": 0.25}]'}
        return self.add(
            "LeakyReLU", [x], name=name, parameters={"gamma": slope}, act_type="prelu", **attributes
        )

    def fully_connected(
        self, x: int, name: str, hidden: int, *, bias: bool = True, **attributes: object
    ) -> int:
        if bias:
            parameters = {"weight": {}, "bias": {}}
        else:
            parameters, attributes = {"weight": {}}, {"no_bias": True, **attributes}
        return self.add(
            "FullyConnected", [x], name=name, parameters=parameters, num_hidden=hidden, **attributes
        )
