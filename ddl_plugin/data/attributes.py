"""What is known about each image beside its identity (yaw, resolution, race, ...): a table by record number.

Three files hold one: .npz (an array a column), .parquet (with pyarrow) and, for reading alone, .csv. The first
two carry where the values come from: `provenance`, JSON without dates and paths, so that equal work gives equal
files.
"""

from __future__ import annotations

import json
import os
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddl_plugin import __version__
from ddl_plugin.data import parquet
from ddl_plugin.data.delimited import as_str, read_header, read_table
from ddl_plugin.errors import UserError, did_you_mean
from ddl_plugin.files import reading, replaced, sha256

#: The column that joins the table to a data set: record numbers, as in its .idx.
RECORD = "record"
_PROVENANCE = "provenance"
#: What NumPy raises for archives that are damaged or hold Python objects.
_DAMAGE = (ValueError, EOFError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error)


class AttributeTable:
    """Columns of numbers (float64), texts (str) or booleans, one row per record number.

    Rows may be in any order. A column may have holes (NaN, empty text) as long as no rule uses it there.

    keys: int64 (N_table,) distinct record numbers; columns: name -> (N_table,); path: for messages; provenance:
    what the values come from (see `made_by`), None where nobody said.
    """

    def __init__(
        self,
        keys: np.ndarray,
        columns: dict[str, np.ndarray],
        path: str | os.PathLike | None = None,
        provenance: dict[str, Any] | None = None,
    ):
        self.path = "attribute table" if path is None else Path(path)
        self.provenance = provenance
        self.keys = _record_numbers(self.path, np.asarray(keys))
        self.columns = {
            name: _values(self.path, name, np.asarray(column), len(self.keys))
            for name, column in columns.items()
        }
        ascending = (self.keys[1:] > self.keys[:-1]).all()
        self._order = None if ascending else np.argsort(self.keys, kind="stable")
        self._sorted = self.keys if ascending else self.keys[self._order]
        twice = self._sorted[1:][np.diff(self._sorted) == 0]
        if twice.size:
            raise UserError(
                f"{self.path}: expected one row per record, got more than one for {_first(np.unique(twice))}; "
                "delete the rows that do not hold"
            )

    @classmethod
    def load(cls, path: str | os.PathLike, *, given_as: str | None = None) -> AttributeTable:
        """Read a table with a `record` column: .npz of one-dimensional arrays, .parquet, .csv with a header.

        given_as: the option or the key of the recipe that names it, for the message where it is not there.
        """
        if given_as is not None and not Path(path).is_file():
            raise UserError(f"{given_as}: {_nothing_at(path)}")
        columns, provenance = read_columns(path)
        return cls(columns.pop(RECORD), columns, path, provenance)

    def save(self, path: str | os.PathLike) -> None:
        """Write a .npz or .parquet, whole or not at all; equal tables give equal files."""
        path = Path(path)
        require_output(path)
        if _PROVENANCE in self.columns:
            raise UserError(f"{path}: {_PROVENANCE!r} cannot be the name of a column; give it another")
        columns = {RECORD: self.keys, **self.columns}
        about = None if self.provenance is None else json.dumps(self.provenance, sort_keys=True)
        with replaced(path) as temporary:
            if path.suffix == ".parquet":
                parquet.write(temporary, columns, about)
            else:
                _write_npz(temporary, columns if about is None else {**columns, _PROVENANCE: np.array(about)})

    def column(self, name: str, keys: np.ndarray) -> np.ndarray:
        """Column `name` for the records `keys`, in their order: (len(keys),) float64, str or bool.

        Raises `UserError` for an unknown column, records without a row, and holes.
        """
        if name not in self.columns:
            raise UserError(f"{self.path}: no column {name!r}{did_you_mean(name, self.columns)}")
        at, missing = self.rows_of(keys)
        if missing.any():
            raise self._incomplete(name, "no row", keys, missing)
        values = self.columns[name][at]
        holes = _holes(values)
        if holes.any():
            raise self._incomplete(name, "no value", keys, holes)
        return values

    def rows_of(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row of each of the records `keys`, and whether it has none (its row means nothing then): (n,) each."""
        at = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
        missing = self._sorted[at] != keys
        return (at if self._order is None else self._order[at]), missing

    def _incomplete(self, name: str, what: str, keys: np.ndarray, bad: np.ndarray) -> UserError:
        return UserError(
            f"{self.path}: column {name!r}: expected a value for each of {len(keys)} records, got {what} for "
            f"{int(bad.sum())} of them ({_first(keys[bad])}); fill them in or use a rule without {name!r}"
        )


def require_of(table: AttributeTable, fingerprint: str) -> None:
    """`UserError` where `table` says that it is of other records than those of this fingerprint.

    Their file may have another name now. A table that says nothing is taken as it is.
    """
    made_from = (table.provenance or {}).get("records")
    if made_from is not None and not same_records(made_from, fingerprint):
        raise UserError(
            f"{table.path}: expected a table of {fingerprint.split(':')[0]} as it is now, got one that was made from "
            "other records, whose numbers mean other images; make it again from these"
        )


def same_records(one: str, other: str) -> bool:
    """Whether two fingerprints are of the same records, whatever their files are called."""
    return str(one).split(":")[-1] == str(other).split(":")[-1]


def made_by(command: str, **facts: Any) -> dict[str, Any]:
    """What a table says of its origin: the program, the command, and what its values follow from."""
    return {"made_by": f"ddl_plugin {__version__}", "command": command, **facts}


def source(path: str | os.PathLike) -> dict[str, str]:
    """A file that a table is made from: its name and content, not its place."""
    return {"file": Path(path).name, "sha256": sha256(path)}


def read_columns(
    path: str | os.PathLike, *, one_of: Sequence[str] = (RECORD,), texts: Sequence[str] = ()
) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """All columns of a table, as its file has them, and its provenance; see `AttributeTable.load`.

    one_of: columns of which the table must have one. texts: columns of a .csv that are texts even where they
    look like numbers.
    """
    path = Path(path)
    if path.suffix not in (".npz", ".csv", ".parquet"):
        raise UserError(
            f"{path}: expected an attribute table named .npz, .parquet or .csv, got {path.suffix!r}"
        )
    if not path.is_file():
        raise UserError(_nothing_at(path))
    with reading(path):
        if path.suffix == ".csv":
            return _read_csv(path, one_of, texts), None
        columns, about = parquet.read(path) if path.suffix == ".parquet" else _read_npz(path)
    _require_one_of(path, one_of, list(columns))
    return columns, _read_provenance(path, about)


def _nothing_at(path: str | os.PathLike) -> str:
    return (
        f"{path}: expected an attribute table, got nothing there; give a .csv, .npz or .parquet with a "
        f"{RECORD!r} column and a column for each name in the rules"
    )


def _require_one_of(path: Path, wanted: Sequence[str], names: list[str]) -> None:
    if not set(wanted) & set(names):
        what = " or ".join(repr(name) for name in wanted)
        got = ", ".join(repr(name) for name in names[:8]) or "nothing"
        raise UserError(
            f"{path}: expected a column named {what}"
            + (" with the record numbers of the .idx" if RECORD in wanted else "")
            + f", got {got}"
            + ("; a .csv needs a header line with the columns' names" if path.suffix == ".csv" else "")
        )


def require_output(path: str | os.PathLike) -> None:
    """`UserError` where a table cannot be written under this name; asked before any work."""
    if Path(path).suffix not in (".npz", ".parquet"):
        raise UserError(f"--output: expected a file named .npz or .parquet, got {Path(path).name!r}")
    if Path(path).suffix == ".parquet":
        parquet.require(Path(path))


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
    return keys.astype(np.int64, copy=False)


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
    return column.astype(np.float64, copy=False) if column.dtype.kind in "iuf" else column


def _write_npz(path: Path, columns: dict[str, np.ndarray]) -> None:
    """Not np.savez, which cannot store a column named 'file' and writes the time of day."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, column in columns.items():
            member = zipfile.ZipInfo(f"{name}.npy")
            member.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(member, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, column, allow_pickle=False)


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], str | None]:
    name = None
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
        with archive:
            columns = {}
            for name in archive.files:
                columns[name] = archive[name]
    except _DAMAGE as error:
        if name is None:
            raise UserError(f"{path}: expected a .npz of arrays, got another or damaged file") from error
        raise UserError(
            f"{path}: column {name!r}: expected numbers or unicode texts, got Python objects or a damaged "
            "array; save it with .astype(float) or .astype(str)"
        ) from error
    about = columns.get(_PROVENANCE)
    if about is None or about.shape != ():  # a column of this name is a column
        return columns, None
    return columns, str(columns.pop(_PROVENANCE))


def _read_provenance(path: Path, about: str | None) -> dict[str, Any] | None:
    if about is None:
        return None
    try:
        content = json.loads(about)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: expected its {_PROVENANCE} as a JSON object, got {about[:40]!r}; make it again"
        )
    return content


def _read_csv(path: Path, one_of: Sequence[str], texts: Sequence[str]) -> dict[str, np.ndarray]:
    names = read_header(path)
    _require_one_of(path, one_of, names)
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(
            f"{path}: expected distinct columns, got {twice[0]!r} more than once in the header line"
        )
    columns = read_table(path, whole=(RECORD,), texts=texts)
    return {name: as_str(column) if column.dtype.kind == "S" else column for name, column in columns.items()}
