"""Offline pairs against plain loops, their errors, and when a saved file holds."""

import dataclasses
import itertools
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

from ddl_plugin.data import embeddings as embeddings_module
from ddl_plugin.data import pairs as pairs_module
from ddl_plugin.data.candidates import draw_candidates
from ddl_plugin.data.embeddings import Embeddings, View
from ddl_plugin.data.pairs import (
    BINS,
    Pairs,
    build_pairs,
    load_pairs,
    merge_pairs,
    open_pairs,
    prepared_pairs,
    save_pairs,
)
from ddl_plugin.data.partition import Distribution, Partition
from ddl_plugin.data.records import DamagedRecordError
from ddl_plugin.data.shards import shard_path
from ddl_plugin.errors import UserError
from ddl_plugin.settings import Degradation


class FakeRecords:
    """Images whose first pixel spells their position, so that `embed` can look up any vector."""

    path = Path("train.rec")

    def __init__(self, labels, side=112):
        self.labels = np.asarray(labels, np.int32)
        self.keys = np.arange(1, len(labels) + 1)
        self.side = side

    def __len__(self):
        return len(self.labels)

    def fingerprint(self):
        return f"train.rec:{zlib.crc32(self.labels.tobytes())}"

    def image(self, i):
        image = np.zeros((self.side, 112, 3), np.uint8)
        image[0, 0] = i // 256, i % 256, 7
        return image


def look_up(table, seen=None):
    """An embedder: the row of `table` that the image spells."""

    def embed(images):
        assert images.dtype == np.uint8
        assert images.shape[1:] == (112, 112, 3)
        positions = images[:, 0, 0, 0].astype(int) * 256 + images[:, 0, 0, 1]
        if seen is not None:
            seen.append(positions)
        return table[positions]

    return embed


def partition_of(*positions, degradation=None):
    names = ("easy", "hard", "hard2")
    clean = Degradation()
    return Partition(
        tuple(
            Distribution(name, "all", np.asarray(p), degradation if k else clean)
            for k, (name, p) in enumerate(zip(names, positions, strict=False))
        )
    )


def random_table(n, d=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32) * 5


def as_set(pairs):
    return set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))


def by_loops(positions, labels, table):
    """Kept pairs and all that is counted, by a double loop over images."""
    kept, histogram, with_candidates = {}, np.zeros(2 * BINS, int), set()
    for a, b in itertools.combinations(positions.tolist(), 2):
        if labels[a] == labels[b]:
            with_candidates.add(labels[a])
            s = float(np.dot(table[a], table[b]) / np.linalg.norm(table[a]) / np.linalg.norm(table[b]))
            histogram[min(int(s * BINS), BINS - 1) + BINS if s >= 0 else BINS - 1 - int(-s * BINS)] += 1
            if s >= 0:
                kept[a, b] = labels[a]
    return set(kept), histogram, len(set(kept.values())), len(with_candidates - set(kept.values()))


def test_pairs_and_counts_are_those_of_a_double_loop():
    # 60 identities with 5 images, 20 with 2, of which some keep no pair, and 10 with one.
    labels = np.repeat(np.arange(90), np.repeat([5, 2, 1], [60, 20, 10]))
    table = random_table(len(labels))
    easy, hard = np.arange(len(labels)), np.arange(0, len(labels), 2)
    built = build_pairs(
        FakeRecords(labels), partition_of(easy, hard, degradation=Degradation()), look_up(table)
    )
    for positions, pairs in zip((easy, hard), built, strict=True):
        kept, histogram, paired, emptied = by_loops(positions, labels, table)
        assert as_set(pairs) == kept
        assert (pairs.first < pairs.second).all()
        assert pairs.histogram.tolist() == histogram.tolist()
        assert (pairs.candidates, pairs.dropped) == (histogram.sum(), histogram[:BINS].sum())
        assert (pairs.paired, pairs.emptied, pairs.unreadable) == (paired, emptied, 0)
        assert 0 < pairs.dropped < pairs.candidates
        assert emptied > 0


