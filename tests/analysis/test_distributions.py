import tracemalloc

import numpy as np
import pytest

from ddl_plugin.analysis.distributions import (
    decidability,
    expectation_margin,
    histogram_intersection,
    nodes,
    soft_histogram,
)
from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.tally import Tally


def naive_histogram(scores, bins, gamma):
    """Eq. 3-4, one score and one node at a time, then divided by the sum."""
    heights = []
    for r in range(bins):
        t = -1 + 2 * r / (bins - 1)
        heights.append(sum(np.exp(-gamma * (s - t) ** 2) for s in scores) / len(scores))
    return np.array(heights) / sum(heights)


@pytest.mark.parametrize("bins, gamma", [(100, 50.0), (7, 3.0), (100, 5000.0)])
def test_soft_histogram_equals_the_equations(bins, gamma):
    scores = np.random.default_rng(0).uniform(-1, 1, 200)
    np.testing.assert_allclose(
        soft_histogram(scores, bins, gamma), naive_histogram(scores, bins, gamma), atol=1e-7
    )


@pytest.mark.parametrize("score", [-1.0, 0.0, 1.0, nodes()[37], 0.123456])
def test_soft_histogram_of_one_score_at_edges_and_nodes(score):
    np.testing.assert_allclose(soft_histogram([score]), naive_histogram([score], 100, 50.0), atol=1e-7)


def test_nodes_fill_the_interval():
    assert nodes(5).tolist() == [-1, -0.5, 0, 0.5, 1]
    assert len(nodes()) == 100


def test_soft_histogram_is_a_distribution_and_has_no_order():
    scores = np.random.default_rng(1).normal(0.3, 0.2, 1000).clip(-1, 1)
    histogram = soft_histogram(scores)
    assert histogram.sum() == pytest.approx(1)
    assert (histogram >= 0).all()
    np.testing.assert_allclose(soft_histogram(scores[::-1].reshape(10, 100)), histogram, atol=1e-12)


def test_millions_of_scores_in_bounded_memory():
    scores = np.random.default_rng(2).uniform(-1, 1, 3_000_000).astype(np.float32)
    tracemalloc.start()
    histogram = soft_histogram(scores)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 80e6  # scores x nodes would be 2.4 GB
    np.testing.assert_allclose(histogram[15:-15], histogram[50], rtol=0.01)


def test_rounding_beyond_one_is_a_cosine_but_two_is_not():
    np.testing.assert_allclose(soft_histogram([1.0000002]), soft_histogram([1.0]))
    with pytest.raises(UserError, match=r"expected cosines in \[-1, 1\], got 0\.5\.\.2"):
        soft_histogram([0.5, 2.0])


def test_a_gamma_that_reaches_no_node_is_refused():
    with pytest.raises(UserError, match="gamma: 1e\\+09 is so large"):
        soft_histogram([0.5 * (nodes()[3] + nodes()[4])], gamma=1e9)


def test_intersection_is_one_for_the_same_and_zero_for_distant_distributions():
    scores = np.random.default_rng(3).normal(0.2, 0.1, 100)
    assert histogram_intersection(scores, scores) == pytest.approx(1)
    assert histogram_intersection([-0.9], [0.9]) < 1e-12
    expected = np.minimum(naive_histogram([0.1], 100, 50.0), naive_histogram([0.2], 100, 50.0)).sum()
    assert histogram_intersection([0.1], [0.2]) == pytest.approx(expected, abs=1e-7)


def test_margin_is_positive_minus_negative():
    assert expectation_margin([0.0, 0.2], [0.7, 0.9]) == pytest.approx(0.7)


def test_decidability_is_the_margin_in_standard_deviations():
    negatives, positives = np.array([0.0, 0.2, -0.2]), np.array([0.5, 0.7, 0.9, 0.9])
    spread = np.sqrt((np.var(negatives) + np.var(positives)) / 2)
    assert decidability(Tally(negatives), Tally(positives)) == pytest.approx(0.75 / spread)
    assert decidability(Tally(np.zeros(1)), Tally(np.ones(1))) is None


@pytest.mark.parametrize("statistic", [expectation_margin, histogram_intersection])
def test_empty_and_nan_are_refused(statistic):
    with pytest.raises(UserError, match="expected at least one score"):
        statistic([], [0.1])
    with pytest.raises(UserError, match="expected finite scores"):
        statistic([0.1], [np.nan])
