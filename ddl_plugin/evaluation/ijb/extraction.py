"""Embeddings of all images of a benchmark under one model: made once, kept in files, resumed after a kill.

Two files a model, of the images and of their mirror images, each a .npy (N, D) float32 that grows row by row: what
it is short of its full length has still to be made. A row of NaN is an image that has no embedding, and a line in
the list of notes beside them says why. A third file has the size and the time of change of each image's file as it
was read: an image that was replaced is embedded again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.ijb import alignment
from ddl_plugin.evaluation.ijb.lists import Images
from ddl_plugin.evaluation.ijb.problems import Problems
from ddl_plugin.files import reading, write_text

#: embed(images uint8 (n, 112, 112, 3) RGB) -> float32 (n, D), not normalised.
Embed = Callable[[np.ndarray], np.ndarray]

#: progress(done, total) -> something with update(n) and close(), such as a tqdm bar.
Progress = Callable[[int, int], Any]

_FORMAT = 1  # of the files, and of the alignment
_PLAIN, _MIRRORED = "images", "mirrored"
_AHEAD = 2  # batches decoded while one is embedded
_BEYOND = 0.25  # of the longer side: how far outside the image a landmark may lie

_MISSING = "images without a file"
_UNREADABLE = "images that cannot be decoded"
_OUTSIDE = "images with landmarks far outside"
_NOT_FINITE = "images whose embedding is not finite"
_NO_LANDMARKS = "no landmarks"  # counted where the lists are read
_LEFT_OUT = "left out of their templates"
_EFFECTS = {_MISSING: _LEFT_OUT, _UNREADABLE: _LEFT_OUT, _NOT_FINITE: _LEFT_OUT, _OUTSIDE: "used as they are"}
_MENDABLE = (_MISSING, _UNREADABLE)  # tried again each time
_NO_FILE = (-1, -1)  # the stamp of an image without a file
_LOOKED_AT = 4096  # stamps at a time


class Extraction:
    """The embeddings of `images`, rows in their order.

    folder: of the images. kept: where the files go. model: digest of the model's files. flip: whether those of the
    mirror images are wanted. batch: images in one call of `embed`. workers: threads that decode.
    """

    def __init__(
        self,
        images: Images,
        folder: Path,
        *,
        kept: Path,
        model: str,
        flip: bool,
        batch: int = 64,
        workers: int = 2,
    ):
        self._images, self._folder = images, folder
        self._batch, self._workers = batch, workers
        made_from = {
            "format": _FORMAT, "model": model, "lists": images.digest(), "images": str(folder.resolve()),
        }  # fmt: skip
        digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
        self.folder = kept / digest[:16]
        self._made_from = made_from
        names = (_PLAIN, _MIRRORED) if flip else (_PLAIN,)
        self._files = [Rows(self.folder / f"{name}.npy", len(images)) for name in names]
        self._stamps = Rows(self.folder / "stamps.npy", len(images), np.int64)
        self._notes = _Notes(self.folder / "notes.txt")

    def run(self, embed: Embed, problems: Problems, progress: Progress) -> np.ndarray:
        """Make what is not there yet; bool (N,): which images have an embedding.

        Raises UserError where the folder cannot be written, or with more problems than are allowed.
        """
        lock = self._prepare()
        try:
            counter = _Counter(problems.limit, len(self._images))
            for file in (*self._files, self._stamps):
                file.open()
            self._notes.open()
            self._retry(embed, progress)
            for row, kind in self._notes.items():
                counter.add(kind, self._images.name(row))
            self._go_on(embed, counter, progress)
            return self._usable(problems)
        finally:
            for file in (*self._files, self._stamps):
                file.close()
            self._notes.close()
            os.close(lock)

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Rows of the embeddings and of those of the mirror images, float32 (n, D)."""
        rows = [file.read(start, stop) for file in self._files]
        return rows[0], rows[1] if len(rows) > 1 else None

    def face(self, row: int) -> np.ndarray | None:
        """The aligned face of an image, uint8 (112, 112, 3) RGB; None where there is none."""
        face, _ = self._load(row)
        return face

    def _prepare(self) -> int:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            about = self.folder / "made_from.json"
            if not about.exists():  # a complete folder may be one that cannot be written
                write_text(about, json.dumps(self._made_from, indent=2) + "\n")
            handle = os.open(self.folder, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise UserError(
                f"{self.folder}: another process is writing these embeddings; wait for it, or use another folder "
                "with --features"
            ) from error
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be written ({error.strerror or error}); use another folder with --features"
            ) from error
        return handle

    def _go_on(self, embed: Embed, counter: _Counter, progress: Progress) -> None:
        total = len(self._images)
        start = min(file.done for file in (*self._files, self._stamps))
        if start == total:
            return
        bar = progress(start, total)
        try:
            for rows, faces, noted, stamps in self._decoded_ahead(start):
                outputs = [
                    None
                    if file.done >= rows.stop
                    else self._embedded(embed, rows, faces, noted, mirrored=name > 0)
                    for name, file in enumerate(self._files)
                ]
                new = [row for row in noted if row not in self._notes]
                for row in new:
                    counter.add(noted[row], self._images.name(row))
                self._notes.write({row: noted[row] for row in new})
                self._stamps.append(stamps[max(self._stamps.done - rows.start, 0) :])
                for file, values in zip(self._files, outputs, strict=True):
                    if values is not None:
                        file.append(values[max(file.done - rows.start, 0) :])
                bar.update(len(rows))
        finally:
            bar.close()

    def _embedded(
        self, embed: Embed, rows: Sequence[int], faces: np.ndarray, noted: dict[int, str], mirrored: bool
    ) -> np.ndarray:
        """float32 (n, D), NaN for images that have none; `noted` grows."""
        values = _filled(embed, faces[:, :, ::-1] if mirrored else faces, self._batch)
        for i, row in enumerate(rows):
            if noted.get(row) not in (None, _OUTSIDE):
                values[i] = np.nan
            elif not np.isfinite(values[i]).all():
                noted[row] = _NOT_FINITE
                values[i] = np.nan
        return values

    def _decoded_ahead(self, start: int) -> Iterator[tuple[range, np.ndarray, dict[int, str], np.ndarray]]:
        """(rows, and what `_load_all` gives) of one batch after the other, decoded by threads."""
        batches = deque()
        with ThreadPoolExecutor(self._workers, "ijb") as pool:
            try:
                for first in range(start, len(self._images), self._batch):
                    rows = range(first, min(first + self._batch, len(self._images)))
                    share = -(-len(rows) // self._workers)
                    parts = [rows[i : i + share] for i in range(0, len(rows), share)]
                    batches.append((rows, [pool.submit(self._load_all, part) for part in parts]))
                    if len(batches) > _AHEAD:
                        yield self._joined(*batches.popleft())
                while batches:
                    yield self._joined(*batches.popleft())
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    @staticmethod
    def _joined(rows: range, parts: list) -> tuple[range, np.ndarray, dict[int, str], np.ndarray]:
        faces, noted, stamps = zip(*(part.result() for part in parts), strict=True)
        together = {row: kind for some in noted for row, kind in some.items()}
        return rows, np.concatenate(faces), together, np.concatenate(stamps)

    def _load_all(self, rows: Sequence[int]) -> tuple[np.ndarray, dict[int, str], np.ndarray]:
        """(faces, black where there is none; what is wrong with some; stamps of the files)."""
        faces = np.zeros((len(rows), alignment.SIDE, alignment.SIDE, 3), np.uint8)
        noted, stamps = {}, self._stamps_of(rows)  # before they are read: what changes then is noticed
        for i, row in enumerate(rows):
            face, kind = self._load(row)
            if face is not None:
                faces[i] = face
            if kind is not None:
                noted[row] = kind
        return faces, noted, stamps

    def _path(self, row: int) -> Path:
        return self._folder / os.fsdecode(self._images.names[row])

    def _stamps_of(self, rows: Sequence[int]) -> np.ndarray:
        """Size and time of change of the images' files: int64 (n, 2)."""
        return np.array([_stamp(self._path(row)) for row in rows], np.int64).reshape(-1, 2)

    def _load(self, row: int) -> tuple[np.ndarray | None, str | None]:
        """(the aligned face or None, what is wrong or None)."""
        points = self._images.landmarks[row]
        if not alignment.usable(points[None])[0] or not np.isfinite(self._images.scores[row]):
            return None, _NO_LANDMARKS
        try:
            data = np.fromfile(self._path(row), np.uint8)
        except OSError:
            return None, _MISSING
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
        if image is None:
            return None, _UNREADABLE
        face = alignment.aligned(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), points)
        sides = np.array([image.shape[1], image.shape[0]])
        slack = _BEYOND * sides.max()
        inside = (points >= -slack).all() and (points <= sides - 1 + slack).all()
        return face, None if inside else _OUTSIDE

    def _retry(self, embed: Embed, progress: Progress) -> None:
        """Images that were replaced since, and those that could not be read the last time."""
        rows = sorted({*self._changed(), *(row for row, kind in self._notes.items() if kind in _MENDABLE)})
        if not rows:
            return
        bar = progress(0, len(rows))
        try:
            for first in range(0, len(rows), self._batch):
                part = rows[first : first + self._batch]
                self._embed_again(embed, part)
                bar.update(len(part))
        finally:
            bar.close()

    def _embed_again(self, embed: Embed, rows: list[int]) -> None:
        faces, noted, stamps = self._load_all(rows)
        if any(noted.get(row) not in _MENDABLE for row in rows):
            for name, file in enumerate(self._files):
                values = self._embedded(embed, rows, faces, noted, mirrored=name > 0)
                file.replace(rows, values)
        for row in rows:
            self._notes.change(row, noted.get(row))
        self._stamps.replace(rows, stamps)  # last: it says that all else is done

    def _changed(self) -> Iterator[int]:
        """Rows made of a file that is another one now. Without a file, what was made of it is kept."""
        for start in range(0, self._stamps.done, _LOOKED_AT):
            rows = range(start, min(start + _LOOKED_AT, self._stamps.done))
            now, then = self._stamps_of(rows), self._stamps.read(rows.start, rows.stop)
            yield from (
                start + np.flatnonzero((now != then).any(axis=1) & (now != _NO_FILE).all(axis=1))
            ).tolist()

    def _usable(self, problems: Problems) -> np.ndarray:
        usable = np.ones(len(self._images), bool)
        kinds: dict[str, list[int]] = {}  # few: more than the limit has ended the work
        for row, kind in sorted(self._notes.items()):
            usable[row] &= kind == _OUTSIDE
            kinds.setdefault(kind, []).append(row)
        for kind, rows in kinds.items():
            if kind in _EFFECTS:
                names = map(self._images.name, rows)
                problems.add(kind, len(rows), len(self._images), names, _EFFECTS[kind])
        return usable


