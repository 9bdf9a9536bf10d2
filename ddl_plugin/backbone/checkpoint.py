"""Checkpoints of an embedding network: read and checked, cut at fc1_output, saved whole or not at all."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddl_plugin.backbone.networks import build_network
from ddl_plugin.errors import UserError
from ddl_plugin.export.graph import EMBEDDING, find_checkpoint, load_symbol
from ddl_plugin.export.graph import cut as cut_graph
from ddl_plugin.export.params import load_params, save_params
from ddl_plugin.files import write_text
from ddl_plugin.mxnet_setup import mx

IMAGE_SHAPE = (3, 112, 112)

Arrays = dict[str, np.ndarray]


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
    checkpoint -> name in the graph). Raises `UserError` naming what does not fit, or what is not finite.
    """
    found = find_checkpoint(checkpoint)
    graph = load_symbol(found.symbol)
    cut_graph(graph)  # names the candidates where there is no fc1_output
    arg, aux = load_params(found.params)
    source = str(found.params)
    arg, aux = renamed(arg, rename, source), renamed(aux, rename, source)
    if network is None:
        symbol = mx.sym.load(str(found.symbol)).get_internals()[EMBEDDING]
    else:
        symbol = build_network(network, emb_size)
    wanted_arg, wanted_aux, size = expected_shapes(symbol)
    # What trained beside the backbone (classifier, loss heads) belongs to the file's own graph.
    heads = set(graph.variables) - set(symbol.list_inputs()) if network is None else set()
    heads |= {name for name in arg if name.startswith("fc7")}
    backbone_arg = {name: array for name, array in arg.items() if name not in heads}
    require_match(wanted_arg, backbone_arg, source)
    require_match(wanted_aux, {n: a for n, a in aux.items() if n not in heads}, source)
    aux = {name: aux[name] for name in wanted_aux}
    require_finite({**backbone_arg, **aux}, source)
    return Backbone(symbol, backbone_arg, aux, size, source, arg.get("fc7_weight"))


def new_backbone(network: str, emb_size: int | None, seed: int) -> Backbone:
    """A graph with random weights (He initialisation, as InsightFace's trainer)."""
    symbol = build_network(network, emb_size)
    wanted_arg, wanted_aux, size = expected_shapes(symbol)
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


def expected_shapes(
    symbol: mx.sym.Symbol,
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]], int]:
    """Shapes of the parameters and of the auxiliary states by name, and the embedding's length."""
    arg_shapes, out_shapes, aux_shapes = symbol.infer_shape(data=(1, *IMAGE_SHAPE))
    arg = dict(zip(symbol.list_arguments(), arg_shapes, strict=True))
    del arg["data"]
    return arg, dict(zip(symbol.list_auxiliary_states(), aux_shapes, strict=True)), out_shapes[0][1]


def renamed(arrays: Arrays, rename: Mapping[str, str], source: str) -> Arrays:
    """`arrays` with the names of `rename` changed where they occur."""
    result = {rename.get(name, name): array for name, array in arrays.items()}
    if len(result) != len(arrays):
        raise UserError(f"rename: two arrays of {source} would get the same name; rename is {dict(rename)}")
    return result


def require_match(wanted: Mapping[str, tuple[int, ...]], given: Arrays, source: str) -> None:
    """Raise `UserError` unless `given` holds exactly the names and shapes of `wanted`."""
    for name in wanted.keys() & given.keys():
        if given[name].shape != wanted[name]:
            raise UserError(
                f"{source}: array {name!r}: expected the graph's shape {wanted[name]}, got {given[name].shape}; "
                f"is this the checkpoint of another network or embedding size?"
            )
    missing, extra = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing:
        name, shape = missing[0], wanted[missing[0]]
        raise UserError(
            f"{source}: no array for {name!r} {shape} of the graph"
            f"{_and_more(missing)}{_likely(name, [e for e in extra if given[e].shape == shape], forward=False)}"
        )
    if extra:
        name, shape = extra[0], given[extra[0]].shape
        raise UserError(
            f"{source}: array {name!r} {shape} has no place in the graph"
            f"{_and_more(extra)}{_likely(name, [m for m in wanted if wanted[m] == shape], forward=True)}"
        )


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _likely(name: str, candidates: list[str], *, forward: bool) -> str:
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.4) or candidates[:1]
    if not close:
        return "; no array of that shape is left over: is this the checkpoint of another network?"
    old, new = (name, close[0]) if forward else (close[0], name)
    return (
        f"; likely match {close[0]!r}: set rename = {{{old!r}: {new!r}}} in the recipe if they are the same"
    )


def require_finite(arrays: Mapping[str, np.ndarray], source: str) -> None:
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            bad = int((~np.isfinite(array)).sum())
            raise UserError(
                f"{source}: array {name!r} holds {bad} NaN or infinite values of {array.size}; "
                f"expected finite weights: take an earlier checkpoint"
            )


def save_backbone(
    prefix: str | os.PathLike, epoch: int, symbol: mx.sym.Symbol, arg: Arrays, aux: Arrays
) -> None:
    """Write PREFIX-symbol.json and PREFIX-%04d.params, each whole or not at all."""
    prefix = Path(prefix)
    write_text(f"{prefix}-symbol.json", symbol.tojson())
    save_params(f"{prefix}-{epoch:04d}.params", arg, aux)
