"""The loader of PyTorch: the batches of the source as tensors, whoever prepares them."""

import os
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest

from ddl_plugin.data.batches import BatchSource
from ddl_plugin.data.records import Records, RecordWriter
from ddl_plugin.data.sampler import ImageSampler
from ddl_plugin.errors import CheckError, UserError
from ddl_plugin.settings import Degradation

torch = pytest.importorskip("torch")

from ddl_plugin.pytorch.loader import Loader  # noqa: E402

WAYS = [{"workers": 0}, {"workers": 0, "threads": 3}, {"workers": 1}, {"workers": 2}]


def picture(seed):
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return cv2.resize(small, (112, 112), interpolation=cv2.INTER_LINEAR)


def written(folder, spoiled=()):
    """24 images, three of each identity; those at positions `spoiled` are no images."""
    with RecordWriter(folder) as writer:
        for i in range(24):
            writer.add(b"\xff\xd8 no JPEG" if i in spoiled else picture(i), i // 3)
    return Records(folder)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return written(tmp_path_factory.mktemp("records"))


def source(records, **options):
    sampler = ImageSampler(np.arange(24), 6, seed=1)
    return BatchSource(records, sampler, records.labels, [Degradation(darken=(0.3, 0.9))], seed=2, **options)


def assert_same(batch, expected):
    assert batch.step == expected.step
    assert (batch.pixels.dtype, batch.labels.dtype) == (torch.uint8, torch.int64)
    assert np.array_equal(batch.pixels.numpy(), expected.pixels)
    assert np.array_equal(batch.labels.numpy(), expected.labels)
    assert np.array_equal(batch.positions, expected.positions)
    assert np.array_equal(batch.distribution, expected.distribution)


@pytest.mark.parametrize("way", WAYS)
def test_steps_in_order_from_any_start(records, way):
    with Loader(source(records), 5, 11, **way) as batches:
        found = list(batches)
    assert len(found) == 6
    for batch, step in zip(found, range(5, 11), strict=True):
        assert_same(batch, source(records).batch(step))
    assert next(iter(batches), None) is None


def test_without_end(records):
    with Loader(source(records)) as batches:
        for step in range(30):
            assert batches.next().step == step


def test_pixels_become_channels_last_planes_without_a_copy(records):
    with Loader(source(records), 0, 1) as batches:
        (batch,) = batches
    planes = batch.pixels.permute(0, 3, 1, 2)
    assert planes.shape == (6, 3, 112, 112)
    assert planes.is_contiguous(memory_format=torch.channels_last)
    assert planes.data_ptr() == batch.pixels.data_ptr()


@pytest.mark.parametrize("way", WAYS[1::2])
def test_pixels_are_not_written_anew_while_a_tensor_refers_to_them(records, way):
    with Loader(source(records), **way) as batches:
        planes = batches.next().pixels.permute(0, 3, 1, 2)[1:]
        for _ in range(12):
            batches.next()
    assert np.array_equal(planes.permute(0, 2, 3, 1).numpy(), source(records).batch(0).pixels[1:])


@pytest.mark.parametrize("way", WAYS)
def test_damaged_records(tmp_path, way):
    damaged = written(tmp_path, spoiled=[4, 17])
    with Loader(source(damaged, max_damaged=1.0), 0, 8, **way) as batches:
        for batch, step in zip(batches, range(8), strict=True):
            assert_same(batch, source(damaged, max_damaged=1.0).batch(step))
        assert sorted(batches.damaged) == [5, 18]
    with Loader(source(damaged, max_damaged=1 / 24), **way) as batches:
        for _ in range(2):  # the step is not passed over
            with pytest.raises(
                UserError, match=r"2 of 24 records are damaged \(5, 18\), more than max_damaged"
            ):
                for _ in range(8):
                    batches.next()


def test_a_lost_worker(records):
    with Loader(source(records), workers=2) as batches:
        batches.next()
        for worker in batches._batches._workers:
            os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(CheckError, match=r"process that decodes images .* was lost: SIGKILL"):
            for _ in range(10):
                batches.next()


def test_pinned_memory_is_asked_for_with_cuda_alone(records, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: asked.append(self.dtype) or self.clone())
    for there, expected in ((False, []), (True, [torch.uint8, torch.int64])):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        with Loader(source(records), 0, 1, pin_memory=True) as batches:
            assert_same(next(batches), source(records).batch(0))
        assert asked == expected


def test_workers_do_without_torch(records):
    """They start in a fraction of the time and have a fraction of the memory."""
    with Loader(source(records), workers=1) as batches:
        batches.next()
        (worker,) = batches._batches._workers
        maps = subprocess.run(
            ["cat", f"/proc/{worker.pid}/maps"], capture_output=True, text=True, check=False
        ).stdout
    assert "cv2" in maps and "libtorch" not in maps


def test_the_loader_comes_up_without_mxnet():
    code = "import sys, ddl_plugin.pytorch.loader; sys.exit('mxnet' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
