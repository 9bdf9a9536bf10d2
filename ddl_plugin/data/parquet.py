"""Parquet files as columns of NumPy arrays. pyarrow is asked for only when one is read or written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ddl_plugin.errors import UserError

_KEY = b"ddl_plugin"  # of the file's own metadata: where its values come from, JSON


def require(path: Path) -> None:
    """`UserError` where there is no pyarrow to read or write `path`."""
    _pyarrow(path)


def read(path: Path) -> tuple[dict[str, np.ndarray], str | None]:
    """The columns, (rows,) each: numbers (NaN for null), booleans or str ('' for null); and the provenance."""
    arrow, parquet = _pyarrow(path)
    try:
        with parquet.ParquetFile(path) as file:
            about = (file.schema_arrow.metadata or {}).get(_KEY)
            columns = {name: _column(arrow, path, file, name) for name in file.schema_arrow.names}
    except arrow.ArrowException as error:
        raise UserError(f"{path}: expected a Parquet file, got another or damaged file: {error}") from error
    return columns, None if about is None else about.decode()


def write(path: Path, columns: dict[str, np.ndarray], provenance: str | None) -> None:
    """Equal columns and provenance give equal files."""
    arrow, parquet = _pyarrow(path)
    table = arrow.table(columns)
    if provenance is not None:
        table = table.replace_schema_metadata({_KEY: provenance.encode()})
    parquet.write_table(table, path)


def _pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"{path}: Parquet needs pyarrow, which does not work here ({error}): pip install "
            "'ddl_plugin[parquet]', or use .npz or .csv"
        ) from error
    return pyarrow, pyarrow.parquet


def _column(arrow: Any, path: Path, file: Any, name: str) -> np.ndarray:
    """One column, a batch of rows at a time: texts are Python objects while they are converted."""
    kind = file.schema_arrow.field(name).type
    if arrow.types.is_dictionary(kind):  # pandas' categories
        kind = kind.value_type
    text = arrow.types.is_string(kind) or arrow.types.is_large_string(kind)
    boolean = arrow.types.is_boolean(kind)
    if not (text or boolean or arrow.types.is_integer(kind) or arrow.types.is_floating(kind)):
        raise UserError(
            f"{path}: column {name!r}: expected numbers, booleans or texts, got {kind}; leave it out or convert it"
        )
    parts = []
    for batch in file.iter_batches(columns=[name]):
        values = batch.column(0)
        if text:
            parts.append(np.array(values.cast(arrow.string()).fill_null("").to_pylist(), "U"))
        elif boolean and values.null_count:
            raise UserError(
                f"{path}: column {name!r}: expected True or False in every row, got an empty one; fill it in, "
                "or save the column as numbers or texts, which may have holes"
            )
        else:
            parts.append(values.to_numpy(zero_copy_only=False))
    return np.concatenate(parts) if parts else np.empty(0)