def test_orthogonal_pair_is_kept():
    table = np.array([[1, 0], [0, 1]], np.float32)
    (pairs,) = build_pairs(FakeRecords([0, 0]), partition_of([0, 1]), look_up(table))
    assert as_set(pairs) == {(0, 1)}
    assert pairs.histogram.nonzero()[0].tolist() == [BINS]


def test_only_images_in_a_pair_are_embedded_and_once():
    labels = np.array([0, 0, 1, 2, 2, 2, 3])
    seen = []
    build_pairs(FakeRecords(labels), partition_of(np.arange(7)), look_up(np.ones((7, 2), np.float32), seen))
    assert np.concatenate(seen).tolist() == [0, 1, 3, 4, 5]


def test_result_does_not_depend_on_batches_and_chunks(monkeypatch):
    labels = np.repeat(np.arange(40), 6)
    degradation = Degradation(darken=(0.2, 1.0))

    def build():
        # The embedding depends on the random darkening, so other random numbers give other pairs.
        def embed(images):
            signs = np.where(images[:, 0, 0, 2] % 2, 1.0, -1.0)
            return np.stack([signs, np.full(len(images), 0.5)], axis=1).astype(np.float32)

        records = FakeRecords(labels)
        plain = records.image
        records.image = lambda i: np.full_like(plain(i), 200)
        chosen = np.arange(240)
        return build_pairs(records, partition_of(chosen, chosen, degradation=degradation), embed, seed=3)

    expected = build()
    monkeypatch.setattr(embeddings_module, "_BATCH", 7)
    monkeypatch.setattr(pairs_module, "_CHUNK", 100)
    for a, b in zip(expected, build(), strict=True):
        assert np.array_equal(a.first, b.first)
        assert np.array_equal(a.second, b.second)
    assert expected[0].dropped == 0
    assert 0 < expected[1].dropped < expected[1].candidates


def test_seed_decides_the_candidates():
    def build(seed):
        records, table = FakeRecords(np.zeros(60)), np.ones((60, 2), np.float32)
        (pairs,) = build_pairs(
            records, partition_of(np.arange(60)), look_up(table), max_pairs_per_identity=10, seed=seed
        )
        return as_set(pairs)

    assert build(1) == build(1) != build(2)


def test_nan_embedding_names_the_record():
    table = np.ones((200, 2), np.float32)
    table[130, 1] = np.nan
    labels = np.repeat(np.arange(100), 2)
    with pytest.raises(UserError, match=r"the base model gives NaN .* for record 131 of train.rec"):
        build_pairs(FakeRecords(labels), partition_of(np.arange(200)), look_up(table))


def test_single_images_only():
    with pytest.raises(
        UserError, match=r"ddl: hard \(all\): expected identities with two images or more, got 2 identities"
    ):
        build_pairs(
            FakeRecords([0, 0, 1, 1]),
            partition_of(np.arange(4), [0, 2], degradation=Degradation()),
            look_up(np.ones((4, 2), np.float32)),
        )


def test_all_pairs_below_zero():
    table = np.array([[1, 0], [-1, 0]] * 2, np.float32)
    with pytest.raises(
        UserError, match=r"ddl: easy \(all\): expected at least 1 .* got 0: all of 2 candidates are below 0"
    ):
        build_pairs(FakeRecords([0, 0, 1, 1]), partition_of(np.arange(4)), look_up(table))


def test_fewer_pairs_than_b():
    table = np.array([[1, 0], [-1, 0], [1, 0], [1, 0]], np.float32)
    with pytest.raises(
        UserError, match=r"at least 2 positive pairs .* got 1: 1 of 2 candidates .* lower ddl.b"
    ):
        build_pairs(FakeRecords([0, 0, 1, 1]), partition_of(np.arange(4)), look_up(table), b=2)


