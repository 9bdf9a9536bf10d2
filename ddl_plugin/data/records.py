"""InsightFace RecordIO data sets (.rec with .idx): a random-access reader and a writer, in NumPy.

A frame of the .rec is the magic, `flag << 29 | length`, and the payload padded to 4 bytes; a payload that
holds the magic is split there into several frames (flags 1, 2.., 3). A record is an `IRHeader` (flag, label,
id, id2), `flag` further float32 labels, and the encoded image. Data sets come in two kinds:

* with a header record (number 0, no image, labels N+1 and N+1+identities): images are records 1..N, and one
  record per identity from N+1 on holds the range (first, last + 1) of its images;
* without one: every record is an image that carries its own label.
"""

from __future__ import annotations

import array
import contextlib
import hashlib
import io
import mmap
import os
import re
import struct
import tempfile
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from ddl_plugin.errors import UserError
from ddl_plugin.files import reading, write_text

MAGIC = 0xCED7230A
_MAGIC_BYTES = struct.pack("<I", MAGIC)
_FRAME = struct.Struct("<II")  # magic, flag << 29 | length
_HEADER = struct.Struct("<IfQQ")  # flag, label, id, id2
_LENGTH_MASK = (1 << 29) - 1
_HEADER_WORDS = _HEADER.size // 4
_LABEL_WORD = 3  # of a frame, in 4-byte words: magic, lrec, flag, label, id x 2, id2 x 2, more labels
_MORE_LABELS_WORD = 2 + _HEADER_WORDS
#: float32, in which ranges are stored, counts exactly up to here.
_EXACT = 1 << 24
_JPEG_QUALITY = 95
_IDX_LINE = re.compile(rb"[ \t]*\d{1,18}[ \t]+\d{1,18}[ \t\r]*\n?")


