"""The shapes of what a registered loss builds, as far as MXNet can infer them."""

from __future__ import annotations

from typing import Any

from ddl_plugin.errors import UserError
from ddl_plugin.loss.registered import build_checked, expected_shapes, wrong_shape
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.registry import LossEntry
from ddl_plugin.settings import DDLSettings


def require_shapes(entry: LossEntry, emb_size: int, settings: DDLSettings, options: dict[str, Any]) -> None:
    """Raise `UserError` unless the loss is (1,) and the terms are (1, T), as far as MXNet can infer it.

    Asked of a graph on a variable, whose shape is known while that of the backbone's output is not.
    """
    with mx.name.NameManager():  # the names in the training graph are not counted on
        variables = {need: mx.sym.Variable(need) for need in entry.needs}
        embedding = mx.sym.Variable("embedding")
        value, terms, names = build_checked(mx.sym, entry, embedding, settings, options, variables)
    shapes = {"embedding": (settings.rows, emb_size), **dict.fromkeys(variables, (settings.rows,))}
    for (what, shape), symbol in zip(expected_shapes(names).items(), (value, terms), strict=True):
        present = {name: shapes[name] for name in symbol.list_arguments() if name in shapes}
        try:
            inferred = symbol.infer_shape_partial(**present)[1]
        except mx.base.MXNetError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(
                f"loss {entry.name!r}: shapes do not fit an embedding of ({settings.rows}, {emb_size}): {reason}"
            ) from error
        if inferred and inferred[0] and 0 not in inferred[0] and inferred[0] != shape:
            raise wrong_shape(entry, what, shape, inferred[0], names)
