"""What a registered loss built, checked: its author is a user."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ddl_plugin.errors import UserError
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.registry import LossEntry
from ddl_plugin.settings import DDLSettings

_NOTHING: Mapping[str, Any] = MappingProxyType({})


def build_checked(
    entry: LossEntry,
    embedding: Any,
    settings: DDLSettings,
    options: dict[str, Any],
    known: Mapping[str, Any] = _NOTHING,
) -> tuple[Any, Any, tuple[str, ...]]:
    """What `entry` builds on the Symbol `embedding`: (loss, terms, names).

    known: the Symbols there are of what it `needs`. Raises `UserError` where one is missing, and where it
    fails or returns something else.
    """
    missing = [need for need in entry.needs if need not in known]
    if missing:
        raise UserError(
            f"loss {entry.name!r}: expected a graph that has {' and '.join(missing)} of each row; set ddl.scope = "
            f"'device' and train with python -m ddl_plugin.train"
        )
    try:
        built = entry.build(
            mx.sym, embedding, settings, options, **{need: known[need] for need in entry.needs}
        )
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[1:2]  # of build itself, if it was entered
        where = "".join(f" ({frame.filename}, line {frame.lineno})" for frame in frames)
        raise UserError(
            f"loss {entry.name!r}: build() raised {type(error).__name__}: {error}{where}"
        ) from error
    good = isinstance(built, tuple) and len(built) == 3
    good = good and all(isinstance(part, mx.sym.Symbol) for part in built[:2])
    if not good:
        raise UserError(
            f"loss {entry.name!r}: expected build() to return (loss, terms, names) with two Symbols, "
            f"got {type(built).__name__}"
        )
    value, terms, names = built
    listed = isinstance(names, (tuple, list)) and all(isinstance(name, str) for name in names)
    if not listed or not names or len(set(names)) < len(names):
        raise UserError(f"loss {entry.name!r}: expected distinct names of its terms, got {names!r}")
    return value, terms, tuple(names)


def require_shapes(entry: LossEntry, emb_size: int, settings: DDLSettings, options: dict[str, Any]) -> None:
    """Raise `UserError` unless the loss is (1,) and the terms are (1, T), as far as MXNet can infer it.

    Asked of a graph on a variable, whose shape is known while that of the backbone's output is not.
    """
    with mx.name.NameManager():  # the names in the training graph are not counted on
        variables = {need: mx.sym.Variable(need) for need in entry.needs}
        value, terms, names = build_checked(entry, mx.sym.Variable("embedding"), settings, options, variables)
    shapes = {"embedding": (settings.rows, emb_size), **dict.fromkeys(variables, (settings.rows,))}
    expected = {"loss": (1,), "terms": (1, len(names))}
    for (what, shape), symbol in zip(expected.items(), (value, terms), strict=True):
        present = {name: shapes[name] for name in symbol.list_arguments() if name in shapes}
        try:
            inferred = symbol.infer_shape_partial(**present)[1]
        except mx.base.MXNetError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(
                f"loss {entry.name!r}: shapes do not fit an embedding of ({settings.rows}, {emb_size}): {reason}"
            ) from error
        if inferred and inferred[0] and 0 not in inferred[0] and inferred[0] != shape:
            named = f", one for each of the names {names}" if what == "terms" else ""
            raise UserError(
                f"loss {entry.name!r}: expected {what} of shape {shape}{named}, got {inferred[0]}"
            )
