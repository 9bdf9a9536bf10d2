"""The sources of a data set: folders of identities, image lists, .lst files and .rec files, read into rows of numbers.

Paths lie in a file beside the rows; nothing that grows with the data set is a Python list.
"""

from __future__ import annotations

import array
import hashlib
import os
from collections import namedtuple
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ddl_plugin.data.records import Records
from ddl_plugin.errors import UserError
from ddl_plugin.files import reading
from ddl_plugin.ingest.frames import read_index

#: What is known of an image before it is looked at, in `ROW["known"]`.
NOTHING, LISTED_TWICE, TOO_FEW = range(3)

ROW = np.dtype(
    [
        ("identity", "<i4"),  # its number among the identities of all sources
        ("source", "<i4"),  # number of its source
        ("number", "<i8"),  # its record number in a .rec, its line in a list, else 0
        ("at", "<i8"),  # where its record begins in a .rec, else where its path begins in the file of paths
        ("length", "<i4"),  # bytes of its path, 0 in a .rec
        ("label", "<i4"),  # its label in a .rec, else -1
        ("aligned", "?"),  # the .lst says that it needs no alignment
        ("known", "u1"),
    ]
)
#: One row as Python values.
Entry = namedtuple("Entry", ROW.names)
PATHS_FILE = "paths.bin"
LANDMARKS = 10  # x and y of both eyes, the nose and both corners of the mouth

IMAGE_SUFFIXES = (b".jpg", b".jpeg", b".png", b".bmp", b".webp", b".ppm", b".pgm", b".tif", b".tiff")

_ROWS_AT_A_TIME = 1 << 14
_LINE_BYTES = 1 << 16
_FIRST = 5  # names shown of what was left out


@dataclass
class Left:
    """Things left out for one reason: how many, and the names of the first few."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, name: str, count: int = 1) -> None:
        self.count += count
        if len(self.first) < _FIRST:
            self.first.append(name)


@dataclass(frozen=True)
class Source:
    path: Path
    root: bytes  # what the paths of its images are relative to

    @property
    def is_rec(self) -> bool:
        return self.path.suffix == ".rec"


def path_of(paths: BinaryIO, row: Entry) -> bytes:
    """The path of a row, below its source's root."""
    return os.pread(paths.fileno(), row.length, row.at)


def entries(rows: np.ndarray) -> Iterator[Entry]:
    """Rows as Python values, some at a time."""
    for begin in range(0, len(rows), _ROWS_AT_A_TIME):
        yield from map(Entry._make, rows[begin : begin + _ROWS_AT_A_TIME].tolist())


def listed_paths(rows: np.ndarray, folder: Path) -> Iterator[tuple[int, bytes]]:
    """(source, path below its root) of each row, in the order of the rows; `folder` holds the file of paths."""
    with (folder / PATHS_FILE).open("rb") as paths:
        for row in entries(rows):
            yield row.source, path_of(paths, row)


def name_hashes(names: Iterable[bytes]) -> np.ndarray:
    """8 bytes of hash for each name: uint64 (n,). Two of 5.8 million names meet once in a million times."""
    values = array.array("Q")
    for name in names:
        values.frombytes(hashlib.blake2b(name, digest_size=8).digest())
    return np.array(values, np.uint64)


def shown(name: bytes) -> str:
    """A file name as printable text without line breaks: names are bytes, and may be anything."""
    text = name.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# -- the kinds of sources --------------------------------------------------------------------------


def open_source(path: Path, root: str | os.PathLike | None) -> Source:
    if path.is_dir():
        if (path / "train.rec").is_file():
            path = path / "train.rec"
        return Source(path, os.fsencode(path))
    if not path.is_file():
        raise UserError(
            f"{path}: expected a folder of identity folders, an image list, a .lst or a .rec, got nothing there"
        )
    return Source(path, os.fsencode(path.parent if root is None else root))


def read_source(
    source: Source, rows: Rows, left: dict[str, Left], recorded: RecordedNames | None
) -> list[str]:
    """Fill `rows`; the names of the identities by the number that the rows have: theirs, or of their names' order."""
    if recorded is not None:
        return _read_rec(source.path, rows, left, recorded)
    names = _read_folder(source.path, rows, left) if source.path.is_dir() else _read_list(source.path, rows)
    order = _order(names)
    rows.renumber(order)
    return [names[i] for i in order]


