"""The loss as a graph: against plain loops and the NumPy reference, on degenerate batches, its invariances."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from ddl_plugin.loss import reference
from ddl_plugin.loss.terms import ddl_terms, singles, term_names, unit_rows
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.settings import DDLSettings

HARD = ("abs(yaw) > 45", "abs(yaw) > 60", {"size": (12, 16)})


def settings(K=1, b=4, **changes):
    return DDLSettings(**{"b": b, "hard": HARD[:K], "bins": 40, **changes})


def embeddings(config, seed=0, dim=6):
    """Random rows with a common part, so that most positive pairs are above 0 and some are not."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(config.rows, dim)) + rng.normal(size=dim) * 0.5


def eager(x, config, dtype="float32"):
    """Loss, terms by name, gradient."""
    x = mx.nd.array(x, dtype=dtype)
    x.attach_grad()
    with mx.autograd.record():
        loss, terms = ddl_terms(mx.nd, x, config)
    loss.backward()
    assert loss.shape == (1,)
    names = term_names(config)
    assert terms.shape == (1, len(names))
    return loss.asscalar(), dict(zip(names, terms.asnumpy()[0].tolist(), strict=True)), x.grad.asnumpy()


def symbolic(x, config):
    loss, terms = ddl_terms(mx.sym, mx.sym.Variable("x"), config)
    graph = mx.sym.Group([mx.sym.MakeLoss(loss), terms])
    executor = graph.simple_bind(mx.cpu(), x=x.shape, grad_req="write")
    value, terms = executor.forward(is_train=True, x=mx.nd.array(x))
    executor.backward()
    named = dict(zip(term_names(config), terms.asnumpy()[0].tolist(), strict=True))
    return value.asscalar(), named, executor.grad_dict["x"].asnumpy()


def at_angle(degrees):
    return np.array([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])


def rows(config, k, part):
    """Rows of one part of distribution k: 0 first images, 1 second images, 2 singles."""
    start = (3 * k + part) * config.b
    return slice(start, start + config.b)


ANGLES = (0, 20, 40, 60, 80)


def known_angles(config):
    """b = 5: positive pairs at 0, 20, .. 80 degrees (half of that for hard), singles at ANGLES, doubled."""
    x = np.zeros((config.rows, 2))
    for i, degrees in enumerate(ANGLES):
        for k, factor in ((0, 0.5), (1, 1.0)):
            x[15 * k + i] = 3 * at_angle(10)
            x[15 * k + 5 + i] = 0.2 * at_angle(10 + factor * degrees)
            x[15 * k + 10 + i] = at_angle((2 - k) * degrees)
    return x


def naive_terms(config):
    """The loss of `known_angles` from the angles alone, with the negatives of `hardest`."""
    positive = [[math.cos(math.radians(f * a)) for a in ANGLES] for f in (0.5, 1.0)]
    negative = [
        [max(math.cos(math.radians(f * (a - c))) for c in ANGLES if c != a) for a in ANGLES] for f in (2, 1)
    ]

    def distribution(cosines):
        heights = []
        for r in range(config.bins):
            t = -1 + 2 * r / (config.bins - 1)
            heights.append(sum(math.exp(-config.gamma * (s - t) ** 2) for s in cosines) / 5)
        return [h / sum(heights) for h in heights]

    def kl(first, second):
        pairs = zip(distribution(first), distribution(second), strict=True)
        return sum(p * math.log(p / q) for p, q in pairs)

    def mean(values):
        return sum(values) / len(values)

    kl_pos, kl_neg = kl(*positive), kl(*negative)
    order = 0.0
    for i in (0, 1):
        for j in (0, 1):
            order -= mean(positive[i]) - mean(negative[j])
    return {
        "ddl": 0.1 * kl_pos + 0.02 * kl_neg + 0.5 * order,
        "kl_pos": kl_pos,
        "kl_neg": kl_neg,
        "order": order,
        "mean_pos_easy": mean(positive[0]),
        "mean_neg_hard": mean(negative[1]),
        "margin_hard": mean(positive[1]) - mean(negative[1]),
        "outliers_hard": 0.0,
    }


def test_terms_at_known_angles_equal_plain_loops():
    config = settings(b=5, bins=100)
    found = eager(known_angles(config), config)[1]
    for name, expected in naive_terms(config).items():
        assert found[name] == pytest.approx(expected, rel=1e-4, abs=1e-5), name


