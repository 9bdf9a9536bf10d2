"""Histograms and distances against double loops, at their edges, and their gradients."""

import math

import numpy as np
import pytest

from ddl_plugin.loss import histogram
from ddl_plugin.mxnet_setup import mx

COSINES = np.cos(np.radians([0.0, 20.0, 40.0, 60.0, 80.0]))


def log_distribution(cosines, keep=None, bins=100, gamma=50.0):
    """One distribution: (n,) -> (R,)."""
    cosines = mx.nd.array(np.atleast_2d(cosines))
    keep = mx.nd.ones_like(cosines) if keep is None else mx.nd.array(np.atleast_2d(keep))
    return histogram.log_distribution(mx.nd, cosines, keep, bins=bins, gamma=gamma).asnumpy()[0]


def naive_distribution(cosines, bins, gamma):
    """Eq. 3-4 in plain arithmetic, then divided by the sum."""
    heights = []
    for r in range(bins):
        t = -1 + r * 2 / (bins - 1)
        heights.append(sum(math.exp(-gamma * (s - t) ** 2) for s in cosines) / len(cosines))
    return np.array(heights) / sum(heights)


def random_log_distributions(count, bins, seed=0):
    weights = np.random.default_rng(seed).random((count, bins)) + 0.01
    return np.log(weights / weights.sum(axis=1, keepdims=True))


def distance(name, log_p, log_q):
    return histogram.DISTANCES[name](
        mx.nd, mx.nd.array(np.atleast_2d(log_p)), mx.nd.array(np.atleast_2d(log_q))
    ).asnumpy()


@pytest.mark.parametrize("bins", [2, 3, 100, 101])
def test_nodes_span_minus_one_to_one_with_exact_ends_and_equal_steps(bins):
    nodes = histogram.nodes(mx.nd, bins).asnumpy()
    assert nodes[0] == -1
    assert nodes[-1] == 1
    assert np.diff(nodes) == pytest.approx([2 / (bins - 1)] * (bins - 1), rel=1e-4)


@pytest.mark.parametrize("bins", [2, 11, 100])
@pytest.mark.parametrize("gamma", [0.5, 50.0, 150.0])
def test_distribution_equals_a_double_loop_over_pairs_and_nodes(bins, gamma):
    found = log_distribution(COSINES, bins=bins, gamma=gamma)
    assert found == pytest.approx(np.log(naive_distribution(COSINES, bins, gamma)), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("gamma", [1e-3, 50.0, 1e5])
@pytest.mark.parametrize(
    "cosines",
    [[-1.0], [0.0], [1.0], [1.0, 1.0, 1.0], [-1.0, 0.0, 1.0], [-1 + 2 * 33 / 99], COSINES],
    ids=["-1", "0", "1", "duplicates", "ends", "on a node", "angles"],
)
def test_distribution_sums_to_one_and_has_finite_logarithms_and_gradients(cosines, gamma):
    values = mx.nd.array(np.atleast_2d(cosines))
    values.attach_grad()
    with mx.autograd.record():
        log_p = histogram.log_distribution(mx.nd, values, mx.nd.ones_like(values), bins=100, gamma=gamma)
        total = log_p.sum()
    total.backward()
    assert np.exp(log_p.asnumpy()).sum() == pytest.approx(1, abs=1e-5)
    assert np.isfinite(log_p.asnumpy()).all()
    assert np.isfinite(values.grad.asnumpy()).all()


def test_distribution_is_the_same_for_any_order_of_the_pairs():
    assert log_distribution(COSINES[::-1]) == pytest.approx(log_distribution(COSINES), abs=1e-4)


def test_masked_similarities_are_as_if_left_out():
    masked = log_distribution([0.9, -0.7, 0.4, -0.1], keep=[1, 0, 1, 0])
    assert masked == pytest.approx(log_distribution([0.9, 0.4]), abs=1e-4)


def test_masked_similarities_get_no_gradient():
    cosines = mx.nd.array([[0.9, -0.7, 0.4]])
    cosines.attach_grad()
    with mx.autograd.record():
        log_p = histogram.log_distribution(mx.nd, cosines, mx.nd.array([[1, 0, 1]]), bins=100, gamma=50.0)
        picked = log_p[0, 20]
    picked.backward()
    gradient = cosines.grad.asnumpy()[0]
    assert gradient[1] == 0
    assert (gradient[[0, 2]] != 0).any()


def test_all_masked_is_uniform_and_has_a_finite_gradient():
    cosines = mx.nd.array([[-0.7, -0.1]])
    cosines.attach_grad()
    with mx.autograd.record():
        log_p = histogram.log_distribution(mx.nd, cosines, mx.nd.zeros((1, 2)), bins=10, gamma=50.0)
        picked = log_p[0, 3]
    picked.backward()
    assert log_p.asnumpy()[0] == pytest.approx([-math.log(10)] * 10)
    assert np.isfinite(cosines.grad.asnumpy()).all()


def test_nan_makes_its_distribution_nan_and_no_other():
    cosines = mx.nd.array([[0.5, np.nan], [0.5, 0.1]])
    log_p = histogram.log_distribution(mx.nd, cosines, mx.nd.ones((2, 2)), bins=10, gamma=50.0).asnumpy()
    assert np.isnan(log_p[0]).all()
    assert np.isfinite(log_p[1]).all()


def test_gradient_is_that_of_the_supplement():
    bins, gamma, n = 12, 20.0, len(COSINES)
    weights = np.linspace(-1, 2, bins)
    cosines = mx.nd.array([COSINES])
    cosines.attach_grad()
    with mx.autograd.record():
        log_p = histogram.log_distribution(mx.nd, cosines, mx.nd.ones_like(cosines), bins=bins, gamma=gamma)
        total = (mx.nd.exp(log_p) * mx.nd.array([weights])).sum()
    total.backward()

    nodes = [-1 + r * 2 / (bins - 1) for r in range(bins)]
    heights = [sum(math.exp(-gamma * (s - t) ** 2) for s in COSINES) / n for t in nodes]
    area = sum(heights)
    value = sum(w * h for w, h in zip(weights, heights, strict=True)) / area
    expected = []
    for s in COSINES:
        slope = 0.0
        for w, t in zip(weights, nodes, strict=True):
            dh = -2 * gamma * math.exp(-gamma * (s - t) ** 2) * (s - t) / n
            slope += (w - value) / area * dh
        expected.append(slope)
    assert cosines.grad.asnumpy()[0] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def naive_kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def naive_distance(name, p, q):
    if name == "kl":
        return naive_kl(p, q)
    if name == "js":
        middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        return (naive_kl(p, middle) + naive_kl(q, middle)) / 2
    total = 0.0
    for r in range(len(p)):
        total += abs(sum(p[: r + 1]) - sum(q[: r + 1])) * 2 / (len(p) - 1)
    return total


@pytest.mark.parametrize("name", ["kl", "js", "emd"])
@pytest.mark.parametrize("bins", [2, 30])
def test_distances_equal_plain_loops(name, bins):
    log_p, *log_q = random_log_distributions(4, bins)
    found = distance(name, log_p, log_q)
    expected = [naive_distance(name, np.exp(log_p), np.exp(q)) for q in log_q]
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["kl", "js", "emd"])
def test_distances_are_zero_between_equals_and_positive_otherwise(name):
    log_p, log_q = random_log_distributions(2, 50)
    assert distance(name, log_p, log_p) == pytest.approx([0], abs=1e-6)
    assert distance(name, log_p, log_q)[0] > 1e-3


