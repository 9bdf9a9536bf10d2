"""What a registered loss built, checked: its author is a user. Over any `F`."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ddl_plugin.errors import UserError
from ddl_plugin.registry import LossEntry
from ddl_plugin.settings import DDLSettings

_NOTHING: Mapping[str, Any] = MappingProxyType({})


def build_checked(
    F: Any,
    entry: LossEntry,
    embedding: Any,
    settings: DDLSettings,
    options: dict[str, Any],
    known: Mapping[str, Any] = _NOTHING,
) -> tuple[Any, Any, tuple[str, ...]]:
    """What `entry` builds on `embedding`, a tensor of `F`: (loss, terms, names).

    known: what it may `need`, as far as there is any. Raises `UserError` where some of that is missing, and where
    the loss fails or returns something else than two tensors of `F` and names.
    """
    missing = [need for need in entry.needs if need not in known]
    if missing:
        raise UserError(
            f"loss {entry.name!r}: expected a graph that has {' and '.join(missing)} of each row; set ddl.scope = "
            f"'device' and train with python -m ddl_plugin.train"
        )
    try:
        built = entry.build(F, embedding, settings, options, **{need: known[need] for need in entry.needs})
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[1:2]  # of build itself, if it was entered
        where = "".join(f" ({frame.filename}, line {frame.lineno})" for frame in frames)
        raise UserError(
            f"loss {entry.name!r}: build() raised {type(error).__name__}: {error}{where}"
        ) from error
    tensor = type(embedding)
    good = isinstance(built, tuple) and len(built) == 3
    if not good or not all(isinstance(part, tensor) for part in built[:2]):
        raise UserError(
            f"loss {entry.name!r}: expected build() to return (loss, terms, names) with two {tensor.__name__}s, "
            f"got {type(built).__name__}"
        )
    value, terms, names = built
    listed = isinstance(names, (tuple, list)) and all(isinstance(name, str) for name in names)
    if not listed or not names or len(set(names)) < len(names):
        raise UserError(f"loss {entry.name!r}: expected distinct names of its terms, got {names!r}")
    return value, terms, tuple(names)


def expected_shapes(names: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """What the loss and its terms must have: {'loss': (1,), 'terms': (1, T)}."""
    return {"loss": (1,), "terms": (1, len(names))}


def wrong_shape(
    entry: LossEntry, what: str, shape: tuple[int, ...], got: tuple[int, ...], names: tuple[str, ...]
) -> UserError:
    """The error to raise where `what` (loss or terms) has another shape than `expected_shapes` says."""
    named = f", one for each of the names {names}" if what == "terms" else ""
    return UserError(f"loss {entry.name!r}: expected {what} of shape {shape}{named}, got {got}")
