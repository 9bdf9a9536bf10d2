"""What is known about each image beside its identity (yaw, resolution, race, ...): a table by record number."""

from __future__ import annotations

import csv
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ddl_plugin.errors import UserError, did_you_mean
from ddl_plugin.files import replaced

#: The column that joins the table to a data set: record numbers, as in its .idx.
RECORD = "record"
_ROWS_AT_A_TIME = 1 << 15
#: What NumPy raises for archives that are damaged or hold Python objects.
_DAMAGE = (ValueError, EOFError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error)


class AttributeTable:
    """Columns of numbers (float64), texts (str) or booleans, one row per record number.

    Rows may be in any order. A column may have holes (NaN, empty text) as long as no rule uses it there.

    keys: int64 (N_table,) distinct record numbers; columns: name -> (N_table,); path: for messages.
    """

    def __init__(
        self, keys: np.ndarray, columns: dict[str, np.ndarray], path: str | os.PathLike | None = None
    ):
        self.path = "attribute table" if path is None else Path(path)
        self.keys = _record_numbers(self.path, np.asarray(keys))
        self.columns = {
            name: _values(self.path, name, np.asarray(column), len(self.keys))
            for name, column in columns.items()
        }
        self._order = np.argsort(self.keys, kind="stable")
        self._sorted = self.keys[self._order]
        twice = self._sorted[1:][np.diff(self._sorted) == 0]
        if twice.size:
            raise UserError(
                f"{self.path}: expected one row per record, got more than one for {_first(np.unique(twice))}; "
                "delete the rows that do not hold"
            )

    @classmethod
    def load(cls, path: str | os.PathLike) -> AttributeTable:
        """Read a .npz of one-dimensional arrays or a .csv with a header line, each with a `record` column."""
        path = Path(path)
        readers = {".npz": _read_npz, ".csv": _read_csv}
        if path.suffix not in readers:
            raise UserError(f"{path}: expected an attribute table named .npz or .csv, got {path.suffix!r}")
        if not path.is_file():
            raise UserError(
                f"{path}: expected an attribute table, got nothing there; give a .csv or .npz with a "
                "'record' column and a column for each name in the rules"
            )
        try:
            columns = readers[path.suffix](path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
        return cls(columns.pop(RECORD), columns, path)

    def save(self, path: str | os.PathLike) -> None:
        """Write a .npz, atomically; equal tables give equal files."""
        # Not np.savez, which cannot store a column named 'file'.
        with replaced(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for name, column in {RECORD: self.keys, **self.columns}.items():
                member = zipfile.ZipInfo(f"{name}.npy")
                member.compress_type = zipfile.ZIP_DEFLATED
                with archive.open(member, "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, column, allow_pickle=False)

    def column(self, name: str, keys: np.ndarray) -> np.ndarray:
        """Column `name` for the records `keys`, in their order: (len(keys),) float64, str or bool.

        Raises `UserError` for an unknown column, records without a row, and holes.
        """
        if name not in self.columns:
            raise UserError(f"{self.path}: no column {name!r}{did_you_mean(name, self.columns)}")
        at = np.searchsorted(self._sorted, keys)
        missing = np.append(self._sorted, -1)[at] != keys
        if missing.any():
            raise self._incomplete(name, "no row", keys, missing)
        values = self.columns[name][self._order[at]]
        holes = _holes(values)
        if holes.any():
            raise self._incomplete(name, "no value", keys, holes)
        return values

    def _incomplete(self, name: str, what: str, keys: np.ndarray, bad: np.ndarray) -> UserError:
        return UserError(
            f"{self.path}: column {name!r}: expected a value for each of {len(keys)} records, got {what} for "
            f"{int(bad.sum())} of them ({_first(keys[bad])}); fill them in or use a rule without {name!r}"
        )


def _first(keys: np.ndarray) -> str:
    shown = ", ".join(map(str, keys[:3].tolist()))
    return f"record {shown}" if len(keys) == 1 else f"records {shown}" + (", ..." if len(keys) > 3 else "")


def _holes(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "U":
        return np.char.str_len(values) == 0
    return ~np.isfinite(values)


def _record_numbers(path: Path | str, keys: np.ndarray) -> np.ndarray:
    """`keys` as int64, after a check that they are whole numbers >= 0."""
    if keys.ndim != 1 or keys.dtype.kind not in "iuf":
        raise UserError(
            f"{path}: column {RECORD!r}: expected one-dimensional whole numbers, got {keys.dtype} {keys.shape}"
        )
    if not keys.size:
        raise UserError(f"{path}: expected a row per record, got none; make the table again")
    bad = keys[~((keys >= 0) & (keys < 2**53) & (keys == np.floor(keys)))]
    if bad.size:
        raise UserError(
            f"{path}: column {RECORD!r}: expected record numbers as in the .idx, whole numbers >= 0, "
            f"got {bad[0]:g}"
        )
    return keys.astype(np.int64)


def _values(path: Path | str, name: str, column: np.ndarray, rows: int) -> np.ndarray:
    """`column` as float64, str or bool."""
    if column.dtype.kind not in "iufbU":
        raise UserError(
            f"{path}: column {name!r}: expected numbers, booleans or unicode texts, got {column.dtype}; "
            "save it with .astype(float) or .astype(str)"
        )
    if column.shape != (rows,):
        raise UserError(
            f"{path}: column {name!r}: expected one value for each of {rows} records, got shape {column.shape}"
        )
    return column.astype(np.float64) if column.dtype.kind in "iuf" else column


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    name = None
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
        with archive:
            _require_record(path, archive.files)
            columns = {}
            for name in archive.files:
                columns[name] = archive[name]
            return columns
    except _DAMAGE as error:
        if name is None:
            raise UserError(f"{path}: expected a .npz of arrays, got another or damaged file") from error
        raise UserError(
            f"{path}: column {name!r}: expected numbers or unicode texts, got Python objects or a damaged "
            "array; save it with .astype(float) or .astype(str)"
        ) from error


def _read_csv(path: Path) -> dict[str, np.ndarray]:
    """Two passes: the columns' types and widths first, so that they are held as arrays only."""
    try:
        names = _csv_header(path)
        rows, numeric, width = 0, [True] * len(names), [1] * len(names)
        for chunk in _csv_chunks(path, names):
            rows += len(chunk[0])
            for i, cells in enumerate(chunk):
                texts = np.array(cells)
                numeric[i] = numeric[i] and _are_numbers(texts)
                width[i] = max(width[i], texts.dtype.itemsize // 4)
        columns = [
            np.empty(rows, np.float64 if number else f"<U{chars}")
            for number, chars in zip(numeric, width, strict=True)
        ]
        start = 0
        for chunk in _csv_chunks(path, names):
            for column, cells in zip(columns, chunk, strict=True):
                texts = np.array(cells)
                column[start : start + len(cells)] = texts if column.dtype.kind == "U" else _numbers(texts)
            start += len(chunk[0])
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: expected comma-separated text in UTF-8, got another file: {error}"
        ) from error
    return dict(zip(names, columns, strict=True))


def _csv_header(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        names = [name.strip() for name in next(csv.reader(file), [])]
    _require_record(path, names)
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(
            f"{path}: expected distinct columns, got {twice[0]!r} more than once in the header line"
        )
    return names


def _require_record(path: Path, names: list[str]) -> None:
    if RECORD not in names:
        got = ", ".join(repr(name) for name in names[:8]) or "nothing"
        raise UserError(
            f"{path}: expected a column named {RECORD!r} with the record numbers of the .idx, got {got}"
            + ("; a .csv needs a header line with the columns' names" if path.suffix == ".csv" else "")
        )


def _csv_chunks(path: Path, names: list[str]) -> Iterator[list[tuple[str, ...]]]:
    """The cells below the header line, by column, some thousand rows at a time; record numbers are checked."""
    record = names.index(RECORD)
    rows: list[list[str]] = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, skipinitialspace=True)
        next(reader)
        for row in reader:
            if not row:
                continue
            if len(row) != len(names):
                raise UserError(
                    f"{path}: line {reader.line_num}: expected {len(names)} cells as in the header line, "
                    f"got {len(row)}"
                )
            if not row[record].strip().isdecimal():
                raise UserError(
                    f"{path}: line {reader.line_num}: column {RECORD!r}: expected a record number as in the "
                    f".idx, a whole number >= 0, got {row[record]!r}"
                )
            rows.append([cell.strip() for cell in row])
            if len(rows) == _ROWS_AT_A_TIME:
                yield list(zip(*rows, strict=True))
                rows = []
    if rows:
        yield list(zip(*rows, strict=True))


def _are_numbers(texts: np.ndarray) -> bool:
    try:
        _numbers(texts)
    except ValueError:
        return False
    return True


def _numbers(texts: np.ndarray) -> np.ndarray:
    return np.where(texts == "", "nan", texts).astype(np.float64)