def test_wrong_image_size_names_the_record():
    with pytest.raises(
        UserError, match=r"train.rec: record 1: expected an image of 112x112, got 112x96; align"
    ):
        build_pairs(FakeRecords([0, 0], side=96), partition_of([0, 1]), look_up(np.ones((2, 2), np.float32)))


class WithoutImages(FakeRecords):
    """Some images cannot be read."""

    def __init__(self, labels, bad):
        super().__init__(labels)
        self.bad = bad

    def image(self, i):
        if i in self.bad:
            raise DamagedRecordError(f"record {i + 1} is no image", i + 1)
        return super().image(i)


def test_pairs_with_an_unreadable_image_are_left_out_and_said():
    labels = np.repeat(np.arange(50), 4)
    table, said = np.ones((200, 2), np.float32), []
    options = {"max_damaged": 0.03, "say": said.append}
    (pairs,) = build_pairs(
        WithoutImages(labels, [4, 5, 6, 7, 9]), partition_of(np.arange(200)), look_up(table), **options
    )
    # One identity loses all its images, another one of four.
    assert not np.isin([4, 5, 6, 7, 9], [pairs.first, pairs.second]).any()
    assert (pairs.unreadable, pairs.candidates, pairs.dropped) == (9, 291, 0)
    assert len(pairs.first) == 291
    assert (pairs.paired, pairs.emptied) == (49, 1)
    assert said == ["train.rec: 5 of 200 records are damaged (5, 6, 7, 8, 10); their pairs are left out"]


def test_a_folder_of_embeddings_changes_nothing_but_the_work(tmp_path):
    """Two sets without degradation share what they have in common; a second time nothing is embedded."""
    labels = np.repeat(np.arange(40), 6)
    table, seen = random_table(240), []
    dark = Degradation(darken=(0.5, 0.9))
    partition = Partition(
        (
            Distribution("easy", "all", np.arange(240), Degradation()),
            Distribution("hard1", "all", np.arange(0, 240, 2), Degradation()),
            Distribution("hard2", "all", np.arange(1, 240, 2), dark),
        )
    )
    # Darkened images spell another position; it is the same one each time.
    embed = look_up(table, seen)
    expected = build_pairs(FakeRecords(labels), partition, embed)
    assert len(np.concatenate(seen)) == 240 + 120 + 120
    for wanted in (240 + 120, 0):
        seen.clear()
        pairs = build_pairs(FakeRecords(labels), partition, embed, folder=tmp_path, model="m")
        assert sum(map(len, seen)) == wanted
        same_pairs(pairs, expected)


def same_pairs(pairs, expected):
    assert len(pairs) == len(expected)
    for one, other in zip(pairs, expected, strict=True):
        assert np.array_equal(one.first, other.first)
        assert np.array_equal(one.second, other.second)
        assert np.array_equal(one.histogram, other.histogram)
        for name in ("candidates", "dropped", "unreadable", "paired", "emptied"):
            assert getattr(one, name) == getattr(other, name)


MADE_FROM = {"records": "train:1234", "seed": 0, "rules": ["abs(yaw) < 10", None], "size": (12, 16)}


def some_pairs():
    return (
        Pairs(np.array([1, 2], np.int32), np.array([5, 6], np.int32), 3, 1),
        Pairs(np.array([7], np.int32), np.array([9], np.int32), 1, 0),
    )


def test_saved_pairs_come_back(tmp_path):
    path = tmp_path / "new" / "pairs.npz"
    save_pairs(path, some_pairs(), MADE_FROM)
    pairs, reason = load_pairs(path, MADE_FROM)
    assert reason is None
    for got, expected in zip(pairs, some_pairs(), strict=True):
        assert np.array_equal(got.first, expected.first)
        assert np.array_equal(got.second, expected.second)
        assert got.first.dtype == np.int32
        assert (got.candidates, got.dropped) == (expected.candidates, expected.dropped)
    assert [p.name for p in path.parent.iterdir()] == ["pairs.npz"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed": 1}, "made with seed 0, now 1"),
        ({"size": (12, 20)}, r"made with size \[12, 16\], now \[12, 20\]"),
        ({"model": "y1"}, "made with model None, now 'y1'"),
    ],
)
def test_pairs_made_from_something_else_are_not_used(tmp_path, change, reason):
    path = tmp_path / "pairs.npz"
    save_pairs(path, some_pairs(), MADE_FROM)
    pairs, why = load_pairs(path, {**MADE_FROM, **change})
    assert pairs is None
    assert re.search(reason, why)