def test_term_names_are_those_documented():
    assert term_names(settings(K=1)) == (
        "ddl", "kl_pos", "kl_neg", "order",
        "mean_pos_easy", "mean_neg_easy", "margin_easy", "intersection_easy", "outliers_easy",
        "mean_pos_hard", "mean_neg_hard", "margin_hard", "intersection_hard", "outliers_hard",
    )  # fmt: skip
    names = term_names(settings(K=3, distance="emd"))
    assert names[1:3] == ("emd_pos", "emd_neg")
    assert names[-1] == "outliers_hard3"


@pytest.mark.parametrize("detach", [False, True], ids=["attached", "detached"])
@pytest.mark.parametrize("K", [1, 2, 3])
@pytest.mark.parametrize("mining", ["hardest", "top", "random"])
@pytest.mark.parametrize("distance", ["kl", "js", "emd"])
def test_eager_symbolic_and_numpy_agree_in_value_and_gradient(distance, mining, K, detach):
    config = settings(K, distance=distance, neg_mining=mining, detach_teacher=detach)
    x = embeddings(config, seed=K)
    value, terms, gradient = eager(x, config)
    expected, by_hand = reference.ddl(x, config), reference.ddl_gradient(x, config)
    assert list(terms) == list(expected)
    assert value == pytest.approx(expected["ddl"], rel=1e-5, abs=1e-5)
    for name, term in terms.items():
        assert term == pytest.approx(expected[name], rel=1e-5, abs=1e-5), name
    np.testing.assert_allclose(gradient, by_hand, rtol=1e-4, atol=1e-5)

    sym_value, sym_terms, sym_gradient = symbolic(x, config)
    assert sym_value == pytest.approx(value, rel=1e-6)
    assert sym_terms == pytest.approx(terms, rel=1e-6, abs=1e-6)
    np.testing.assert_allclose(sym_gradient, gradient, rtol=1e-5, atol=1e-6)


def test_loss_is_the_weighted_sum_of_its_terms():
    config = settings(2, lambda_pos=0.3, lambda_neg=0.7, lambda_order=0.11)
    value, terms, _ = eager(embeddings(config), config)
    expected = 0.3 * terms["kl_pos"] + 0.7 * terms["kl_neg"] + 0.11 * terms["order"]
    assert value == pytest.approx(expected, rel=1e-5)
    assert terms["ddl"] == pytest.approx(value, rel=1e-6)


def test_zero_weights_give_zero_loss_and_zero_gradient():
    config = settings(2, lambda_pos=0, lambda_neg=0, lambda_order=0)
    value, terms, gradient = eager(embeddings(config), config)
    assert value == 0
    assert not gradient.any()
    assert terms["kl_pos"] > 0


def test_the_order_term_sums_all_ordered_pairs_of_distributions():
    config = settings(2)
    terms = eager(embeddings(config), config)[1]
    expected = sum(
        terms[f"mean_neg_{j}"] - terms[f"mean_pos_{i}"]
        for i, j in itertools.product(config.names, config.names)
    )
    assert terms["order"] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_step_down_the_gradient_lowers_the_loss():
    config = settings(2)
    x = embeddings(config)
    before, _, gradient = eager(x, config)
    after = eager(x - 0.01 * gradient, config)[0]
    assert after < before - 0.005 * np.square(gradient).sum()


# Invariances


@pytest.mark.parametrize("mining", ["hardest", "top"])
def test_order_of_pairs_and_of_singles_within_a_distribution_does_not_matter(mining):
    config = settings(2, neg_mining=mining)
    x = embeddings(config)
    moved = x.copy()
    for k in range(3):
        pairs, images = np.random.default_rng(k).permutation(4), np.random.default_rng(k + 9).permutation(4)
        moved[rows(config, k, 0)] = x[rows(config, k, 1)][pairs]
        moved[rows(config, k, 1)] = x[rows(config, k, 0)][pairs]
        moved[rows(config, k, 2)] = x[rows(config, k, 2)][images]
    assert eager(moved, config)[1] == pytest.approx(eager(x, config)[1], rel=1e-4, abs=1e-5)


def test_order_of_the_students_does_not_matter():
    config = settings(2)
    x = embeddings(config)
    swapped = np.concatenate([x[:12], x[24:], x[12:24]])
    assert eager(swapped, config)[0] == pytest.approx(eager(x, config)[0], rel=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e4, 1e15])
def test_length_of_embeddings_does_not_matter_and_divides_the_gradient(scale):
    config = settings(2)
    x = embeddings(config)
    _, terms, gradient = eager(x, config)
    _, scaled_terms, scaled_gradient = eager(x * scale, config)
    assert scaled_terms == pytest.approx(terms, rel=1e-4, abs=1e-5)
    np.testing.assert_allclose(scaled_gradient * scale, gradient, rtol=1e-3, atol=1e-5)


