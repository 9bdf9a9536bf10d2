"""The source of batches: a pure function of the step, whichever threads and processes prepare them."""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from ddl_plugin.data.batches import BatchSource
from ddl_plugin.data.degrade import degrade
from ddl_plugin.data.processes import ProcessBatches, _Slot
from ddl_plugin.data.randomness import RowRandom
from ddl_plugin.data.records import Records, RecordWriter
from ddl_plugin.data.sampler import ImageSampler, SampledBatch, Share
from ddl_plugin.data.threads import ThreadedBatches
from ddl_plugin.errors import CheckError, UserError
from ddl_plugin.settings import Degradation

CLEAN = Degradation()
DARK = Degradation(darken=(0.3, 0.5))


def picture(seed, side=112):
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return cv2.resize(small, (side, side), interpolation=cv2.INTER_LINEAR)


def written(folder, spoiled=()):
    """24 images, three of each identity; those at positions `spoiled` are no images."""
    with RecordWriter(folder) as writer:
        for i in range(24):
            writer.add(b"\xff\xd8 no JPEG" if i in spoiled else picture(i), i // 3)
    return folder


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return Records(written(tmp_path_factory.mktemp("records")))


class HalfHard:
    """Step t: images t..t+3 of 24 as rows of distribution 0, then the same ones as distribution 1."""

    rows = 8

    def batch(self, step):
        return SampledBatch(np.tile((step + np.arange(4)) % 24, 2), np.repeat(np.array([0, 1], np.int16), 4))


def half_hard(records, **options):
    return BatchSource(records, HalfHard(), records.labels, [CLEAN, DARK], **{"seed": 3, **options})


def all_images(records, **options):
    return BatchSource(records, ImageSampler(np.arange(24), 6), records.labels, [CLEAN], **options)


def same(one, other):
    return one.step == other.step and all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("pixels", "labels", "positions", "distribution")
    )


