"""Scores that come in blocks give what the metrics of whole arrays give, exactly."""

import numpy as np
import pytest

from ddl_plugin.analysis.distributions import describe, soft_histogram
from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.metrics import eer, roc, tar_at_far
from ddl_plugin.evaluation.streams import Rates, tallied
from ddl_plugin.evaluation.tally import CELLS, Tally, cells_of, node

FARS = (0.0, 1e-4, 1e-3, 0.01, 0.1, 1 / 3, 0.5, 0.999, 1.0)


def draw(seed, dtype):
    """Scores of every kind: spread, tied, all in one cell, apart, reversed, few."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 400, 2)
    kind = seed % 6
    negatives, positives = rng.normal(0.05, 0.15, counts[0]), rng.normal(0.5, 0.2, counts[1])
    if kind == 1:
        negatives, positives = np.round(negatives, 1), np.round(positives, 1)
    elif kind == 2:
        negatives = 0.25 + rng.integers(0, 9, counts[0]) * 2.0**-24
        positives = 0.25 + rng.integers(4, 20, counts[1]) * 2.0**-24
    elif kind == 3:
        negatives, positives = negatives - 0.6, positives + 0.3
    elif kind == 4:
        negatives, positives = positives, negatives
    elif kind == 5:
        negatives, positives = negatives[:2], positives[:1]
    return (values.clip(-1, 1).astype(dtype) for values in (negatives, positives))


def rates(negatives, positives, fars, size=37):
    def blocks():
        count = max(negatives.size, positives.size)
        for start in range(0, count, size):
            yield negatives[start : start + size], positives[start : start + size]

    return Rates(*tallied(blocks), blocks, fars)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(60))
def test_every_rate_is_that_of_the_whole_arrays(seed, dtype):
    negatives, positives = draw(seed, dtype)
    found = rates(negatives, positives, FARS)
    expected = tar_at_far(negatives, positives, np.array(FARS))
    for got, wanted in zip(found.tar_at_far(), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert found.eer() == pytest.approx(eer(negatives, positives), abs=1e-12)
    far, tar = found.curve()
    points = roc(negatives, positives)
    for f, t in zip(far, tar, strict=True):  # points of the ROC, and none of them twice
        assert ((points.far == f) & (points.tar == t)).any() or (f, t) == (0, 0)
    assert (far[0], tar[0], far[-1], tar[-1]) == (0, 0, 1, 1)
    assert len(set(zip(far.tolist(), tar.tolist(), strict=True))) == far.size


@pytest.mark.parametrize("seed", range(300))
def test_the_equal_error_rate_of_few_scores_in_neighbouring_cells(seed):
    """FAR and FRR cross beside a cell of which all scores are on one side, or none are."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 6, 2)
    negatives, positives = (rng.integers(0, 24, count) / (CELLS * 2) for count in counts)
    assert rates(negatives, positives, (0.5,)).eer() == pytest.approx(eer(negatives, positives), abs=1e-12)


def test_a_tally_of_parts_is_the_tally_of_the_whole():
    scores = np.random.default_rng(1).normal(0.3, 0.2, 5000).clip(-1, 1)
    whole, parts = Tally(scores), Tally()
    for part in np.array_split(scores, [1, 7, 8, 3000]):
        parts.add(part)
    assert whole.size == parts.size == len(parts) == 5000
    np.testing.assert_array_equal(whole.counts, parts.counts)
    assert (whole.low, whole.high) == (scores.min(), scores.max())
    assert parts.mean() == pytest.approx(scores.mean(), abs=1e-14)
    assert parts.std() == pytest.approx(scores.std(), abs=1e-14)
    np.testing.assert_allclose(soft_histogram(parts), soft_histogram(scores), atol=1e-14)


def test_figures_may_ask_a_tally_for_its_mean_as_they_ask_an_array():
    assert np.mean(Tally(np.array([0.25, 0.75])), dtype=np.float64) == 0.5


def test_cells_rise_with_the_scores_and_begin_at_their_nodes():
    scores = np.sort(np.random.default_rng(2).uniform(-1, 1, 3000))
    cells, shares = cells_of(scores)
    assert (np.diff(cells) >= 0).all()
    assert ((shares >= 0) & (shares < 1)).all()
    np.testing.assert_allclose(node(cells + shares), scores, atol=1e-12)
    assert cells_of(np.array([-1.0, -2.0, 0.0, 1.0, 1.0001]))[0].tolist() == [0, 0, CELLS // 2, CELLS, CELLS]


def test_accepted_counts_the_scores_from_each_node_on():
    tally = Tally(np.array([-1.0, 0.0, 0.0, 0.5, 1.0]))
    accepted = tally.accepted()
    middle = CELLS // 2
    assert [accepted[i] for i in (0, 1, middle, middle + 1, CELLS)] == [5, 4, 4, 2, 1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_counted_and_refused(bad):
    with pytest.raises(UserError, match=r"^negatives: expected finite scores, got 2 of 4 that are not$"):
        Tally(name="negatives").add(np.array([0.1, bad, bad, 0.2]))


def test_d_prime_is_the_margin_in_standard_deviations():
    rng = np.random.default_rng(3)
    negatives, positives = rng.normal(0, 0.1, 200_000), rng.normal(0.6, 0.2, 200_000)
    said = describe(Tally(negatives.clip(-1, 1)), Tally(positives.clip(-1, 1)))
    spread = np.sqrt((negatives.var() + positives.clip(-1, 1).var()) / 2)
    assert said["d_prime"] == pytest.approx((positives.clip(-1, 1).mean() - negatives.mean()) / spread)
    assert said["negative_std"] == pytest.approx(0.1, abs=1e-3)
    assert describe(Tally(np.array([0.1])), Tally(np.array([0.9])))["d_prime"] is None


def test_wrong_rates_are_refused():
    with pytest.raises(UserError, match=r"far: expected rates in 0\.\.1"):
        rates(np.array([0.1]), np.array([0.2]), (1.5,))
