"""Epochs as the trainer counts them, over batches without an end."""

import itertools

import pytest

from ddl_plugin.host.batches import EpochIterator


class Endless:
    batch_size, provide_data, provide_label = 6, ["data"], ["label"]
    closed = False

    def __init__(self):
        self.next = itertools.count().__next__

    def close(self):
        self.closed = True


def test_an_epoch_begins_where_the_last_one_ended():
    epochs = EpochIterator(Endless(), 3)
    assert (epochs.batch_size, epochs.provide_data, epochs.provide_label) == (6, ["data"], ["label"])
    assert list(epochs) == [0, 1, 2]
    with pytest.raises(StopIteration):
        epochs.next()
    epochs.reset()
    assert list(epochs) == [3, 4, 5]


def test_closing_ends_the_threads_beneath():
    batches = Endless()
    EpochIterator(batches, 1).close()
    assert batches.closed
