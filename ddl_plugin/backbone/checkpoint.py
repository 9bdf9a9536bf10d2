"""Checkpoints of an embedding network: read and checked, cut at fc1_output, saved whole or not at all."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddl_plugin.backbone.networks import build_network
from ddl_plugin.errors import UserError, did_you_mean
from ddl_plugin.export.graph import EMBEDDING, find_checkpoint, load_symbol
from ddl_plugin.export.graph import cut as cut_graph
from ddl_plugin.export.params import load_params, save_params
from ddl_plugin.files import write_text
from ddl_plugin.mxnet_setup import mx, symbol_from_json

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
    checkpoint -> name in the graph). Raises `UserError` naming what does not fit, or what is not finite,
    and where `emb_size` is given and the graph has another.
    """
    found = find_checkpoint(checkpoint)
    graph = load_symbol(found.symbol)
    inner = cut_graph(graph)  # names the candidates where there is no fc1_output
    arg, aux = load_params(found.params)
    source = str(found.params)
    for name in rename.keys() - arg.keys() - aux.keys():
        raise UserError(f"rename: no array {name!r} in {source}{did_you_mean(name, (*arg, *aux))}")
    arg, aux = renamed(arg, rename, source), renamed(aux, rename, source)
    if network is None:
        symbol = _load_symbol(found.symbol)
    else:
        symbol = build_network(network, emb_size)
    wanted_arg, wanted_aux, size = expected_shapes(symbol, str(found.symbol) if network is None else network)
    if emb_size not in (None, size):
        raise UserError(f"emb_size: expected {size} as in the graph of {found.symbol}, got {emb_size}")
    # What trained beside the backbone in the file's own graph: classifier, loss heads.
    heads = set(graph.variables) - set(inner.variables)
    heads |= {name for name in arg if name.startswith("fc7")}
    backbone_arg = {name: array for name, array in arg.items() if name not in heads}
    require_match(wanted_arg, backbone_arg, source)
    require_match(wanted_aux, {n: a for n, a in aux.items() if n not in heads}, source)
    aux = {name: aux[name] for name in wanted_aux}
    fc7 = {name: array for name, array in arg.items() if name == "fc7_weight"}
    require_finite({**backbone_arg, **aux, **fc7}, source)
    return Backbone(symbol, backbone_arg, aux, size, source, fc7.get("fc7_weight"))


def _load_symbol(path: Path) -> mx.sym.Symbol:
    try:
        return symbol_from_json(path.read_text(encoding="utf-8")).get_internals()[EMBEDDING]
    except mx.base.MXNetError as error:
        raise UserError(f"{path}: expected a graph of this MXNet's operators: {error}") from error


def new_backbone(network: str, emb_size: int | None, seed: int) -> Backbone:
    """A graph with random weights (He initialisation, as InsightFace's trainer)."""
    symbol = build_network(network, emb_size)
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


def expected_shapes(
    symbol: mx.sym.Symbol, source: str
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]], int]:
    """Shapes of the parameters and of the auxiliary states by name, and the embedding's length.

    Raises `UserError` naming `source` where the graph does not make one vector of an image.
    """
    try:
        arg_shapes, out_shapes, aux_shapes = symbol.infer_shape(data=(1, *IMAGE_SHAPE))
        fits = out_shapes is not None and len(out_shapes[0]) == 2
    except (ValueError, mx.base.MXNetError):
        fits = False
    if not fits or "data" not in symbol.list_arguments():
        raise UserError(
            f"{source}: expected a graph from `data` (n, 3, 112, 112) to {EMBEDDING} (n, emb_size)"
        )
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
    for name in sorted(wanted.keys() & given.keys()):
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
            f"{_and_more(missing)}{_likely(name, [e for e in extra if given[e].shape == shape])}"
        )
    if extra:
        raise UserError(
            f"{source}: array {extra[0]!r} {given[extra[0]].shape} has no place in the graph{_and_more(extra)}, "
            f"whose other arrays are all there: is this the checkpoint of another network?"
        )


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _likely(name: str, candidates: list[str]) -> str:
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.4) or candidates[:1]
    if not close:
        return "; no array of that shape is left over: is this the checkpoint of another network?"
    return f"; likely match {close[0]!r}: set rename = {{{close[0]!r}: {name!r}}} in the recipe if they are the same"


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


def fingerprint(backbone: Backbone) -> str:
    """Hash of the graph and of every array's name and values, 16 hexadecimal digits."""
    digest = hashlib.sha256(backbone.symbol.tojson().encode())
    for name, array in sorted({**backbone.arg, **backbone.aux}.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:16]
