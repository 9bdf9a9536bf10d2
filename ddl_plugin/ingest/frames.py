"""The frames of a .rec file that may be damaged in any way: nothing in it raises, hangs or takes much memory.

`records.Records` is the reader for training. This one, for `prepare check`, goes through a file that may be anything.
"""

from __future__ import annotations

import array
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddl_plugin.data.records import MAGIC
from ddl_plugin.files import reading

#: Why a record cannot be read, in `HEAD["state"]`.
OK, NO_MAGIC, CUT, BAD_PARTS, SHORT = range(5)

HEAD = np.dtype(
    [
        ("state", "u1"),
        ("end", "<i8"),  # where its last frame ends, padding included
        ("length", "<i8"),  # bytes of its content, parts joined
        ("flag", "<u4"),  # number of labels after the header
        ("label", "<f4"),  # the label of an image
        ("more", "<f4", (2,)),  # the first two of the further labels, NaN where there are none
    ]
)
#: Bytes of flag, label, id and id2, before further labels and the image.
HEADER_BYTES = 24
#: An image of more bytes is not read.
MAX_IMAGE_BYTES = 1 << 26

_MAGIC_BYTES = struct.pack("<I", MAGIC)
_FRAME = struct.Struct("<II")  # magic, flag << 29 | length
_FLAG_LABEL = struct.Struct("<If")
_LABEL = struct.Struct("<f")
_LENGTH_MASK = (1 << 29) - 1
_HEAD_BYTES = HEADER_BYTES + 8
#: A record is split where it holds the magic: once in 2^32 words of an image.
_MAX_PARTS = 64
_BLOCK = 1 << 20
_PLAIN_LINES = re.compile(rb"(?:\d{1,18}\t\d{1,18}\r?\n)*")
_LINE = re.compile(rb"[ \t]*(\d{1,18})[ \t]+(\d{1,18})[ \t\r]*")


