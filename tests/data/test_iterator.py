"""The iterator: the sampled rows' pixels, the same for any number of threads and any start; errors; ending."""

import subprocess
import sys
import threading
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from ddl_plugin.data.degrade import degrade
from ddl_plugin.data.iterator import BatchIterator, planes
from ddl_plugin.data.randomness import RowRandom
from ddl_plugin.data.records import Records, RecordWriter
from ddl_plugin.data.sampler import ImageSampler, SampledBatch
from ddl_plugin.errors import UserError
from ddl_plugin.settings import Degradation

CLEAN = Degradation()
DARK = Degradation(darken=(0.3, 0.5))


def picture(seed, side=112):
    """A smooth random picture that is not its own mirror image."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return cv2.resize(small, (side, side), interpolation=cv2.INTER_LINEAR)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """24 images, 3 of each identity."""
    folder = tmp_path_factory.mktemp("records")
    with RecordWriter(folder) as writer:
        for i in range(24):
            writer.add(picture(i), i // 3)
    return Records(folder)


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """8 images, of which record 6 is no image."""
    folder = tmp_path_factory.mktemp("broken")
    with RecordWriter(folder) as writer:
        for i in range(8):
            writer.add(b"\xff\xd8 this is no JPEG" if i == 5 else picture(i), i)
    return Records(folder)


class HalfHard:
    """Step t: images t..t+7 of 24 as rows of distribution 0, then the same ones as distribution 1."""

    rows = 16

    def batch(self, step):
        chosen = (step + np.arange(8)) % 24
        return SampledBatch(np.tile(chosen, 2), np.repeat(np.array([0, 1], np.int16), 8))


def batches(records, count, **options):
    """The first `count` batches: (step, pixels, labels) each."""
    degradations = options.pop("degradations", [CLEAN, DARK])
    sampler = options.pop("sampler", HalfHard())
    with BatchIterator(records, sampler, records.labels, degradations, **options) as iterator:
        return [
            (batch.step, batch.data[0].asnumpy(), batch.label[0].asnumpy())
            for batch, _ in zip(iterator, range(count), strict=False)
        ]


def test_batch_holds_the_sampled_rows(records):
    sampler = HalfHard()
    with BatchIterator(records, sampler, records.labels, [CLEAN, CLEAN], mirror=False) as iterator:
        assert iterator.batch_size == 16
        assert [(d.name, d.shape, d.dtype) for d in iterator.provide_data] == [
            ("data", (16, 112, 112, 3), np.uint8)
        ]
        assert [tuple(d) for d in iterator.provide_label] == [("softmax_label", (16,))]
        for step in range(4):
            batch = iterator.next()
            sampled = sampler.batch(step)
            assert batch.step == step
            assert batch.pad == 0
            assert np.array_equal(batch.index, sampled.positions)
            assert np.array_equal(batch.distribution, sampled.distribution)
            pixels, labels = batch.data[0].asnumpy(), batch.label[0].asnumpy()
            assert (pixels.dtype, labels.dtype) == (np.uint8, np.float32)
            assert np.array_equal(labels, sampled.positions // 3)
            for row, position in enumerate(sampled.positions):
                assert np.array_equal(pixels[row], records.image(position))


def test_planar_batches_are_the_same_images_as_float32_planes(records):
    options = {"mirror": True, "seed": 3}
    with (
        BatchIterator(records, HalfHard(), records.labels, [CLEAN, DARK], **options) as images,
        BatchIterator(records, HalfHard(), records.labels, [CLEAN, DARK], **options, planar=True) as planar,
    ):
        (described,) = planar.provide_data
        assert (described.name, described.shape, described.dtype) == ("data", (16, 3, 112, 112), np.float32)
        for _ in range(4):
            found = planar.next().data[0].asnumpy()
            assert found.dtype == np.float32
            assert np.array_equal(found, images.next().data[0].asnumpy().transpose(0, 3, 1, 2))


def test_planes_are_what_networks_take(records):
    from ddl_plugin.mxnet_setup import mx

    images = np.stack([records.image(i) for i in range(3)])
    graph = planes(mx.sym, mx.sym.Variable("data")).bind(
        mx.cpu(), {"data": mx.nd.array(images, dtype="uint8")}
    )
    for found in (planes(mx.nd, mx.nd.array(images, dtype="uint8")), graph.forward()[0]):
        assert found.dtype == np.float32
        assert found.shape == (3, 3, 112, 112)
        values = found.asnumpy()
        for i in range(3):
            for channel in range(3):  # R, G, B
                assert np.array_equal(values[i, channel], images[i, :, :, channel])


def test_labels_are_the_ones_given(records):
    with BatchIterator(records, HalfHard(), np.arange(24, dtype=np.int32) + 50, [CLEAN, CLEAN]) as iterator:
        assert iterator.next().label[0].asnumpy()[:8].tolist() == list(range(50, 58))


@pytest.mark.parametrize("workers", [0, 2])
def test_earlier_batches_keep_their_pixels(records, workers):
    with BatchIterator(records, HalfHard(), records.labels, [CLEAN, DARK], workers=workers) as iterator:
        held = [iterator.next() for _ in range(8)]
    for batch, (_, pixels, _) in zip(held, batches(records, 8), strict=True):
        assert np.array_equal(batch.data[0].asnumpy(), pixels)


def test_pixels_are_lent_and_taken_back(records):
    # New memory for each batch would cost more in page faults than its pixels.
    with BatchIterator(records, HalfHard(), records.labels, [CLEAN, DARK], prefetch=1) as iterator:
        made = {}  # holds them, so that no two have the same address
        for _ in range(12):
            batch = iterator.next()
            batch.data[0].wait_to_read()
            made |= {id(pending.pixels): pending.pixels for pending in iterator._batches._pending}
        assert len(made) <= 4
        del batch


@pytest.mark.parametrize("workers", [0, 1])
def test_pixels_are_not_taken_back_while_mxnet_needs_them(records, workers):
    from ddl_plugin.mxnet_setup import mx

    options = {"prefetch": 1, "workers": workers}
    with BatchIterator(records, HalfHard(), records.labels, [CLEAN, CLEAN], **options) as iterator:
        work = mx.nd.ones((1500, 1500))
        sums = []
        for _ in range(6):
            batch = iterator.next()
            for _ in range(4):  # so that the engine is behind
                work = mx.nd.dot(work, work) * 0
            sums.append(batch.data[0].astype("float32").sum(axis=(1, 2, 3)) + work[0, 0])
            del batch
        found = [one.asnumpy() for one in sums]
    for step, (_, pixels, _) in enumerate(batches(records, 6, degradations=[CLEAN, CLEAN])):
        assert np.allclose(found[step], pixels.astype(np.float32).sum(axis=(1, 2, 3)), rtol=1e-5)


def test_pixels_outlive_the_iterator(records):
    with BatchIterator(records, HalfHard(), records.labels, [CLEAN, DARK]) as iterator:
        batch = iterator.next()
    del iterator
    assert np.array_equal(batch.data[0].asnumpy(), batches(records, 1)[0][1])


def test_a_process_ends_with_pixels_lent(records):
    code = (
        "import sys, numpy as np\n"
        "from ddl_plugin.data.iterator import BatchIterator\n"
        "from ddl_plugin.data.records import Records\n"
        "from ddl_plugin.data.sampler import ImageSampler\n"
        "from ddl_plugin.settings import Degradation\n"
        "records = Records(sys.argv[1])\n"
        "iterator = BatchIterator(records, ImageSampler(np.arange(24), 8), records.labels, [Degradation()])\n"
        "held = [iterator.next() for _ in range(3)]\n"
        "pending = [batch.data[0] * 2 for batch in held]\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(records.path)], capture_output=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, b"")


def test_rows_are_mirrored_half_of_the_time(records):
    mirrored = []
    for step, pixels, _ in batches(records, 30, degradations=[CLEAN, CLEAN]):
        for row, position in enumerate(HalfHard().batch(step).positions):
            plain = records.image(position)
            flipped = plain[:, ::-1]
            assert np.array_equal(pixels[row], plain) or np.array_equal(pixels[row], flipped)
            mirrored.append(np.array_equal(pixels[row], flipped))
    assert abs(np.mean(mirrored) - 0.5) < 0.12  # five standard deviations of 480 draws
    by_row = np.reshape(mirrored, (30, 16)).mean(axis=0)
    assert (by_row > 0).all()
    assert (by_row < 1).all()


def test_only_rows_of_a_degraded_distribution_are_degraded(records):
    clean = batches(records, 3, degradations=[CLEAN, CLEAN])
    dark = batches(records, 3, degradations=[CLEAN, DARK])
    for (_, a, _), (_, b, _) in zip(clean, dark, strict=True):
        assert np.array_equal(a[:8], b[:8])
        factors = b[8:].mean(axis=(1, 2, 3)) / a[8:].mean(axis=(1, 2, 3))
        assert (factors > 0.28).all()
        assert (factors < 0.52).all()
        assert len(np.unique(factors.round(4))) > 4  # drawn for each row


def test_degraded_before_mirrored(records):
    # The smallest oracle of a degraded row: `degrade` itself with the row's generator, then the mirror.
    with BatchIterator(records, HalfHard(), records.labels, [DARK, DARK], mirror=False, seed=4) as iterator:
        pixels = iterator.next().data[0].asnumpy()
        for row in range(16):
            expected = degrade(records.image(row % 8), DARK, RowRandom(4, 0, 16).pixels(0, row))
            assert np.array_equal(pixels[row], expected)


@pytest.mark.parametrize(
    "options", [{"threads": 1}, {"threads": 5, "prefetch": 1}, {"prefetch": 6}, {"workers": 2}]
)
def test_threads_and_prefetch_do_not_change_pixels(records, options):
    for expected, got in zip(batches(records, 6), batches(records, 6, **options), strict=True):
        assert expected[0] == got[0]
        assert np.array_equal(expected[1], got[1])


def test_start_continues_where_another_run_stopped(records):
    sequential = batches(records, 7)
    resumed = batches(records, 3, start=4)
    assert [step for step, _, _ in resumed] == [4, 5, 6]
    for expected, got in zip(sequential[4:], resumed, strict=True):
        assert np.array_equal(expected[1], got[1])
        assert np.array_equal(expected[2], got[2])


def test_seed_changes_the_augmentation(records):
    assert not np.array_equal(batches(records, 1, seed=1)[0][1], batches(records, 1, seed=2)[0][1])


def test_reset_goes_back_to_the_start(records):
    with BatchIterator(records, HalfHard(), records.labels, [CLEAN, DARK], start=2) as iterator:
        before = [iterator.next().data[0].asnumpy() for _ in range(3)]
        iterator.reset()
        batch = iterator.next()
        assert batch.step == 2
        assert np.array_equal(batch.data[0].asnumpy(), before[0])
        assert np.array_equal(iterator.next().data[0].asnumpy(), before[1])


def test_works_with_the_image_sampler(records):
    sampler = ImageSampler(np.arange(24), 4, devices=2)
    drawn = []
    with BatchIterator(records, sampler, records.labels, [CLEAN]) as iterator:
        for _ in range(3):
            drawn.extend(iterator.next().index)
    assert sorted(drawn) == list(range(24))


def in_order(rows):
    """A sampler of consecutive images, all of distribution 0."""
    return SimpleNamespace(
        rows=rows,
        batch=lambda step: SampledBatch(np.arange(rows) + step * rows, np.zeros(rows, np.int16)),
    )


@pytest.mark.parametrize("threads", [1, 3])
def test_record_that_is_no_image_is_raised_at_its_step(broken, threads):
    with BatchIterator(broken, in_order(2), broken.labels, [CLEAN], threads=threads) as iterator:
        assert [iterator.next().step for _ in range(2)] == [0, 1]
        for _ in range(2):  # the step is not passed over
            with pytest.raises(UserError, match="record 6 is no image"):
                iterator.next()


def test_error_of_the_sampler_is_raised(records):
    def batch(step):
        raise UserError("no such step")

    with (
        BatchIterator(records, SimpleNamespace(rows=4, batch=batch), records.labels, [CLEAN]) as iterator,
        pytest.raises(UserError, match="no such step"),
    ):
        iterator.next()


def test_image_of_another_size(tmp_path):
    with RecordWriter(tmp_path) as writer:
        writer.add(picture(0, side=96), 0)
        writer.add(picture(1), 1)
    records = Records(tmp_path)
    with (
        BatchIterator(records, in_order(2), records.labels, [CLEAN]) as iterator,
        pytest.raises(UserError, match="record 1: expected an image of 112x112, got 96x96; align"),
    ):
        iterator.next()


def image_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("images")]


def test_close_ends_the_threads(records):
    before = len(image_threads())
    iterator = BatchIterator(records, HalfHard(), records.labels, [CLEAN, DARK], threads=3, prefetch=4)
    iterator.next()
    assert len(image_threads()) > before
    iterator.close()
    iterator.close()
    assert len(image_threads()) == before
    with pytest.raises(ValueError, match="closed"):
        iterator.next()


def test_close_after_an_error_does_not_hang(broken):
    iterator = BatchIterator(broken, in_order(8), broken.labels, [CLEAN])
    with pytest.raises(UserError):
        iterator.next()
    iterator.close()


@pytest.mark.parametrize("option", ["threads", "prefetch"])
def test_threads_and_prefetch_of_none(records, option):
    with pytest.raises(ValueError, match="expected >= 1"):
        BatchIterator(records, HalfHard(), records.labels, [CLEAN, CLEAN], **{option: 0})


def test_planar_pixels_are_for_threads(records):
    with pytest.raises(ValueError, match="workers: expected 0 where planar"):
        BatchIterator(records, HalfHard(), records.labels, [CLEAN, CLEAN], planar=True, workers=1)


def test_real_records(shared_data):
    records = Records(shared_data / "lfw112_dev")
    sampler = ImageSampler(np.arange(len(records)), 16, seed=5)
    with BatchIterator(records, sampler, records.labels, [CLEAN], mirror=False) as iterator:
        batch = iterator.next()
    pixels = batch.data[0].asnumpy()
    for row, position in enumerate(batch.index):
        assert np.array_equal(pixels[row], records.image(position))
    assert np.array_equal(batch.label[0].asnumpy(), records.labels[batch.index])
