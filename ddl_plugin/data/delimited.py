"""Text tables (CSV, tab-separated lists) read into arrays: millions of rows, block by block, errors by line.

A block of lines is cut into cells by whole-array operations. Only what these cannot follow (quotes, blank
lines, rows of another length) goes through Python's csv module, row by row.
"""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ddl_plugin.errors import UserError
from ddl_plugin.files import reading

_BLOCK = 1 << 20  # bytes; the arrays of one block stay within the processor's caches
_ROWS_AT_A_TIME = 1 << 15  # where rows are read one by one
_WIDEST = 1000  # bytes of a cell; a column is as wide as its widest cell
_DIGITS = 15  # of a whole number: exact in float64 too
_BREAK, _QUOTE = b"\n", b'"'
_NEWLINE = _BREAK[0]
_SPACE = np.isin(np.arange(256), list(b" \t\r\v\f"))


@dataclass(frozen=True)
class _Chunk:
    lines: np.ndarray  # int64 (n,) line of each row in the file
    cells: list[np.ndarray]  # one array of bytes (n,) a column, stripped of white space


class _TextFoundError(Exception):
    """Columns taken for numbers hold a text."""

    def __init__(self, columns: set[int]):
        self.columns = columns


def read_header(path: str | os.PathLike, delimiter: str = ",") -> list[str]:
    """The cells of the first line."""
    path = Path(path)
    with reading(path), path.open("rb") as file:
        return _header(path, file, delimiter)