def _read_folder(folder: Path, rows: Rows, left: dict[str, Left]) -> list[str]:
    names: list[str] = []
    for entry in _entries(os.fsencode(folder)):
        if not entry.is_dir():
            reason = "outside an identity's folder" if _is_image(entry.name) else "not an image's name"
            left.setdefault(reason, Left()).add(shown(entry.name))
            continue
        before = len(rows)
        for path in _images_below(entry.path, entry.name, left):
            rows.add(path, len(names))
        if len(rows) == before:
            left.setdefault("identity's folder without images", Left()).add(shown(entry.name))
        else:
            names.append(shown(entry.name))
    return names


def _entries(folder: bytes) -> list[os.DirEntry]:
    with reading(os.fsdecode(folder)), os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _images_below(folder: bytes, name: bytes, left: dict[str, Left]) -> Iterator[bytes]:
    """Paths of images below an identity's folder, each beginning with `name`; links to folders are not followed."""
    for entry in _entries(folder):
        path = name + b"/" + entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from _images_below(entry.path, path, left)
        elif _is_image(entry.name) and not entry.is_dir():
            yield path
        else:
            left.setdefault("not an image's name", Left()).add(shown(path))


def _is_image(name: bytes) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(b".")


def _read_rec(path: Path, rows: Rows, left: dict[str, Left], recorded: RecordedNames) -> list[str]:
    # What is damaged is left out and reported, however much it is.
    records = Records(path, max_damaged=1.0)
    for key in records.damaged[:_FIRST].tolist():
        left.setdefault("damaged record", Left()).add(recorded.image(key), 0)
    if len(records.damaged):
        left["damaged record"].count += len(records.damaged)
    index = read_index(path.with_suffix(".idx"))
    order = np.argsort(index.keys, kind="stable")
    offsets = index.offsets[order[np.searchsorted(index.keys, records.keys, sorter=order)]]
    labels, identity = np.unique(records.labels, return_inverse=True)
    block = np.zeros(len(records), ROW)
    block["identity"], block["number"], block["at"] = identity, records.keys, offsets
    block["label"] = records.labels
    rows.add_block(block)
    known = recorded.identities()
    return [known.get(label, str(label)) for label in labels.tolist()]


class RecordedNames:
    """The names file beside a .rec: where its images come from. Record k is on line k; holds 8 bytes per line.

    Lines are 'record, label, identity, image' or 'record, label, image', separated by tabs.
    """

    def __init__(self, rec: Path):
        self._rec = rec
        self._path = rec.with_name(f"{rec.stem}_names.txt")
        self._ends = np.empty(0, np.int64)
        if self._path.is_file():
            with reading(self._path):
                self._file = self._path.open("rb")
                self._ends = _line_ends(self._file)

    def image(self, number: int) -> str:
        """The name of a record's image; 'train.rec:12' where it is not recorded."""
        if 1 <= number <= len(self._ends):
            begin = int(self._ends[number - 2]) if number > 1 else 0
            line = os.pread(self._file.fileno(), min(int(self._ends[number - 1]) - begin, _LINE_BYTES), begin)
            fields = line.rstrip(b"\r\n").split(b"\t")
            if len(fields) in (3, 4) and fields[0] == b"%d" % number:
                return shown(fields[-1])
        return f"{self._rec.name}:{number}"

    def identities(self) -> dict[int, str]:
        """label -> name, as far as they are recorded."""
        names: dict[int, str] = {}
        if len(self._ends):
            for _, line in lines(self._path):
                fields = line.split(b"\t")
                if len(fields) == 4 and fields[1].isdigit():
                    names.setdefault(int(fields[1]), shown(fields[2]))
        return names


def _line_ends(file: BinaryIO) -> np.ndarray:
    """Where the lines of a file end, past their line breaks: int64 (n,)."""
    ends, at = [np.empty(0, np.int64)], 0
    while block := file.read(1 << 20):
        ends.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + at + 1)
        at += len(block)
    return np.concatenate(ends)


