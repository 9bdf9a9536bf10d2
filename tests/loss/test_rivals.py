"""The losses that the paper compares with: against plain loops, finite differences and what their papers say."""

import dataclasses
import math

import numpy as np
import pytest

from ddl_plugin.errors import UserError
from ddl_plugin.loss.rivals.histogram import histogram_loss, linear_histogram
from ddl_plugin.loss.rivals.semihard_triplet import triplet_loss
from ddl_plugin.loss.symbol import training_symbol
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.registry import get_loss, register_loss
from ddl_plugin.settings import DDLSettings, RunSettings
from ddl_plugin.training.graph import gathered_loss

SETTINGS = DDLSettings(b=4, hard=("abs(yaw) > 45", {"size": 14}))
B, K = SETTINGS.b, SETTINGS.distributions - 1
DIM = 5


def batch(seed=0):
    """Embeddings with a common part and their identities: pairs share theirs, identities come back."""
    rng = np.random.default_rng(seed)
    label = np.empty(SETTINGS.rows, np.int64)
    for k in range(K + 1):
        pairs, singles = rng.integers(0, 6, B), rng.permutation(6)[:B]
        label[3 * B * k : 3 * B * (k + 1)] = np.concatenate([pairs, pairs, singles])
    centres = rng.normal(size=(6, DIM))
    return centres[label] + rng.normal(size=(SETTINGS.rows, DIM)), label


def in_graph(name, embedding, label=None, losses=None, **options):
    """(loss, terms by name, gradient by the embedding, or by the losses where the loss is made of them)."""
    entry = get_loss(name)
    x = mx.nd.array(embedding if losses is None else losses, dtype="float32")
    x.attach_grad()
    given = {} if label is None else {"label": mx.nd.array(label)}
    with mx.autograd.record():
        if losses is not None:
            given["losses"] = x
        first = x if losses is None else mx.nd.zeros((SETTINGS.rows, DIM))
        loss, terms, names = entry.build(mx.nd, first, SETTINGS, entry.resolve(options), **given)
    loss.backward()
    named = dict(zip(names, terms.asnumpy()[0].tolist(), strict=True))
    return float(loss.asscalar()), named, x.grad.asnumpy()


def unit(rows):
    return [row / math.sqrt(sum(v * v for v in row)) for row in np.asarray(rows, np.float64)]


def differences(value, x, eps=1e-6):
    """d value / d x by central differences, float64."""
    gradient = np.zeros_like(x, dtype=np.float64)
    for place in np.ndindex(x.shape):
        ends = []
        for sign in (1, -1):
            moved = np.array(x, np.float64)
            moved[place] += sign * eps
            ends.append(value(moved))
        gradient[place] = (ends[0] - ends[1]) / (2 * eps)
    return gradient


# -- histogram loss ----------------------------------------------------------------------------------


def naive_histogram_loss(embedding, label, bins):
    """Ustinova and Lempitsky, Eq. 2-4: a loop a sum."""
    rows, step = unit(embedding), 2 / (bins - 1)
    nodes = [-1 + r * step for r in range(bins)]
    sums = {True: [0.0] * bins, False: [0.0] * bins}
    counts = {True: 0, False: 0}
    for i in range(len(rows)):
        for j in range(i + 1, len(rows)):
            same = label[i] == label[j]
            counts[same] += 1
            for r, t in enumerate(nodes):
                sums[same][r] += max(0.0, 1 - abs(float(rows[i] @ rows[j]) - t) / step)
    positive, negative = ([v / max(counts[same], 1) for v in sums[same]] for same in (True, False))
    loss = 0.0
    for r in range(bins):
        loss += negative[r] * sum(positive[: r + 1])
    return loss


def quick_histogram_loss(embedding, label, bins):
    """`naive_histogram_loss` over arrays, for the hundreds of values that differences take."""
    rows = np.asarray(embedding, np.float64)
    rows = rows / np.sqrt((rows**2).sum(1, keepdims=True))
    first, second = np.triu_indices(len(rows), 1)
    nodes = np.linspace(-1, 1, bins)
    shares = np.abs((rows[first] * rows[second]).sum(1)[:, None] - nodes)
    shares = np.maximum(0, 1 - shares * (bins - 1) / 2)
    same = np.asarray(label)[first] == np.asarray(label)[second]
    positive, negative = (shares[of].sum(0) / max(of.sum(), 1) for of in (same, ~same))
    return float((negative * positive.cumsum()).sum())


