"""What machines draw of one batch is, pixel by pixel, what one machine would draw of all of it."""

import cv2
import numpy as np
import pytest

from ddl_plugin.data.iterator import BatchIterator
from ddl_plugin.data.records import Records, RecordWriter
from ddl_plugin.data.sampler import ImageSampler, Share
from ddl_plugin.settings import Degradation


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    with RecordWriter(folder) as writer:
        for i in range(24):
            small = np.random.default_rng(i).integers(0, 256, (6, 6, 3), dtype=np.uint8)
            writer.add(cv2.resize(small, (112, 112), interpolation=cv2.INTER_LINEAR), i // 3)
    return Records(folder)


def drawn(records, sampler, **options):
    degradation = [Degradation(darken=(0.2, 0.9))]
    with BatchIterator(records, sampler, records.labels, degradation, seed=5, **options) as iterator:
        batches = [iterator.next() for _ in range(3)]
        return [(batch.data[0].asnumpy(), batch.label[0].asnumpy()) for batch in batches]


@pytest.mark.parametrize("workers", [2, 3])
def test_shares_of_a_batch_have_the_pixels_of_the_whole(records, workers):
    whole = ImageSampler(np.arange(24), 3, devices=6, seed=1)
    shares = [Share(whole, rank, workers) for rank in range(workers)]
    parts = [drawn(records, s, first_row=s.first_row, whole_rows=whole.rows) for s in shares]
    for step, (pixels, labels) in enumerate(drawn(records, whole)):
        assert np.array_equal(np.concatenate([part[step][0] for part in parts]), pixels)
        assert np.array_equal(np.concatenate([part[step][1] for part in parts]), labels)
