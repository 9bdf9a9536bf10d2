"""Pixels for the sampled rows: decoded, degraded and mirrored in parallel, ahead of the training step."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import cv2
import numpy as np

from ddl_plugin.data.degrade import degrade
from ddl_plugin.data.faces import SHAPE, load_face
from ddl_plugin.data.randomness import RowRandom
from ddl_plugin.data.records import DamagedRecordError, Records, too_many_damaged
from ddl_plugin.data.sampler import ImageSampler, PairSampler, SampledBatch, Share
from ddl_plugin.errors import UserError
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.settings import MAX_DAMAGED, Degradation

_PLANES = (SHAPE[2], *SHAPE[:2])
_ATTEMPTS = 64  # other images tried for a row before there is held to be none


def pixels_description(rows: int, *, planar: bool = False) -> mx.io.DataDesc:
    """What a batch's `data` is: images as they are decoded, or float32 planes."""
    if planar:
        return mx.io.DataDesc("data", (rows, *_PLANES), np.float32)
    return mx.io.DataDesc("data", (rows, *SHAPE), np.uint8, layout="NHWC")


def planes(F, pixels):
    """float32 (rows, 3, 112, 112), as networks take them, of a batch's pixels; F: mx.nd or mx.sym."""
    return F.transpose(F.cast(pixels, dtype="float32"), axes=(0, 3, 1, 2))


def _write_image(row: np.ndarray, image: np.ndarray, mirrored: bool) -> None:
    if mirrored:
        cv2.flip(image, 1, row)
    else:
        np.copyto(row, image)


