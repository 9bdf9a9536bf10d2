"""Offline pairs against plain loops, their errors, and when a saved file holds."""

import itertools
import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ddl_plugin.data import pairs as pairs_module
from ddl_plugin.data.pairs import Pairs, build_pairs, candidate_pairs, load_pairs, save_pairs, unrank
from ddl_plugin.errors import UserError
from ddl_plugin.settings import Degradation


class FakeRecords:
    """Images whose first pixel spells their position, so that `embed` can look up any vector."""

    path = Path("train.rec")

    def __init__(self, labels, side=112):
        self.labels = np.asarray(labels, np.int32)
        self.keys = np.arange(1, len(labels) + 1)
        self.side = side

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
    return SimpleNamespace(
        distributions=tuple(
            SimpleNamespace(
                name=name, label="all", positions=np.asarray(p), degradation=degradation if k else clean
            )
            for k, (name, p) in enumerate(zip(names, positions, strict=False))
        )
    )


def random_table(n, d=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32) * 5


def as_set(pairs):
    return set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))


def test_unrank_enumerates_all_pairs():
    i, j = unrank(np.arange(5050))
    assert list(zip(j, i, strict=True)) == [(b, a) for b in range(101) for a in range(b)]


@pytest.mark.parametrize("n", [3, 4097, 100_000, 1 << 25])
def test_unrank_is_exact_at_the_edges_of_large_identities(n):
    ranks = np.array([n * (n - 1) // 2 - 1, n * (n - 1) // 2])
    i, j = unrank(ranks)
    assert list(zip(i, j, strict=True)) == [(n - 2, n - 1), (0, n)]


def test_few_candidates_are_all_pairs_of_each_identity():
    labels = np.array([4, 9, 4, 2, 9, 4, 7, 9, 9])  # not grouped; 2 and 7 have one image
    positions = np.array([3, 10, 11, 20, 21, 30, 31, 32, 40])
    first, second, starts = candidate_pairs(positions, labels, 100, np.random.default_rng(0))
    expected = {
        (int(positions[a]), int(positions[b]))
        for a, b in itertools.combinations(range(9), 2)
        if labels[a] == labels[b]
    }
    assert set(zip(first.tolist(), second.tolist(), strict=True)) == expected
    assert len(first) == len(expected)
    assert first.dtype == second.dtype == np.int32
    assert starts.tolist() == [0, 3, 9]


def test_many_candidates_are_drawn_uniformly_without_replacement():
    labels = np.repeat([0, 1, 2], [3, 12, 1000])
    counts = np.zeros((12, 12), int)
    for seed in range(400):
        first, second, starts = candidate_pairs(
            np.arange(len(labels)), labels, 20, np.random.default_rng(seed)
        )
        assert np.diff(starts).tolist() == [3, 20, 20]
        assert len(set(zip(first.tolist(), second.tolist(), strict=True))) == 43
        assert (first < second).all()
        assert (labels[first] == labels[second]).all()
        np.add.at(counts, (first[3:23] - 3, second[3:23] - 3), 1)
    drawn = counts[np.triu_indices(12, 1)] / 400
    assert np.abs(drawn - 20 / 66).max() < 0.12  # five standard deviations


def test_huge_identity_costs_what_is_drawn():
    # 5e9 possible pairs would not fit in memory.
    n = 100_000
    first, second, _ = candidate_pairs(np.arange(n), np.zeros(n, int), 100, np.random.default_rng(0))
    assert len(set(zip(first.tolist(), second.tolist(), strict=True))) == 100
    assert second.max() > n / 2


def test_negative_pairs_are_dropped_and_counted():
    labels = np.repeat(np.arange(30), 5)
    table = random_table(150)
    easy, hard = np.arange(150), np.arange(0, 150, 2)
    built = build_pairs(
        FakeRecords(labels), partition_of(easy, hard, degradation=Degradation()), look_up(table)
    )
    for positions, pairs in zip((easy, hard), built, strict=True):
        candidates, kept = 0, set()
        for a, b in itertools.combinations(positions.tolist(), 2):
            if labels[a] == labels[b]:
                candidates += 1
                if np.dot(table[a], table[b]) >= 0:
                    kept.add((a, b))
        assert as_set(pairs) == kept
        assert (pairs.candidates, pairs.dropped) == (candidates, candidates - len(kept))
        assert 0 < pairs.dropped < candidates


def test_orthogonal_pair_is_kept():
    table = np.array([[1, 0], [0, 1]], np.float32)
    (pairs,) = build_pairs(FakeRecords([0, 0]), partition_of([0, 1]), look_up(table))
    assert as_set(pairs) == {(0, 1)}


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
    monkeypatch.setattr(pairs_module, "_BATCH", 7)
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
