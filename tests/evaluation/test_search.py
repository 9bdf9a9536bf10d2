"""A search in blocks against plain loops over all scores, and against the metrics of whole arrays."""

import tracemalloc

import numpy as np
import pytest

from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.metrics import eer, tar_at_far
from ddl_plugin.evaluation.search import search

FARS = (0.3, 0.1, 0.02, 0.001, 0.0, 1.0)


def unit(rows):
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def slow_search(gallery, gallery_labels, probes, probe_labels):
    ranks, negatives, positives = [], [], []
    for probe, label in zip(probes, probe_labels, strict=True):
        best = {}
        for image, other in zip(gallery, gallery_labels, strict=True):
            score = float(np.dot(image, probe))
            (positives if other == label else negatives).append(score)
            best[other] = max(best.get(other, -9), score)
        if label not in best:
            ranks.append(0)
            continue
        ranks.append(1 + sum(s >= best[label] for other, s in best.items() if other != label))
    return ranks, negatives, positives


def random_search(seed, ties):
    rng = np.random.default_rng(seed)
    # Whole numbers of one length: their products are exact in float32, and many are equal.
    vectors = rng.choice([-0.25, 0.25], (42, 16)) if ties else rng.normal(size=(42, 4))
    vectors = vectors.astype(np.float32) if ties else unit(vectors)
    gallery_labels, probe_labels = rng.integers(0, 9, 25) * 10, rng.integers(-1, 11, 17) * 10
    return vectors[:25], gallery_labels, vectors[25:], probe_labels


@pytest.mark.parametrize("block", [1, 50, 1 << 20])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_ranks_and_rates_equal_plain_loops_over_all_scores(seed, ties, block, monkeypatch):
    monkeypatch.setattr("ddl_plugin.evaluation.search._BLOCK", block)
    case = random_search(seed, ties)
    ranks, negatives, positives = slow_search(*case)
    found = search(*case, FARS)
    assert found.ranks.tolist() == ranks
    assert (found.rates.negatives.size, found.rates.positives.size) == (len(negatives), len(positives))
    expected = tar_at_far(np.float32(negatives), np.float32(positives), np.array(FARS))
    points = found.rates.tar_at_far()
    np.testing.assert_array_equal(points.tar, expected.tar)
    np.testing.assert_array_equal(points.far, expected.far)
    np.testing.assert_allclose(points.threshold, expected.threshold, atol=1e-6)
    assert found.rates.eer() == pytest.approx(eer(np.float32(negatives), np.float32(positives)), abs=1e-12)
    for tally, scores in ((found.rates.negatives, negatives), (found.rates.positives, positives)):
        assert tally.mean() == pytest.approx(np.mean(scores), abs=1e-6)
        assert tally.std() == pytest.approx(np.std(scores), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_best_of_the_own_and_of_all_other_identities(seed):
    gallery, gallery_labels, probes, probe_labels = random_search(seed, False)
    found = search(gallery, gallery_labels, probes, probe_labels, FARS)
    for i, (probe, label) in enumerate(zip(probes, probe_labels, strict=True)):
        scores = gallery @ probe
        for place, score, chosen in (
            (found.own[i], found.own_score[i], gallery_labels == label),
            (found.other[i], found.other_score[i], gallery_labels != label),
        ):
            if not chosen.any():
                assert (place, score) == (-1, -np.inf)
                continue
            best = max(np.flatnonzero(chosen), key=lambda j: scores[j])
            assert place == best
            assert score == pytest.approx(scores[best], abs=1e-6)


def test_a_tie_with_another_identity_is_wrong_and_within_the_identity_is_not():
    gallery = unit([[1, 0], [1, 0], [0, 1], [0, 1]])
    found = search(gallery, np.array([1, 2, 3, 3]), unit([[1, 0], [0, 1]]), np.array([1, 3]), FARS)
    assert found.ranks.tolist() == [2, 1]


def test_a_search_without_positives_or_negatives_is_refused():
    gallery = unit([[1, 0], [0, 1]])
    with pytest.raises(UserError, match="positives: expected at least one score"):
        search(gallery, np.array([1, 2]), gallery, np.array([3, 4]), FARS)
    with pytest.raises(UserError, match="negatives: expected at least one score"):
        search(gallery, np.array([1, 1]), gallery, np.array([1, 1]), FARS)


def test_embeddings_that_are_not_of_unit_length_are_refused():
    gallery = 3 * unit([[1, 0], [0, 1]])
    with pytest.raises(UserError, match=r"expected cosines in \[-1, 1\], got .*; normalise the embeddings"):
        search(gallery, np.array([1, 2]), gallery, np.array([1, 2]), FARS)


def test_memory_does_not_grow_with_gallery_times_probes():
    rng = np.random.default_rng(0)
    peaks = []
    for count in (1500, 4500):
        gallery, probes = unit(rng.normal(size=(count, 8))), unit(rng.normal(size=(count, 8)))
        labels = np.arange(count) // 2
        tracemalloc.start()
        search(gallery, labels, probes, labels, (1e-2, 1e-4))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 4,500 x 4,500 scores are 81 MB; nine times as many scores as 1,500 x 1,500.
    assert peaks[1] < 60e6
    assert peaks[1] < 1.5 * peaks[0]
