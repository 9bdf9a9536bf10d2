"""Pixels for the sampled rows: decoded, degraded and mirrored in parallel, ahead of the training step."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import cv2
import numpy as np

from ddl_plugin.data.degrade import degrade
from ddl_plugin.data.faces import SHAPE, load_face
from ddl_plugin.data.records import Records
from ddl_plugin.data.sampler import ImageSampler, PairSampler, SampledBatch
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.settings import Degradation

_CHANNELS_FIRST = (2, 0, 1)
_AUGMENTATION = 0x6175676D  # keeps these random numbers apart from the sampler's of the same seed


class BatchIterator(mx.io.DataIter):
    """Batches of training images in the order of steps `start`, `start` + 1, ... without end.

    records: the data set. sampler: which images (its rows are the batch). labels: (N,) int32 per position.
    degradations: one per distribution. mirror: mirror each row with probability 1/2. seed: of mirrors and
    degradations, which depend on (seed, step, row) alone: the same step gives the same pixels whatever
    `threads` and `start`. first_row, whole_rows: where these rows stand in the batch of all machines, of which
    this one has a share; a share's pixels are those of its rows in the whole. threads: rows are decoded by so many. prefetch: batches prepared ahead, each
    150 KiB a row.

    Outputs per batch: data (rows, 3, 112, 112) float32 RGB 0..255 and softmax_label (rows,) float32.
    A batch also has `step`, `index` ((rows,) int64 positions) and `distribution` ((rows,) int16).

    `next()` raises what went wrong in a thread, such as `UserError` for a record that is no image, and does so
    again at each call. `reset()` goes back to `start`; `close()` ends the threads. A context manager.
    """

    def __init__(
        self,
        records: Records,
        sampler: PairSampler | ImageSampler,
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
    ):
        super().__init__(batch_size=sampler.rows)
        if threads < 1 or prefetch < 1:
            raise ValueError(f"threads, prefetch: expected >= 1, got {threads}, {prefetch}")
        # Rows are the unit of parallel work here; OpenCV's own threads would only compete with MXNet's.
        cv2.setNumThreads(0)
        self._records = records
        self._sampler = sampler
        self._labels = np.asarray(labels)
        self._degradations = tuple(degradations)
        self._mirror = mirror
        self._key = np.random.SeedSequence([seed, _AUGMENTATION]).generate_state(2, np.uint64)
        self._start = start
        self._first_row = first_row
        self._whole_rows = sampler.rows if whole_rows is None else whole_rows
        self._threads = threads
        self._prefetch = prefetch
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(threads, "images")
        self._buffers: list[np.ndarray] = []  # free ones; page faults of new memory are dear
        self._pending: deque[_Batch] = deque()
        self._next_step = start
        rows = sampler.rows
        self.provide_data = [mx.io.DataDesc("data", (rows, SHAPE[2], *SHAPE[:2]), np.float32)]
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
        self._pending.popleft()
        # mx.nd.array copies before it returns, so the buffer can be used again.
        data = mx.nd.array(batch.pixels, dtype="float32")
        self._buffers.append(batch.pixels)
        sampled = batch.sampled
        label = mx.nd.array(self._labels[sampled.positions], dtype="float32")
        result = mx.io.DataBatch(
            [data], [label], pad=0, index=sampled.positions,
            provide_data=self.provide_data, provide_label=self.provide_label,
        )  # fmt: skip
        result.step = batch.step
        result.distribution = sampled.distribution
        return result

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
        pixels = self._buffers.pop() if self._buffers else np.empty((rows, 3, *SHAPE[:2]), np.float32)
        batch = _Batch(step, self._sampler, pixels)
        # Rows dealt out in turn: those of one distribution, dear where it is degraded, lie side by side.
        parts = (range(first, rows, self._threads) for first in range(min(self._threads, rows)))
        batch.parts = [self._pool.submit(self._fill, batch, part) for part in parts]
        return batch

    def _fill(self, batch: _Batch, rows: range) -> None:
        sampled = batch.sampled
        mirrored = self._mirrored(batch.step)
        for row in rows:
            if batch.dropped:
                return
            image = load_face(self._records, int(sampled.positions[row]))
            degradation = self._degradations[sampled.distribution[row]]
            if degradation.active:
                image = degrade(image, degradation, self._rng(batch.step, self._first_row + row))
            if mirrored[row]:
                image = cv2.flip(image, 1)
            batch.pixels[row] = image.transpose(_CHANNELS_FIRST)

    def _mirrored(self, step: int) -> np.ndarray:
        rows = self._sampler.rows
        if not self._mirror:
            return np.zeros(rows, bool)
        draws = self._rng(step, self._whole_rows).random(self._first_row + rows)
        return draws[self._first_row :] < 0.5

    def _rng(self, step: int, row: int) -> np.random.Generator:
        """The generator of one row of the whole batch in one step; row `whole_rows` is the batch's own."""
        return np.random.Generator(np.random.Philox(key=self._key, counter=[0, 0, row, step]))


class _Batch:
    """A batch being prepared: its rows are sampled by whichever thread needs them first."""

    def __init__(self, step: int, sampler: PairSampler | ImageSampler, pixels: np.ndarray):
        self.step = step
        self.pixels = pixels  # (rows, 3, 112, 112) float32
        self.parts: list[Future] = []
        self.dropped = False
        self._sampler = sampler
        self._sampled: SampledBatch | None = None
        self._lock = threading.Lock()

    @property
    def sampled(self) -> SampledBatch:
        with self._lock:
            if self._sampled is None:
                self._sampled = self._sampler.batch(self.step)
            return self._sampled