def _filled(embed: Embed, faces: np.ndarray, batch: int) -> np.ndarray:
    """embed(faces) in a batch that is always full: some kernels round by the size of the batch."""
    count = len(faces)
    full = np.ascontiguousarray(faces[np.arange(batch) % count] if count < batch else faces)
    return np.array(embed(full)[:count], np.float32)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); what is done is kept: make room and run it again, "
            "or use another folder with --features"
        ) from error


def _stamp(path: Path) -> tuple[int, int]:
    try:
        about = path.stat()
    except OSError:
        return _NO_FILE
    return about.st_size, about.st_mtime_ns


class _Counter:
    """Stops the work as soon as there are more images of a kind than are allowed."""

    def __init__(self, limit: float, total: int):
        self._limit, self._total = limit, total
        self._names: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, kind: str, name: str) -> None:
        if kind not in _EFFECTS:
            return
        self._counts[kind] = self._counts.get(kind, 0) + 1
        first = self._names.setdefault(kind, [])
        if len(first) < 5:
            first.append(name)
        if self._counts[kind] > self._limit * self._total:
            raise UserError(
                f"expected at most {self._limit:.2%} {kind} of {self._total:,}, got more, the first are "
                f"{', '.join(first)}; mend the data and run it again, what is done is kept, or allow more with "
                "--max-problems"
            )


