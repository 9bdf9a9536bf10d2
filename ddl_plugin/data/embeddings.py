"""Unit embeddings of a data set's images under the base model: made where they are missing, and kept in files.

A file holds those of one *view*: the images as they are, or as one distribution degrades them. It is a .npy
(N, D) float32 with a row for every image of the data set, in the order of the identities, of which only those
asked for are ever written: the rest takes no room on the disk. A row that is not of length 1 has still to be
made, so that a process killed at any moment leaves nothing to repair.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddl_plugin.data.degrade import degrade
from ddl_plugin.data.faces import SHAPE, load_face
from ddl_plugin.data.records import DamagedRecordError, Records, damaged_in_words, too_many_damaged
from ddl_plugin.errors import UserError
from ddl_plugin.files import write_text
from ddl_plugin.settings import MAX_DAMAGED, Degradation

#: embed(images uint8 (n, 112, 112, 3) RGB) -> float32 (n, D), not normalised.
Embed = Callable[[np.ndarray], np.ndarray]
Say = Callable[[str], None]

_FORMAT = 1  # of the files
_PIXELS = 102  # what random numbers are for: part of their key beside the seed
_BATCH = 64  # images given to `embed` at a time
_THREADS = 2  # batches being decoded while one is embedded
_ROUNDING = 1e-3  # how far from 1 the squared length of a row that was written may be


@dataclass(frozen=True)
class View:
    """How a distribution sees images: as they are, or degraded with random numbers of its own."""

    name: str  # of its file
    degradation: Degradation
    seed: int = 0
    number: int = 0  # of the distribution, 1..K

    @classmethod
    def of(cls, name: str, degradation: Degradation, number: int, seed: int) -> View:
        """Distributions that degrade nothing share one view."""
        if not degradation.active:
            return cls("clean", degradation)
        return cls(name, degradation, seed, number)

    def image(self, records: Records, position: int) -> np.ndarray:
        """The image at `position`, uint8 (112, 112, 3) RGB: always the same one."""
        image = load_face(records, position)
        if not self.degradation.active:
            return image
        rng = np.random.default_rng((self.seed, _PIXELS, self.number, position))
        return degrade(image, self.degradation, rng)


class Embeddings:
    """Unit embeddings of images of `records` under `embed`.

    folder: where they are kept; those that are there, of the same records, model and view, are not made again.
    None: nothing is kept. model: what `embed` is known by. say: told when files in `folder` do not hold.
    max_damaged: part of the records that may be unreadable before the work stops.

    A context manager: it keeps its files to one process at a time.
    """

    def __init__(
        self,
        records: Records,
        embed: Embed,
        *,
        folder: Path | None = None,
        model: str = "",
        max_damaged: float = MAX_DAMAGED,
        say: Say | None = None,
    ):
        self._records = records
        self._embed = embed
        self._folder = folder
        self._model = model
        self._max_damaged = max_damaged
        self._say = say or (lambda text: None)
        self._stores: dict[View, _Store] = {}
        self._rows = None if folder is None else _rows_by_identity(records.labels)
        self._pool = ThreadPoolExecutor(_THREADS, "embeddings")
        self._noting = threading.Lock()
        self._locked: int | None = None
        self.unreadable: dict[int, str] = {}  # record number -> what is wrong
        self.made = 0  # images embedded, not found in the files

    def __enter__(self) -> Embeddings:
        if self._folder is not None:
            self._locked = _lock(self._folder)
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        for store in self._stores.values():
            store.close()
        if self._locked is not None:
            os.close(self._locked)

    def of(self, view: View, positions: np.ndarray, step: Callable[[int], Any]) -> np.ndarray:
        """The images at `positions` as `view` shows them: float32 (n, D), rows of length 1.

        A row of zeros for an embedding of zeros; NaN for an image that cannot be read. step: called with the
        number of images that are done.

        `UserError` where the model gives NaN, and for more unreadable images than are allowed.
        """
        store = None if self._folder is None else self._store(view)
        unit, todo = None, np.arange(len(positions))
        if store is not None and store.dimension:
            unit = store.read(self._row(positions))
            todo = np.flatnonzero(np.isnan(unit[:, 0]))
        step(len(positions) - len(todo))
        for part, rows, images in self._decoded_ahead(view, positions, todo):
            if len(rows):
                values = self._unit(images, positions[rows])
                if unit is None:
                    unit = np.full((len(positions), values.shape[1]), np.nan, np.float32)
                unit[rows] = values
                if store is not None:
                    store.write(self._row(positions[rows]), values)
            self.made += len(rows)
            step(len(part))
        return np.full((len(positions), 1), np.nan, np.float32) if unit is None else unit

    def _row(self, positions: np.ndarray) -> np.ndarray:
        return positions if self._rows is None else self._rows[positions]

    def _store(self, view: View) -> _Store:
        if view not in self._stores:
            degradation = dataclasses.asdict(view.degradation) if view.degradation.active else None
            made_from = {
                "format": _FORMAT, "records": self._records.fingerprint(), "model": self._model,
                "degradation": degradation, "distribution": view.number, "seed": view.seed,
            }  # fmt: skip
            self._stores[view] = _Store(self._folder, view.name, made_from, len(self._records), self._say)
        return self._stores[view]

    def _unit(self, images: np.ndarray, positions: np.ndarray) -> np.ndarray:
        embeddings = np.asarray(self._embed(images), np.float32)
        finite = np.isfinite(embeddings).all(axis=1)
        if not finite.all():
            bad = positions[int(np.argmin(finite))]
            raise UserError(
                f"the base model gives NaN or infinite values for record {self._records.keys[bad]} of "
                f"{self._records.path}: expected finite embeddings; check the checkpoint's weights and the image"
            )
        norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
        return embeddings / np.maximum(norms, 1e-12)

    def _decoded_ahead(
        self, view: View, positions: np.ndarray, todo: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(part of `todo`, those of it that can be read, their images) of one batch after the other, read by
        threads while the caller uses the last one."""

        def load(part: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            images, good = np.empty((len(part), *SHAPE), np.uint8), np.ones(len(part), bool)
            for row, position in enumerate(positions[part]):
                try:
                    images[row] = view.image(self._records, int(position))
                except DamagedRecordError as error:
                    good[row] = False
                    self._note(error)
            return part, part[good], images if good.all() else images[good]

        pending = deque()
        for start in range(0, len(todo), _BATCH):
            pending.append(self._pool.submit(load, todo[start : start + _BATCH]))
            if len(pending) > _THREADS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _note(self, error: DamagedRecordError) -> None:
        with self._noting:
            self.unreadable[error.key] = str(error)
            if len(self.unreadable) <= self._max_damaged * len(self._records):
                return
            first, count = next(iter(self.unreadable.values())), len(self._records)
            raise UserError(f"{first}; {too_many_damaged(self.unreadable, count, self._max_damaged)}")

    def said_unreadable(self) -> str:
        """'3 of 5000 records are damaged (5, 9, 80)'."""
        return damaged_in_words(self.unreadable, len(self._records))


def _rows_by_identity(labels: np.ndarray) -> np.ndarray | None:
    """Row of each image when the images of each identity stand together, int32 (N,); None: they do already."""
    if (labels[1:] >= labels[:-1]).all():
        return None
    rows = np.empty(len(labels), np.int32)
    rows[np.argsort(labels, kind="stable")] = np.arange(len(labels), dtype=np.int32)
    return rows


def _lock(folder: Path) -> int:
    """The folder, made where it is not there and kept to this process until it is closed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)  # the folder itself is locked: no file to leave behind
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise UserError(
            f"{folder}: another process is writing embeddings there; wait for it, or use another folder"
        ) from error
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from error
    return handle


class _Store:
    """The file of one view: NAME-<digest of what it is made from>.npy, and a .json that says it in words."""

    def __init__(self, folder: Path, name: str, made_from: dict, count: int, say: Say):
        digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
        self._path = folder / f"{name}-{digest[:12]}.npy"
        self._made_from = made_from
        self._count = count
        self._file: int | None = None
        self.dimension = 0  # of the embeddings; 0: nothing is written yet
        if self._path.is_file():
            self._open(say)
        else:
            others = [path for path in folder.glob(f"{name}-*.json") if path.stem != self._path.stem]
            for other in sorted(others, key=lambda path: path.stat().st_mtime_ns)[-1:]:
                self._say_why_not(other, say)

    def _say_why_not(self, other: Path, say: Say) -> None:
        try:
            recorded = json.loads(other.read_text(encoding="utf-8"))["made_from"]
            say(f"embeddings: {other.with_suffix('.npy')}: {difference(recorded, self._made_from)}")
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            say(f"embeddings: {other} is damaged")

    def _open(self, say: Say) -> None:
        try:
            array = np.load(self._path, mmap_mode="r", allow_pickle=False)
            sound = array.ndim == 2 and len(array) == self._count and array.dtype == np.float32
            sound = sound and array.offset + array.nbytes == self._path.stat().st_size
            if sound:
                self._hold(array.shape[1])
        except (OSError, ValueError, EOFError):
            sound = False
        if not sound:
            say(f"embeddings: those in {self._path} are damaged and are made again")

    def _create(self, dimension: int) -> None:
        about = {"made_from": self._made_from, "images": self._count, "dimension": dimension}
        write_text(self._path.with_suffix(".json"), json.dumps(about, indent=2) + "\n")
        header = {"descr": "<f4", "fortran_order": False, "shape": (self._count, dimension)}
        with self._path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + self._count * dimension * 4)
        self._hold(dimension)

    def _hold(self, dimension: int) -> None:
        self._file = os.open(self._path, os.O_RDWR)
        self._start = self._path.stat().st_size - self._count * dimension * 4
        self.dimension = dimension

    def read(self, rows: np.ndarray) -> np.ndarray:
        """float32 (n, D); NaN for rows that have still to be made."""
        shape = (self._count, self.dimension)
        # Mapped anew each time: what a map has touched counts as memory of the process until it is closed.
        values = np.memmap(self._path, np.float32, "r", self._start, shape)[rows]
        values = np.asarray(values)
        squared = np.einsum("nd,nd->n", values, values)
        values[~(np.abs(squared - 1) < _ROUNDING)] = np.nan
        return values

    def write(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Not through a map: on a full disk that ends the process, where a write raises an error."""
        try:
            if self._file is None:
                self._create(values.shape[1])
            order = np.argsort(rows)
            runs = np.flatnonzero(np.diff(rows[order]) != 1) + 1
            for run in np.split(order, runs):
                data = np.ascontiguousarray(values[run]).tobytes()
                at = self._start + int(rows[run[0]]) * self.dimension * 4
                if os.pwrite(self._file, data, at) < len(data):
                    raise OSError(28, "No space left on device")
        except OSError as error:
            raise UserError(
                f"{self._path}: cannot be written ({error.strerror or error}); what is done is kept: make room "
                f"and run it again"
            ) from error

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def difference(recorded: dict, wanted: dict) -> str | None:
    """'made with seed 1, now 2' for the first entry that differs, or None."""
    wanted = json.loads(json.dumps(wanted))
    for name in sorted({*recorded, *wanted}):
        old, new = recorded.get(name), wanted.get(name)
        if old != new:
            return f"made with {name} {old!r}, now {new!r}"
    return None