def read_table(
    path: str | os.PathLike,
    *,
    names: Sequence[str] | None = None,
    delimiter: str = ",",
    quotes: bool = True,
    whole: Collection[str] = (),
    texts: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """The columns of a text file in UTF-8 by name, all (rows,); blank lines are passed over.

    Args:
        names: of the columns, for a file without a header line.
        quotes: whether '"' may stand around a cell, as in CSV.
        whole: columns that must be whole numbers >= 0 in every row: int64.
        texts: columns that are texts even where they look like numbers: bytes, UTF-8.
        Other columns are float64 (NaN for an empty cell), or bytes where any cell is not a number.

    Raises:
        UserError: naming the line of a row with another number of cells or of what is no whole number.
    """
    path = Path(path)
    as_text: set[int] = set()
    with reading(path):
        while True:  # once, and again for each column that turns out to be of texts late
            with path.open("rb") as file:
                columns = list(names) if names is not None else _header(path, file, delimiter)
                as_text |= {i for i, name in enumerate(columns) if name in texts}
                numbers = {i for i, name in enumerate(columns) if name in whole}
                first = 1 if names is not None else 2
                chunks = _chunks(path, file, first, columns, delimiter, quotes)
                try:
                    arrays = _collect(path, chunks, columns, numbers, as_text)
                except _TextFoundError as found:
                    as_text |= found.columns
                    continue
            return dict(zip(columns, arrays, strict=True))


def as_str(cells: np.ndarray) -> np.ndarray:
    """Bytes (UTF-8) of any width as str: (n,) -> (n,)."""
    codes = np.ascontiguousarray(cells).view(np.uint8)
    if codes.size and codes.max() > 127:
        return np.char.decode(cells, "utf-8")
    # What astype("U") does, ten times as fast.
    return codes.astype(np.uint32).view(f"<U{cells.dtype.itemsize}")


# -- rows of cells ---------------------------------------------------------------------------------------


def _header(path: Path, file: BinaryIO, delimiter: str) -> list[str]:
    line = file.readline(1 << 16)
    text = _decoded(path, line, 1).removeprefix("\ufeff").rstrip("\r\n")
    try:
        return [name.strip() for name in next(csv.reader([text], delimiter=delimiter), [])]
    except csv.Error as error:
        raise _no_text(path, str(error)) from error


def _chunks(
    path: Path, file: BinaryIO, line: int, names: list[str], delimiter: str, quotes: bool
) -> Iterator[_Chunk]:
    blocks = _blocks(path, file)
    for block in blocks:
        text = _decoded(path, block, line)
        if quotes and _QUOTE in block:
            # A quoted cell may hold line breaks: blocks no longer end between rows.
            rest = chain([text], (_decoded(path, more, line) for more in blocks))
            yield from _rows(path, rest, line, names, delimiter, quotes)
            return
        cells = _cut(block, len(names), delimiter)
        if cells is None:
            yield from _rows(path, [text], line, names, delimiter, quotes)
            line += block.count(_BREAK)
        else:
            rows = len(cells[0])
            _check_widths(path, cells, line)
            yield _Chunk(np.arange(line, line + rows), cells)
            line += rows


def _blocks(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """The rest of the file in parts that end with a line break."""
    rest = b""
    while part := file.read(_BLOCK):
        end = part.rfind(_BREAK) + 1
        if end:
            yield rest + part[:end]
            rest = part[end:]
        else:
            rest += part
            if len(rest) > 16 * _BLOCK:
                raise _no_text(path, f"a line of more than {len(rest) >> 20} MB")
    if rest:
        yield rest + _BREAK


def _decoded(path: Path, block: bytes, line: int) -> str:
    zero = block.find(b"\0")
    if zero >= 0:
        raise _no_text(path, f"a zero byte in line {line + block[:zero].count(_BREAK)} or after it")
    try:
        return block.decode("utf-8")
    except UnicodeDecodeError as error:
        at = line + block[: error.start].count(_BREAK)
        raise _no_text(path, f"{error.reason} in line {at} or after it") from error


def _cut(block: bytes, columns: int, delimiter: str) -> list[np.ndarray] | None:
    """The cells of a block by column; None where any line has another number of cells, or none."""
    text = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero((text == ord(delimiter)) | (text == _NEWLINE))
    if len(ends) % columns:
        return None
    starts = np.append(0, ends[:-1] + 1).reshape(-1, columns)
    ends = ends.reshape(-1, columns)
    last = text[ends] == _NEWLINE
    if not last[:, -1].all() or last[:, :-1].any():
        return None
    if columns == 1 and (starts == ends).any():
        return None
    return [_gathered(text, *_stripped(text, starts[:, i], ends[:, i])) for i in range(columns)]


def _stripped(text: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    while (more := (starts < ends) & _SPACE[text[starts]]).any():
        starts = starts + more
    while (more := (starts < ends) & _SPACE[text[ends - 1]]).any():
        ends = ends - more
    return starts, ends


def _gathered(text: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """text[start:end] of each pair as bytes of one width, cut one byte beyond the widest that is allowed."""
    lengths = ends - starts
    width = min(max(int(lengths.max()), 1), _WIDEST + 1)
    column = np.arange(width)
    at = np.minimum(starts[:, None] + column, len(text) - 1)
    cells = np.where(column < lengths[:, None], text[at], 0).astype(np.uint8)
    return cells.view(f"S{width}").ravel()


def _rows(
    path: Path, texts: Iterable[str], line: int, names: list[str], delimiter: str, quotes: bool
) -> Iterator[_Chunk]:
    lines = chain.from_iterable(io.StringIO(text, newline="") for text in texts)
    quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, quoting=quoting)
    numbers: list[int] = []
    rows: list[list[bytes]] = []
    try:
        for row in reader:
            cells = [cell.strip().encode() for cell in row]
            if cells in ([], [b""]):
                continue
            if len(cells) != len(names):
                raise UserError(
                    f"{path}: line {line + reader.line_num - 1}: expected {len(names)} cells "
                    f"({', '.join(names)}), got {len(cells)}"
                )
            numbers.append(line + reader.line_num - 1)
            rows.append(cells)
            if len(rows) == _ROWS_AT_A_TIME:
                yield _row_chunk(path, numbers, rows)
                numbers, rows = [], []
    except csv.Error as error:
        raise _no_text(path, f"{error} in line {line + reader.line_num - 1}") from error
    if rows:
        yield _row_chunk(path, numbers, rows)


def _row_chunk(path: Path, lines: list[int], rows: list[list[bytes]]) -> _Chunk:
    cells = [np.array([cell[: _WIDEST + 1] for cell in column], "S") for column in zip(*rows, strict=True)]
    cells = [column.astype("S1") if column.dtype.itemsize == 0 else column for column in cells]
    _check_widths(path, cells, lines[0])
    return _Chunk(np.array(lines), cells)


def _check_widths(path: Path, cells: list[np.ndarray], line: int) -> None:
    if any(column.dtype.itemsize > _WIDEST for column in cells):
        raise UserError(
            f"{path}: expected cells of at most {_WIDEST} bytes, got a longer one in line {line} or after it; "
            "leave this column out, or check the quotes"
        )


def _no_text(path: Path, got: str) -> UserError:
    what = "comma-separated text in UTF-8" if path.suffix == ".csv" else "lines of text in UTF-8"
    return UserError(f"{path}: expected {what}, got another or damaged file: {got}")


# -- columns of values -----------------------------------------------------------------------------------


def _collect(
    path: Path, chunks: Iterator[_Chunk], names: list[str], whole: set[int], as_text: set[int]
) -> list[np.ndarray]:
    parts: list[list[np.ndarray]] = [[] for _ in names]
    for chunk in chunks:
        found = set()
        for i, cells in enumerate(chunk.cells):
            if i in whole:
                values = _whole_numbers(path, names[i], cells, chunk.lines)
            else:
                values = cells if i in as_text else _numbers(cells)
            if values is None:
                found.add(i)
            else:
                parts[i].append(values)
        if found:
            raise _TextFoundError(found)
    columns = []
    for part in parts:
        columns.append(np.concatenate(part) if part else np.empty(0))
        part.clear()  # each column's parts go before the next one is joined
    return columns


def _numbers(cells: np.ndarray) -> np.ndarray | None:
    """float64 (n,), NaN for empty cells; None where any cell is not a number."""
    width = max(cells.dtype.itemsize, len("nan"))
    text = np.full((len(cells), width + 1), ord(" "), np.uint8)
    given = cells.view(np.uint8).reshape(len(cells), -1)
    text[:, : given.shape[1]] = np.where(given == 0, ord(" "), given)
    text[given[:, 0] == 0, :3] = list(b"nan")
    return _parsed(text, np.float64)


def _whole_numbers(path: Path, name: str, cells: np.ndarray, lines: np.ndarray) -> np.ndarray:
    given = cells.view(np.uint8).reshape(len(cells), -1)
    digits = (given >= ord("0")) & (given <= ord("9"))
    bad = np.flatnonzero(
        ~((digits | (given == 0)).all(axis=1) & digits[:, 0]) | (digits.sum(axis=1) > _DIGITS)
    )
    if bad.size:
        got = cells[bad[0]].decode()
        raise UserError(
            f"{path}: line {lines[bad[0]]}: column {name!r}: expected a {name} number, a whole number >= 0, "
            f"got {got!r}"
        )
    text = np.full((len(cells), given.shape[1] + 1), ord(" "), np.uint8)
    text[:, :-1] = np.where(given == 0, ord(" "), given)
    return _parsed(text, np.int64)


def _parsed(text: np.ndarray, dtype: type) -> np.ndarray | None:
    """The one number of each row of characters; None where any row is not one number."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # NumPy's word for what is no number
        try:
            values = np.fromstring(text.tobytes(), dtype, sep=" ")
        except (DeprecationWarning, ValueError):
            return None
    # No row is blank, so that none holds two numbers where the count is right.
    return values if len(values) == len(text) else None
