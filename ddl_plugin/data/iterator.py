"""Batches for MXNet: what `threads` or `processes` prepares ahead of the training step, as MXNet's DataIter."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from ddl_plugin.data.batches import BatchSource, Put
from ddl_plugin.data.faces import SHAPE
from ddl_plugin.data.processes import ProcessBatches
from ddl_plugin.data.records import Records
from ddl_plugin.data.sampler import ImageSampler, PairSampler, Share
from ddl_plugin.data.threads import ThreadedBatches
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.settings import MAX_DAMAGED, Degradation

_PLANES = (SHAPE[2], *SHAPE[:2])


def pixels_description(rows: int, *, planar: bool = False) -> mx.io.DataDesc:
    """What a batch's `data` is: images as they are decoded, or float32 planes."""
    if planar:
        return mx.io.DataDesc("data", (rows, *_PLANES), np.float32)
    return mx.io.DataDesc("data", (rows, *SHAPE), np.uint8, layout="NHWC")


def planes(F, pixels):
    """float32 (rows, 3, 112, 112), as networks take them, of a batch's pixels; F: mx.nd or mx.sym."""
    return F.transpose(F.cast(pixels, dtype="float32"), axes=(0, 3, 1, 2))


def _new_put_planes() -> Put:
    """What writes an image into a row of float32 planes, with memory of its own."""
    mirror, planes = np.empty(SHAPE, np.uint8), np.empty(_PLANES, np.uint8)
    channels = list(planes)

    def put_planes(row: np.ndarray, image: np.ndarray, mirrored: bool) -> None:
        # By way of bytes: half the time of a transposed copy that converts.
        cv2.split(cv2.flip(image, 1, mirror) if mirrored else image, channels)
        row[:] = planes

    return put_planes


class BatchIterator(mx.io.DataIter):
    """Batches of training images in the order of steps `start`, `start` + 1, ... without end.

    What they are, and what becomes of damaged records, is `BatchSource`'s: the same step gives the same pixels
    whatever `threads`, `workers` and `start`. threads: rows are decoded by so many. workers: processes that prepare
    batches instead, which leave Python's lock to the training step; not planar ones. prefetch: batches prepared ahead, each
    37 KiB a row. With more damaged records than `max_damaged` the batches end in `UserError` with their numbers.

    Outputs per batch: data (rows, 112, 112, 3) uint8 RGB and softmax_label (rows,) float32. The images are as they
    are decoded: float32 planes are four times as much to write here and to copy to a device; `planes` makes them
    there. planar: data is (rows, 3, 112, 112) float32 all the same, for modules that take nothing else.
    A batch also has `step`, `index` ((rows,) int64 positions) and `distribution` ((rows,) int16).

    `next()` raises what went wrong in a thread or process, and does so again at each call. `reset()` goes back to `start`;
    `close()` ends them. A context manager.
    """

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
        workers: int = 0,
        prefetch: int = 2,
        max_damaged: float = MAX_DAMAGED,
        planar: bool = False,
    ):
        super().__init__(batch_size=sampler.rows)
        source = BatchSource(
            records, sampler, labels, degradations, mirror=mirror, seed=seed, first_row=first_row,
            whole_rows=whole_rows, max_damaged=max_damaged,
        )  # fmt: skip
        if workers and planar:
            raise ValueError("workers: expected 0 where planar, which threads of this process write")
        if workers:
            self._batches = ProcessBatches(source, start, workers=workers, prefetch=prefetch)
        else:
            options = {"shape": _PLANES, "dtype": np.float32, "new_put": _new_put_planes} if planar else {}
            self._batches = ThreadedBatches(source, start, threads=threads, prefetch=prefetch, **options)
        self.provide_data = [pixels_description(sampler.rows, planar=planar)]
        self.provide_label = [mx.io.DataDesc("softmax_label", (sampler.rows,), np.float32)]

    @property
    def damaged(self) -> dict[int, str]:
        """Record number -> what is wrong with it, of those met so far."""
        return self._batches.damaged

    def next(self) -> mx.io.DataBatch:
        """The batch of the next step; its pixels are not copied but lent, until MXNet lets them go."""
        batch = self._batches.next()
        data, labels = mx.nd.from_numpy(batch.pixels), mx.nd.from_numpy(batch.labels.astype(np.float32))
        result = mx.io.DataBatch(
            [data], [labels], pad=0, index=batch.positions,
            provide_data=self.provide_data, provide_label=self.provide_label,
        )  # fmt: skip
        result.step = batch.step
        result.distribution = batch.distribution
        return result

    def reset(self) -> None:
        """Go back to the step `start`."""
        self._batches.reset()

    def close(self) -> None:
        """End threads and processes; the iterator cannot be used any more. May be called twice."""
        self._batches.close()

    def __enter__(self) -> BatchIterator:
        return self

    def __exit__(self, *_) -> None:
        self.close()
