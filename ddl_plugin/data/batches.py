"""Pixels for the sampled rows: decoded, degraded and mirrored; the same for every host and way to run in parallel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ddl_plugin.data.degrade import degrade
from ddl_plugin.data.faces import SHAPE, require_face
from ddl_plugin.data.randomness import RowRandom
from ddl_plugin.data.record_file import DamagedRecordError, RecordFile
from ddl_plugin.data.records import Places, Records, too_many_damaged
from ddl_plugin.data.sampler import ImageSampler, PairSampler, SampledBatch, Share
from ddl_plugin.errors import UserError
from ddl_plugin.settings import MAX_DAMAGED, Degradation

_ATTEMPTS = 64  # other images tried for a row before there is held to be none

#: put(row of the pixels, image, whether it is mirrored)
Put = Callable[[np.ndarray, np.ndarray, bool], None]


@dataclass(frozen=True)
class Batch:
    """What a training step takes, and where it came from.

    pixels: uint8 (rows, 112, 112, 3) RGB (or as `Put` writes them). labels: (rows,) of the type given.
    positions: (rows,) int64. distribution: (rows,) int16, 0 easy, 1..K hard.
    """

    step: int
    pixels: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    distribution: np.ndarray


@dataclass(frozen=True)
class Rows:
    """What is to be in the rows of the batch of `step`: a few KB, all that `RowWriter` has to be told."""

    step: int
    sampled: SampledBatch
    places: Places
    mirrored: np.ndarray  # bool (rows,)


def put_image(row: np.ndarray, image: np.ndarray, mirrored: bool) -> None:
    """Write `image` into `row`, uint8 (112, 112, 3) both."""
    if mirrored:
        cv2.flip(image, 1, row)
    else:
        np.copyto(row, image)


class RowWriter:
    """Writes the pixels of rows, which depend on `Rows` alone. For any thread, and small to pickle for any process:
    it knows neither the index of the data set nor the sampler."""

    def __init__(self, file: RecordFile, degradations: Sequence[Degradation], random: RowRandom):
        self._file = file
        self._degradations = [one if one.active else None for one in degradations]
        self._random = random

    def write(
        self, rows: Rows, which: Iterable[int], pixels: np.ndarray, put: Put = put_image
    ) -> dict[int, DamagedRecordError]:
        """Write the rows `which` of `pixels`; returns those that could not be, with the reason."""
        places, damaged = rows.places, {}
        # Lists and local names: NumPy's scalars and attributes would be a tenth of what is not decoding.
        keys, offsets = places.keys.tolist(), places.offsets.tolist()
        rooms, labels = places.rooms.tolist(), places.labels.tolist()
        mirrored = rows.mirrored.tolist()
        degradations = [self._degradations[number] for number in rows.sampled.distribution.tolist()]
        file, load = self._file, self._file.image
        for row in which:
            try:
                image = load(keys[row], offsets[row], rooms[row], labels[row])
                if image.shape != SHAPE:
                    require_face(image, file.path, keys[row])
            except DamagedRecordError as error:
                damaged[row] = error
                continue
            if degradations[row]:
                image = degrade(image, degradations[row], self._random.pixels(rows.step, row))
            put(pixels[row], image, mirrored[row])
        return damaged


class DamagedRecords:
    """The damaged records met so far, of which there may be the part `max_damaged` of the data set's."""

    def __init__(self, records: Records, max_damaged: float):
        self.reasons = dict.fromkeys(records.damaged.tolist(), "left out when the records were opened")
        self._count = len(records) + len(records.damaged)
        self._max_damaged = max_damaged

    def add(self, errors: Sequence[DamagedRecordError]) -> None:
        """Count these; `UserError` with the record numbers where they are too many."""
        for error in errors:
            self.reasons.setdefault(error.key, str(error))
        if len(self.reasons) > self._max_damaged * self._count:
            keys = np.sort(np.fromiter(self.reasons, np.int64))
            raise UserError(f"{errors[0]}; {too_many_damaged(keys, self._count, self._max_damaged)}")