class BatchIterator(mx.io.DataIter):
    """Batches of training images in the order of steps `start`, `start` + 1, ... without end.

    records: the data set. sampler: which images (its rows are the batch). labels: (N,) int32 per position.
    degradations: one per distribution. mirror: mirror each row with probability 1/2. seed: of mirrors and
    degradations, which depend on (seed, step, row) alone: the same step gives the same pixels whatever
    `threads` and `start`. first_row, whole_rows: where these rows stand in the batch of all machines, of which
    this one has a share; a share's pixels are those of its rows in the whole. threads: rows are decoded by so
    many. prefetch: batches prepared ahead, each 37 KiB a row.

    A row whose record is damaged gets another image, as the sampler's `spare` says: one that plays the same part
    in the batch, with its own label (of a pair both images change). Which one depends on (seed, step, row)
    and on what is damaged, not on what was read before. max_damaged: the part of the data set's records that
    may be damaged; with more the batches end in `UserError` with the record numbers.

    Outputs per batch: data (rows, 112, 112, 3) uint8 RGB and softmax_label (rows,) float32. The images are as they
    are decoded: float32 planes are four times as much to write here and to copy to a device; `planes` makes them
    there. planar: data is (rows, 3, 112, 112) float32 all the same, for modules that take nothing else.
    A batch also has `step`, `index` ((rows,) int64 positions) and `distribution` ((rows,) int16).

    `next()` raises what went wrong in a thread, and does so again at each call. `reset()` goes back to `start`;
    `close()` ends the threads. A context manager.
    """

    damaged: dict[int, str]  # record number -> what is wrong with it, of those met so far

    def __init__(
        self,
        records: Records,
        sampler: PairSampler | ImageSampler | Share,
        labels: np.ndarray,
        degradations: Sequence[Degradation],
        *,
        mirror: bool = True,
        seed: int = 0,
        start: int = 0,
        first_row: int = 0,
        whole_rows: int | None = None,
        threads: int = 2,
        prefetch: int = 2,
        max_damaged: float = MAX_DAMAGED,
        planar: bool = False,
    ):
        super().__init__(batch_size=sampler.rows)
        if threads < 1 or prefetch < 1:
            raise ValueError(f"threads, prefetch: expected >= 1, got {threads}, {prefetch}")
        # Rows are the unit of parallel work here; OpenCV's own threads would only compete with MXNet's.
        cv2.setNumThreads(0)
        self._records = records
        self._sampler = sampler
        self._labels = np.asarray(labels)
        self._degradations = [one if one.active else None for one in degradations]
        self._mirror = mirror
        self._random = RowRandom(seed, first_row, sampler.rows if whole_rows is None else whole_rows)
        self._start = start
        self._threads = threads
        self._prefetch = prefetch
        self._max_damaged = max_damaged
        self.damaged = dict.fromkeys(records.damaged.tolist(), "left out when the records were opened")
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(threads, "images")
        self._buffers: list[np.ndarray] = []  # free ones; page faults of new memory are dear
        self._pending: deque[_Batch] = deque()
        self._next_step = start
        rows = sampler.rows
        self.provide_data = [pixels_description(rows, planar=planar)]
        self.provide_label = [mx.io.DataDesc("softmax_label", (rows,), np.float32)]

    def next(self) -> mx.io.DataBatch:
        """The batch of the next step."""
        if self._pool is None:
            raise ValueError("the iterator is closed")
        while len(self._pending) <= self._prefetch:
            self._pending.append(self._submit(self._next_step))
            self._next_step += 1
        batch = self._pending[0]
        for part in batch.parts:
            part.result()
        self._mend(batch)
        self._pending.popleft()
        return self._delivered(batch)

    def reset(self) -> None:
        """Go back to the step `start`."""
        self._drop_pending()
        self._next_step = self._start

    def close(self) -> None:
        """End the threads; the iterator cannot be used any more. May be called twice."""
        if self._pool is not None:
            self._drop_pending()
            self._pool.shutdown(wait=True)
            self._pool = None
            self._buffers.clear()

    def __enter__(self) -> BatchIterator:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _drop_pending(self) -> None:
        for batch in self._pending:
            batch.dropped = True
        for batch in self._pending:
            for part in batch.parts:
                if not part.cancel():
                    part.exception()  # wait for it, and let what it raised go
            self._buffers.append(batch.pixels)
        self._pending.clear()

    def _submit(self, step: int) -> _Batch:
        rows = self._sampler.rows
        described = self.provide_data[0]
        pixels = self._buffers.pop() if self._buffers else np.empty(described.shape, described.dtype)
        batch = _Batch(step, pixels)
        # Rows dealt out in turn: those of one distribution, dear where it is degraded, lie side by side.
        parts = (range(first, rows, self._threads) for first in range(min(self._threads, rows)))
        batch.parts = [self._pool.submit(self._fill, batch, part) for part in parts]
        return batch

    def _delivered(self, batch: _Batch) -> mx.io.DataBatch:
        """`batch` as MXNet's; its pixels are not copied but lent, and free again when MXNet has let them go."""
        pixels = batch.pixels.view()
        weakref.finalize(pixels, self._buffers.append, batch.pixels).atexit = False
        labels = self._labels[batch.sampled.positions].astype(np.float32)
        result = mx.io.DataBatch(
            [mx.nd.from_numpy(pixels)], [mx.nd.from_numpy(labels)], pad=0, index=batch.sampled.positions,
            provide_data=self.provide_data, provide_label=self.provide_label,
        )  # fmt: skip
        result.step = batch.step
        result.distribution = batch.sampled.distribution
        return result

    # -- in the threads ----------------------------------------------------------------------------

    def _fill(self, batch: _Batch, rows: Iterable[int]) -> None:
        """Write the pixels of `rows`; rows of damaged records are noted in the batch."""
        self._prepare(batch)
        positions, distribution = batch.sampled.positions.tolist(), batch.sampled.distribution.tolist()
        write = self._write()
        for row in rows:
            if batch.dropped:
                return
            try:
                image = load_face(self._records, positions[row])
            except DamagedRecordError as error:
                batch.damaged[row] = error
                continue
            degradation = self._degradations[distribution[row]]
            if degradation:
                image = degrade(image, degradation, self._random.pixels(batch.step, row))
            write(batch.pixels[row], image, batch.mirrored[row])

    def _write(self) -> Callable[[np.ndarray, np.ndarray, bool], None]:
        """write(row of a batch, image, mirrored), with memory of its own."""
        if self.provide_data[0].dtype == np.uint8:
            return _write_image
        mirror, planes = np.empty(SHAPE, np.uint8), np.empty(_PLANES, np.uint8)
        channels = list(planes)

        def write_planes(row: np.ndarray, image: np.ndarray, mirrored: bool) -> None:
            # By way of bytes: half the time of a transposed copy that converts.
            cv2.split(cv2.flip(image, 1, mirror) if mirrored else image, channels)
            row[:] = planes

        return write_planes

    def _prepare(self, batch: _Batch) -> None:
        """Sample the batch; whichever thread comes first does."""
        with batch.lock:
            if batch.sampled is None:
                rows = self._sampler.rows
                batch.mirrored = [False] * rows
                if self._mirror:
                    batch.mirrored = self._random.mirrored(batch.step, rows).tolist()
                batch.sampled = self._sampler.batch(batch.step)

    # -- damaged records ---------------------------------------------------------------------------

    def _mend(self, batch: _Batch) -> None:
        """Give the rows of damaged records other images, until all can be read."""
        for attempt in range(_ATTEMPTS):
            if not batch.damaged:
                return
            errors = [batch.damaged[row] for row in sorted(batch.damaged)]
            self._count(errors)
            self._fill(batch, self._exchange(batch, attempt))
        if batch.damaged:
            raise UserError(f"{errors[0]}; no other image for its row could be read in {_ATTEMPTS} tries")

    def _count(self, errors: list[DamagedRecordError]) -> None:
        for error in errors:
            self.damaged.setdefault(error.key, str(error))
        count = len(self._records) + len(self._records.damaged)
        if len(self.damaged) > self._max_damaged * count:
            keys = np.sort(np.fromiter(self.damaged, np.int64))
            raise UserError(f"{errors[0]}; {too_many_damaged(keys, count, self._max_damaged)}")

    def _exchange(self, batch: _Batch, attempt: int) -> list[int]:
        """Choose other images for the damaged rows; returns all rows that change."""
        positions = batch.sampled.positions.copy()
        sampled = SampledBatch(positions, batch.sampled.distribution)
        spare = getattr(self._sampler, "spare", lambda *_: None)
        changed: set[int] = set()
        for row in sorted(batch.damaged):
            if row in changed:  # with the other row of its pair
                continue
            found = spare(batch.step, sampled, row, self._random.spare(batch.step, row, attempt))
            if found is None:
                raise UserError(f"{batch.damaged[row]}; the sampler has no other image for its row")
            rows, others = found
            positions[rows] = others
            changed.update(rows.tolist())
        batch.sampled, batch.damaged = sampled, {}
        return sorted(changed)


class _Batch:
    """A batch being prepared."""

    def __init__(self, step: int, pixels: np.ndarray):
        self.step = step
        self.pixels = pixels  # uint8 (rows, 112, 112, 3), or float32 planes
        self.sampled: SampledBatch | None = None
        self.mirrored: list[bool] = []
        self.damaged: dict[int, DamagedRecordError] = {}  # by row
        self.parts: list[Future] = []
        self.dropped = False
        self.lock = threading.Lock()