@pytest.mark.parametrize("bins", [11, 100])
@pytest.mark.parametrize("seed", range(3))
def test_the_histogram_loss_is_that_of_plain_loops(seed, bins):
    x, label = batch(seed)
    loss, terms, gradient = in_graph("histogram", x, label, bins=bins)
    naive = naive_histogram_loss(x, label, bins)
    assert loss == pytest.approx(naive, abs=2e-5)
    assert terms["histogram"] == pytest.approx(loss)
    assert quick_histogram_loss(x, label, bins) == pytest.approx(naive, abs=1e-12)
    expected = differences(lambda moved: quick_histogram_loss(moved, label, bins), x, 1e-7)
    np.testing.assert_allclose(gradient, expected, atol=2e-3 if bins == 100 else 2e-4)


def test_the_histogram_loss_is_the_probability_of_a_negative_above_a_positive():
    """Eq. 1: over finely binned similarities it is the share of wrongly ordered pairs of pairs."""
    x, label = batch(3)
    rows = unit(x)
    similar = {True: [], False: []}
    for i in range(len(rows)):
        for j in range(i):
            similar[label[i] == label[j]].append(float(rows[i] @ rows[j]))
    wrong = np.mean([n > p for p in similar[True] for n in similar[False]])
    loss, terms, _ = in_graph("histogram", x, label, bins=4001)
    assert loss == pytest.approx(wrong, abs=2e-3)
    assert terms["mean_pos"] == pytest.approx(np.mean(similar[True]), abs=1e-5)
    assert terms["mean_neg"] == pytest.approx(np.mean(similar[False]), abs=1e-5)


def test_the_histogram_loss_of_separate_identities_is_zero_and_of_equal_ones_one():
    label = mx.nd.array([0, 0, 1, 1])
    apart = mx.nd.array([[1, 0], [1, 0], [0, 1], [0, 1]])
    assert histogram_loss(mx.nd, apart, label, 21)[0].asscalar() == 0
    # All similarities alike: Eq. 4 counts the node itself as wrongly ordered.
    alike = mx.nd.ones((4, 2))
    assert histogram_loss(mx.nd, alike, label, 21)[0].asscalar() == pytest.approx(1, abs=1e-5)


def test_a_linear_histogram_shares_a_similarity_between_its_two_nodes():
    found = linear_histogram(mx.nd, mx.nd.array([-1, 0.125, 1, 0.7]), mx.nd.array([1, 1, 1, 0]), 9).asnumpy()
    expected = np.zeros(9)
    expected[[0, 4, 5, 8]] = [1, 0.5, 0.5, 1]
    np.testing.assert_allclose(found, expected / 3, atol=1e-6)


def test_without_a_positive_pair_the_histogram_loss_is_zero_and_finite():
    x, _ = batch(0)
    loss, _, gradient = in_graph("histogram", x, np.arange(len(x)))
    assert loss == 0
    assert not gradient.any()


# -- triplets ----------------------------------------------------------------------------------------


def naive_triplets(embedding, label, alpha):
    """(mean violation, how many): of each positive pair the nearest semi-hard negative."""
    rows = unit(embedding)

    def squared(i, j):
        return float(sum((rows[i] - rows[j]) ** 2))

    violations = []
    for k in range(K + 1):
        for i in range(3 * B * k, 3 * B * k + B):
            near = squared(i, i + B)
            others = [squared(i, n) for n in range(len(rows)) if label[n] != label[i]]
            semi_hard = [far for far in others if near < far < near + alpha]
            if semi_hard:
                violations.append(near - min(semi_hard) + alpha)
    return (sum(violations) / len(violations) if violations else 0.0), len(violations)