def test_no_file(tmp_path):
    pairs, why = load_pairs(tmp_path / "pairs.npz", MADE_FROM)
    assert pairs is None
    assert "pairs.npz is not there" in why


def damaged(path):
    data = path.read_bytes()
    yield data[: len(data) // 2]
    yield data[:-1]
    yield b""
    yield b"not an archive"
    yield data[:300] + bytes([data[300] ^ 255]) + data[301:]
    yield pickle.dumps({"made_from": 1})


def test_damaged_file_does_not_hold(tmp_path):
    path = tmp_path / "pairs.npz"
    save_pairs(path, some_pairs(), MADE_FROM)
    for data in list(damaged(path)):
        path.write_bytes(data)
        pairs, why = load_pairs(path, MADE_FROM)
        assert pairs is None
        assert "damaged" in why


def test_other_arrays_do_not_hold(tmp_path):
    path = tmp_path / "pairs.npz"
    np.savez(path, something=np.arange(3))
    assert "damaged" in load_pairs(path, MADE_FROM)[1]
    with path.open("wb") as file:
        np.save(file, np.arange(3))
    assert "damaged" in load_pairs(path, MADE_FROM)[1]
    first, second = np.zeros(2, np.int32), np.zeros(3, np.int32)
    save_pairs(path, [Pairs(first, second, 2, 0)], MADE_FROM)
    assert "do not belong together" in load_pairs(path, MADE_FROM)[1]


class Touch:
    """Unpickling it creates the file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickled_arrays_are_not_executed(tmp_path):
    path = tmp_path / "pairs.npz"
    np.savez(path, made_from=np.array([Touch(tmp_path / "touched")], dtype=object))
    pairs, why = load_pairs(path, MADE_FROM)
    assert not (tmp_path / "touched").exists()
    assert pairs is None
    assert "damaged" in why


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "pairs.npz"
    save_pairs(path, some_pairs(), MADE_FROM)

    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(
        UserError, match=r"pairs\.npz: cannot be written \(No space left on device\); .* is kept"
    ):
        save_pairs(path, some_pairs()[:1], MADE_FROM)
    assert len(load_pairs(path, MADE_FROM)[0]) == 2
    assert list(tmp_path.iterdir()) == [path]


# -- open_pairs and merge_pairs ----------------------------------------------------------------------------


CLEAN = View.of("easy", Degradation(), 0, 0)
LABELS = np.repeat(np.arange(30), np.random.default_rng(1).integers(1, 9, 30))
TABLE = random_table(len(LABELS))


def some_partition(step=2):
    everything = np.arange(len(LABELS))
    chosen = (everything, everything[::step])
    names = ("easy", "hard")
    return Partition(
        tuple(
            Distribution(name, name, own, Degradation(), len(np.unique(LABELS[own])))
            for name, own in zip(names, chosen, strict=True)
        )
    )


def opened(path, said=None, seen=None, partition=None, **options):
    options = {"model": "m", "b": 4, "max_pairs_per_identity": 12, **options}
    say = (lambda text: None) if said is None else said.append
    return open_pairs(
        path, FakeRecords(LABELS), partition or some_partition(), look_up(TABLE, seen), say=say, **options
    )


def test_pairs_are_built_once_and_nothing_is_left_beside_them(tmp_path):
    path, said, seen = tmp_path / "new" / "pairs.npz", [], []
    made = opened(path, said, seen)
    same_pairs(
        made, build_pairs(FakeRecords(LABELS), some_partition(), look_up(TABLE), max_pairs_per_identity=12)
    )
    assert said == [f"positive pairs: building ({path} is not there)"]
    assert [p.name for p in path.parent.iterdir()] == ["pairs.npz"]
    seen.clear()
    same_pairs(opened(path, said, seen), made)
    assert (len(said), seen) == (1, [])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": "n"}, "made with model 'm', now 'n'"),
        ({"seed": 1}, "made with seed 0, now 1"),
        ({"max_pairs_per_identity": 3}, "made with max_pairs_per_identity 12, now 3"),
        ({"partition": some_partition(3)}, "made with partition"),
    ],
)
def test_pairs_of_other_data_are_built_again_and_why_is_said(tmp_path, change, reason):
    path, said, seen = tmp_path / "pairs.npz", [], []
    opened(path)
    opened(path, said, seen, **change)
    assert reason in said[0]
    assert seen
    assert opened(path, said, **change)
    assert len(said) == 1


def prepared(path, **options):
    options = {"model": "m", "b": 4, "max_pairs_per_identity": 12, **options}
    return prepared_pairs(path, FakeRecords(LABELS), some_partition(), **options)


def test_pairs_that_a_recipe_names_must_hold(tmp_path):
    path = tmp_path / "pairs.npz"
    with pytest.raises(
        UserError, match=r"positive_pairs: expected those of this run, got others: .*is not there"
    ):
        prepared(path)
    made = opened(path)
    same_pairs(prepared(path), made)
    with pytest.raises(
        UserError, match=r"pairs.npz: made with model 'm', now 'n'; make them with prepare pairs"
    ):
        prepared(path, model="n")
    with pytest.raises(UserError, match=r"ddl: easy \(easy\): expected at least 5000 positive pairs"):
        prepared(path, b=5000)


def test_a_degradation_decides_too(tmp_path):
    path, said = tmp_path / "pairs.npz", []
    easy, hard = some_partition().distributions
    for factor in (0.5, 0.6):
        degraded = dataclasses.replace(hard, degradation=Degradation(darken=factor))
        opened(path, said, partition=Partition((easy, degraded)))
    assert "made with partition" in said[1]


def test_kept_embeddings_serve_another_seed_and_rule(tmp_path):
    seen, kept = [], tmp_path / "embeddings"
    opened(tmp_path / "a.npz", seen=seen, embeddings=kept, max_pairs_per_identity=1000)
    assert sum(map(len, seen)) > 0
    seen.clear()
    opened(tmp_path / "b.npz", seen=seen, embeddings=kept, seed=1, max_pairs_per_identity=3)
    opened(tmp_path / "c.npz", seen=seen, embeddings=kept, partition=some_partition(3))
    assert seen == []
    assert list(kept.glob("clean-*.npy"))


@pytest.mark.parametrize("n", [1, 2, 5, 60])
def test_parts_joined_are_the_whole_byte_by_byte(tmp_path, n):
    whole, merged = tmp_path / "whole.npz", tmp_path / "merged.npz"
    expected = opened(whole)
    embedded = 0
    for i in reversed(range(n)):
        seen = []
        opened(merged, seen=seen, share=(i, n))
        embedded += sum(map(len, seen))
    pairs, about = merge_pairs(merged)
    same_pairs(pairs, expected)
    assert merged.read_bytes() == whole.read_bytes()
    assert about == {"distributions": some_partition().summary(), "b": 4}
    seen = []
    opened(whole.with_name("again.npz"), seen=seen)
    assert embedded == sum(map(len, seen))  # an identity is one machine's


def test_a_part_is_not_taken_for_the_whole(tmp_path):
    path = tmp_path / "pairs.npz"
    opened(path, share=(0, 2))
    shard_path(path, 0, 2).rename(path)
    said = []
    opened(path, said)
    assert "made with share [0, 2], now None" in said[0]


def test_a_part_may_have_fewer_pairs_than_b_but_the_whole_may_not(tmp_path):
    path = tmp_path / "pairs.npz"
    for i in range(20):
        opened(path, share=(i, 20), b=30)
    assert len(merge_pairs(path)[0][1].first) >= 30
    for i in range(20):
        shard_path(path, i, 20).unlink()
        opened(path, share=(i, 20), b=5000)
    with pytest.raises(UserError, match=r"ddl: easy \(easy\): expected at least 5000 positive pairs"):
        merge_pairs(path)


def test_parts_that_are_missing_of_other_data_or_damaged(tmp_path):
    path = tmp_path / "pairs.npz"
    opened(path, share=(0, 2))
    with pytest.raises(UserError, match=r"got 1; make those missing with --shard 1/2"):
        merge_pairs(path)
    opened(path, share=(1, 2), seed=1)
    with pytest.raises(
        UserError, match=r"1-of-2.npz: expected the same data as .*0-of-2.npz.* seed 1, now 0"
    ):
        merge_pairs(path)
    part = shard_path(path, 1, 2)
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(UserError, match=r"1-of-2.npz is damaged .*; make it again"):
        merge_pairs(path)
    opened(path, share=(0, 3))
    with pytest.raises(UserError, match="got parts of 2 and of 3"):
        merge_pairs(path)
    part.write_bytes(shard_path(path, 0, 2).read_bytes())
    shard_path(path, 0, 3).unlink()
    with pytest.raises(UserError, match=r"made with share \[0, 2\], now \[1, 2\]"):
        merge_pairs(path)
    assert not path.exists()


KILLED = """
    import os, signal, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    import test_pairs
    from ddl_plugin.data import embeddings

    embeddings._BATCH = 4
    look_up, count = test_pairs.look_up, 0

    def killing(table, seen):
        embed = look_up(table, seen)

        def inner(images):
            global count
            count += len(images)
            if count > 100:
                os.kill(os.getpid(), signal.SIGKILL)
            return embed(images)

        return inner

    test_pairs.look_up = killing
    test_pairs.opened(Path(sys.argv[2]))
"""


def test_killed_and_run_again_gives_the_same_bytes(tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole.npz", tmp_path / "killed.npz"
    code = textwrap.dedent(KILLED)
    done = subprocess.run([sys.executable, "-c", code, Path(__file__).parent, killed], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [p.name for p in tmp_path.iterdir()] == ["killed.npz.part"]
    monkeypatch.setattr(embeddings_module, "_BATCH", 4)
    seen, all_seen = [], []
    opened(killed, seen=seen)
    opened(whole, seen=all_seen)
    assert killed.read_bytes() == whole.read_bytes()
    assert sum(map(len, all_seen)) - sum(map(len, seen)) == 100
    assert sorted(p.name for p in tmp_path.iterdir()) == ["killed.npz", "whole.npz"]


def test_memory_does_not_grow_with_the_data_set(tmp_path, monkeypatch):
    """Whatever the number of images, the embeddings of some thousand of them are held at a time."""
    monkeypatch.setattr(pairs_module, "_CHUNK", 200)
    peaks = []
    for identities in (200, 2000):
        labels = np.repeat(np.arange(identities), 4)
        records, positions = FakeRecords(labels), np.arange(4 * identities)

        def embed(images):
            return np.ones((len(images), 512), np.float32)

        with Embeddings(records, embed, folder=tmp_path / str(identities)) as embeddings:
            candidates = draw_candidates(
                labels, partition_of(positions).distributions[0], 0, most=100, seed=0
            )
            tracemalloc.start()
            pairs_module._kept(candidates, lambda used: embeddings.of(CLEAN, used, lambda n: None))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] - peaks[0] < 600 * 7200  # 2 KB an embedding would be 14.7 MB more
    assert peaks[1] < 12e6