def test_rows_are_the_images_degraded_then_mirrored(records):
    source = half_hard(records)
    flipped = 0
    for step in (0, 5, 1):
        batch = source.batch(step)
        sampled = HalfHard().batch(step)
        assert batch.step == step
        assert np.array_equal(batch.positions, sampled.positions)
        assert np.array_equal(batch.distribution, sampled.distribution)
        assert np.array_equal(batch.labels, sampled.positions // 3)
        assert (batch.pixels.shape, batch.pixels.dtype) == ((8, 112, 112, 3), np.uint8)
        mirrored = RowRandom(3, 0, 8).mirrored(step, 8)
        for row, position in enumerate(sampled.positions):
            image = records.image(position)
            if row >= 4:
                image = degrade(image, DARK, RowRandom(3, 0, 8).pixels(step, row))
            assert np.array_equal(batch.pixels[row], image[:, ::-1] if mirrored[row] else image)
        flipped += mirrored.sum()
    assert 0 < flipped < 24


def test_the_order_in_which_steps_are_asked_for_does_not_matter(records):
    source = half_hard(records)
    forth = [source.batch(step) for step in range(4)]
    back = [source.batch(step) for step in (3, 2, 1, 0)][::-1]
    assert all(map(same, forth, back))


def test_a_writer_is_small_and_writes_the_same_after_pickling(records):
    source = half_hard(records)
    content = pickle.dumps(source.writer)
    assert len(content) < 2000
    rows = source.sample(2)
    pixels = np.empty((8, 112, 112, 3), np.uint8)
    assert pickle.loads(content).write(rows, range(8), pixels) == {}
    assert np.array_equal(pixels, source.batch(2).pixels)


def test_a_writer_names_the_file_as_this_process_does(tmp_path, monkeypatch):
    written(tmp_path, spoiled=[4])
    monkeypatch.chdir(tmp_path.parent)
    source = all_images(Records(tmp_path.name))
    content = pickle.dumps(source.writer)
    monkeypatch.chdir("/")
    writer, found = pickle.loads(content), {}
    for step in range(4):  # one pass over all images
        found |= writer.write(source.sample(step), range(6), np.empty((6, 112, 112, 3), np.uint8))
    (error,) = found.values()
    assert error.key == 5
    assert str(error).startswith(f"{tmp_path.name}/train.rec: record 5 is no image")


def test_last_image_has_no_record_after_it(records):
    places = records.places(np.array([23, 0]))
    assert places.keys.tolist() == [24, 1] and places.labels.tolist() == [7, 0]
    assert places.rooms[0] == 0 < places.rooms[1]
    assert np.array_equal(
        records.file.image(*(int(field[0]) for field in vars(places).values())), records.image(23)
    )


# -- in parallel ------------------------------------------------------------------------------------


def prepared(kind, source, start, **options):
    return (ThreadedBatches if kind == "threads" else ProcessBatches)(source, start, **options)


@pytest.fixture
def closing():
    """closing(batches): closed when the test ends."""
    held = []
    yield lambda batches: held.append(batches) or batches
    for batches in held:
        batches.close()


@pytest.mark.parametrize(
    ("kind", "options"),
    [("threads", {"threads": 1}), ("threads", {"threads": 3}), ("processes", {"workers": 1}),
     ("processes", {"workers": 2, "prefetch": 1})],
)  # fmt: skip
def test_batches_are_those_of_the_source(records, closing, kind, options):
    batches = closing(prepared(kind, half_hard(records), 4, **options))
    held = [batches.next() for _ in range(9)]  # each in memory of its own, as long as it is held
    expected = [half_hard(records).batch(step) for step in range(4, 13)]
    assert all(map(same, held, expected))
    batches.reset()
    assert same(batches.next(), expected[0]) and same(batches.next(), expected[1])


def test_shares_are_parts_of_the_whole(records, closing):
    whole = ImageSampler(np.arange(24), 4, devices=2, seed=1)
    share = Share(whole, 1, 2)
    options = {"first_row": share.first_row, "whole_rows": whole.rows}
    source = BatchSource(records, share, records.labels, [DARK], seed=5, **options)
    batches = closing(ProcessBatches(source))
    of_all = BatchSource(records, whole, records.labels, [DARK], seed=5)
    for step in range(3):
        assert np.array_equal(batches.next().pixels, of_all.batch(step).pixels[4:])


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_memory_is_used_again_when_it_is_let_go(records, closing, kind):
    batches = closing(prepared(kind, half_hard(records), 0, prefetch=1))
    places = set()
    for _ in range(15):
        batch = batches.next()
        places.add(batch.pixels.ctypes.data)
        del batch
    assert len(places) <= 4


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_damaged_records_are_replaced_and_counted_alike(tmp_path, closing, kind):
    records = Records(written(tmp_path, spoiled=[4, 17]))
    expected = all_images(records, max_damaged=1.0)
    batches = closing(prepared(kind, all_images(records, max_damaged=1.0), 0))
    for step in range(8):
        batch = batches.next()
        assert same(batch, expected.batch(step))
        assert not {4, 17} & set(batch.positions.tolist())
    assert sorted(batches.damaged) == [5, 18]
    assert "record 18 is no image" in batches.damaged[18]


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_too_many_damaged_records(tmp_path, closing, kind):
    records = Records(written(tmp_path, spoiled=[4, 17]))
    batches = closing(prepared(kind, all_images(records, max_damaged=1 / 24), 0))
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"record \d+ is no image: .*; 2 of 24 records are damaged \(5, 18\)"
        ):
            for _ in range(8):
                batches.next()


def test_nothing_is_written_in_memory_that_is_asked_for_anew(records):
    """Else the pixels of an older batch would pass for those that a worker failed to write."""
    source = half_hard(records)
    with tempfile.TemporaryFile() as memory:
        slot = _Slot(memory.fileno(), 0, source.rows, grow=True)
        slot.ask(source.sample(0))
        slot.write(source.writer)
        assert slot.written.all() and np.array_equal(slot.pixels, source.batch(0).pixels)
        slot.ask(source.sample(1))
        assert not slot.written.any()


