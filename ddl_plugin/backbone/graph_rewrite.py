"""Rewrites of a symbol's JSON that leave parameters, names and values as they are.

MXNet's PReLU backward on the CPU takes four fifths of a MobileFaceNet training step. PReLU is also
gamma * x + (1 - gamma) * relu(x), and a per-channel product is a depthwise 1x1 convolution: operators that
oneDNN has, all of them, so that no array leaves its layout in between (x - relu(x), one operator less, is
not oneDNN's and costs more time and twice the memory). Values and gradients are the same within float32
rounding. Only the graph that trains is rewritten; checkpoints are saved with the original symbol.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ddl_plugin.mxnet_setup import mx

Node = dict[str, Any]


def with_fast_prelu(symbol: mx.sym.Symbol, shapes: Mapping[str, tuple[int, ...]]) -> mx.sym.Symbol:
    """Replace every PReLU on feature maps by relu and two depthwise convolutions.

    `shapes` holds the shape (C,) of each slope, by name. A PReLU with one slope for all channels, or on
    vectors, stays: neither is a depthwise convolution, nor slow.
    """

    def replace(graph: _Rebuilt, node: Node, inputs: list[list[int]]) -> int | None:
        if node["op"] != "LeakyReLU" or _attributes(node).get("act_type") != "prelu":
            return None
        x, slope = inputs
        slope_node = graph.nodes[slope[0]]
        channels = shapes[slope_node["name"]][0]
        if channels == 1 or not graph.is_feature_map(x):
            return None
        # Shape inference does not run backwards through Reshape, so the slope states its own.
        slope_node.setdefault("attrs", {})["__shape__"] = str((channels,))
        name = node["name"]
        weight = graph.add("Reshape", f"{name}_slope", [slope], shape="(-1, 1, 1, 1)")
        rest = graph.add("_rminus_scalar", f"{name}_rest", [weight], scalar="1")
        relu = graph.add("Activation", f"{name}_positive", [x], act_type="relu")

        def scaled(part: str, values: list[int], by: list[int]) -> list[int]:
            return graph.add(
                "Convolution", f"{name}_{part}", [values, by], kernel="(1, 1)", no_bias="True",
                num_filter=str(channels), num_group=str(channels),
            )  # fmt: skip

        parts = [scaled("scaled", x, weight), scaled("scaled_positive", relu, rest)]
        return graph.add("elemwise_add", name, parts)[0]

    return _rewrite(symbol, replace)


def with_frozen_batchnorm(symbol: mx.sym.Symbol) -> mx.sym.Symbol:
    """Let every BatchNorm use its moving statistics in training too, and so keep them as they are."""

    def replace(graph: _Rebuilt, node: Node, inputs: list[list[int]]) -> int | None:
        if node["op"] != "BatchNorm":
            return None
        attributes = {**_attributes(node), "use_global_stats": "True"}
        return graph.add(node["op"], node["name"], inputs, **attributes)[0]

    return _rewrite(symbol, replace)


def _attributes(node: Node) -> dict[str, str]:
    return node.get("attrs", {})  # `tojson` writes no older names


class _Rebuilt:
    """The node list under construction."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def add(self, op: str, name: str, inputs: list[list[int]], /, **attributes: str) -> list[int]:
        node: Node = {"op": op, "name": name, "inputs": inputs}
        if attributes:
            node["attrs"] = attributes
        self.nodes.append(node)
        return [len(self.nodes) - 1, 0, 0]

    def is_feature_map(self, entry: list[int]) -> bool:
        """Whether an entry is (n, C, H, W), told from the nearest layer before it that settles it."""
        node = self.nodes[entry[0]]
        while node["op"] not in ("FullyConnected", "Flatten", "Convolution", "Pooling", "null"):
            node = self.nodes[node["inputs"][0][0]]
        return node["op"] not in ("FullyConnected", "Flatten")


def _rewrite(
    symbol: mx.sym.Symbol, replace: Callable[[_Rebuilt, Node, list[list[int]]], int | None]
) -> mx.sym.Symbol:
    """Copy the graph node by node; `replace` returns the new node's number, or None to copy."""
    old = json.loads(symbol.tojson())
    graph, moved = _Rebuilt(), {}
    for number, node in enumerate(old["nodes"]):
        inputs = [[moved[i], *rest] for i, *rest in node["inputs"]]
        new = replace(graph, node, inputs)
        if new is None:
            new = graph.add(node["op"], node["name"], inputs, **_attributes(node))[0]
        moved[number] = new
    return mx.sym.load_json(
        json.dumps(
            {
                "nodes": graph.nodes,
                "arg_nodes": [i for i, n in enumerate(graph.nodes) if n["op"] == "null"],
                "heads": [[moved[i], *rest] for i, *rest in old["heads"]],
                "attrs": old.get("attrs", {}),
            }
        )
    )
