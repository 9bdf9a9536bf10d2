"""The arrays of a checkpoint: read, renamed, and held against what its graph expects, without any framework."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddl_plugin.errors import UserError, did_you_mean
from ddl_plugin.export.graph import EMBEDDING, Checkpoint, Graph, cut, find_checkpoint, load_symbol
from ddl_plugin.export.params import load_params, save_params
from ddl_plugin.files import write_text

IMAGE_SHAPE = (3, 112, 112)

Arrays = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Stored:
    """A checkpoint as its files have it, its arrays renamed: `graph` is cut at the embedding, `heads` are the names
    of what trained beside it (classifier, margins, losses) and falls away."""

    files: Checkpoint
    graph: Graph
    arg: Arrays
    aux: Arrays
    heads: frozenset[str]

    @property
    def source(self) -> str:
        return str(self.files.params)


def read_stored(checkpoint: str, rename: Mapping[str, str] = {}) -> Stored:
    """Read 'PREFIX,EPOCH' or a folder of ours; `rename`: name in the checkpoint -> name in the graph.

    Raises `UserError` where a file cannot be read, the graph has no embedding or a rename names nothing.
    """
    files = find_checkpoint(checkpoint)
    whole = load_symbol(files.symbol)
    graph = cut(whole)  # names the candidates where there is no fc1_output
    arg, aux = load_params(files.params)
    source = str(files.params)
    for name in rename.keys() - arg.keys() - aux.keys():
        raise UserError(f"rename: no array {name!r} in {source}{did_you_mean(name, (*arg, *aux))}")
    arg, aux = renamed(arg, rename, source), renamed(aux, rename, source)
    heads = set(whole.variables) - set(graph.variables)
    heads |= {name for name in arg if name.startswith("fc7")}
    return Stored(files, graph, arg, aux, frozenset(heads))


def backbone_arrays(
    stored: Stored, wanted_arg: Shapes, wanted_aux: Shapes
) -> tuple[Arrays, Arrays, np.ndarray | None]:
    """(parameters, auxiliary states, fc7_weight if there) of a checkpoint, which are exactly the wanted ones.

    Raises `UserError` naming the array that is missing, too many, of another shape or not finite.
    """
    arg = {name: array for name, array in stored.arg.items() if name not in stored.heads}
    require_match(wanted_arg, arg, stored.source)
    require_match(wanted_aux, {n: a for n, a in stored.aux.items() if n not in stored.heads}, stored.source)
    aux = {name: stored.aux[name] for name in wanted_aux}
    fc7 = {name: array for name, array in stored.arg.items() if name == "fc7_weight"}
    require_finite({**arg, **aux, **fc7}, stored.source)
    return arg, aux, fc7.get("fc7_weight")


def save_stored(prefix: str | os.PathLike, epoch: int, symbol: str, arg: Arrays, aux: Arrays) -> None:
    """Write PREFIX-symbol.json and PREFIX-%04d.params, each whole or not at all."""
    prefix = Path(prefix)
    write_text(f"{prefix}-symbol.json", symbol)
    save_params(f"{prefix}-{epoch:04d}.params", arg, aux)


def require_emb_size(asked: int | None, size: int, symbol: object) -> None:
    """Raise `UserError` where a recipe's emb_size is not the graph's, which was read from `symbol`."""
    if asked not in (None, size):
        raise UserError(f"emb_size: expected {size} as in the graph of {symbol}, got {asked}")


def no_embedding(source: str) -> UserError:
    """The graph of `source` does not make one vector of an image."""
    return UserError(f"{source}: expected a graph from `data` (n, 3, 112, 112) to {EMBEDDING} (n, emb_size)")


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
    """Raise `UserError` naming the first array with NaN or infinite values."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            bad = int((~np.isfinite(array)).sum())
            raise UserError(
                f"{source}: array {name!r} holds {bad} NaN or infinite values of {array.size}; "
                f"expected finite weights: take an earlier checkpoint"
            )


def digest(symbol: str, arg: Arrays, aux: Arrays) -> str:
    """Hash of a graph's JSON and of every array's name and values, 16 hexadecimal digits."""
    result = hashlib.sha256(symbol.encode())
    for name, array in sorted({**arg, **aux}.items()):
        result.update(name.encode())
        result.update(np.ascontiguousarray(array))
    return result.hexdigest()[:16]