class BatchSource:
    """The batch of every step, a pure function of (seed, step).

    records: the data set. sampler: which images (its rows are the batch). labels: (N,) int per position.
    degradations: one per distribution. mirror: mirror each row with probability 1/2. seed: of mirrors and
    degradations. first_row, whole_rows: where these rows stand in the batch of all machines, of which this one
    has a share; a share's pixels are those of its rows in the whole.

    A row whose record is damaged gets another image, as the sampler's `spare` says: one that plays the same part
    in the batch, with its own label (of a pair both images change). Which one depends on (seed, step, row)
    and on what is damaged, not on what was read before. max_damaged: the part of the data set's records that
    may be damaged; whoever takes batches counts them in a `DamagedRecords`.

    Thread-safe. To prepare batches in parallel: `sample`, `writer` (in any thread or process), `mend`, `finish`.
    """

    writer: RowWriter

    def __init__(
        self,
        records: Records,
        sampler: PairSampler | ImageSampler | Share,
        labels: np.ndarray,
        degradations: Sequence[Degradation],
        *,
        mirror: bool = True,
        seed: int = 0,
        first_row: int = 0,
        whole_rows: int | None = None,
        max_damaged: float = MAX_DAMAGED,
    ):
        self.rows = sampler.rows
        self._records = records
        self._sampler = sampler
        self._labels = np.asarray(labels)
        self._mirror = mirror
        self._random = RowRandom(seed, first_row, sampler.rows if whole_rows is None else whole_rows)
        self._max_damaged = max_damaged
        self.writer = RowWriter(records.file, degradations, self._random)

    def batch(self, step: int) -> Batch:
        """The batch of step `step` >= 0, prepared here and now."""
        rows = self.sample(step)
        pixels = np.empty((self.rows, *SHAPE), np.uint8)
        damaged = self.writer.write(rows, range(self.rows), pixels)
        return self.finish(self.mend(rows, damaged, pixels, self.count_damaged()), pixels)

    def count_damaged(self) -> DamagedRecords:
        """A new count of damaged records: those left out at opening, and none met yet."""
        return DamagedRecords(self._records, self._max_damaged)

    def sample(self, step: int) -> Rows:
        """What is to be in the batch of `step`, if no record is damaged."""
        mirrored = self._random.mirrored(step, self.rows) if self._mirror else np.zeros(self.rows, bool)
        return self._placed(step, self._sampler.batch(step), mirrored)

    def mend(
        self,
        rows: Rows,
        damaged: dict[int, DamagedRecordError],
        pixels: np.ndarray,
        count: DamagedRecords,
        put: Put = put_image,
    ) -> Rows:
        """Give the rows of damaged records other images, until all can be read; returns what is in the rows then."""
        for attempt in range(_ATTEMPTS):
            if not damaged:
                return rows
            errors = [damaged[row] for row in sorted(damaged)]
            count.add(errors)
            rows, changed = self._exchange(rows, damaged, attempt)
            damaged = self.writer.write(rows, changed, pixels, put)
        if damaged:
            raise UserError(f"{errors[0]}; no other image for its row could be read in {_ATTEMPTS} tries")
        return rows

    def finish(self, rows: Rows, pixels: np.ndarray) -> Batch:
        """The batch of `rows` that are written in `pixels`."""
        sampled = rows.sampled
        return Batch(
            rows.step, pixels, self._labels[sampled.positions], sampled.positions, sampled.distribution
        )

    def _placed(self, step: int, sampled: SampledBatch, mirrored: np.ndarray) -> Rows:
        return Rows(step, sampled, self._records.places(sampled.positions), mirrored)

    def _exchange(
        self, rows: Rows, damaged: dict[int, DamagedRecordError], attempt: int
    ) -> tuple[Rows, list[int]]:
        """Choose other images for the damaged rows; returns also all rows that change."""
        positions = rows.sampled.positions.copy()
        sampled = SampledBatch(positions, rows.sampled.distribution)
        spare = getattr(self._sampler, "spare", lambda *_: None)
        changed: set[int] = set()
        for row in sorted(damaged):
            if row in changed:  # with the other row of its pair
                continue
            found = spare(rows.step, sampled, row, self._random.spare(rows.step, row, attempt))
            if found is None:
                raise UserError(f"{damaged[row]}; the sampler has no other image for its row")
            others, their_positions = found
            positions[others] = their_positions
            changed.update(others.tolist())
        return self._placed(rows.step, sampled, rows.mirrored), sorted(changed)