class Rows:
    """A .npy (count, D) written from the first row to the last."""

    def __init__(self, path: Path, count: int, kind: type = np.float32):
        self._path, self._count, self._kind = path, count, np.dtype(kind)
        self._file: int | None = None
        self._start = self._dimension = 0
        self.done = 0

    def open(self) -> None:
        """Find what is there: whole rows; one that was being written when the process ended is written again."""
        if not self._path.exists():
            return
        try:
            with self._path.open("rb") as file:
                version = np.lib.format.read_magic(file)
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
                sound = version == (1, 0) and not fortran and dtype == self._kind
                self._start = file.tell()
        except (OSError, ValueError):
            sound = False
        if not sound or len(shape) != 2 or shape[0] != self._count or shape[1] < 1:
            self._path.unlink()
            return
        self._dimension = shape[1]
        self.done = min((self._path.stat().st_size - self._start) // self._width, self._count)

    @property
    def _width(self) -> int:
        """Bytes of a row."""
        return self._kind.itemsize * self._dimension

    def append(self, values: np.ndarray) -> None:
        if not len(values):
            return
        with _writing(self._path):
            if not self._dimension:
                self._create(values.shape[1])
            self._write(self.done, values)
        self.done += len(values)

    def replace(self, rows: Sequence[int], values: np.ndarray) -> None:
        """Write those of the rows again that have been written and differ."""
        for row, value in zip(rows, values, strict=True):
            if row < self.done and self.read(row, row + 1).tobytes() != value.tobytes():
                with _writing(self._path):
                    self._write(row, value)

    def _create(self, dimension: int) -> None:
        header = {"descr": self._kind.str, "fortran_order": False, "shape": (self._count, dimension)}
        with self._path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            self._start = file.tell()
        self._dimension = dimension

    def _write(self, row: int, values: np.ndarray) -> None:
        data = np.ascontiguousarray(values, self._kind).tobytes()
        at = self._start + row * self._width
        if self._file is None:
            self._file = os.open(self._path, os.O_RDWR)
        if os.pwrite(self._file, data, at) < len(data):
            raise OSError(28, "No space left on device")

    def read(self, start: int, stop: int) -> np.ndarray:
        # Read, not mapped: what a map has touched counts as memory of the process until it is closed.
        values = np.empty((stop - start, self._dimension), self._kind)
        with reading(self._path), self._path.open("rb", buffering=0) as file:
            file.seek(self._start + start * self._width)
            file.readinto(values)
        return values

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


class _Notes:
    """What is wrong with images, a line each: 'row kind', kept beside the rows and written before them."""

    def __init__(self, path: Path):
        self._path = path
        self._kinds: dict[int, str] = {}
        self._file = None

    def open(self) -> None:
        if self._path.exists():
            # A line that was being written when the process ended has no end.
            given = self._path.read_text(encoding="utf-8", errors="replace")
            for line in given.split("\n")[:-1]:
                row, _, kind = line.partition(" ")
                self._kinds[int(row)] = kind
            self._kinds = {row: kind for row, kind in self._kinds.items() if kind}
            text = "".join(f"{row} {kind}\n" for row, kind in self._kinds.items())
            if text != given:
                write_text(self._path, text)

    def items(self) -> Iterable[tuple[int, str]]:
        return self._kinds.items()

    def __contains__(self, row: int) -> bool:
        return row in self._kinds

    def write(self, kinds: dict[int, str]) -> None:
        self._kinds.update(kinds)
        if not kinds:
            return
        with _writing(self._path):
            if self._file is None:
                self._file = self._path.open("a", encoding="utf-8")
            self._file.write("".join(f"{row} {kind}\n" for row, kind in kinds.items()))
            self._file.flush()

    def change(self, row: int, kind: str | None) -> None:
        if kind == self._kinds.get(row):
            return
        self.write({row: kind or ""})
        if kind is None:
            del self._kinds[row]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