@pytest.mark.parametrize("name", ["js", "emd"])
def test_js_and_emd_are_symmetric(name):
    log_p, log_q = random_log_distributions(2, 50)
    assert distance(name, log_p, log_q) == pytest.approx(distance(name, log_q, log_p), rel=1e-4)


def test_far_apart_js_is_log_two_and_kl_is_the_log_ratio():
    near, far = log_distribution([-1.0]), log_distribution([1.0])
    assert distance("js", near, far) == pytest.approx([math.log(2)], rel=1e-4)
    # Gaussians of variance 1 / (2 gamma) two apart, cut in half by the ends of the axis.
    p, q = (naive_distribution([s], 100, 50.0) for s in (-1.0, 1.0))
    assert distance("kl", near, far) == pytest.approx([naive_kl(p, q)], rel=1e-4)
    assert distance("kl", near, far)[0] > 150


def test_emd_of_two_spikes_is_their_distance_in_cosine():
    spike = np.full((2, 101), -200.0)
    spike[0, 20] = spike[1, 65] = 0.0
    assert distance("emd", *spike) == pytest.approx([45 * 0.02], rel=1e-5)


@pytest.mark.parametrize("name", ["kl", "js", "emd"])
def test_gradients_of_distances_equal_finite_differences(name):
    log_p, log_q = random_log_distributions(2, 9, seed=3)
    p, q = (mx.nd.array([v]) for v in (log_p, log_q))
    p.attach_grad()
    q.attach_grad()
    with mx.autograd.record():
        # Through the normalisation, as in use: a distance of unnormalised arrays means nothing.
        value = histogram.DISTANCES[name](mx.nd, mx.nd.log_softmax(p), mx.nd.log_softmax(q))
    value.backward()

    def at(log_p, log_q):
        first, second = np.exp(log_p), np.exp(log_q)
        return naive_distance(name, first / first.sum(), second / second.sum())

    step = 1e-6
    for r in range(9):
        shift = step * np.eye(9)[r]
        by_p = (at(log_p + shift, log_q) - at(log_p - shift, log_q)) / (2 * step)
        by_q = (at(log_p, log_q + shift) - at(log_p, log_q - shift)) / (2 * step)
        assert p.grad.asnumpy()[0, r] == pytest.approx(by_p, rel=1e-3, abs=1e-6)
        assert q.grad.asnumpy()[0, r] == pytest.approx(by_q, rel=1e-3, abs=1e-6)


def test_intersection_is_one_for_equals_zero_apart_and_the_overlap_between():
    def overlap(log_p, log_q):
        return histogram.intersection(mx.nd, mx.nd.array([log_p]), mx.nd.array([log_q])).asnumpy()[0]

    log_p, log_q = random_log_distributions(2, 20)
    assert overlap(log_p, log_p) == pytest.approx(1, abs=1e-6)
    assert overlap(log_distribution([-1.0]), log_distribution([1.0])) == pytest.approx(0, abs=1e-12)
    expected = sum(min(a, b) for a, b in zip(np.exp(log_p), np.exp(log_q), strict=True))
    assert overlap(log_p, log_q) == pytest.approx(expected, rel=1e-5)


def test_logsumexp_neither_overflows_nor_underflows():
    x = mx.nd.array([[1000.0, 1000.0], [-1000.0, -1000.0], [0.0, -1e30]])
    expected = [1000 + math.log(2), -1000 + math.log(2), 0]
    assert histogram.logsumexp(mx.nd, x, axis=1).asnumpy()[:, 0] == pytest.approx(expected)
