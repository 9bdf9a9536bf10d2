"""Checkpoints of an embedding network for torch: MXNet's two files, read and written without MXNet."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ddl_plugin.backbone.arrays import (
    Arrays,
    backbone_arrays,
    digest,
    read_stored,
    require_emb_size,
    save_stored,
)
from ddl_plugin.backbone.networks import build_network
from ddl_plugin.backbone.symbol_json import symbol_json
from ddl_plugin.errors import UserError
from ddl_plugin.export.graph import Graph, is_state_dict, parse_symbol
from ddl_plugin.pytorch.network import Network, expected_shapes
from ddl_plugin.pytorch.state_dicts import from_state_dict, read_state_dict


@dataclass(frozen=True)
class Backbone:
    """An embedding network: `symbol` is the JSON of its graph, which ends in fc1_output; `arg` and `aux` hold its
    arrays by MXNet's names.

    `fc7` is the classifier (classes, emb_size) where the checkpoint had one.
    """

    symbol: str
    arg: Arrays
    aux: Arrays
    emb_size: int
    source: str
    fc7: np.ndarray | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in self.arg.items()}

    @property
    def graph(self) -> Graph:
        return parse_symbol(self.symbol, self.source)

    def network(self, *, bn_frozen: bool = False) -> Network:
        """The torch module, on the CPU, in float32 and in training mode."""
        return Network(self.graph, self.arg, self.aux, bn_frozen=bn_frozen)


def load_backbone(
    checkpoint: str,
    *,
    network: str | None = None,
    emb_size: int | None = None,
    rename: Mapping[str, str] = {},
) -> Backbone:
    """Read 'PREFIX,EPOCH', a folder of ours, or a state dict of arcface_torch (.pth, .pt); `network` builds the graph
    anew instead of reading it.

    Every array must have its place in the graph and the other way round, after `rename` (name in the
    checkpoint -> name in the graph). Raises `UserError` naming what does not fit, what is not finite or an operator
    that is not supported, and where `emb_size` is given and the graph has another.
    """
    if is_state_dict(checkpoint):
        return _from_torch(checkpoint, network, emb_size, rename)
    stored = read_stored(checkpoint, rename)
    path = stored.files.symbol
    graph = stored.graph if network is None else build_network(network, emb_size)
    given = {name: array.shape for name, array in stored.arg.items()}
    wanted = expected_shapes(graph, str(path) if network is None else network, given)
    require_emb_size(emb_size, wanted.emb_size, path)
    arg, aux, fc7 = backbone_arrays(stored, wanted.arg, wanted.aux)
    return Backbone(symbol_json(graph), arg, aux, wanted.emb_size, stored.source, fc7)


def _from_torch(path: str, network: str | None, emb_size: int | None, rename: Mapping[str, str]) -> Backbone:
    if network is not None:
        raise UserError(
            f"network: expected none with the state dict {path}, which tells its own, got {network!r}"
        )
    graph, arg, aux = from_state_dict(read_state_dict(path), path, rename)
    size = expected_shapes(graph, path).emb_size
    require_emb_size(emb_size, size, path)
    return Backbone(symbol_json(graph), arg, aux, size, path)


def new_backbone(network: str, emb_size: int | None, seed: int) -> Backbone:
    """A graph with random weights: He initialisation, as InsightFace's trainer; a pure function of its arguments."""
    graph = build_network(network, emb_size)
    wanted = expected_shapes(graph, network)
    attributes = {node.name: node.text("__init__", "") for node in graph.nodes if node.op == "null"}
    rng = np.random.default_rng(seed)
    arg, aux = (
        {name: _initial(name, attributes[name], shape, rng) for name, shape in shapes.items()}
        for shapes in (wanted.arg, wanted.aux)
    )
    return Backbone(symbol_json(graph), arg, aux, wanted.emb_size, f"network {network!r} with random weights")


def _initial(name: str, stated: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """By what the variable states, or by the end of its name, as MXNet's initialisers."""
    if stated:
        kind, options = json.loads(stated)
        value = {"zero": 0.0, "one": 1.0}.get(kind.lower(), options.get("value"))
        return np.full(shape, value, np.float32)
    if name.endswith("_weight"):
        fan_out = shape[0] * int(np.prod(shape[2:]))
        return rng.normal(0, np.sqrt(2 / fan_out), shape).astype(np.float32)
    return np.full(shape, float(name.endswith("_gamma")), np.float32)


def save_backbone(prefix: str | os.PathLike, epoch: int, backbone: Backbone) -> None:
    """Write PREFIX-symbol.json and PREFIX-%04d.params, which MXNet reads too, each whole or not at all."""
    save_stored(prefix, epoch, backbone.symbol, backbone.arg, backbone.aux)


def fingerprint(backbone: Backbone) -> str:
    """Hash of the graph and of every array's name and values, 16 hexadecimal digits; MXNet's backend has the same."""
    return digest(backbone.symbol, backbone.arg, backbone.aux)
