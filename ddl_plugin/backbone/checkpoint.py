"""Checkpoints of an embedding network in MXNet: read and checked, cut at fc1_output, saved whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddl_plugin.backbone.arrays import (
    IMAGE_SHAPE,
    Arrays,
    Shapes,
    backbone_arrays,
    digest,
    no_embedding,
    read_stored,
    require_emb_size,
    save_stored,
)
from ddl_plugin.backbone.networks import build_network
from ddl_plugin.backbone.symbol_json import symbol_json
from ddl_plugin.errors import UserError
from ddl_plugin.export.graph import EMBEDDING
from ddl_plugin.mxnet_setup import mx, symbol_from_json


@dataclass(frozen=True)
class Backbone:
    """An embedding network: `symbol` ends in fc1_output, `arg` and `aux` hold its arrays by name.

    `fc7` is the classifier (classes, emb_size) where the checkpoint had one.
    """

    symbol: mx.sym.Symbol
    arg: Arrays
    aux: Arrays
    emb_size: int
    source: str
    fc7: np.ndarray | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in self.arg.items()}


def load_backbone(
    checkpoint: str,
    *,
    network: str | None = None,
    emb_size: int | None = None,
    rename: Mapping[str, str] = {},
) -> Backbone:
    """Read 'PREFIX,EPOCH' or a folder of ours; `network` builds the graph anew instead of reading it.

    Every array must have its place in the graph and the other way round, after `rename` (name in the
    checkpoint -> name in the graph). Raises `UserError` naming what does not fit, or what is not finite,
    and where `emb_size` is given and the graph has another.
    """
    stored = read_stored(checkpoint, rename)
    path = stored.files.symbol
    symbol = _load_symbol(path) if network is None else _built(network, emb_size)
    wanted_arg, wanted_aux, size = expected_shapes(symbol, str(path) if network is None else network)
    require_emb_size(emb_size, size, path)
    arg, aux, fc7 = backbone_arrays(stored, wanted_arg, wanted_aux)
    return Backbone(symbol, arg, aux, size, stored.source, fc7)


def _load_symbol(path: Path) -> mx.sym.Symbol:
    try:
        return symbol_from_json(path.read_text(encoding="utf-8")).get_internals()[EMBEDDING]
    except mx.base.MXNetError as error:
        raise UserError(f"{path}: expected a graph of this MXNet's operators: {error}") from error


def _built(network: str, emb_size: int | None) -> mx.sym.Symbol:
    return symbol_from_json(symbol_json(build_network(network, emb_size)))


def new_backbone(network: str, emb_size: int | None, seed: int) -> Backbone:
    """A graph with random weights (He initialisation, as InsightFace's trainer)."""
    symbol = _built(network, emb_size)
    wanted_arg, wanted_aux, size = expected_shapes(symbol, network)
    mx.random.seed(seed)
    initializer = mx.init.Xavier(rnd_type="gaussian", factor_type="out", magnitude=2)
    attributes = symbol.attr_dict()

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        array = mx.nd.zeros(shape)
        initializer(mx.init.InitDesc(name, attributes.get(name, {})), array)
        return array.asnumpy()

    arg = {name: draw(name, shape) for name, shape in wanted_arg.items()}
    aux = {name: draw(name, shape) for name, shape in wanted_aux.items()}
    return Backbone(symbol, arg, aux, size, f"network {network!r} with random weights")


def expected_shapes(symbol: mx.sym.Symbol, source: str) -> tuple[Shapes, Shapes, int]:
    """Shapes of the parameters and of the auxiliary states by name, and the embedding's length.

    Raises `UserError` naming `source` where the graph does not make one vector of an image.
    """
    try:
        arg_shapes, out_shapes, aux_shapes = symbol.infer_shape(data=(1, *IMAGE_SHAPE))
        fits = out_shapes is not None and len(out_shapes[0]) == 2
    except (ValueError, mx.base.MXNetError):
        fits = False
    if not fits or "data" not in symbol.list_arguments():
        raise no_embedding(source)
    arg = dict(zip(symbol.list_arguments(), arg_shapes, strict=True))
    del arg["data"]
    return arg, dict(zip(symbol.list_auxiliary_states(), aux_shapes, strict=True)), out_shapes[0][1]


def save_backbone(
    prefix: str | os.PathLike, epoch: int, symbol: mx.sym.Symbol, arg: Arrays, aux: Arrays
) -> None:
    """Write PREFIX-symbol.json and PREFIX-%04d.params, each whole or not at all."""
    save_stored(prefix, epoch, symbol.tojson(), arg, aux)


def fingerprint(backbone: Backbone) -> str:
    """Hash of the graph and of every array's name and values, 16 hexadecimal digits."""
    return digest(backbone.symbol.tojson(), backbone.arg, backbone.aux)
