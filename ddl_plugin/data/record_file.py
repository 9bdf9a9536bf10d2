"""A .rec file by the bytes: the record at an offset, and the encoded image that it holds.

A frame of the .rec is the magic, `flag << 29 | length`, and the payload padded to 4 bytes; a payload that
holds the magic is split there into several frames (flags 1, 2.., 3). A record is an `IRHeader` (flag, label,
id, id2), `flag` further float32 labels, and the encoded image.
"""

from __future__ import annotations

import functools
import os
import struct
import weakref
from pathlib import Path

import cv2
import numpy as np

from ddl_plugin.errors import UserError
from ddl_plugin.files import reading

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
FRAME = struct.Struct("<II")  # magic, flag << 29 | length
HEADER = struct.Struct("<IfQQ")  # flag, label, id, id2
LENGTH_MASK = (1 << 29) - 1
_LEAD = struct.Struct("<IIIf")  # magic, length, flag, label: of a frame that is a whole record
_IMAGE = FRAME.size + HEADER.size  # where the image starts in such a frame, if it has one label
_FLOAT = struct.Struct("<f")
_GUESS = 1 << 14  # bytes that hold most records
_LONGEST = 1 << 26  # bytes of a record, and its frames


class DamagedRecordError(UserError):
    """A record whose image cannot be used; `key` is its number in the .idx."""

    def __init__(self, message: str, key: int):
        super().__init__(message)
        self.key = key

    def __reduce__(self):
        return DamagedRecordError, (str(self), self.key)


class RecordFile:
    """A .rec file, opened when it is first read.

    Records are read by pread, not through a memory map: a file that gets shorter meanwhile is then an error, not
    the end of the process, and no thread waits for another's disk with Python's lock held.
    Safe to share between threads and after a fork; pickled by path.

    Where a record is: `key`, its number in the .idx, for messages; `offset` of its first frame; `room`, bytes up to
    the next record, not above 0 where that is not known. `DamagedRecordError` for one that cannot be used.
    """

    def __init__(self, path: Path):
        self.path = path
        self._absolute = path.absolute()

    def __getstate__(self):
        return {"path": self.path, "_absolute": self._absolute}

    @functools.cached_property
    def _handle(self) -> int:
        with reading(self.path):
            file = self._absolute.open("rb", buffering=0)
        weakref.finalize(self, file.close)
        return file.fileno()

    @functools.cached_property
    def size(self) -> int:
        """Bytes of the file when this was first asked for."""
        return os.fstat(self._handle).st_size

    def image(self, key: int, offset: int, room: int, label: int) -> np.ndarray:
        """The image of a record of `label`, decoded: uint8 (H, W, 3) RGB."""
        data = self.encoded(key, offset, room, label)
        # OpenCV raises for some of what it cannot decode and returns None for the rest.
        try:
            pixels = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
        except cv2.error:
            pixels = None
        if pixels is None:
            raise self.no_image(key, f"{len(data)} bytes that cannot be decoded")
        return pixels

    def encoded(self, key: int, offset: int, room: int, label: int) -> np.ndarray:
        """The encoded image of a record of `label`, uint8 (n,), n >= 1."""
        try:
            # Nearly every record is one frame with one label, before the next record: one read holds it.
            data = os.pread(self._handle, room if 0 < room <= 4 * _GUESS else _GUESS, offset)
            if len(data) > _IMAGE:
                magic, length, flag, found = _LEAD.unpack_from(data)
                stop = FRAME.size + length
                if magic == MAGIC and flag == 0 and found == label and _IMAGE < stop <= len(data):
                    return np.frombuffer(data, np.uint8, stop - _IMAGE, _IMAGE)
            image, found = self.labelled(key, offset, room)
        except OSError as error:
            raise DamagedRecordError(
                f"{self.path}: record {key} cannot be read: {error.strerror}", key
            ) from error
        if found != label:
            raise self._mismatch(key, f"a record of label {found:g} instead of {label}")
        return image

    def labelled(self, key: int, offset: int, room: int = 0) -> tuple[np.ndarray, float]:
        """The encoded image, uint8 (n,), and the label in the record's header, the first of several."""
        record = self.record(key, offset, room)
        if len(record) < HEADER.size:
            raise self.no_image(key, f"{len(record)} bytes, less than its header needs")
        flag, label, _, _ = HEADER.unpack_from(record)
        start = HEADER.size + 4 * flag
        if len(record) <= start:
            raise self.no_image(key, "nothing after its header")
        if flag:
            (label,) = _FLOAT.unpack_from(record, HEADER.size)
        return np.frombuffer(record, np.uint8, len(record) - start, start), label

    def record(self, key: int, offset: int, room: int = 0) -> bytes:
        """The record, its frames joined by the magic that they were split at."""
        if offset % 4:
            raise self._mismatch(key, f"offset {offset}, no multiple of 4")
        end = offset + (room if room > 0 else _LONGEST)
        parts = []
        while True:
            frame = os.pread(self._handle, FRAME.size, offset)
            if len(frame) < FRAME.size:
                raise self._truncated(key)
            magic, lrec = FRAME.unpack(frame)
            flag, length = lrec >> 29, lrec & LENGTH_MASK
            if magic != MAGIC:
                raise self._mismatch(key, f"{magic:#010x} instead of the magic")
            if flag not in ((2, 3) if parts else (0, 1)):
                raise self._mismatch(key, f"part flag {flag}")
            start = offset + FRAME.size
            if start + length > end:
                if start + length > os.fstat(self._handle).st_size:
                    raise self._truncated(key)
                raise self._mismatch(key, f"a length of {length} bytes, for which there is no room")
            part = os.pread(self._handle, length, start)
            if len(part) < length:
                raise self._truncated(key)
            parts.append(part)
            if flag in (0, 3):
                return MAGIC_BYTES.join(parts)
            offset = start + (length + 3) // 4 * 4

    def words(self, offsets: np.ndarray, count: int) -> np.ndarray:
        """The first `count` 4-byte words of frames, uint32 (n, count); zeros where the file ends before."""
        words = np.zeros((len(offsets), count), np.uint32)
        size = 4 * count
        for start in range(0, len(offsets), 1 << 16):
            parts = [
                os.pread(self._handle, size, offset) for offset in offsets[start : start + (1 << 16)].tolist()
            ]
            data = b"".join([part if len(part) == size else bytes(size) for part in parts])
            words[start : start + len(parts)] = np.frombuffer(data, "<u4").reshape(-1, count)
        return words

    def no_image(self, key: int, got: str) -> DamagedRecordError:
        """The error of a record that holds no image."""
        return DamagedRecordError(
            f"{self.path}: record {key} is no image: expected an encoded image, got {got}; "
            "make the data set again without this record",
            key,
        )

    def _truncated(self, key: int) -> DamagedRecordError:
        size = os.fstat(self._handle).st_size
        return DamagedRecordError(
            f"{self.path}: truncated: expected all of record {key}, got the end of the file "
            f"({size} bytes) before it; copy or make the file again",
            key,
        )

    def _mismatch(self, key: int, got: str) -> DamagedRecordError:
        return DamagedRecordError(
            f"{self.path}: expected record {key} where {self.path.stem}.idx says, got {got}; "
            "the two files do not belong together or are damaged: copy or make both again",
            key,
        )
