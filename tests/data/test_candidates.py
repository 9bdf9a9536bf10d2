"""Candidates of pairs: distinct, uniform, up to the bound, and never all of them listed."""

import itertools
import time
import tracemalloc

import numpy as np
import pytest

from ddl_plugin.data.candidates import blocks, candidate_pairs, draw_candidates, unrank
from ddl_plugin.data.partition import Distribution
from ddl_plugin.errors import UserError
from ddl_plugin.settings import Degradation


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


def test_an_identity_of_20000_images_is_fast_and_small():
    """2e8 possible pairs, of which 100 are drawn, among identities of usual sizes."""
    sizes = [20_000, 10_000, *[50] * 200]
    labels = np.repeat(np.arange(len(sizes)), sizes)
    positions = np.arange(len(labels))
    tracemalloc.start()
    began = time.perf_counter()
    first, second, starts = candidate_pairs(positions, labels, 100, np.random.default_rng(0))
    seconds = time.perf_counter() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (np.diff(starts) == 100).all()
    assert (labels[first] == labels[second]).all()
    assert len(set(zip(first.tolist(), second.tolist(), strict=True))) == len(first)
    assert peak < 8e6  # 2e8 pairs would be 1.6e9
    assert seconds < 5


def test_memory_is_a_few_bytes_a_candidate_beyond_the_result():
    labels = np.repeat(np.arange(20_000), 20)
    positions = np.arange(len(labels))
    tracemalloc.start()
    first, *_ = candidate_pairs(positions, labels, 60, np.random.default_rng(0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(first) == 1_200_000
    assert peak < 8 * len(first) + 40 * len(labels) + 25e6


def test_blocks_are_of_whole_identities():
    starts = np.array([0, 3, 10, 12, 14, 40, 41])
    assert list(blocks(starts, 10)) == [(0, 2), (2, 4), (4, 5), (5, 6)]
    assert list(blocks(np.array([0]), 10)) == []


def test_blocks_do_not_change_what_is_drawn(monkeypatch):
    labels = np.repeat(np.arange(60), np.arange(2, 62))
    whole = candidate_pairs(np.arange(len(labels)), labels, 30, np.random.default_rng(5))
    monkeypatch.setattr("ddl_plugin.data.candidates._BLOCK", 100)
    parts = candidate_pairs(np.arange(len(labels)), labels, 30, np.random.default_rng(5))
    for one, other in zip(whole, parts, strict=True):
        assert np.array_equal(one, other)


def distribution(positions):
    return Distribution("hard", "abs(yaw) > 45", np.asarray(positions), Degradation())


@pytest.mark.parametrize("n", [1, 2, 3, 7, 40])
def test_shares_are_the_whole_in_order_and_about_even(n):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(30), rng.integers(1, 12, 30))
    chosen = distribution(np.arange(len(labels)))
    whole = draw_candidates(labels, chosen, 1, most=20, seed=3)
    shares = [draw_candidates(labels, chosen, 1, most=20, seed=3, share=(i, n)) for i in range(n)]
    assert np.array_equal(np.concatenate([share.first for share in shares]), whole.first)
    assert np.array_equal(np.concatenate([share.second for share in shares]), whole.second)
    assert sum(len(share.starts) - 1 for share in shares) == len(whole.starts) - 1
    for share in shares:
        assert share.starts[0] == 0
        assert share.starts[-1] == len(share.first)
    largest = np.bincount(labels).max()
    for i, share in enumerate(shares):
        assert np.isin(labels, labels[share.first]).sum() <= len(labels) / n + largest, i


def test_an_identity_is_in_the_same_share_of_every_distribution():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(5, 45), rng.integers(1, 12, 40)))
    for n in (2, 5):
        shares = [
            [
                set(labels[draw_candidates(labels, own, k, most=20, seed=3, share=(i, n)).first].tolist())
                for k, own in enumerate(
                    (distribution(np.arange(len(labels))), distribution(np.arange(0, len(labels), 2)))
                )
            ]
            for i in range(n)
        ]
        for i, (easy, hard) in enumerate(shares):
            assert hard <= easy
            assert not any(easy & other for other, _ in shares[:i])


def test_distributions_and_seeds_draw_differently():
    labels, chosen = np.zeros(300, int), distribution(np.arange(300))
    drawn = [
        draw_candidates(labels, chosen, number, most=50, seed=seed).first.tolist()
        for number, seed in ((0, 0), (1, 0), (0, 1), (0, 0))
    ]
    assert drawn[0] == drawn[3]
    assert drawn[0] != drawn[1]
    assert drawn[0] != drawn[2]


def test_images_that_occur_in_a_candidate_are_counted_once():
    labels = np.array([0, 0, 0, 1, 2, 2, 3])
    drawn = draw_candidates(labels, distribution(np.arange(7)), 0, most=100, seed=0)
    assert drawn.images(7) == 5


def test_no_identity_with_two_images():
    with pytest.raises(
        UserError,
        match=r"ddl: hard \(abs\(yaw\) > 45\): expected identities with two images or more, got 3 identities with "
        r"one image each \(3 images\); widen the rule",
    ):
        draw_candidates(np.arange(3), distribution([0, 1, 2]), 1, most=100, seed=0)
