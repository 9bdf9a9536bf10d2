"""InsightFace RecordIO data sets (.rec with .idx): a random-access reader and a writer, in NumPy.

Data sets come in two kinds:

* with a header record (number 0, no image, labels N+1 and N+1+identities): images are records 1..N, and one
  record per identity from N+1 on holds the range (first, last + 1) of its images;
* without one: every record is an image that carries its own label.
"""

from __future__ import annotations

import array
import contextlib
import functools
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from ddl_plugin.data.record_file import (
    FRAME,
    HEADER,
    LENGTH_MASK,
    MAGIC,
    MAGIC_BYTES,
    DamagedRecordError,
    RecordFile,
)
from ddl_plugin.errors import UserError
from ddl_plugin.files import reading
from ddl_plugin.settings import MAX_DAMAGED

_LABEL_WORD = 3  # of a frame, in 4-byte words: magic, lrec, flag, label, id x 2, id2 x 2, more labels
_MORE_LABELS_WORD = 2 + HEADER.size // 4
#: float32, in which ranges are stored, counts exactly up to here.
_EXACT = 1 << 24
_JPEG_QUALITY = 95
_IDX_LINE = re.compile(rb"[ \t]*\d{1,18}[ \t]+\d{1,18}[ \t\r]*\n?")


@dataclass(frozen=True)
class Places:
    """Where the records of some images are, as `RecordFile` takes it: int64 (n,) each."""

    keys: np.ndarray
    offsets: np.ndarray
    rooms: np.ndarray
    labels: np.ndarray


