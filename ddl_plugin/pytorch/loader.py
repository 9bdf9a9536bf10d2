"""Batches for PyTorch: what threads of this process, or worker processes, prepare ahead of the training step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ddl_plugin.data.batches import BatchSource
from ddl_plugin.data.processes import ProcessBatches
from ddl_plugin.data.threads import ThreadedBatches
from ddl_plugin.pytorch.torch_setup import torch


@dataclass(frozen=True)
class TorchBatch:
    """What a training step takes, and where it came from.

    pixels: uint8 (rows, 112, 112, 3) RGB, in host memory: a quarter of what float planes are to copy to a device,
    where `permute(0, 3, 1, 2)` makes channels_last planes of it. labels: int64 (rows,).
    positions: int64 (rows,), distribution: int16 (rows,): NumPy, as in `Batch`.
    """

    step: int
    pixels: torch.Tensor
    labels: torch.Tensor
    positions: np.ndarray
    distribution: np.ndarray


class Loader:
    """An iterator of `TorchBatch`: steps `start` up to, not including, `stop` (None: without end), in order.

    workers: processes that prepare batches; 0: `threads` of this process do. prefetch: batches prepared ahead.
    pin_memory: tensors in page-locked memory of their own, from which copies to a GPU need not be waited for; it is
    without effect where there is no CUDA. Otherwise the pixels are lent, until no tensor refers to them.

    The same step gives the same batch whatever these say. What `next` raises it raises again at each call:
    `UserError` for damaged records beyond the limit, `CheckError` for a lost worker. `close()` ends threads and
    processes. A context manager.
    """

    def __init__(
        self,
        source: BatchSource,
        start: int = 0,
        stop: int | None = None,
        *,
        workers: int = 0,
        threads: int = 1,
        prefetch: int = 2,
        pin_memory: bool = False,
    ):
        self._step, self._stop = start, stop
        self._pinned = pin_memory and torch.cuda.is_available()
        if workers:
            self._batches = ProcessBatches(source, start, workers=workers, prefetch=prefetch)
        else:
            self._batches = ThreadedBatches(source, start, threads=threads, prefetch=prefetch)

    @property
    def damaged(self) -> dict[int, str]:
        """Record number -> what is wrong with it, of those met so far."""
        return self._batches.damaged

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> TorchBatch:
        if self._step == self._stop:
            raise StopIteration
        batch = self._batches.next()
        self._step += 1
        pixels, labels = torch.from_numpy(batch.pixels), torch.from_numpy(batch.labels.astype(np.int64))
        if self._pinned:
            pixels, labels = pixels.pin_memory(), labels.pin_memory()
        return TorchBatch(batch.step, pixels, labels, batch.positions, batch.distribution)

    def next(self) -> TorchBatch:
        """The batch of the next step; StopIteration at `stop`."""
        return next(self)

    def close(self) -> None:
        """End the threads or processes; there are no more batches. May be called twice."""
        self._batches.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_) -> None:
        self.close()