class Records:
    """The images of a .rec file, by position 0..N-1 in the order of their record numbers.

    The files are mapped, not read: opening costs the .idx, one label per identity (one per image where the
    data set has no header record) and the memory of `keys`, `labels` and offsets, 20 bytes per image.
    Safe to share between threads and after a fork; pickled by path. Read-only.

    Raises `UserError` for files that are missing, truncated or not of this format.
    """

    path: Path
    keys: np.ndarray  # int64 (N,) record numbers in the .idx
    labels: np.ndarray  # int32 (N,) as stored

    def __init__(self, path: str | os.PathLike):
        self.path = _find_rec(Path(path))
        keys, offsets = _read_idx(self.path.with_suffix(".idx"))
        self._map = _map_file(self.path)
        self._size = len(self._map)
        self._check_size(keys, offsets)
        self._words = np.frombuffer(self._map, "<u4", count=self._size // 4)
        header = self._header(keys, offsets)
        if header is None:
            self._label_by_image(keys, offsets)
        elif header[1] > _EXACT:
            self._label_by_image(*self._drop_ranges(keys, offsets, header[0]))
        else:
            self._label_by_range(keys, offsets, *header)
        self._classes = self._read_property()
        for values in (self.keys, self.labels):
            values.setflags(write=False)

    def __len__(self) -> int:
        return len(self.keys)

    def __reduce__(self):
        return Records, (str(self.path.absolute()),)

    @property
    def num_classes(self) -> int:
        """From the `property` file of a train.rec, else the largest label + 1."""
        return self._classes

    def payload(self, i: int) -> bytes:
        """The encoded image at position `i`, as stored."""
        key = int(self.keys[i])
        record = self._record(key, int(self._offsets[i]))
        start = _HEADER.size
        if len(record) >= start:
            start += 4 * _HEADER.unpack_from(record)[0]
        if len(record) <= start:
            raise self._no_image(key, "nothing after its header")
        return record[start:]

    def image(self, i: int) -> np.ndarray:
        """The image at position `i`: uint8 (H, W, 3) RGB."""
        data = np.frombuffer(self.payload(i), np.uint8)
        pixels = None
        # OpenCV raises for some of what it cannot decode and returns None for the rest.
        with contextlib.suppress(cv2.error):
            pixels = cv2.imdecode(data, cv2.IMREAD_COLOR)
        if pixels is None:
            raise self._no_image(int(self.keys[i]), f"{len(data)} bytes that cannot be decoded")
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)

    def images(self, positions: np.ndarray) -> np.ndarray:
        """The images at `positions` (n >= 1), all of one size: uint8 (n, H, W, 3) RGB."""
        first = self.image(positions[0])
        result = np.empty((len(positions), *first.shape), np.uint8)
        result[0] = first
        for row, i in enumerate(positions[1:], 1):
            image = self.image(i)
            if image.shape != first.shape:
                raise UserError(
                    f"{self.path}: expected images of one size, got {_sides(first)} in record "
                    f"{self.keys[positions[0]]} and {_sides(image)} in record {self.keys[i]}; "
                    "align all images to one size, 112x112 for InsightFace"
                )
            result[row] = image
        return result

    def fingerprint(self) -> str:
        """'name:digest' of the file's name, its size, its index and its labels; the same on any machine."""
        digest = hashlib.sha256(str(self._size).encode())
        for values in (self.keys, self._offsets, self.labels):
            digest.update(np.ascontiguousarray(values))
        return f"{self.path.name}:{digest.hexdigest()[:32]}"

    # -- opening -----------------------------------------------------------------------------------

    def _check_size(self, keys: np.ndarray, offsets: np.ndarray) -> None:
        """The last frame that the .idx knows must end within the file."""
        unaligned = np.flatnonzero(offsets % 4)
        if unaligned.size:
            raise self._mismatch(int(keys[unaligned[0]]), f"offset {offsets[unaligned[0]]}, no multiple of 4")
        outside = np.flatnonzero(offsets + _FRAME.size > self._size)
        inside = offsets[offsets + _FRAME.size <= self._size]
        if inside.size:
            last = int(np.flatnonzero(offsets == inside.max())[0])
            self._record(int(keys[last]), int(offsets[last]))
        if outside.size:
            raise self._truncated(int(keys[outside[np.argmin(offsets[outside])]]))

    def _header(self, keys: np.ndarray, offsets: np.ndarray) -> tuple[int, int] | None:
        """(N + 1, N + 1 + identities) of the header record, or None where there is none."""
        if keys[0] != 0:
            return None
        record = self._record(0, int(offsets[0]))
        if len(record) < _HEADER.size:
            raise self._no_image(0, "no header")
        flag = _HEADER.unpack_from(record)[0]
        if flag == 0 or len(record) > _HEADER.size + 4 * flag:
            return None
        labels = np.frombuffer(record, "<f4", offset=_HEADER.size)
        if (
            len(labels) < 2
            or not (labels == np.floor(labels)).all()
            or not 2 <= labels[0] < labels[1] < 2**31
        ):
            got = ", ".join(f"{x:g}" for x in labels[:4])
            raise UserError(
                f"{self.path}: expected two labels (images + 1, images + 1 + identities) in the header "
                f"record 0, got ({got}); {_MAKE}"
            )
        return int(labels[0]), int(labels[1])

    def _label_by_range(
        self, keys: np.ndarray, offsets: np.ndarray, images_end: int, ranges_end: int
    ) -> None:
        """Images 1..N, each range's label taken from its first image: reads one image header an identity."""
        if len(keys) < ranges_end or keys[ranges_end - 1] != ranges_end - 1:
            present = keys[keys < ranges_end]
            missing = int(np.flatnonzero(np.append(present, -1) != np.arange(len(present) + 1))[0])
            raise UserError(
                f"{self.path.with_suffix('.idx')}: expected records 0..{ranges_end - 1}, as the header record "
                f"of {self.path.name} says, got none with number {missing}; "
                "the two files do not belong together or are damaged: copy or make both again"
            )
        first, last = self._ranges(offsets, images_end, ranges_end)
        self.keys, self._offsets = keys[1:images_end], offsets[1:images_end]
        labels = self._image_labels(first, offsets[first])
        self.labels = np.repeat(labels, last - first)

    def _ranges(self, offsets: np.ndarray, images_end: int, ranges_end: int) -> tuple[np.ndarray, np.ndarray]:
        """The identities' ranges [first, last) in ascending order; they must cover 1..N exactly."""
        numbers = np.arange(images_end, ranges_end)
        offsets = offsets[images_end:ranges_end]
        flags = self._gather(numbers, offsets, _LABEL_WORD)[:, 2]
        if (flags != 2).any():
            bad = int(np.flatnonzero(flags != 2)[0])
            raise self._bad_ranges(f"flag {flags[bad]} instead of 2 in record {numbers[bad]}")
        words = self._gather(numbers, offsets, _MORE_LABELS_WORD + 2)
        bounds = words[:, _MORE_LABELS_WORD:].copy().view("<f4")
        inside = (bounds[:, 0] >= 1) & (bounds[:, 0] <= bounds[:, 1]) & (bounds[:, 1] <= images_end)
        if not inside.all():
            bad = int(np.flatnonzero(~inside)[0])
            got = f"({bounds[bad, 0]:.9g}, {bounds[bad, 1]:.9g})"
            raise self._bad_ranges(f"{got} outside 1..{images_end} in record {numbers[bad]}")
        first, last = bounds.astype(np.int64).T
        filled = np.flatnonzero(first < last)
        order = filled[np.argsort(first[filled], kind="stable")]
        first, last = first[order], last[order]
        starts = np.append(first, images_end)
        ends = np.append(1, last)
        wrong = np.flatnonzero(starts != ends)
        if wrong.size:
            at = int(wrong[0])
            what = "no range for" if starts[at] > ends[at] else "more than one range for"
            raise self._bad_ranges(f"{what} image {min(starts[at], ends[at])}")
        return first, last

    def _drop_ranges(
        self, keys: np.ndarray, offsets: np.ndarray, images_end: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Record numbers and offsets of the images where float32 rounds the ranges: all records that hold more
        than a header."""
        words = self._gather(keys[1:], offsets[1:], _LABEL_WORD)
        holds_image = (words[:, 1] & _LENGTH_MASK) > _HEADER.size + 4 * words[:, 2].astype(np.int64)
        found = int(holds_image.sum())
        if abs(found + 1 - images_end) > np.spacing(np.float32(images_end)):
            raise UserError(
                f"{self.path}: expected {images_end - 1} images, as its header record says, got {found}; {_MAKE}"
            )
        return keys[1:][holds_image], offsets[1:][holds_image]

    def _label_by_image(self, keys: np.ndarray, offsets: np.ndarray) -> None:
        """Every record is an image that carries its own label."""
        self.keys, self._offsets = keys, offsets
        self.labels = self._image_labels(keys, offsets)

    def _image_labels(self, keys: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """int32 labels from the records' own headers: the label, or the first of several."""
        words = self._gather(keys, offsets, _LABEL_WORD + 1)
        lengths = words[:, 1].astype(np.int64)  # of a record in one frame: its flag is 0
        empty = np.flatnonzero(lengths <= _HEADER.size + 4 * words[:, 2].astype(np.int64))
        if empty.size:
            raise self._no_image(int(keys[empty[0]]), "nothing after its header")
        several = words[:, 2] > 0
        values = words[:, _LABEL_WORD].copy().view("<f4")
        more = self._gather(keys[several], offsets[several], _MORE_LABELS_WORD + 1)
        values[several] = more[:, _MORE_LABELS_WORD].copy().view("<f4")
        bad = np.flatnonzero(~((values >= 0) & (values < 2**31) & (values == np.floor(values))))
        if bad.size:
            raise UserError(
                f"{self.path}: expected whole numbers >= 0 as labels, got {values[bad[0]]:g} in record "
                f"{keys[bad[0]]} and {bad.size} such labels in all; {_MAKE}"
            )
        return values.astype(np.int32)

    def _gather(self, keys: np.ndarray, offsets: np.ndarray, count: int) -> np.ndarray:
        """The first `count` 4-byte words of frames, uint32 (n, count); magic and length are checked."""
        words = np.empty((len(offsets), count), np.uint32)
        column = np.arange(count)
        for start in range(0, len(offsets), 1 << 16):
            part = slice(start, start + (1 << 16))
            at = offsets[part, None] // 4 + column
            beyond = np.flatnonzero(at[:, -1] >= len(self._words))
            if beyond.size:
                raise self._truncated(int(keys[part][beyond[0]]))
            words[part] = self._words[at]
        wrong = np.flatnonzero(words[:, 0] != MAGIC)
        if wrong.size:
            raise self._mismatch(int(keys[wrong[0]]), f"{words[wrong[0], 0]:#010x} instead of the magic")
        short = np.flatnonzero((words[:, 1] & _LENGTH_MASK) < 4 * (count - 2))
        if short.size:
            length = words[short[0], 1] & _LENGTH_MASK
            raise self._no_image(int(keys[short[0]]), f"{length} bytes, less than its header needs")
        return words

    def _read_property(self) -> int:
        classes = int(self.labels.max()) + 1
        file = self.path.with_name("property")
        # `property` describes the training set; other sets may lie in the same folder.
        if self.path.stem != "train" or not file.is_file():
            return classes
        with reading(file):
            text = file.read_text(errors="replace").strip()
        match = re.fullmatch(r"(\d{1,9})\s*,\s*\d+\s*,\s*\d+", text)
        if not match:
            raise UserError(
                f"{file}: expected 'classes,height,width' such as '{classes},112,112', got {text[:40]!r}"
            )
        if int(match[1]) < classes:
            raise UserError(
                f"{file}: expected at least {classes} classes, as the labels of {self.path.name} reach "
                f"{classes - 1}, got {match[1]}; correct it or delete it"
            )
        return int(match[1])

    # -- reading one record ------------------------------------------------------------------------

    def _record(self, key: int, offset: int) -> bytes:
        """The record at `offset`, its frames joined by the magic that they were split at."""
        parts = []
        while True:
            if offset + _FRAME.size > self._size:
                raise self._truncated(key)
            magic, lrec = _FRAME.unpack_from(self._map, offset)
            flag, length = lrec >> 29, lrec & _LENGTH_MASK
            if magic != MAGIC:
                raise self._mismatch(key, f"{magic:#010x} instead of the magic")
            if flag not in ((2, 3) if parts else (0, 1)):
                raise self._mismatch(key, f"part flag {flag}")
            start = offset + _FRAME.size
            if start + length > self._size:
                raise self._truncated(key)
            parts.append(self._map[start : start + length])
            if flag in (0, 3):
                return _MAGIC_BYTES.join(parts)
            offset = start + (length + 3) // 4 * 4

    def _truncated(self, key: int) -> UserError:
        return UserError(
            f"{self.path}: truncated: expected all of record {key}, got the end of the file "
            f"({self._size} bytes) before it; copy or make the file again"
        )

    def _mismatch(self, key: int, got: str) -> UserError:
        return UserError(
            f"{self.path}: expected record {key} where {self.path.stem}.idx says, got {got}; "
            "the two files do not belong together or are damaged: copy or make both again"
        )

    def _no_image(self, key: int, got: str) -> UserError:
        return UserError(
            f"{self.path}: record {key} is no image: expected an encoded image, got {got}; "
            "make the data set again without this record"
        )

    def _bad_ranges(self, got: str) -> UserError:
        return UserError(
            f"{self.path}: expected one record per identity with the range of its images, every image in "
            f"one, got {got}; {_MAKE}"
        )


_MAKE = "make the data set again, e.g. with InsightFace's face2rec2.py or RecordWriter of ddl_plugin"


def _sides(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


def _find_rec(path: Path) -> Path:
    """The .rec file that `path` means; both it and its .idx must be there."""
    if path.is_dir():
        others = sorted(p.name for p in path.glob("*.rec"))
        path = path / "train.rec"
        found = f"the folder with {', '.join(others[:5])}: name the file" if others else "a folder without it"
    else:
        found = f"a file named {path.name}" if path.is_file() else "nothing there"
    if path.suffix != ".rec" or not path.is_file():
        raise UserError(
            f"{path}: expected a .rec file, or a folder with train.rec and train.idx, got {found}; "
            "give the data set's path, or try 'python -m ddl_plugin.prepare synthetic', which draws one"
        )
    idx = path.with_suffix(".idx")
    if not idx.is_file():
        raise UserError(
            f"{idx}: expected the index of {path.name} beside it, got nothing there; copy it from where the "
            ".rec came from, or make it with MXNet's tools/rec2idx.py"
        )
    return path


def _map_file(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError as error:  # mmap's answer to an empty file
        raise UserError(f"{path}: expected records, got an empty file; copy or make it again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def _read_idx(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Record numbers, ascending and distinct, and their offsets: int64 (n,) each."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if not data.strip():
        raise UserError(f"{path}: expected 'number<TAB>offset' lines, got an empty file; make it again")
    if not _is_plain_idx(data):
        _check_lines(path, data)
    pairs = np.fromstring(data, dtype=np.int64, sep=" ").reshape(-1, 2)
    keys, offsets = np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])
    if (np.diff(keys) <= 0).any():
        order = np.argsort(keys, kind="stable")
        keys, offsets = keys[order], offsets[order]
        twice = np.flatnonzero(np.diff(keys) == 0)
        if twice.size:
            raise UserError(
                f"{path}: expected every record once, got record {keys[twice[0]]} more than once; make it again"
            )
    return keys, offsets


def _is_plain_idx(data: bytes) -> bool:
    """Whether every line is digits, TAB, digits: a check of whole arrays, for millions of lines."""
    text = np.frombuffer(data if data.endswith(b"\n") else data + b"\n", np.uint8)
    breaks = np.flatnonzero((text < ord("0")) | (text > ord("9")))
    if len(breaks) % 2:
        return False
    digits = np.diff(breaks, prepend=-1) - 1
    tabs = (text[breaks[0::2]] == ord("\t")).all() and (text[breaks[1::2]] == ord("\n")).all()
    return bool(tabs and digits.min() >= 1 and digits.max() <= 18)


def _check_lines(path: Path, data: bytes) -> None:
    """Refuse the first line that is neither blank nor two whole numbers."""
    for number, line in enumerate(io.BytesIO(data), 1):
        if line.strip() and not _IDX_LINE.fullmatch(line):
            raise UserError(
                f"{path}: line {number}: expected 'number<TAB>offset', two whole numbers >= 0, got "
                f"{line.decode(errors='replace').strip()[:40]!r}; make it again"
            )


class RecordWriter:
    """Writes `name`.rec and `name`.idx (and `property` for the training set) in InsightFace's layout.

    Images of an identity must be added one after the other. Nothing is seen under the final names before
    `close()`: writing that is interrupted leaves the previous set as it was. A context manager: leaving it by
    an exception discards what was written.

    Raises `UserError` when the folder cannot be written to.
    """

    def __init__(self, folder: str | os.PathLike, name: str = "train"):
        self._folder = Path(folder)
        self._name = name
        self._firsts = array.array("q")  # number of each identity's first image
        self._seen: set[int] = set()
        self._label: int | None = None
        self._images = 0
        self._files: list[tuple[BinaryIO, str]] = []
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._rec = self._temporary("rec")
            self._idx = self._temporary("idx")
            # Rewritten by close(), when the counts are known.
            self._write(0, _HEADER.pack(2, 0.0, 0, 0) + bytes(8))
        except OSError as error:
            self._discard()
            raise self._unwritable(error) from error

    def add(self, image: bytes | np.ndarray, label: int) -> None:
        """Add an encoded image as it is, or uint8 (H, W, 3) RGB pixels, which are stored as JPEG."""
        if label != self._label:
            if label in self._seen:
                raise ValueError(f"images must arrive grouped by label: {label} came before {self._label}")
            if not 0 <= label < _EXACT or label != int(label):
                raise ValueError(f"label must be a whole number, 0 <= label < {_EXACT}, got {label!r}")
            self._label = int(label)
            self._seen.add(self._label)
            self._firsts.append(self._images + 1)
        data = bytes(image) if isinstance(image, (bytes, bytearray, memoryview)) else _jpeg(image)
        self._images += 1
        try:
            self._write(self._images, _HEADER.pack(0, self._label, self._images, 0) + data)
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Write the identities' ranges and give the files their names; once."""
        if not self._files:
            return
        if not self._images:
            self._discard()
            raise ValueError("a data set needs at least one image")
        try:
            self._write_ranges()
            self._publish()
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            self._discard()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.close()
        else:
            self._discard()

    def _temporary(self, suffix: str) -> BinaryIO:
        handle, path = tempfile.mkstemp(dir=self._folder, prefix=f"{self._name}.{suffix}.", suffix=".part")
        file = os.fdopen(handle, "wb")
        self._files.append((file, path))
        return file

    def _write(self, key: int, record: bytes) -> None:
        self._idx.write(b"%d\t%d\n" % (key, self._rec.tell()))
        self._rec.write(_frames(record))

    def _write_ranges(self) -> None:
        end = self._images + 1
        bounds = np.append(np.array(self._firsts, np.int64), end)
        for i in range(len(self._firsts)):
            self._write(end + i, _HEADER.pack(2, 0.0, end + i, 0) + bounds[i : i + 2].astype("<f4").tobytes())
        self._rec.seek(0)
        counts = np.array([end, end + len(self._firsts)], "<f4")
        self._rec.write(_frames(_HEADER.pack(2, 0.0, 0, 0) + counts.tobytes()))

    def _publish(self) -> None:
        """The .idx goes first and comes last: where it is there, it belongs to the .rec."""
        for file, path in self._files:
            file.flush()
            os.fsync(file.fileno())
            Path(path).chmod(0o644)
        (_, rec), (_, idx) = self._files
        final = self._folder / f"{self._name}.idx"
        final.unlink(missing_ok=True)
        Path(rec).replace(self._folder / f"{self._name}.rec")
        if self._name == "train":
            classes = max(self._seen) + 1
            write_text(self._folder / "property", f"{classes},112,112\n")
        Path(idx).replace(final)

    def _discard(self) -> None:
        for file, path in self._files:
            with contextlib.suppress(OSError):
                file.close()
            Path(path).unlink(missing_ok=True)
        self._files = []

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"{self._folder / self._name}.rec: cannot be written: {error.strerror}; "
            "give another folder or make room"
        )


def _jpeg(pixels: np.ndarray) -> bytes:
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"expected uint8 (H, W, 3) pixels, got {pixels.dtype} {pixels.shape}")
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()


def _frames(record: bytes) -> bytes:
    """`record` framed; split where it holds the magic at a multiple of 4, so that readers can resynchronise."""
    parts = []
    start, at = 0, record.find(_MAGIC_BYTES)
    while at >= 0:
        if at % 4 == 0:
            parts.append(record[start:at])
            start = at + 4
        at = record.find(_MAGIC_BYTES, at + (4 if at % 4 == 0 else 1))
    parts.append(record[start:])
    framed = []
    for i, part in enumerate(parts):
        flag = 0 if len(parts) == 1 else 1 if i == 0 else 3 if i == len(parts) - 1 else 2
        framed.append(_FRAME.pack(MAGIC, flag << 29 | len(part)) + part + bytes(-len(part) % 4))
    return b"".join(framed)