def test_the_gradient_is_orthogonal_to_each_embedding():
    config = settings(2)
    x = embeddings(config)
    gradient = eager(x, config)[2]
    assert np.abs((gradient * x).sum(axis=1)).max() < 1e-5


def test_equal_distributions_have_no_distance():
    config = settings(2, b=3)
    x = np.tile(embeddings(config)[:9], (3, 1))
    terms = eager(x, config)[1]
    assert terms["kl_pos"] == pytest.approx(0, abs=1e-5)
    assert terms["kl_neg"] == pytest.approx(0, abs=1e-5)


def test_the_same_batch_gives_the_same_bits():
    config = settings(2, neg_mining="random")
    x = embeddings(config)
    first, second = eager(x, config), eager(x, config)
    assert first[:2] == second[:2]
    assert (first[2] == second[2]).all()


# Outliers


def with_outliers(config, masked, seed=0):
    """Positive pairs 0.3 alike, those in `masked` (distribution, pair) opposite."""
    x = embeddings(config, seed)
    for k in range(config.distributions):
        x[rows(config, k, 1)] = 0.3 * x[rows(config, k, 0)] + 0.2 * x[rows(config, k, 1)]
    for k, i in masked:
        x[(3 * k + 1) * config.b + i] = -x[3 * k * config.b + i]
    return x


def test_outliers_are_counted_left_out_and_get_no_gradient():
    config = settings(b=5)
    x = with_outliers(config, [(1, 0), (1, 3)])
    _, terms, gradient = eager(x, config)
    assert (terms["outliers_easy"], terms["outliers_hard"]) == (0, 2)
    kept = [1, 2, 4]
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = (unit[rows(config, 1, 0)] * unit[rows(config, 1, 1)]).sum(axis=1)
    assert terms["mean_pos_hard"] == pytest.approx(cosines[kept].mean(), rel=1e-5)
    for part in (0, 1):
        moved = np.abs(gradient[rows(config, 1, part)]).max(axis=1)
        assert (moved[[0, 3]] == 0).all()
        assert (moved[kept] > 0).all()


def test_a_cosine_of_exactly_zero_is_no_outlier():
    config = settings(b=2)
    x = embeddings(config, dim=2)
    x[0], x[2] = [1, 0], [0, 1]
    assert eager(x, config)[1]["outliers_easy"] == 0


@pytest.mark.parametrize("distance", ["kl", "js", "emd"])
@pytest.mark.parametrize("empty", [(0,), (1,), (2,), (1, 2), (0, 1, 2)], ids=str)
def test_distributions_without_a_positive_pair_drop_out(empty, distance):
    config = settings(2, distance=distance)
    x = with_outliers(config, [(k, i) for k in empty for i in range(4)])
    value, terms, gradient = eager(x, config)
    for k in empty:
        name = config.names[k]
        assert terms[f"outliers_{name}"] == 4
        assert [terms[f"{s}_{name}"] for s in ("mean_pos", "margin", "intersection")] == [0, 0, 0]
        assert not gradient[rows(config, k, 0)].any()
        assert not gradient[rows(config, k, 1)].any()
        assert gradient[rows(config, k, 2)].any()
    if 0 in empty or {1, 2} <= set(empty):
        assert terms[f"{distance}_pos"] == 0
    else:
        assert terms[f"{distance}_pos"] > 0
    assert math.isfinite(value)
    assert terms == pytest.approx(reference.ddl(x, config), rel=1e-4, abs=1e-5)
    np.testing.assert_allclose(gradient, reference.ddl_gradient(x, config), rtol=1e-3, atol=1e-5)


# Degenerate batches


def degenerate(config):
    plain = embeddings(config)
    one_zero = plain.copy()
    one_zero[[1, 9, config.rows - 1]] = 0
    signs = np.where(np.arange(config.rows) % 2, 1.0, -1.0)[:, None]
    return {
        "zero": plain * 0,
        "some zero": one_zero,
        "all the same": np.ones_like(plain),
        "opposite": signs * np.ones_like(plain),
        "axes": np.eye(6)[np.arange(config.rows) % 6],
        "long": plain * 1e4,
        "longest": plain * 1e37,
        "short": plain * 1e-30,
    }


@pytest.mark.parametrize("case", degenerate(settings()))
@pytest.mark.parametrize("mining", ["hardest", "top", "random"])
@pytest.mark.parametrize("distance", ["kl", "js", "emd"])
def test_finite_for_any_finite_batch_gamma_and_bins(distance, mining, case):
    for gamma, bins in itertools.product((1e-3, 50.0, 1e5), (2, 100)):
        config = settings(2, distance=distance, neg_mining=mining, gamma=gamma, bins=bins)
        value, terms, gradient = eager(degenerate(config)[case], config)
        assert math.isfinite(value)
        assert all(map(math.isfinite, terms.values()))
        assert np.isfinite(gradient).all()


