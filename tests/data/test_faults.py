"""Damaged records: left out, or skipped and counted, up to a limit; never a crash, a hang or another's label."""

import os
import pickle
import struct
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest

from ddl_plugin.data.iterator import BatchIterator
from ddl_plugin.data.pairs import Pairs
from ddl_plugin.data.partition import Distribution, Partition
from ddl_plugin.data.records import MAGIC, DamagedRecordError, Records
from ddl_plugin.data.sampler import ImageSampler, PairSampler, SampledBatch, Share
from ddl_plugin.errors import UserError
from ddl_plugin.settings import DDLSettings, Degradation

CLEAN = Degradation()
OUTSIDE = 1 << 40


def frame(flag, label, content=b""):
    record = struct.pack("<IfQQ", flag, label, 0, 0) + content
    return struct.pack("<II", MAGIC, len(record)) + record + bytes(-len(record) % 4)


def bounds(*labels):
    return frame(len(labels), 0.0, np.array(labels, "<f4").tobytes())


@dataclass
class Set:
    """Frames of a data set by record number, and what its .idx says where that is not where they are."""

    frames: list[bytes]
    first: int = 1  # record number of the first image
    elsewhere: dict[int, int] = field(default_factory=dict)  # record number -> offset

    @classmethod
    def ranged(cls, images, each):
        """InsightFace's layout: `each` images of every identity 0, 1, ...; images: encoded."""
        n, identities = len(images), len(images) // each
        frames = [bounds(n + 1, n + 1 + identities)]
        frames += [frame(0, i // each, image) for i, image in enumerate(images)]
        frames += [bounds(1 + i * each, 1 + (i + 1) * each) for i in range(identities)]
        return cls(frames)

    @classmethod
    def plain(cls, images):
        """Without header record: image i is of identity i."""
        return cls([frame(0, i, image) for i, image in enumerate(images)], first=0)

    def offsets(self):
        return np.cumsum([0, *map(len, self.frames)])[:-1].tolist()

    def write(self, folder: Path) -> Path:
        offsets = enumerate(self.offsets())
        lines = [f"{key}\t{self.elsewhere.get(key, offset)}\n" for key, offset in offsets]
        folder.mkdir(exist_ok=True)
        (folder / "train.rec").write_bytes(b"".join(self.frames))
        (folder / "train.idx").write_text("".join(lines))
        return folder

    def patch(self, key, at, data):
        """Overwrite bytes of a frame: 0 magic, 4 length, 8 flag, 12 label, 32 image."""
        changed = bytearray(self.frames[key])
        changed[at : at + len(data)] = data
        self.frames[key] = bytes(changed[: len(self.frames[key])])


def texts(count):
    return [b"image %04d" % i for i in range(count)]


def no_magic(damaged, key):
    damaged.patch(key, 0, bytes(4))


def picture(seed, side=112):
    """A smooth random picture, as JPEG."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", cv2.resize(small, (side, side), interpolation=cv2.INTER_LINEAR))[1].tobytes()


@pytest.fixture(scope="module")
def pictures():
    return [picture(i) for i in range(1200)]


# -- opening ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["ranged", "plain"])
def test_images_outside_the_file_are_left_out(tmp_path, layout):
    made = Set.ranged(texts(2000), each=2) if layout == "ranged" else Set.plain(texts(2000))
    made.elsewhere = {700: OUTSIDE, 701: made.offsets()[701] + 2}
    records = Records(made.write(tmp_path))
    assert records.damaged.tolist() == [700, 701]
    assert len(records) == 1998 and not set(records.keys.tolist()) & {700, 701}
    for key in (699, 702, 1999):
        at = int(np.searchsorted(records.keys, key))
        assert records.keys[at] == key
        assert records.payload(at) == b"image %04d" % (key - made.first)
        assert records.labels[at] == ((key - 1) // 2 if layout == "ranged" else key)
    made.elsewhere[1500] = OUTSIDE
    message = (
        r"got offset \d+, no multiple of 4; .*; 3 of 2000 records are damaged \(700, 701, 1500\), "
        r"more than max_damaged = 0\.001 allows"
    )
    with pytest.raises(UserError, match=message):
        Records(made.write(tmp_path))
    assert len(Records(tmp_path, max_damaged=0.0015)) == 1997


def test_images_without_a_frame_are_left_out_where_they_carry_the_labels(tmp_path):
    made = Set.plain(texts(3000))
    no_magic(made, 5)
    made.patch(6, 4, bytes(4))  # of no length
    made.patch(7, 12, struct.pack("<f", 0.5))
    records = Records(made.write(tmp_path))
    assert records.damaged.tolist() == [5, 6, 7]
    assert records.labels[4:6].tolist() == [4, 8]


def test_damaged_ends_of_a_range_do_not_hide_its_label(tmp_path):
    made = Set.ranged(texts(9), each=3)
    no_magic(made, 1)
    no_magic(made, 6)
    records = Records(made.write(tmp_path))
    assert records.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and records.damaged.size == 0
    with pytest.raises(DamagedRecordError, match="record 1 where") as caught:
        records.payload(0)
    assert caught.value.key == 1


def test_an_identity_without_a_sound_image_is_left_out(tmp_path):
    made = Set.ranged(texts(9), each=3)
    for key in (4, 5, 6):
        no_magic(made, key)
    records = Records(made.write(tmp_path), max_damaged=0.5)
    assert records.damaged.tolist() == [4, 5, 6]
    assert records.labels.tolist() == [0, 0, 0, 2, 2, 2]
    with pytest.raises(UserError, match=r"record 4 where .*; 3 of 9 records are damaged \(4, 5, 6\)"):
        Records(tmp_path)


def test_an_unknown_label_is_no_other_identitys(tmp_path):
    made = Set.ranged(texts(5), each=1)
    no_magic(made, 4)
    records = Records(made.write(tmp_path), max_damaged=0.5)
    assert records.damaged.tolist() == [4] and records.labels.tolist() == [0, 1, 2, 4]


def test_a_changed_label_does_not_become_that_of_the_range(tmp_path):
    made = Set.ranged(texts(9), each=3)
    made.patch(4, 12, struct.pack("<f", 2.0))
    records = Records(made.write(tmp_path))
    assert records.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    with pytest.raises(DamagedRecordError, match=r"record 4 where .* got a record of label 2 instead of 1"):
        records.payload(3)
    assert records.payload(4) == b"image 0004"


@pytest.mark.parametrize(("each", "damaged"), [(2, [3, 4]), (1, [2, 5])])
def test_a_label_that_cannot_be_known_is_not_guessed(tmp_path, each, damaged):
    made = Set.ranged(texts(5 * each), each)
    made.patch(damaged[0], 12, struct.pack("<f", 4.0))
    records = Records(made.write(tmp_path), max_damaged=0.5)
    assert records.damaged.tolist() == damaged
    assert np.unique(records.labels).tolist() == ([0, 2, 3, 4] if each == 2 else [0, 2, 3])
    with pytest.raises(UserError, match=rf"expected one label for all .* got 4 in record {damaged[0]} and"):
        Records(tmp_path)


@pytest.mark.parametrize("key", [0, 10])
def test_a_damaged_header_or_range_record_is_never_left_out(tmp_path, key):
    made = Set.ranged(texts(9), each=3)
    no_magic(made, key)
    with pytest.raises(UserError, match=rf"record {key} where train\.idx says, got 0x00000000 instead"):
        Records(made.write(tmp_path), max_damaged=1.0)


def test_nothing_left(tmp_path):
    made = Set.ranged(texts(3), each=3)
    for key in (1, 2, 3):
        no_magic(made, key)
    with pytest.raises(UserError, match=r"record 1 where .*; 3 of 3 records are damaged"):
        Records(made.write(tmp_path), max_damaged=1.0)


def test_limit_is_pickled(tmp_path):
    made = Set.plain(texts(4))
    no_magic(made, 2)
    copy = pickle.loads(pickle.dumps(Records(made.write(tmp_path), max_damaged=0.5)))
    assert copy.keys.tolist() == [0, 1, 3] and copy.payload(2) == b"image 0003"


# -- reading one record -----------------------------------------------------------------------------


def test_a_file_that_becomes_shorter_while_it_is_open(tmp_path):
    made = Set.ranged(texts(9), each=3)
    records = Records(made.write(tmp_path))
    size = made.offsets()[6] + 20
    os.truncate(tmp_path / "train.rec", size)
    assert records.payload(4) == b"image 0004"
    for position in (5, 8):
        message = (
            rf"truncated: expected all of record {position + 1}, got the end of the file \({size} bytes\)"
        )
        with pytest.raises(DamagedRecordError, match=message) as caught:
            records.image(position)
        assert caught.value.key == position + 1


def test_a_disk_that_fails(tmp_path, monkeypatch):
    records = Records(Set.plain(texts(3)).write(tmp_path))

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(DamagedRecordError, match=r"train\.rec: record 1 cannot be read: Input/output error"):
        records.payload(1)
    with pytest.raises(UserError, match=r"train\.rec: cannot be read \(Input/output error\)"):
        Records(tmp_path)


def test_an_index_that_points_to_another_identity(tmp_path):
    made = Set.ranged(texts(9), each=3)
    made.elsewhere[2] = made.offsets()[8]
    with pytest.raises(DamagedRecordError, match=r"record 2 where .* got a record of label 2 instead of 0"):
        Records(made.write(tmp_path)).payload(1)


@pytest.mark.parametrize("length", [0, 23, 24, 50, 100, (1 << 29) - 1, 2 << 29 | 40])
def test_a_wrong_length(tmp_path, length):
    made = Set.ranged(texts(9), each=3)
    made.patch(5, 4, struct.pack("<I", length))
    with pytest.raises(DamagedRecordError, match="record 5"):
        Records(made.write(tmp_path)).payload(4)


def test_long_records_and_an_index_in_any_order_are_read_whole(tmp_path):
    contents = [bytes([i]) * size for i, size in enumerate([5, 40_000, 7, 200_000, 9])]
    made = Set.plain(contents)
    Records(made.write(tmp_path))
    made.frames.reverse()
    offsets = made.offsets()
    made.elsewhere = {key: offsets[4 - key] for key in range(5)}
    records = Records(made.write(tmp_path))
    assert [records.payload(i) for i in range(5)] == contents


def test_the_error_of_a_damaged_record_is_pickled():
    copy = pickle.loads(pickle.dumps(DamagedRecordError("record 3 is no image", 3)))
    assert (type(copy), str(copy), copy.key) == (DamagedRecordError, "record 3 is no image", 3)


# -- training goes on -------------------------------------------------------------------------------


def batches(records, sampler, count, **options):
    degradations = options.pop("degradations", [CLEAN, CLEAN])
    with BatchIterator(records, sampler, records.labels, degradations, **options) as iterator:
        found = [iterator.next() for _ in range(count)]
        for batch in found:
            batch.pixels, batch.labels = batch.data[0].asnumpy(), batch.label[0].asnumpy()
    return found, iterator.damaged


def assert_rows_are_their_images(records, found):
    for batch in found:
        assert np.array_equal(batch.labels, records.labels[batch.index])
        for row, position in enumerate(batch.index):
            plain = records.image(position)
            assert np.array_equal(batch.pixels[row], plain) or np.array_equal(
                batch.pixels[row], plain[:, ::-1]
            )


def spoil(made, *keys):
    for key in keys:
        made.patch(key, 40, bytes(len(made.frames[key])))


def test_a_damaged_record_is_skipped_and_counted(tmp_path, pictures):
    sound = Records(Set.ranged(pictures, each=4).write(tmp_path / "sound"))
    made = Set.ranged(pictures, each=4)
    spoil(made, 9)
    records = Records(made.write(tmp_path / "damaged"))
    sampler = ImageSampler(np.arange(1200), 100)
    expected, none = batches(sound, sampler, 12)
    found, damaged = batches(records, sampler, 12)
    assert none == {} and list(damaged) == [9]
    assert "record 9 is no image" in damaged[9]
    assert_rows_are_their_images(records, found)
    changed = 0
    for one, other in zip(expected, found, strict=True):
        same = one.index == other.index
        changed += (~same).sum()
        assert (one.index[~same] == 8).all() and 8 not in other.index
        assert len(np.unique(other.index)) == 100
        assert np.array_equal(one.pixels[same], other.pixels[same])
    assert changed == 1


@pytest.mark.parametrize("options", [{"threads": 1}, {"threads": 3, "prefetch": 1}])
def test_what_takes_its_place_depends_on_the_step_alone(tmp_path, pictures, options):
    made = Set.ranged(pictures, each=4)
    spoil(made, *range(1, 1200, 7))
    records = Records(made.write(tmp_path))
    sampler = ImageSampler(np.arange(1200), 50)
    all_of_them, damaged = batches(records, sampler, 10, max_damaged=1.0)
    assert len(damaged) > 50
    resumed, _ = batches(records, sampler, 3, max_damaged=1.0, start=7, **options)
    for one, other in zip(all_of_them[7:], resumed, strict=True):
        assert one.step == other.step
        assert np.array_equal(one.index, other.index) and np.array_equal(one.pixels, other.pixels)
    assert_rows_are_their_images(records, all_of_them)


def pair_sampler(records, b=6, devices=1, **options):
    """Two distributions of all images, three pairs an identity of four images each."""
    everything = np.arange(len(records))
    first = np.concatenate([everything[0::4], everything[1::4], everything[2::4]]).astype(np.int32)
    pairs = Pairs(first, first + 1, len(first), 0)
    settings = DDLSettings(b=b, hard=("abs(yaw) > 5",))
    partition = Partition(tuple(Distribution(name, name, everything, CLEAN) for name in ("easy", "hard")))
    return PairSampler(
        records.labels, partition, [pairs, pairs], settings, devices=devices, seed=3, **options
    )


@pytest.mark.parametrize("together", [False, True])
def test_pairs_stay_pairs_and_singles_stay_apart(tmp_path, pictures, together):
    made = Set.ranged(pictures, each=4)
    spoil(made, *range(1, 1200, 5))
    records = Records(made.write(tmp_path))
    b = 6
    found, damaged = batches(
        records, pair_sampler(records, b, 2, together=together), 8, max_damaged=1.0, threads=2
    )
    assert len(damaged) > 30
    assert_rows_are_their_images(records, found)
    for batch in found:
        assert not set(records.keys[batch.index].tolist()) & set(range(1, 1200, 5))
        blocks = batch.index.reshape(2, 2, 3, b)
        assert np.array_equal(blocks[:, :, 1], blocks[:, :, 0] + 1)  # still one of the pairs given
        labels = records.labels[blocks]
        for number in range(2):
            groups = [labels[:, number]] if together else labels[:, number, None]
            for group in groups:
                assert len(np.unique(group[..., 2, :])) == group[..., 2, :].size
        drawn = blocks.swapaxes(0, 1)[:, :, 0].reshape(2, -1) if together else blocks[:, :, 0].reshape(4, -1)
        assert all(len(np.unique(group)) == group.size for group in drawn)


def test_a_share_skips_as_the_whole_does(tmp_path, pictures):
    made = Set.ranged(pictures, each=4)
    spoil(made, *range(1, 1200, 5))
    records = Records(made.write(tmp_path))
    whole = pair_sampler(records, devices=2)
    share = Share(whole, 1, 2)
    of_all, _ = batches(records, whole, 4, max_damaged=1.0)
    of_share, _ = batches(
        records, share, 4, max_damaged=1.0, first_row=share.first_row, whole_rows=whole.rows
    )
    for one, other in zip(of_all, of_share, strict=True):
        assert np.array_equal(one.index[share.first_row :], other.index)
        assert np.array_equal(one.pixels[share.first_row :], other.pixels)


def test_too_many_damaged_records_end_the_batches(tmp_path, pictures):
    made = Set.ranged(pictures, each=4)
    spoil(made, 30, 700)
    records = Records(made.write(tmp_path))
    sampler = ImageSampler(np.arange(1200), 100)
    message = (
        r"train\.rec: record (30|700) is no image: .*; 2 of 1200 records are damaged \(30, 700\), "
        r"more than max_damaged = 0\.001 allows"
    )
    with BatchIterator(records, sampler, records.labels, [CLEAN]) as iterator:
        with pytest.raises(UserError, match=message):
            for _ in range(12):
                iterator.next()
        with pytest.raises(UserError, match=message):
            iterator.next()
        assert sorted(iterator.damaged) == [30, 700]
    assert len(batches(records, sampler, 12, max_damaged=2 / 1200)[1]) == 2


def test_images_left_out_at_opening_count(tmp_path, pictures):
    made = Set.ranged(pictures, each=4)
    made.elsewhere[50] = OUTSIDE
    spoil(made, 700)
    records = Records(made.write(tmp_path))
    with pytest.raises(
        UserError, match=r"record 700 is no image: .*; 2 of 1200 records are damaged \(50, 700\)"
    ):
        batches(records, ImageSampler(np.arange(len(records)), 100), 12)


def test_an_image_of_another_size_is_skipped(tmp_path, pictures):
    made = Set.ranged([picture(0, side=96), *pictures[1:]], each=4)
    records = Records(made.write(tmp_path))
    found, damaged = batches(records, ImageSampler(np.arange(1200), 100), 12)
    assert "record 1: expected an image of 112x112, got 96x96" in damaged[1]
    assert not any(0 in batch.index for batch in found)


def test_a_file_that_becomes_shorter_in_training(tmp_path, pictures):
    made = Set.ranged(pictures, each=4)
    records = Records(made.write(tmp_path))
    with BatchIterator(records, ImageSampler(np.arange(1200), 50), records.labels, [CLEAN]) as iterator:
        iterator.next()
        os.truncate(tmp_path / "train.rec", made.offsets()[600])
        with pytest.raises(
            UserError, match=r"truncated: .*; \d+ of 1200 records are damaged \(\d+, .*more than"
        ):
            for _ in range(8):  # some are ready by now
                iterator.next()


class PairOfTwo:
    """Every batch is images 0 and 1, a pair; its spares are any pair of the 1,200 images."""

    rows, steps_per_epoch = 2, 1

    def __init__(self):
        self.asked = []

    def batch(self, step):
        return SampledBatch(np.array([0, 1]), np.zeros(2, np.int16))

    def spare(self, step, sampled, row, rng):
        self.asked.append((step, row))
        return np.array([0, 1]), 2 * rng.integers(600) + np.array([0, 1])


def test_a_pair_is_exchanged_once_and_anew_in_each_step(tmp_path, pictures):
    made = Set.ranged(pictures, each=4)
    spoil(made, 1, 2)
    records = Records(made.write(tmp_path))
    sampler = PairOfTwo()
    found, _ = batches(records, sampler, 6, max_damaged=1.0)
    assert sampler.asked == [(step, 0) for step in range(6)]
    assert len({batch.index[0] for batch in found}) == 6
    assert all(batch.index[1] == batch.index[0] + 1 for batch in found)


def test_a_sampler_without_spares(tmp_path, pictures):
    class InOrder:
        rows, steps_per_epoch = 10, 120

        def batch(self, step):
            return SampledBatch(np.arange(10) + 10 * step, np.zeros(10, np.int16))

    made = Set.ranged(pictures, each=4)
    spoil(made, 15)
    records = Records(made.write(tmp_path))
    for sampler in (InOrder(), Share(InOrder(), 0, 2)):
        with pytest.raises(UserError, match=r"record 15 is no image: .*; the sampler has no other image"):
            batches(records, sampler, 2)


def test_no_other_image_can_be_read(tmp_path, pictures):
    made = Set.ranged(pictures[:12], each=4)
    spoil(made, *range(1, 9))
    records = Records(made.write(tmp_path))
    with pytest.raises(UserError, match="the sampler has no other image for its row"):
        batches(records, ImageSampler(np.arange(12), 12), 1, max_damaged=1.0)
    only_damaged = ImageSampler(np.arange(8), 4)
    with pytest.raises(UserError, match="no other image for its row could be read in 64 tries"):
        batches(records, only_damaged, 1, max_damaged=1.0)


# -- whatever the damage ----------------------------------------------------------------------------


def any_byte(made, key, rng):
    at = int(rng.integers(len(made.frames[key])))
    made.patch(key, at, bytes([made.frames[key][at] ^ 1 << rng.integers(8)]))


def any_word_of(at):
    return lambda made, key, rng: made.patch(key, at, rng.bytes(4))


def any_offset(made, key, rng):
    made.elsewhere[key] = int(rng.choice([OUTSIDE, rng.integers(2**40), 4 * rng.integers(10**6)]))


def index_of_another(made, key, rng):
    made.elsewhere[key] = made.places[rng.integers(len(made.places))]


def label_of_another(made, key, rng):
    made.patch(key, 12, struct.pack("<f", rng.integers(2500)))


def cut(made, key, rng):
    made.patch(key, 4, struct.pack("<I", rng.integers(len(made.frames[key]))))


def zeros(made, key, rng):
    made.patch(key, int(rng.integers(len(made.frames[key]))), bytes(int(rng.integers(4000))))


def shrunk(made, key, rng):
    made.images[key - 1] = picture(key, side=64)
    made.frames[key] = frame(0, (key - 1) // 5, made.images[key - 1])


DAMAGE = [
    any_byte, any_byte, any_word_of(0), any_word_of(4), any_word_of(8), any_word_of(12),
    any_offset, index_of_another, label_of_another, cut, zeros, shrunk,
]  # fmt: skip


@pytest.fixture(scope="module")
def wrecked(tmp_path_factory):
    """12,500 images, five of each identity, 10,000 of which are damaged: one sound image is left of each."""
    rng = np.random.default_rng(11)
    images = [picture(i) for i in range(12_500)]
    made = Set.ranged(images, each=5)
    made.places, made.images = made.offsets(), images
    keys = (
        np.arange(2500)[:, None] * 5 + 1 + rng.permuted(np.tile(np.arange(5), (2500, 1)), axis=1)[:, :4]
    ).ravel()
    for key in keys.tolist():
        DAMAGE[rng.integers(len(DAMAGE))](made, key, rng)
    folder = made.write(tmp_path_factory.mktemp("wrecked"))
    return Records(folder, max_damaged=1.0), images


def holds(payload, image):
    """Whether `payload` is `image`, but for its end and a run of bytes in it."""
    size = min(len(payload), len(image))
    return payload[: size // 8] == image[: size // 8] or payload[-size // 8 :] == image[-size // 8 :]


def test_ten_thousand_damaged_records_through_the_reader(wrecked):
    records, images = wrecked
    assert len(records) + len(records.damaged) == 12_500
    assert np.array_equal(records.labels, (records.keys - 1) // 5)
    readable = 0
    for position, key in enumerate(records.keys.tolist()):
        try:
            pixels = records.image(position)
        except DamagedRecordError as error:
            assert error.key == key and str(error).startswith(f"{records.path}: ")
            continue
        readable += 1
        assert pixels.dtype == np.uint8 and pixels.ndim == 3
        payload = records.payload(position)
        own = range((key - 1) // 5 * 5, (key - 1) // 5 * 5 + 5)
        assert any(holds(payload, images[i]) for i in own), key
    assert 2500 < readable < 8000


def test_ten_thousand_damaged_records_through_the_iterator(wrecked):
    records, _ = wrecked
    identities, counts = np.unique(records.labels, return_counts=True)
    assert len(identities) > 2300 and counts.max() == 5
    sampler = ImageSampler(np.arange(len(records)), 100)
    with BatchIterator(records, sampler, records.labels, [CLEAN], mirror=False, max_damaged=1.0) as iterator:
        for _ in range(-(-len(records) // 100)):
            batch = iterator.next()
            keys, pixels = records.keys[batch.index], batch.data[0]
            assert np.array_equal(batch.label[0].asnumpy(), (keys - 1) // 5)
            assert not set(keys.tolist()) & set(iterator.damaged)
            for row in (0, 50, 99):
                expected = records.image(batch.index[row])
                assert np.array_equal(pixels[row].asnumpy(), expected)
        assert len(iterator.damaged) > 4000
