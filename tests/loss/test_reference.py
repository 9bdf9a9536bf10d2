"""The NumPy reference: by hand at small sizes, and its gradient against finite differences of its value."""

import math

import numpy as np
import pytest

from ddl_plugin.loss import reference
from ddl_plugin.settings import DDLSettings

HARD = ("abs(yaw) > 45", "abs(yaw) > 60", {"size": (12, 16)})


def settings(K=1, b=3, **changes):
    return DDLSettings(**{"b": b, "hard": HARD[:K], "bins": 15, "gamma": 20.0, **changes})


def embeddings(config, seed=0, dim=4):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(config.rows, dim)) + rng.normal(size=dim) * 0.5


def differences(x, value, step=1e-5):
    """Central differences of `value` by every component, of the fourth order."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        shift = np.zeros_like(x)
        shift[index] = step
        near = value(x + shift) - value(x - shift)
        far = value(x + 2 * shift) - value(x - 2 * shift)
        gradient[index] = (8 * near - far) / (12 * step)
    return gradient


@pytest.mark.parametrize("distance", ["kl", "js", "emd"])
@pytest.mark.parametrize("mining", ["hardest", "top", "random"])
@pytest.mark.parametrize("K", [1, 3])
def test_gradient_equals_finite_differences(distance, mining, K):
    config = settings(K, distance=distance, neg_mining=mining)
    x = embeddings(config, seed=5)
    expected = differences(x, lambda at: reference.ddl(at, config)["ddl"])
    np.testing.assert_allclose(reference.ddl_gradient(x, config), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("distance", ["kl", "js", "emd"])
def test_gradient_with_a_detached_teacher_equals_finite_differences(distance):
    """Students by the whole loss, the teacher by the order term alone."""
    changes = {"distance": distance, "detach_teacher": True}
    config, order_only = settings(2, **changes), settings(2, lambda_pos=0, lambda_neg=0)
    x = embeddings(config, seed=5)
    found = reference.ddl_gradient(x, config)
    whole = differences(x, lambda at: reference.ddl(at, config)["ddl"])
    order = differences(x, lambda at: reference.ddl(at, order_only)["ddl"])
    np.testing.assert_allclose(found[9:], whole[9:], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found[:9], order[:9], rtol=1e-6, atol=1e-8)


def test_a_batch_worked_by_hand():
    """b = 2 with cosines 1, 0.6 (easy) and 0.8, 0 (hard); singles at 0.6 (easy) and -1 (hard)."""
    east, north, slant, steep = [1, 0], [0, 1], [0.8, 0.6], [0.6, 0.8]
    x = np.array(
        [east, east, east, steep, north, slant,
         east, east, slant, north, east, [-1, 0]], float,
    )  # fmt: skip
    config = settings(b=2, bins=2, gamma=1.0)
    terms = reference.ddl(x, config)
    assert terms["mean_pos_easy"] == pytest.approx(0.8)
    assert terms["mean_pos_hard"] == pytest.approx(0.4)
    assert terms["mean_neg_easy"] == pytest.approx(0.6)
    assert terms["mean_neg_hard"] == pytest.approx(-1)
    assert terms["margin_hard"] == pytest.approx(1.4)
    assert terms["order"] == pytest.approx(-2 * (0.8 + 0.4 - 0.6 + 1))

    def share(*cosines):
        """p at the node -1 of the nodes -1 and 1."""
        low = sum(math.exp(-((s + 1) ** 2)) for s in cosines)
        return low / (low + sum(math.exp(-((s - 1) ** 2)) for s in cosines))

    def kl(p, q):
        return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

    assert terms["kl_pos"] == pytest.approx(kl(share(1, 0.6), share(0.8, 0)))
    assert terms["kl_neg"] == pytest.approx(kl(share(0.6), share(-1)))
    assert terms["intersection_easy"] == pytest.approx(1 - abs(share(1, 0.6) - share(0.6)))
    expected = 0.1 * terms["kl_pos"] + 0.02 * terms["kl_neg"] + 0.5 * terms["order"]
    assert terms["ddl"] == pytest.approx(expected)


@pytest.mark.parametrize("distance", ["kl", "js", "emd"])
@pytest.mark.parametrize("mining", ["hardest", "top"])
def test_finite_without_positive_pairs_and_with_zero_rows(distance, mining):
    config = settings(2, distance=distance, neg_mining=mining)
    x = embeddings(config)
    for k in range(3):
        x[9 * k + 3 : 9 * k + 6] = -x[9 * k : 9 * k + 3]
    x[7] = 0
    terms = reference.ddl(x, config)
    gradient = reference.ddl_gradient(x, config)
    assert all(map(math.isfinite, terms.values()))
    assert np.isfinite(gradient).all()
    assert terms[f"{distance}_pos"] == 0
    assert terms["outliers_hard2"] == 3
    assert not gradient[[*range(6), 7]].any()


def test_any_gamma_is_finite():
    config = settings(gamma=1e5, bins=100)
    x = embeddings(config)
    assert all(map(math.isfinite, reference.ddl(x, config).values()))
    assert np.isfinite(reference.ddl_gradient(x, config)).all()


def test_top_takes_the_largest_distinct_pairs_once_each():
    config = settings(neg_mining="top", lambda_pos=0, lambda_neg=0)
    x = embeddings(config)
    x[6:9] = [[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]]
    assert reference.ddl(x, config)["mean_neg_easy"] == pytest.approx(1 / 3)
    hardest = settings(neg_mining="hardest")
    assert reference.ddl(x, hardest)["mean_neg_easy"] == pytest.approx(2 / 3)