def test_a_file_that_is_gone_when_a_worker_opens_it(tmp_path, closing):
    records = Records(written(tmp_path / "set"))
    expected = half_hard(records).batch(0)
    (tmp_path / "set" / "train.rec").unlink()
    batches = closing(ProcessBatches(half_hard(records)))
    assert same(batches.next(), expected)  # by this process, which has it open


# -- ending -----------------------------------------------------------------------------------------


def ended(pid, seconds=20.0):
    """Whether a process, which may be a child of nobody's, is gone within so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_a_lost_worker_is_one_line(records, closing):
    batches = closing(ProcessBatches(half_hard(records), workers=2))
    batches.next()
    pid = batches._workers[0].pid
    os.kill(pid, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(CheckError, match=rf"process {pid}\) was lost: SIGKILL; where memory is short"):
            for _ in range(10):
                batches.next()


def test_a_worker_lost_before_the_first_batch(records, closing):
    batches = closing(ProcessBatches(half_hard(records)))
    batches._workers[0].kill()
    batches._workers[0].wait()
    with pytest.raises(CheckError, match="was lost: SIGKILL"):
        batches.next()


def test_close_at_any_time_ends_the_workers(records):
    for taken in (0, 1):
        batches = ProcessBatches(half_hard(records), workers=2)
        pids = [worker.pid for worker in batches._workers]
        held = [batches.next() for _ in range(taken)]
        batches.close()
        batches.close()
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
        with pytest.raises(ValueError, match="closed"):
            batches.next()
        assert all(same(batch, half_hard(records).batch(0)) for batch in held)  # what is lent stays


def test_workers_end_with_batches_nobody_refers_to(records):
    batches = ProcessBatches(half_hard(records))
    pid = batches._workers[0].pid
    batches.next()
    del batches
    assert ended(pid)


CODE = """
import sys, time
import numpy as np
from ddl_plugin.data.batches import BatchSource
from ddl_plugin.data.processes import ProcessBatches
from ddl_plugin.data.records import Records
from ddl_plugin.data.sampler import ImageSampler
from ddl_plugin.settings import Degradation

records = Records(sys.argv[1])
source = BatchSource(records, ImageSampler(np.arange(24), 6), records.labels, [Degradation()])
batches = ProcessBatches(source, workers=2)
batch = [batches.next(), batches.next()][-1]  # of each worker one

def wait():
    print(*[worker.pid for worker in batches._workers], flush=True)
    time.sleep(1000)

"""


def started(records, code):
    process = subprocess.Popen(
        [sys.executable, "-c", CODE + code, str(records.path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True, text=True,
    )  # fmt: skip
    return process, list(map(int, process.stdout.readline().split()))


def test_no_worker_outlives_a_killed_process(records):
    process, pids = started(records, "wait()")
    process.kill()
    process.communicate()
    assert len(pids) == 2 and all(map(ended, pids))


def test_ctrl_c_and_sigterm_are_for_the_process_alone(records):
    code = (  # within the try when it is known here, by what is printed, that it can be interrupted
        "try:\n    wait()\nexcept KeyboardInterrupt:\n"
        "    for _ in range(20):\n        batches.next()\n    print('went on')\n"
    )
    process, pids = started(records, code)
    for pid in pids:
        os.kill(pid, signal.SIGTERM)  # as a scheduler does
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.communicate(timeout=60) == ("went on\n", "")
    assert process.returncode == 0 and all(map(ended, pids))  # without a call of close()


@pytest.mark.parametrize("option", ["workers", "prefetch"])
def test_workers_and_prefetch_of_none(records, option):
    with pytest.raises(ValueError, match="expected >= 1"):
        ProcessBatches(half_hard(records), **{option: 0})
