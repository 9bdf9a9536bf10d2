"""The trainer's batches, drawn by our sampler, in epochs as the trainer counts them."""

from __future__ import annotations

from ddl_plugin.data.iterator import BatchIterator
from ddl_plugin.data.sampler import Share
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.registry import get_sampler
from ddl_plugin.settings import RunSettings
from ddl_plugin.training.dataset import Dataset


class EpochIterator(mx.io.DataIter):
    """An endless `BatchIterator` cut into epochs: `reset()` begins the next one where the last one ended."""

    def __init__(self, batches: BatchIterator, steps: int):
        super().__init__(batch_size=batches.batch_size)
        self._batches = batches
        self._steps = steps
        self._step = 0
        self.provide_data = batches.provide_data
        self.provide_label = batches.provide_label

    def next(self) -> mx.io.DataBatch:
        """The next batch; StopIteration at the end of an epoch."""
        if self._step == self._steps:
            raise StopIteration
        self._step += 1
        return self._batches.next()

    def reset(self) -> None:
        self._step = 0

    def close(self) -> None:
        """End the threads that prepare batches."""
        self._batches.close()


def epochs(settings: RunSettings, dataset: Dataset, devices: int, rank: int, workers: int) -> EpochIterator:
    """Batches for `devices` devices of machine `rank` of `workers`, each device's rows a whole block."""
    sampler = get_sampler("pairs").build(
        dataset.records.labels, dataset.partition, dataset.pairs, settings.ddl,
        rows=settings.batch_rows, devices=devices * workers, seed=settings.seed, options={},
    )  # fmt: skip
    share = Share(sampler, rank, workers)
    batches = BatchIterator(
        dataset.records, share, dataset.records.labels,
        [distribution.degradation for distribution in dataset.partition.distributions],
        mirror=settings.data_rand_mirror, seed=settings.seed, first_row=share.first_row,
        whole_rows=sampler.rows, threads=settings.num_threads,
        max_damaged=settings.max_damaged, planar=True,
    )  # fmt: skip
    return EpochIterator(batches, share.steps_per_epoch)
