"""What a registered loss built, checked: its author is a user."""

from __future__ import annotations

import traceback
from typing import Any

from ddl_plugin.errors import UserError
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.registry import LossEntry
from ddl_plugin.settings import DDLSettings


def build_checked(
    entry: LossEntry, embedding: Any, settings: DDLSettings, options: dict[str, Any]
) -> tuple[Any, Any, tuple[str, ...]]:
    """What `entry` builds on the Symbol `embedding`: (loss, terms, names).

    Raises `UserError` where it fails or returns something else.
    """
    try:
        built = entry.build(mx.sym, embedding, settings, options)
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
        value, terms, names = build_checked(entry, mx.sym.Variable("embedding"), settings, options)
    expected = {"loss": (1,), "terms": (1, len(names))}
    for (what, shape), symbol in zip(expected.items(), (value, terms), strict=True):
        known = {"embedding": (settings.rows, emb_size)} if "embedding" in symbol.list_arguments() else {}
        try:
            inferred = symbol.infer_shape_partial(**known)[1]
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