@pytest.mark.parametrize("alpha", [0.05, 0.35, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_triplets_are_those_of_plain_loops(seed, alpha):
    x, label = batch(seed)
    loss, terms, gradient = in_graph("semihard_triplet", x, label, alpha=alpha)
    expected, count = naive_triplets(x, label, alpha)
    assert terms["triplets"] == count > 0
    assert loss == pytest.approx(expected, abs=1e-5)
    slopes = differences(lambda moved: naive_triplets(moved, label, alpha)[0], x)
    np.testing.assert_allclose(gradient, slopes, atol=2e-4)


def one_triplet(positive, negatives, alpha=0.2):
    """Loss and count for an anchor at 0 degrees, its positive and negatives at these angles."""

    def at(*degrees):
        return mx.nd.array([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])

    others = at(*negatives)
    loss, terms = triplet_loss(
        mx.nd, at(0), at(positive), mx.nd.array([0]), others, mx.nd.ones(len(negatives)), alpha
    )
    return loss.asscalar(), terms.asnumpy()[0, 1]


def test_the_semi_hard_band_is_the_papers():
    near = 2 - 2 * math.cos(math.radians(40))
    in_band = 2 - 2 * math.cos(math.radians(44))
    assert near < in_band < near + 0.2
    # Harder than the positive (30), within the margin behind it (44, 46), and beyond it (90).
    assert one_triplet(40, [30, 46, 44, 90]) == (pytest.approx(near - in_band + 0.2, abs=1e-6), 1)
    assert one_triplet(40, [30, 90]) == (0, 0)


# -- losses of the identity loss's rows --------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.01, 0.25, 1.0])
def test_ohem_trains_on_the_rows_of_the_largest_losses_alone(keep):
    losses = np.random.default_rng(0).permutation(SETTINGS.rows).astype(float)
    loss, terms, gradient = in_graph("ohem", None, losses=losses, keep=keep)
    count = max(1, round(keep * SETTINGS.rows))
    hardest = sorted(losses, reverse=True)[:count]
    assert loss == pytest.approx(sum(hardest) / count)
    assert terms["easiest_kept"] == hardest[-1]
    np.testing.assert_allclose(gradient, np.where(losses >= hardest[-1], 1 / count, 0))


@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2, 5])
def test_the_focal_loss_is_that_of_its_equation_with_its_gradient(gamma):
    p = np.random.default_rng(0).uniform(0.01, 0.99, SETTINGS.rows)

    def focal(losses):
        return sum(-((1 - math.exp(-loss)) ** gamma) * -loss for loss in losses) / len(losses)

    loss, terms, gradient = in_graph("focal", None, losses=-np.log(p), gamma=gamma)
    assert loss == pytest.approx(-np.mean((1 - p) ** gamma * np.log(p)), rel=1e-5)
    assert terms["mean_weight"] == pytest.approx(np.mean((1 - p) ** gamma), rel=1e-5)
    np.testing.assert_allclose(gradient, differences(focal, -np.log(p)), rtol=1e-3, atol=1e-6)


def test_the_focal_loss_weighs_easy_rows_as_its_paper_says():
    """Section 3.2: at gamma 2 a row with p = 0.9 counts 100 times less than in cross entropy, 0.968 1000 times."""
    for p, times in ((0.9, 100), (0.968, 1000)):
        loss, _, _ = in_graph("focal", None, losses=np.full(SETTINGS.rows, -math.log(p)))
        assert -math.log(p) / loss == pytest.approx(times, rel=0.03)


def test_certain_rows_give_a_finite_gradient():
    for gamma in (0, 0.5, 2):
        _, _, gradient = in_graph("focal", None, losses=np.zeros(SETTINGS.rows), gamma=gamma)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("histogram", {"bins": 1}, r"histogram\.bins: expected a whole number >= 2, got 1"),
        ("histogram", {"weight": 0}, r"histogram\.weight: expected a number > 0, got 0"),
        ("semihard_triplet", {"alpha": -1}, r"semihard_triplet\.alpha: expected a number > 0, got -1"),
        (
            "semihard_triplet",
            {"weight": "much"},
            r"semihard_triplet\.weight: expected a number > 0, got 'much'",
        ),
        ("ohem", {"keep": 0}, r"ohem\.keep: expected a part of the rows, > 0 and <= 1, got 0"),
        ("ohem", {"keep": 1.5}, r"ohem\.keep: .* got 1\.5"),
        ("focal", {"gamma": math.nan}, r"focal\.gamma: expected a number >= 0, got nan"),
    ],
)
def test_options_that_cannot_be_are_refused(name, options, message):
    x, label = batch()
    losses = np.ones(SETTINGS.rows) if "losses" in get_loss(name).needs else None
    with pytest.raises(UserError, match=message):
        in_graph(name, x, label if losses is None else None, losses, **options)


# -- in the training graph ---------------------------------------------------------------------------


