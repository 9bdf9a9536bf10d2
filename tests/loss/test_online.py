"""Online DDL: the selection on losses made by hand, values against plain loops, gradients, the refusals."""

import numpy as np
import pytest

from ddl_plugin.data.identity_sampler import IdentitySampler
from ddl_plugin.errors import UserError
from ddl_plugin.loss import reference
from ddl_plugin.loss.online import build, by_loss
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.settings import DDLSettings, OnlineSettings, RunSettings

P, N, DIM = 5, 6, 4
SETTINGS = DDLSettings(online={"identities": P, "images": N}, bins=30)


def batch(seed=0):
    """Embeddings of P identities with N images each, and losses that all differ."""
    rng = np.random.default_rng(seed)
    centres = np.repeat(rng.normal(size=(P, DIM)) * 2, N, axis=0)
    return centres + rng.normal(size=(P * N, DIM)), rng.permutation(P * N).astype(float)


def in_graph(x, losses, settings=SETTINGS):
    x, losses = mx.nd.array(x), mx.nd.array(losses)
    x.attach_grad(), losses.attach_grad()
    with mx.autograd.record():
        loss, terms, names = build(mx.nd, x, settings, {}, losses=losses)
    loss.backward()
    assert not losses.grad.asnumpy().any()
    named = dict(zip(names, terms.asnumpy()[0].tolist(), strict=True))
    return loss.asscalar(), named, x.grad.asnumpy()


def test_the_selection_on_losses_made_by_hand():
    settings = DDLSettings(online={"identities": 2, "images": 4})
    rows = np.arange(8.0).reshape(8, 1)
    losses = [0.3, 0.1, 0.4, 0.2, 9.0, 7.0, 6.0, 8.0]
    found = by_loss(mx.nd, mx.nd.array(rows), mx.nd.array(losses), settings).asnumpy()[..., 0]
    # The first half is easy, the second hard: per identity, however large another identity's losses are.
    np.testing.assert_array_equal(found, [[1, 3, 0, 2], [6, 5, 7, 4]])