def _read_list(path: Path, rows: Rows) -> list[str]:
    numbers: dict[bytes, int] = {}
    parse = None
    for line_number, line in lines(path):
        if parse is None:
            parse = _parser(path, line)
        try:
            image, label, aligned, points = parse(line)
        except (ValueError, IndexError) as error:
            raise UserError(
                f"{path}: line {line_number}: expected {parse.__doc__}, got {shown(line)[:80]!r}"
            ) from error
        rows.add(
            image, numbers.setdefault(label, len(numbers)), number=line_number, aligned=aligned, points=points
        )
    if not numbers:
        raise UserError(f"{path}: expected a line for each image, got an empty file")
    return [shown(label) for label in numbers]


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, content) of the lines that are not blank."""
    with reading(path), path.open("rb") as file:
        number = 0
        while line := file.readline(_LINE_BYTES):
            number += 1
            if len(line) == _LINE_BYTES:
                raise UserError(
                    f"{path}: line {number}: expected a line of text, got more than {_LINE_BYTES} bytes"
                )
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield number, line.rstrip(b"\r\n")


def _parser(path: Path, line: bytes):
    if path.suffix != ".lst":
        return _parse_plain
    fields = line.rstrip().split(b"\t")
    try:
        float(fields[1])
    except (IndexError, ValueError):
        return _parse_insightface
    return _parse_mxnet


def _parse_plain(line: bytes):
    """'path<TAB>identity', or 'path identity' where the identity has no space"""
    path, label = line.rsplit(b"\t", 1) if b"\t" in line else line.strip().rsplit(None, 1)
    path, label = path.strip(), label.strip()
    if not path or not label:
        raise ValueError
    return path, label, False, None


def _parse_insightface(line: bytes):
    """'aligned<TAB>path<TAB>label', then perhaps a box (4 numbers) and landmarks (x1..x5, y1..y5)"""
    fields = line.strip().split(b"\t")
    if len(fields) not in (3, 7, 17) or fields[0] not in (b"0", b"1"):
        raise ValueError
    values = np.array([float(value) for value in fields[3:]], np.float32)
    points = values[4:].reshape(2, 5).T.ravel() if len(fields) == 17 else None
    return fields[1], b"%d" % int(fields[2]), fields[0] == b"1", points


def _parse_mxnet(line: bytes):
    """'number<TAB>label<TAB>path'"""
    number, label, path = line.strip().split(b"\t")
    float(number)
    if float(label) != int(float(label)):
        raise ValueError
    return path, b"%d" % int(float(label)), False, None


class Rows:
    """Rows of one source as they are found; `identity` still counts within the source."""

    def __init__(self, source: int, paths: BinaryIO):
        self._source = source
        self._paths = paths
        self._at = paths.tell()
        self._blocks: list[np.ndarray] = []
        self._batch: list[tuple] = []
        self._points = array.array("f")
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def add(self, path: bytes, identity: int, *, number: int = 0, aligned: bool = False, points=None) -> None:
        if b"\0" in path:
            raise UserError(f"{shown(path)}: expected a path, got one with a zero byte; correct the list")
        if points is not None:
            # Rows before the first with points have none.
            self._points.frombytes(bytes(no_points(self._rows - len(self._points) // LANDMARKS)))
            self._points.extend(points.tolist())
        self._batch.append((identity, self._source, number, self._at, len(path), -1, aligned, NOTHING))
        self._paths.write(path)
        self._at += len(path)
        self._rows += 1
        if len(self._batch) == _ROWS_AT_A_TIME:
            self._flush()

    def add_block(self, block: np.ndarray) -> None:
        block["source"] = self._source
        self._blocks.append(block)
        self._rows += len(block)

    def renumber(self, order: list[int]) -> None:
        """Let identity order[i] have number i."""
        self._flush()
        rank = np.empty(len(order), np.int32)
        rank[order] = np.arange(len(order))
        for block in self._blocks:
            block["identity"] = rank[block["identity"]]

    def rows(self) -> np.ndarray:
        self._flush()
        return np.concatenate([np.empty(0, ROW), *self._blocks])

    def points(self) -> np.ndarray:
        """float32 (n, 10), NaN where a row has none; (0, 10) where no row has any."""
        if not self._points:
            return no_points(0)
        given = np.frombuffer(self._points, np.float32).reshape(-1, LANDMARKS)
        return np.concatenate([given, no_points(self._rows - len(given))])

    def _flush(self) -> None:
        self._blocks.append(np.array(self._batch, ROW))
        self._batch = []


def no_points(count: int) -> np.ndarray:
    return np.full((count, LANDMARKS), np.nan, np.float32)


def _order(tokens: list[str]) -> list[int]:
    """Numbers of the identities in their order: by number where all are numbers, else by name."""
    if all(token.isascii() and token.isdigit() for token in tokens):
        return sorted(range(len(tokens)), key=lambda i: (int(tokens[i]), tokens[i]))
    return sorted(range(len(tokens)), key=tokens.__getitem__)