def trained(loss, options=None, settings=SETTINGS):
    """(outputs, gradient of the data as the embedding, gradient of the classifier) of a training graph."""
    x, label = batch(1)
    built = training_symbol(
        mx.sym.Variable("data"),
        num_classes=6,
        emb_size=DIM,
        loss=loss,
        options=options,
        settings=settings,
    )
    executor = built.symbol.simple_bind(
        mx.cpu(), grad_req="write", data=x.shape, softmax_label=(SETTINGS.rows,)
    )
    weight = np.random.default_rng(2).normal(size=(6, DIM))
    outputs = executor.forward(
        is_train=True, data=mx.nd.array(x), softmax_label=mx.nd.array(label), fc7_weight=mx.nd.array(weight)
    )
    executor.backward()
    named = dict(zip(built.symbol.list_outputs(), [o.asnumpy() for o in outputs], strict=True))
    return named, executor.grad_dict["data"].asnumpy(), executor.grad_dict["fc7_weight"].asnumpy()


def test_a_loss_of_the_rows_losses_takes_the_place_of_the_identity_loss():
    whole = {"ohem": {"keep": 1.0}, "focal": {"gamma": 0.0}}
    plain, by_data, by_weight = trained("arcface")
    for loss, options in whole.items():
        outputs, data, weight = trained(loss, options)
        assert outputs[f"{loss}_loss_output"] == pytest.approx(outputs["ce_loss_output"], rel=1e-6)
        np.testing.assert_allclose(outputs["softmax_output"], plain["softmax_output"], atol=1e-6)
        np.testing.assert_allclose(data, by_data, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(weight, by_weight, rtol=1e-4, atol=1e-5)


def test_ohem_in_the_graph_moves_none_but_the_hardest_rows():
    outputs, data, _ = trained("ohem", {"keep": 0.25})
    assert (np.abs(data).sum(axis=1) > 0).sum() == round(0.25 * SETTINGS.rows)
    assert outputs["ohem_loss_output"] > outputs["ce_loss_output"]


@pytest.mark.parametrize("loss", ["histogram", "semihard_triplet"])
def test_a_loss_of_pairs_stands_beside_the_identity_loss(loss):
    x, label = batch(1)
    _, by_identity, classifier = trained("arcface")
    _, data, weight = trained(loss)
    _, _, own = in_graph(loss, x, label)
    np.testing.assert_allclose(data, by_identity + own, rtol=1e-3, atol=2e-5)
    np.testing.assert_allclose(weight, classifier, rtol=1e-5)


@pytest.mark.parametrize("loss", ["ohem", "focal"])
def test_the_singles_alone_may_be_what_the_identity_loss_sees(loss):
    outputs, data, _ = trained(loss, settings=dataclasses.replace(SETTINGS, identity_rows="singles"))
    assert np.isfinite(outputs[f"{loss}_loss_output"]).all()
    pairs = data.reshape(K + 1, 3, B, DIM)[:, :2]
    assert not pairs.any()


def test_what_a_loss_needs_is_of_one_devices_graph():
    settings = RunSettings(
        dataset_path="x", pretrained="x,0", loss="semihard_triplet", loss_options={"weight": 1.0, "alpha": 0.35},
        ddl=DDLSettings(b=2, hard="abs(yaw) > 45", scope="global"),
    )  # fmt: skip
    with pytest.raises(
        UserError,
        match=r"loss 'semihard_triplet': expected a graph that has label of each row; set ddl\.scope = 'device'",
    ):
        gathered_loss(settings, DIM, [mx.cpu(0)])


def test_a_registered_loss_may_need_what_the_built_in_ones_do(monkeypatch):
    from ddl_plugin import registry

    monkeypatch.setattr(registry, "LOSSES", dict(registry.LOSSES))

    def mine(F, embedding, settings, options, *, label, losses):
        return F.mean(losses), F.reshape(F.mean(label), shape=(1, 1)), ("mean_label",)

    register_loss("mine", mine, description="a test", needs=("label", "losses"), replaces_identity=True)
    outputs, _, _ = trained("mine")
    assert outputs["mine_terms_output"].item() == pytest.approx(np.mean(batch(1)[1]))
    with pytest.raises(
        UserError,
        match=r"loss 'other': needs: expected some of label, losses, got 'labels'; did you mean 'label'",
    ):
        register_loss("other", mine, description="a test", needs=("labels",))
