"""Batches prepared by threads of this process."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import cv2
import numpy as np

from ddl_plugin.data.batches import Batch, BatchSource, Put, Rows, put_image
from ddl_plugin.data.faces import SHAPE
from ddl_plugin.data.record_file import DamagedRecordError


class ThreadedBatches:
    """Batches of `source` in the order of steps `start`, `start` + 1, ... without end, prepared ahead by threads.

    threads: rows are decoded by so many. prefetch: batches prepared ahead, each 37 KiB a row. shape, dtype, new_put:
    what pixels are, if not images as they are decoded, and what makes the `Put` of a thread that writes them.

    The pixels of a batch are lent: they are written anew when nothing refers to that array any more, since page
    faults of new memory are dear. What went wrong in a thread is raised by `next()`, and again at each call.
    """

    def __init__(
        self,
        source: BatchSource,
        start: int = 0,
        *,
        threads: int = 2,
        prefetch: int = 2,
        shape: tuple[int, ...] = SHAPE,
        dtype: type = np.uint8,
        new_put: Callable[[], Put] = lambda: put_image,
    ):
        if threads < 1 or prefetch < 1:
            raise ValueError(f"threads, prefetch: expected >= 1, got {threads}, {prefetch}")
        # Rows are the unit of parallel work here; OpenCV's own threads would only compete with the network's.
        cv2.setNumThreads(0)
        self._source = source
        self._start = self._next_step = start
        self._threads = threads
        self._prefetch = prefetch
        self._shape, self._dtype = (source.rows, *shape), dtype
        self._new_put = new_put
        self._count = source.count_damaged()
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(threads, "images")
        self._buffers: list[np.ndarray] = []  # free ones
        self._pending: deque[_Pending] = deque()

    @property
    def damaged(self) -> dict[int, str]:
        """Record number -> what is wrong with it, of those met so far."""
        return self._count.reasons

    def next(self) -> Batch:
        """The batch of the next step."""
        if self._pool is None:
            raise ValueError("the iterator is closed")
        while len(self._pending) <= self._prefetch:
            self._pending.append(self._submit(self._next_step))
            self._next_step += 1
        pending = self._pending[0]
        for part in pending.parts:
            pending.damaged.update(part.result())
        rows = pending.rows
        if pending.damaged:
            put = self._new_put()
            rows = self._source.mend(rows, pending.damaged, pending.pixels, self._count, put)
        self._pending.popleft()
        pixels = pending.pixels.view()
        weakref.finalize(pixels, self._buffers.append, pending.pixels).atexit = False
        return self._source.finish(rows, pixels)

    def reset(self) -> None:
        """Go back to the step `start`."""
        self._drop_pending()
        self._next_step = self._start

    def close(self) -> None:
        """End the threads; there are no more batches. May be called twice."""
        if self._pool is not None:
            self._drop_pending()
            self._pool.shutdown(wait=True)
            self._pool = None
            self._buffers.clear()

    def _drop_pending(self) -> None:
        for pending in self._pending:
            pending.dropped = True
        for pending in self._pending:
            for part in pending.parts:
                if not part.cancel():
                    part.exception()  # wait for it, and let what it raised go
            self._buffers.append(pending.pixels)
        self._pending.clear()

    def _submit(self, step: int) -> _Pending:
        rows = self._source.rows
        pixels = self._buffers.pop() if self._buffers else np.empty(self._shape, self._dtype)
        pending = _Pending(step, pixels)
        # Rows dealt out in turn: those of one distribution, dear where it is degraded, lie side by side.
        parts = (range(first, rows, self._threads) for first in range(min(self._threads, rows)))
        pending.parts = [self._pool.submit(self._fill, pending, part) for part in parts]
        return pending

    def _fill(self, pending: _Pending, which: Iterable[int]) -> dict[int, DamagedRecordError]:
        with pending.lock:  # whichever thread comes first samples
            if pending.rows is None:
                pending.rows = self._source.sample(pending.step)
        return self._source.writer.write(pending.rows, pending.wanted(which), pending.pixels, self._new_put())


class _Pending:
    """A batch being prepared."""

    def __init__(self, step: int, pixels: np.ndarray):
        self.step = step
        self.pixels = pixels
        self.rows: Rows | None = None
        self.damaged: dict[int, DamagedRecordError] = {}  # by row
        self.parts: list[Future] = []
        self.dropped = False
        self.lock = threading.Lock()

    def wanted(self, which: Iterable[int]) -> Iterator[int]:
        """`which`, until the batch is dropped."""
        for row in which:
            if self.dropped:
                return
            yield row