def halves(losses):
    """Rows of the easy and of the hard images of each identity, from the text of the supplement."""
    found = []
    for p in range(P):
        rows = sorted(range(p * N, (p + 1) * N), key=lambda row: losses[row])
        found.append((rows[: N // 2], rows[N // 2 :]))
    return found


def naive_similarities(x, losses):
    """[(positives, negatives) of easy, of hard] by plain loops."""
    unit = [row / np.sqrt(row @ row) for row in x]
    result = []
    for half in range(2):
        rows = [both[half] for both in halves(losses)]
        positive = [float(unit[i] @ unit[j]) for own in rows for a, i in enumerate(own) for j in own[a + 1 :]]
        negative = [
            max(float(unit[i] @ unit[j]) for q, others in enumerate(rows) if q != p for j in others)
            for p, own in enumerate(rows)
            for i in own
        ]
        result.append((positive, negative))
    return result


def naive_loss(x, losses, settings=SETTINGS):
    made = [
        tuple(
            [reference._Similarity(s, 0, 0) for s in values if kind or s >= 0]
            for kind, values in enumerate(both)
        )
        for both in naive_similarities(x, losses)
    ]
    (p_pos, p_neg), (q_pos, q_neg) = made
    order = 0.0
    for i in (p_pos, q_pos):
        for j in (p_neg, q_neg):
            order -= reference._mean(i) - reference._mean(j)
    return (
        settings.lambda_pos * reference._distance(p_pos, q_pos, settings)
        + settings.lambda_neg * reference._distance(p_neg, q_neg, settings)
        + settings.lambda_order * order
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_that_of_plain_loops(seed):
    x, losses = batch(seed)
    loss, terms, _ = in_graph(x, losses)
    assert loss == pytest.approx(naive_loss(x, losses), rel=1e-4)
    for name, (positive, negative) in zip(("easy", "hard"), naive_similarities(x, losses), strict=True):
        kept = [s for s in positive if s >= 0]
        assert terms[f"mean_pos_{name}"] == pytest.approx(np.mean(kept), abs=1e-5)
        assert terms[f"mean_neg_{name}"] == pytest.approx(np.mean(negative), abs=1e-5)
        assert terms[f"outliers_{name}"] == len(positive) - len(kept)


def test_the_gradient_is_that_of_finite_differences():
    x, losses = batch(1)
    _, _, gradient = in_graph(x, losses)
    for place in np.ndindex(x.shape):
        ends = []
        for sign in (1, -1):
            moved = x.copy()
            moved[place] += sign * 1e-6
            ends.append(naive_loss(moved, losses))
        assert gradient[place] == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=2e-4)


def test_the_order_of_the_images_of_an_identity_does_not_matter():
    x, losses = batch(2)
    moved = np.concatenate([p * N + np.random.default_rng(p).permutation(N) for p in range(P)])
    assert in_graph(x[moved], losses[moved])[0] == pytest.approx(in_graph(x, losses)[0], rel=1e-5)


# -- the sampler -------------------------------------------------------------------------------------


def sampler(sizes, online=None, **options):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    labels = labels[np.random.default_rng(0).permutation(len(labels))]
    online = online or OnlineSettings(identities=3, images=4)
    return labels, IdentitySampler(labels, np.arange(len(labels)), online, **options)


def test_a_block_has_distinct_images_of_distinct_identities():
    labels, found = sampler([4, 5, 9, 4, 30, 6, 7], devices=2, seed=3)
    assert found.rows == 24
    for step in range(20):
        given = labels[found.batch(step).positions].reshape(2, 3, 4)
        assert (given == given[:, :, :1]).all()
        assert all(len(set(block[:, 0])) == 3 for block in given)
        blocks = found.batch(step).positions.reshape(2, 12)
        assert all(len(set(block)) == 12 for block in blocks)


def test_identities_are_drawn_equally_often_and_images_at_random():
    labels, found = sampler([8] * 6, seed=1)
    drawn = np.concatenate([found.batch(step).positions for step in range(100)])
    assert set(np.bincount(labels[drawn])) == {200}
    counts = np.bincount(drawn, minlength=48)
    assert counts.min() > 10  # 25 expected
    assert counts.max() < 45


def test_a_batch_is_a_function_of_seed_and_step():
    _, found = sampler([9] * 7, seed=5)
    late = found.batch(11).positions
    np.testing.assert_array_equal(sampler([9] * 7, seed=5)[1].batch(11).positions, late)
    assert (sampler([9] * 7, seed=6)[1].batch(11).positions != late).any()


def test_identities_with_few_images_are_refused_unless_they_may_repeat():
    with pytest.raises(
        UserError,
        match=r"ddl\.online: expected 4 images or more of every identity, got fewer of 2 of 5 \(identity 1 has 3\); "
        r"leave those out with prepare records --min-images 4, .* or set ddl\.online\.repeat=True",
    ):
        sampler([4, 3, 6, 1, 9])
    labels, found = sampler([4, 3, 6, 1, 9], OnlineSettings(identities=5, images=4, repeat=True))
    given = found.batch(0).positions.reshape(5, 4)
    by_identity = {int(labels[row[0]]): np.unique(row, return_counts=True)[1].tolist() for row in given}
    assert sorted(by_identity[1]) == [1, 1, 2]
    assert by_identity[3] == [4]
    with pytest.raises(UserError, match=r"ddl\.online\.identities: expected at most 5, .* got 6"):
        sampler([8] * 5, OnlineSettings(identities=6, images=4))


def test_a_spare_is_another_image_of_the_identity():
    labels, found = sampler([6, 4, 7, 1], OnlineSettings(identities=4, images=4, repeat=True))
    sampled = found.batch(0)
    rng = np.random.default_rng(0)
    for row, position in enumerate(sampled.positions):
        spare = found.spare(0, sampled, row, rng)
        size = (labels == labels[position]).sum()
        if size == 1:
            assert spare is None
            continue
        rows, positions = spare
        assert rows.tolist() == [row]
        assert labels[positions[0]] == labels[position]
        assert positions[0] != position
        if size > 4:
            assert positions[0] not in sampled.positions


# -- settings ----------------------------------------------------------------------------------------


def run(**changes):
    ddl = {"online": {"identities": 8, "images": 8}, **changes.pop("ddl", {})}
    return RunSettings(
        **{
            "dataset_path": "x", "pretrained": "x,0", "loss": "online_ddl", "sampler": "identities",
            "ddl": DDLSettings(**ddl), **changes,
        }
    )  # fmt: skip


def test_the_batch_of_online_ddl_is_its_identities_images():
    assert run().batch_rows == 64
    assert run().ddl.names == ("easy", "hard")
    assert (OnlineSettings().identities, OnlineSettings().images) == (64, 8)  # the supplement's
    assert run(loss="arcface").batch_rows == 64


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sampler": "pairs"}, r"sampler: expected 'identities', which draws for ddl\.online, got 'pairs'"),
        (
            {"loss": "ddl"},
            r"loss: expected 'online_ddl', or one that draws no pairs, with ddl\.online, got 'ddl'",
        ),
        ({"per_batch_size": 60}, r"per_batch_size: expected identities x images = 64 of ddl\.online, got 60"),
        (
            {"ddl": {"hard": "yaw > 4"}},
            r"ddl: expected one of hard, groups and online, got \['hard', 'online'\]",
        ),
        ({"ddl": {"scope": "global"}}, r"ddl\.scope: expected 'device' with ddl\.online, got 'global'"),
        ({"ddl": {"identity_rows": "singles"}}, r"ddl\.identity_rows: expected 'all' with ddl\.online"),
        (
            {"ddl": {"neg_mining": "random"}},
            r"ddl\.neg_mining: expected 'hardest' with ddl\.online, got 'random'",
        ),
        ({"ddl": {"online": {"images": 7}}}, r"ddl\.online\.images: expected an even number, got 7"),
        ({"ddl": {"online": {"imagse": 8}}}, r"ddl\.online: unknown key 'imagse'; did you mean 'images'"),
        ({"ddl": {"online": None, "hard": "yaw > 4"}}, r"ddl\.online: expected a dict such as"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        run(**changes)