def test_zero_embeddings_get_no_gradient_and_cosine_zero():
    config = settings()
    x = embeddings(config)
    x[1] = 0
    _, terms, gradient = eager(x, config)
    assert not gradient[1].any()
    assert terms["ddl"] == pytest.approx(reference.ddl(x, config)["ddl"], rel=1e-4)


def test_smallest_batch():
    config = settings(b=2, bins=2)
    x = embeddings(config)
    assert eager(x, config)[1] == pytest.approx(reference.ddl(x, config), rel=1e-4, abs=1e-5)


def test_hardest_of_equally_hard_pulls_one_of_them():
    config = settings(b=3, lambda_pos=0, lambda_neg=0, lambda_order=1.0)
    x = embeddings(config, dim=3)
    # Single 0 is equally near to 1 and 2, which are nearer to each other.
    x[6:9] = [[1, 0, 0], [1, 1, 0.5], [1, 1, -0.5]]
    gradient = eager(x, config)[2]
    expected = reference.ddl_gradient(x, config)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)
    assert gradient[6, 2] != 0


@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("mining", ["hardest", "top", "random"])
def test_one_bad_number_anywhere_shows_in_the_loss(mining, bad):
    config = settings(neg_mining=mining)
    for row in range(config.rows):
        x = embeddings(config)
        x[row, 2] = bad
        value, terms, _ = eager(x, config)
        assert math.isnan(value), row
        assert math.isnan(terms["ddl"])
        distribution = config.names[row // 12]
        part = "pos" if row % 12 < 8 else "neg"
        assert math.isnan(terms[f"mean_{part}_{distribution}"])


# Teacher, types, shapes


@pytest.mark.parametrize("distance", ["kl", "js", "emd"])
def test_a_detached_teacher_moves_by_the_order_term_alone(distance):
    config = settings(2, distance=distance, detach_teacher=True)
    x = embeddings(config)
    detached = eager(x, config)
    attached = eager(x, dataclasses.replace(config, detach_teacher=False))
    order_only = eager(x, dataclasses.replace(config, lambda_pos=0, lambda_neg=0))
    assert detached[0] == attached[0]
    np.testing.assert_allclose(detached[2][:12], order_only[2][:12], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(detached[2][12:], attached[2][12:], rtol=1e-5, atol=1e-7)
    assert np.abs(attached[2][:12] - order_only[2][:12]).max() > 1e-4


@pytest.mark.parametrize("mining", ["hardest", "top", "random"])
def test_float16_embeddings_are_computed_in_float32(mining):
    config = settings(2, neg_mining=mining, bins=100)
    x = (embeddings(config) * 30).astype(np.float16)
    value, terms, gradient = eager(x, config, dtype="float16")
    assert gradient.dtype == np.float16
    assert terms == pytest.approx(reference.ddl(x.astype(np.float64), config), rel=1e-4, abs=1e-4)
    by_hand = reference.ddl_gradient(x.astype(np.float64), config)
    np.testing.assert_allclose(gradient, by_hand, rtol=2e-3, atol=1e-6)
    assert value == pytest.approx(terms["ddl"])


def test_a_batch_of_another_size_is_refused():
    config = settings(b=4, K=1)
    # 20 rows of 6 are 24 rows of 5 to a careless reshape.
    with pytest.raises(mx.MXNetError, match="20"):
        ddl_terms(mx.nd, mx.nd.ones((20, 6)), config).loss.wait_to_read()


def test_singles_are_the_last_third_of_each_distribution():
    config = settings(2, b=2)
    label = mx.nd.arange(config.rows)
    assert singles(mx.nd, label, config).asnumpy().tolist() == [4, 5, 10, 11, 16, 17]
    x = mx.nd.stack(label, label + 100, axis=1)
    assert singles(mx.nd, x, config).asnumpy()[:, 1].tolist() == [104, 105, 110, 111, 116, 117]


def test_unit_rows_have_length_one_or_zero():
    x = np.array([[3, 4], [3e37, 4e37], [3e-11, 4e-11], [0, 0], [1e-30, 0], [0, -2]])
    expected = [[0.6, 0.8], [0.6, 0.8], [0.6, 0.8], [0, 0], [0, 0], [0, -1]]
    np.testing.assert_allclose(unit_rows(mx.nd, mx.nd.array(x)).asnumpy(), expected, rtol=1e-6)