class FrameFile:
    """A .rec file opened for reading by offset. Raises UserError where it cannot be opened."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        with reading(path):
            self._file = self.path.open("rb", buffering=0)
            self.size = os.fstat(self._file.fileno()).st_size
        self._block_at, self._block = 0, b""

    def close(self) -> None:
        self._file.close()

    def heads(self, offsets: np.ndarray) -> np.ndarray:
        """What stands at the beginning of the records at `offsets`: HEAD (n,)."""
        fd, size = self._file.fileno(), _FRAME.size + _HEAD_BYTES
        raw = b"".join(os.pread(fd, size, offset).ljust(size, b"\0") for offset in offsets.tolist())
        words = np.frombuffer(raw, "<u4").reshape(-1, size // 4)
        heads = np.zeros(len(offsets), HEAD)
        heads["length"] = words[:, 1] & _LENGTH_MASK
        heads["end"] = offsets + _FRAME.size + (heads["length"] + 3) // 4 * 4
        _fill(heads, words[:, 2:])
        part = words[:, 1] >> 29
        for i in np.flatnonzero((words[:, 0] == MAGIC) & (part == 1)):
            self._fill_joined(heads[i : i + 1], int(offsets[i]))
        state, length = heads["state"], heads["length"]
        state[(state == OK) & (length < HEADER_BYTES + 4 * heads["flag"].astype(np.int64))] = SHORT
        state[(part == 0) & (offsets + _FRAME.size + length > self.size)] = CUT
        state[part > 1] = BAD_PARTS
        state[(words[:, 0] != MAGIC) | (offsets % 4 != 0)] = NO_MAGIC
        return heads

    def image(self, offset: int) -> tuple[float, bytes] | None:
        """Label and encoded image of the record at `offset`, or None where there is none that can be read."""
        content = self._content(offset, HEADER_BYTES + MAX_IMAGE_BYTES)[0]
        if content is None or len(content) < HEADER_BYTES:
            return None
        several, label = _FLAG_LABEL.unpack_from(content)
        image = content[HEADER_BYTES + 4 * several :]
        if not image:
            return None
        return (_LABEL.unpack_from(content, HEADER_BYTES)[0] if several else label), image

    def scan(self, begin: int, end: int) -> np.ndarray:
        """Offsets of the records that begin within [begin, end), found by their magic: int64 (n,)."""
        found = array.array("q")
        at = (begin + 3) // 4 * 4
        while at + _FRAME.size <= end:
            magic, lrec = _FRAME.unpack(self._at(at, _FRAME.size))
            if magic != MAGIC or lrec >> 29 > 1:
                at = self._next_magic(at + 4, end)
                continue
            stop = (
                self._parts_end(at) if lrec >> 29 else at + _FRAME.size + ((lrec & _LENGTH_MASK) + 3) // 4 * 4
            )
            found.append(at)
            # A frame that leaves no room for the next one may be garbage that swallows good records.
            whole = stop is not None and (stop == self.size or self._magic_at(stop))
            at = stop if whole else self._next_magic(at + 4, end)
        return np.frombuffer(found, np.int64) if found else np.empty(0, np.int64)

    # -- one record --------------------------------------------------------------------------------

    def _fill_joined(self, head: np.ndarray, offset: int) -> None:
        """`head` of a record in several parts."""
        content, end = self._content(offset, HEADER_BYTES + MAX_IMAGE_BYTES)
        head["state"] = OK
        if content is None:
            head["state"], head["end"] = BAD_PARTS, offset + _FRAME.size
            return
        head["length"], head["end"] = len(content), end
        _fill(head, np.frombuffer(content[:_HEAD_BYTES].ljust(_HEAD_BYTES, b"\0"), "<u4").reshape(1, -1))

    def _content(self, offset: int, limit: int) -> tuple[bytes | None, int]:
        """What the record at `offset` holds, its parts joined, and where it ends; None where it is not whole."""
        parts, size = [], 0
        for start, length, last in self._parts(offset):
            size += length + len(_MAGIC_BYTES)
            if size > limit + len(_MAGIC_BYTES):
                break
            parts.append(os.pread(self._file.fileno(), length, start))
            if len(parts[-1]) < length:
                break
            if last:
                return _MAGIC_BYTES.join(parts), start + (length + 3) // 4 * 4
        return None, offset

    def _parts(self, offset: int) -> Iterator[tuple[int, int, bool]]:
        """(start, length, whether it is the last) of a record's parts, as far as they fit together."""
        for number in range(_MAX_PARTS):
            frame = os.pread(self._file.fileno(), _FRAME.size, offset)
            if len(frame) < _FRAME.size:
                return
            magic, lrec = _FRAME.unpack(frame)
            part, length = lrec >> 29, lrec & _LENGTH_MASK
            if magic != MAGIC or part not in ((2, 3) if number else (0, 1)):
                return
            start = offset + _FRAME.size
            if start + length > self.size:
                return
            yield start, length, part in (0, 3)
            if part in (0, 3):
                return
            offset = start + (length + 3) // 4 * 4

    def _parts_end(self, offset: int) -> int | None:
        for start, length, last in self._parts(offset):
            if last:
                return start + (length + 3) // 4 * 4
        return None

    # -- searching ---------------------------------------------------------------------------------

    def _at(self, offset: int, count: int) -> bytes:
        """`count` bytes at `offset`, through a block that is kept; zeros past the end."""
        begin = offset - self._block_at
        if begin < 0 or begin + count > len(self._block):
            self._block_at, begin = offset, 0
            self._block = os.pread(self._file.fileno(), _BLOCK, offset)
        return self._block[begin : begin + count].ljust(count, b"\0")

    def _magic_at(self, offset: int) -> bool:
        return self._at(offset, 4) == _MAGIC_BYTES

    def _next_magic(self, at: int, end: int) -> int:
        """The next offset >= at, a multiple of 4, with the magic; `end` where there is none before."""
        while at + _FRAME.size <= end:
            self._at(at, _FRAME.size)
            begin = at - self._block_at
            found = self._block.find(_MAGIC_BYTES, begin)
            if found >= 0 and (self._block_at + found) % 4 == 0:
                return self._block_at + found
            if found >= 0:
                at = (self._block_at + found) // 4 * 4 + 4
            else:
                at = max(at + 4, (self._block_at + len(self._block)) // 4 * 4)
        return end


def _fill(heads: np.ndarray, words: np.ndarray) -> None:
    """Flag, label and further labels from the words (n, 8) of the records' contents."""
    heads["flag"] = words[:, 0]
    heads["label"] = np.ascontiguousarray(words[:, 1]).view("<f4")
    more = np.ascontiguousarray(words[:, HEADER_BYTES // 4 :]).view("<f4").reshape(-1, 2)
    heads["more"] = np.where(heads["flag"][:, None] > [0, 1], more, np.nan)


# -- the index -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Index:
    """The lines of a .idx in their order; `bad_lines` are those that are no two whole numbers."""

    keys: np.ndarray  # int64 (n,)
    offsets: np.ndarray  # int64 (n,)
    bad_lines: int
    first_bad_line: int  # from 1; 0 where none is bad


def read_index(path: str | os.PathLike) -> Index:
    """Read a .idx, taking what can be understood. Raises UserError where it cannot be read at all."""
    values: list[np.ndarray] = []
    bad, first_bad, line = 0, 0, 1
    with reading(path), Path(path).open("rb") as file:
        for block in _blocks(file):
            if _PLAIN_LINES.fullmatch(block):
                values.append(np.fromstring(block, np.int64, sep=" "))
                line += block.count(b"\n")
                continue
            numbers = array.array("q")
            for text in block.splitlines():
                match = _LINE.fullmatch(text)
                if match:
                    numbers.extend(map(int, match.groups()))
                elif text.strip():
                    bad, first_bad = bad + 1, first_bad or line
                line += 1
            values.append(np.array(numbers, np.int64))
    pairs = np.concatenate(values or [np.empty(0, np.int64)]).reshape(-1, 2)
    keys, offsets = np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])
    return Index(keys, offsets, bad, first_bad)


def _blocks(file) -> Iterator[bytes]:
    """The file in blocks of whole lines; a line of more than a block comes in pieces."""
    rest = b""
    while block := file.read(_BLOCK):
        block = rest + block
        cut = block.rfind(b"\n") + 1 or len(block)
        yield block[:cut]
        rest = block[cut:]
    if rest:
        yield rest if rest.endswith(b"\n") else rest + b"\n"