class Records:
    """The images of a .rec file, by position 0..N-1 in the order of their record numbers.

    Opening costs the .idx, two labels per identity (one per image where the data set has no header record) and
    the memory of `keys`, `labels` and offsets, 20 bytes per image; images are read in place, when asked for.
    Safe to share between threads and after a fork; pickled by path. Read-only.

    What opening finds damaged is left out, and counted in `damaged`, if it is at most the part `max_damaged` of
    the images; the header record and the ranges must be whole.

    Raises `UserError` for files that are missing, truncated or not of this format, and `DamagedRecordError` for a
    record that is damaged, also where it says another label than `labels`: then it is another's image.
    """

    path: Path
    file: RecordFile
    keys: np.ndarray  # int64 (N,) record numbers in the .idx
    labels: np.ndarray  # int32 (N,) as stored
    damaged: np.ndarray  # int64 (n,) record numbers of images that are left out

    def __init__(self, path: str | os.PathLike, *, max_damaged: float = MAX_DAMAGED):
        self.path = _find_rec(Path(path))
        self._max_damaged = max_damaged
        keys, offsets = read_idx(self.path.with_suffix(".idx"))
        self.file = RecordFile(self.path)
        with reading(self.path):
            if not self.file.size:
                raise UserError(f"{self.path}: expected records, got an empty file; copy or make it again")
            header = self._header(keys, offsets)
            if header is None:
                self._label_by_image(keys, offsets)
            elif header[1] > _EXACT:
                self._label_by_image(*self._drop_ranges(keys, offsets, header[0]))
            else:
                self._label_by_range(keys, offsets, *header)
        self._classes = self._read_property()
        for values in (self.keys, self.labels, self.damaged):
            values.setflags(write=False)

    def __len__(self) -> int:
        return len(self.keys)

    def __reduce__(self):
        return functools.partial(Records, max_damaged=self._max_damaged), (str(self.path.absolute()),)

    @property
    def num_classes(self) -> int:
        """From the `property` file of a train.rec, else the largest label + 1."""
        return self._classes

    def payload(self, i: int) -> bytes:
        """The encoded image at position `i`, as stored."""
        return self.file.encoded(*self._place(i)).tobytes()

    def image(self, i: int) -> np.ndarray:
        """The image at position `i`: uint8 (H, W, 3) RGB."""
        return self.file.image(*self._place(i))

    def places(self, positions: np.ndarray) -> Places:
        """Where the records of the images at `positions` (n,) are."""
        offsets = self._offsets[positions]
        after = np.minimum(np.asarray(positions) + 1, len(self._offsets) - 1)
        rooms = self._offsets[after] - offsets  # of the last image: 0
        return Places(self.keys[positions], offsets, rooms, self.labels[positions].astype(np.int64))

    def _place(self, i: int) -> tuple[int, int, int, int]:
        # item(): a NumPy scalar would cost a microsecond where it meets a Python float.
        offsets = self._offsets
        offset = offsets.item(i)
        room = offsets.item(i + 1) - offset if i + 1 < len(offsets) else 0
        return self.keys.item(i), offset, room, self.labels.item(i)

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
        digest = hashlib.sha256(str(self.file.size).encode())
        for values in (self.keys, self._offsets, self.labels):
            digest.update(np.ascontiguousarray(values))
        return f"{self.path.name}:{digest.hexdigest()[:32]}"

    # -- opening -----------------------------------------------------------------------------------

    def _header(self, keys: np.ndarray, offsets: np.ndarray) -> tuple[int, int] | None:
        """(N + 1, N + 1 + identities) of the header record, or None where there is none."""
        if keys[0] != 0:
            return None
        record = self.file.record(0, int(offsets[0]))
        if len(record) < HEADER.size:
            raise self.file.no_image(0, "no header")
        flag = HEADER.unpack_from(record)[0]
        if flag == 0 or len(record) > HEADER.size + 4 * flag:
            return None
        labels = np.frombuffer(record, "<f4", offset=HEADER.size)
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
        """Images 1..N; their labels are those of their ranges."""
        if len(keys) < ranges_end or keys[ranges_end - 1] != ranges_end - 1:
            present = keys[keys < ranges_end]
            missing = int(np.flatnonzero(np.append(present, -1) != np.arange(len(present) + 1))[0])
            raise UserError(
                f"{self.path.with_suffix('.idx')}: expected records 0..{ranges_end - 1}, as the header record "
                f"of {self.path.name} says, got none with number {missing}; "
                "the two files do not belong together or are damaged: copy or make both again"
            )
        inside = self._inside(keys, offsets)
        if not inside[images_end:ranges_end].all():
            raise self._first_fault(keys, offsets, inside)
        first, last = (bounds - 1 for bounds in self._ranges(offsets, images_end, ranges_end))
        keys, offsets, sound = keys[1:images_end], offsets[1:images_end], inside[1:images_end]
        labels = self._range_labels(offsets, first, last, sound)
        self._keep(keys, offsets, np.repeat(labels, last - first), sound)

    def _range_labels(
        self, offsets: np.ndarray, first: np.ndarray, last: np.ndarray, sound: np.ndarray
    ) -> np.ndarray:
        """The label of each range of images [first, last), int32: two image headers an identity are read.

        Where the first and the last image do not agree, it is what most of the images say; the others are found
        damaged when they are read. Where it cannot be known, all are marked in `sound` as damaged.
        """
        labels, good = self._stored_labels(offsets[first])
        at_last, good_at_last = self._stored_labels(offsets[last - 1])
        votes = np.minimum(last - first, 2)
        for i in np.flatnonzero(~(good & good_at_last & (labels == at_last))):
            images = slice(first[i], last[i])
            said, readable = self._stored_labels(offsets[images])
            kinds, counts = np.unique(said[readable], return_counts=True)
            if (counts == counts.max(initial=0)).sum() == 1:
                labels[i], votes[i] = kinds[counts.argmax()], counts.max()
            else:
                labels[i], sound[images] = -1, False
        # A label that only one image vouches for, and that is another identity's, is a damaged one.
        kinds, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
        for i in np.flatnonzero((votes == 1) & (counts[index] > 1)):
            sound[first[i] : last[i]] = False
        return labels.astype(np.int32)

    def _ranges(self, offsets: np.ndarray, images_end: int, ranges_end: int) -> tuple[np.ndarray, np.ndarray]:
        """The identities' ranges [first, last) in ascending order; they must cover 1..N exactly."""
        numbers = np.arange(images_end, ranges_end)
        offsets = offsets[images_end:ranges_end]
        words = self.file.words(offsets, _MORE_LABELS_WORD + 2)
        self._require_frames(numbers, offsets, words[:, :_LABEL_WORD])
        flags = words[:, 2]
        if (flags != 2).any():
            bad = int(np.flatnonzero(flags != 2)[0])
            raise self._bad_ranges(f"flag {flags[bad]} instead of 2 in record {numbers[bad]}")
        self._require_frames(numbers, offsets, words)
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
        words = self.file.words(offsets[1:], _LABEL_WORD)
        self._require_frames(keys[1:], offsets[1:], words)
        holds_image = (words[:, 1] & LENGTH_MASK) > HEADER.size + 4 * words[:, 2].astype(np.int64)
        found = int(holds_image.sum())
        if abs(found + 1 - images_end) > np.spacing(np.float32(images_end)):
            raise UserError(
                f"{self.path}: expected {images_end - 1} images, as its header record says, got {found}; {_MAKE}"
            )
        return keys[1:][holds_image], offsets[1:][holds_image]

    def _label_by_image(self, keys: np.ndarray, offsets: np.ndarray) -> None:
        """Every record is an image that carries its own label."""
        labels, sound = self._stored_labels(offsets)
        self._keep(keys, offsets, labels.astype(np.int32), sound & self._inside(keys, offsets))

    def _keep(self, keys: np.ndarray, offsets: np.ndarray, labels: np.ndarray, sound: np.ndarray) -> None:
        """Keep the images that are `sound`, if those that are not are few."""
        self.damaged = keys[~sound]
        if self.damaged.size > self._max_damaged * len(keys) or self.damaged.size == len(keys):
            fault = self._first_fault(keys, offsets, sound)
            raise UserError(f"{fault}; {too_many_damaged(self.damaged, len(keys), self._max_damaged)}")
        if self.damaged.size:
            keys, offsets, labels = keys[sound], offsets[sound], labels[sound]
        self.keys, self._offsets, self.labels = keys, offsets, labels

    def _inside(self, keys: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Which frames can be where the .idx says: bool (n,). Of the last one, all must be in the file."""
        inside = (offsets % 4 == 0) & (offsets + FRAME.size <= self.file.size)
        if inside.any():
            last = int(np.argmax(np.where(inside, offsets, -1)))
            try:
                self.file.record(int(keys[last]), int(offsets[last]))
            except DamagedRecordError:
                inside[last] = False
        return inside

    def _stored_labels(self, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels in the headers of images, the first of several, and which of them are sound: (n,) each."""
        words = self.file.words(offsets, _LABEL_WORD + 1)
        flags = words[:, 2].astype(np.int64)
        # A record in several frames (part flag 1, above the length) is long enough for a header.
        sound = (words[:, 0] == MAGIC) & (words[:, 1] >> 30 == 0) & (words[:, 1] > HEADER.size + 4 * flags)
        values = words[:, _LABEL_WORD].copy().view("<f4")
        several = np.flatnonzero(sound & (flags > 0))
        more = self.file.words(offsets[several], _MORE_LABELS_WORD + 1)
        values[several] = more[:, _MORE_LABELS_WORD].copy().view("<f4")
        sound &= _is_label(values)
        return np.where(sound, values, 0), sound

    def _require_frames(self, keys: np.ndarray, offsets: np.ndarray, words: np.ndarray) -> None:
        """Refuse the first of these frames that is none, or ends before its `words` do."""
        whole = (words[:, 0] == MAGIC) & ((words[:, 1] & LENGTH_MASK) >= 4 * (words.shape[1] - 2))
        if not whole.all():
            raise self._first_fault(keys, offsets, whole)

    def _first_fault(self, keys: np.ndarray, offsets: np.ndarray, sound: np.ndarray) -> UserError:
        """What is wrong with the first of the records, in the order of the file, that are not `sound`."""
        bad = np.flatnonzero(~sound)
        at = int(bad[np.argmin(offsets[bad])])
        key = int(keys[at])
        try:
            label = self.file.labelled(key, int(offsets[at]))[1]
        except DamagedRecordError as error:
            return error
        if _is_label(np.array(label)):
            return UserError(
                f"{self.path}: expected one label for all images of an identity, got {label:g} in record {key} and "
                f"another in its range, or the same in another range; {_MAKE}"
            )
        return UserError(
            f"{self.path}: expected whole numbers >= 0 as labels, got {label:g} in record {key} and "
            f"{bad.size} such records in all; {_MAKE}"
        )

    def _read_property(self) -> int:
        classes = int(self.labels.max()) + 1
        file = self.path.with_name("property")
        # `property` describes the training set; other sets may lie in the same folder.
        if self.path.stem != "train" or not file.is_file():
            return classes
        with reading(file):
            # InsightFace's own writer adds lines of its own below.
            text = file.read_text(errors="replace").strip().partition("\n")[0].strip()
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

    def _bad_ranges(self, got: str) -> UserError:
        return UserError(
            f"{self.path}: expected one record per identity with the range of its images, every image in "
            f"one, got {got}; {_MAKE}"
        )


_SHOWN = 20  # record numbers in a message
_MAKE = "make the data set again, e.g. with InsightFace's face2rec2.py or RecordWriter of ddl_plugin"


def _sides(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


def damaged_in_words(keys: Iterable[int], count: int) -> str:
    """'2 of 900 records are damaged (5, 9)'."""
    keys = sorted(keys)
    shown = ", ".join(map(str, keys[:_SHOWN])) + (", ..." if len(keys) > _SHOWN else "")
    return f"{len(keys)} of {count} records {'is' if len(keys) == 1 else 'are'} damaged ({shown})"


def too_many_damaged(keys: Iterable[int], count: int, max_damaged: float) -> str:
    """'2 of 900 records are damaged (5, 9), more than max_damaged = 0.001 allows'."""
    return f"{damaged_in_words(keys, count)}, more than max_damaged = {max_damaged:g} allows"


def _is_label(values: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # NaN
        return (values >= 0) & (values < 2**31) & (values == np.floor(values))


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


def read_idx(path: Path) -> tuple[np.ndarray, np.ndarray]:
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
            self._write(0, header_record(0, 0))
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
            self._write(self._images, image_record(self._images, self._label, data))
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
        self._rec.write(record)

    def _write_ranges(self) -> None:
        end = self._images + 1
        bounds = np.append(np.array(self._firsts, np.int64), end)
        for i in range(len(self._firsts)):
            self._write(end + i, range_record(end + i, *bounds[i : i + 2].tolist()))
        self._rec.seek(0)
        self._rec.write(header_record(self._images, len(self._firsts)))

    def _publish(self) -> None:
        """The .idx goes first and comes last: where it is there, it belongs to the .rec."""
        names = [f"{self._name}.rec", f"{self._name}.idx"]
        if self._name == "train":
            # Before anything is replaced: the disk may be full.
            self._temporary("property").write(b"%d,112,112\n" % (max(self._seen) + 1))
            names.insert(1, "property")
            self._files.insert(1, self._files.pop())
        for file, path in self._files:
            file.flush()
            os.fsync(file.fileno())
            Path(path).chmod(0o644)
        (self._folder / names[-1]).unlink(missing_ok=True)
        for (_, path), name in zip(self._files, names, strict=True):
            Path(path).replace(self._folder / name)

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


def header_record(images: int, identities: int) -> bytes:
    """Record 0 of a set with images 1..`images` and a range record for each identity after them, framed."""
    end = images + 1
    return _frames(
        HEADER.pack(2, 0.0, 0, 0) + np.array([end, end + identities], np.int64).astype("<f4").tobytes()
    )


def image_record(number: int, label: int, image: bytes) -> bytes:
    """The record of an encoded image, framed."""
    return _frames(HEADER.pack(0, label, number, 0) + image)


def range_record(number: int, first: int, end: int) -> bytes:
    """The record of an identity whose images are first..end-1, framed."""
    return _frames(HEADER.pack(2, 0.0, number, 0) + np.array([first, end], np.int64).astype("<f4").tobytes())


def jpeg(bgr: np.ndarray) -> bytes:
    """uint8 (H, W, 3) BGR pixels as JPEG of quality 95, InsightFace's."""
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()


def _jpeg(pixels: np.ndarray) -> bytes:
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"expected uint8 (H, W, 3) pixels, got {pixels.dtype} {pixels.shape}")
    return jpeg(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))


def _frames(record: bytes) -> bytes:
    """`record` framed; split where it holds the magic at a multiple of 4, so that readers can resynchronise."""
    parts = []
    start, at = 0, record.find(MAGIC_BYTES)
    while at >= 0:
        if at % 4 == 0:
            parts.append(record[start:at])
            start = at + 4
        at = record.find(MAGIC_BYTES, at + (4 if at % 4 == 0 else 1))
    parts.append(record[start:])
    framed = []
    for i, part in enumerate(parts):
        flag = 0 if len(parts) == 1 else 1 if i == 0 else 3 if i == len(parts) - 1 else 2
        framed.append(FRAME.pack(MAGIC, flag << 29 | len(part)) + part + bytes(-len(part) % 4))
    return b"".join(framed)
