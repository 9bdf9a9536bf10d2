"""The loss as a torch module: against the NumPy reference and mx.nd, under autocast, compiled, without waiting."""

import dataclasses
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest

from ddl_plugin import registry
from ddl_plugin.errors import UserError
from ddl_plugin.loss import reference
from ddl_plugin.loss.terms import term_names
from ddl_plugin.pytorch.loss import DDLLoss
from ddl_plugin.pytorch.torch_setup import torch
from ddl_plugin.settings import DDLSettings

HARD = ("abs(yaw) > 45", "abs(yaw) > 60", {"size": (12, 16)})
GROUPS = (
    {"name": "pose", "easy": "abs(yaw) < 10", "hard": ["abs(yaw) > 45"]},
    {"name": "resolution", "hard": [{"size": 24}, {"size": 14}], "lambda_pos": 0.7, "lambda_order": 0.2},
)
LOSSES = ("ddl", "online_ddl", "histogram", "semihard_triplet", "ohem", "focal")


def config(K=1, b=4, **changes):
    hard = {} if "groups" in changes or "online" in changes else {"hard": HARD[:K]}
    return DDLSettings(**{"b": b, "bins": 40, **hard, **changes})


def embeddings(settings, seed=0, dim=6):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(settings.rows, dim)) + rng.normal(size=dim) * 0.5


def computed(x, settings, dtype=torch.float64, **given):
    """Loss, terms by name, gradient."""
    module = DDLLoss(settings, **given)
    x = torch.tensor(x, dtype=dtype, requires_grad=True)
    loss, terms = module(x)
    assert loss.shape == ()
    assert terms.shape == (len(module.term_names),)
    assert not terms.requires_grad
    loss.backward()
    named = dict(zip(module.term_names, terms.tolist(), strict=True))
    return loss.item(), named, x.grad.double().numpy()


def require_reference(x, settings):
    """Value and gradient in both precisions."""
    expected, by_hand = reference.ddl(x, settings), reference.ddl_gradient(x, settings)
    size = max(1.0, np.abs(by_hand).max())
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        loss, terms, gradient = computed(x, settings, dtype)
        assert list(terms) == list(expected)
        assert loss == pytest.approx(expected["ddl"], rel=tolerance, abs=tolerance)
        assert terms == pytest.approx(expected, rel=tolerance, abs=tolerance)
        np.testing.assert_allclose(gradient, by_hand, rtol=0, atol=tolerance * size)


@pytest.mark.parametrize("detach", [False, True], ids=["attached", "detached"])
@pytest.mark.parametrize("K", [1, 3])
@pytest.mark.parametrize("mining", ["hardest", "top", "random"])
@pytest.mark.parametrize("distance", ["kl", "js", "emd"])
def test_value_and_gradient_are_those_of_the_reference(distance, mining, K, detach):
    settings = config(K, distance=distance, neg_mining=mining, detach_teacher=detach)
    require_reference(embeddings(settings, K), settings)


@pytest.mark.parametrize(
    "changes",
    [
        {"groups": GROUPS},
        {"groups": GROUPS, "distance": "emd", "neg_mining": "top", "detach_teacher": True},
        {"hard": [{"size": 24}, {"size": 14}], "mixture": True, "distance": "js"},
        {"identity_rows": "singles"},
        {"gamma": 500.0, "bins": 100, "lambda_pos": 3.0, "lambda_neg": 0.0, "lambda_order": 0.1},
        {"b": 2, "bins": 2},
    ],
    ids=["groups", "groups emd top", "mixture", "singles", "weights", "smallest"],
)
def test_other_settings_are_those_of_the_reference_too(changes):
    settings = config(**changes)
    require_reference(embeddings(settings, 7), settings)


@pytest.mark.parametrize("distance", ["kl", "js", "emd"])
@pytest.mark.parametrize("empty", [(0,), (1,), (1, 2), (0, 1, 2)], ids=str)
def test_distributions_without_a_positive_pair_drop_out(empty, distance):
    settings = config(2, distance=distance)
    x, b = embeddings(settings), settings.b
    for k in empty:
        x[(3 * k + 1) * b : (3 * k + 2) * b] = -x[3 * k * b : (3 * k + 1) * b]
    require_reference(x, settings)
    _, terms, gradient = computed(x, settings)
    for k in empty:
        assert terms[f"outliers_{settings.names[k]}"] == b
        assert not gradient[3 * k * b : (3 * k + 2) * b].any()


@pytest.mark.parametrize("mining", ["hardest", "top", "random"])
def test_zero_rows_have_no_gradient_and_spoil_nothing(mining):
    settings = config(2, neg_mining=mining)
    x = embeddings(settings)
    x[[1, 9, settings.rows - 1]] = 0
    loss, terms, gradient = computed(x, settings)
    assert math.isfinite(loss)
    assert np.isfinite(gradient).all()
    assert not gradient[[1, 9, settings.rows - 1]].any()
    assert terms == pytest.approx(reference.ddl(x, settings), abs=1e-9)
    zero = computed(x * 0, settings)
    assert math.isfinite(zero[0])
    assert not zero[2].any()


def test_hardest_of_equally_hard_pulls_one_of_them():
    settings = config(b=3, lambda_pos=0, lambda_neg=0, lambda_order=1.0)
    x = embeddings(settings, dim=3)
    # Single 0 is equally near to 1 and 2, which are nearer to each other.
    x[6:9] = [[1, 0, 0], [1, 1, 0.5], [1, 1, -0.5]]
    gradient = computed(x, settings)[2]
    np.testing.assert_allclose(gradient, reference.ddl_gradient(x, settings), atol=1e-12)
    assert gradient[6, 2] != 0


@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("mining", ["hardest", "top", "random"])
def test_one_bad_number_anywhere_shows_in_the_loss(mining, bad):
    settings = config(neg_mining=mining)
    module = DDLLoss(settings)
    for row in range(settings.rows):
        x = embeddings(settings)
        x[row, 2] = bad
        loss, terms = module(torch.tensor(x))
        named = dict(zip(module.term_names, terms.tolist(), strict=True))
        assert math.isnan(loss.item()), row
        part = "pos" if row % 12 < 8 else "neg"
        assert math.isnan(named[f"mean_{part}_{settings.names[row // 12]}"])


@pytest.mark.parametrize("case", ["the same", "opposite", "long", "short"])
@pytest.mark.parametrize("distance", ["kl", "js", "emd"])
def test_finite_for_any_finite_batch_and_gamma(distance, case):
    plain = embeddings(config(2))
    signs = np.where(np.arange(len(plain)) % 2, 1.0, -1.0)[:, None]
    x = {
        "the same": np.ones_like(plain), "opposite": signs * np.ones_like(plain), "long": plain * 1e37,
        "short": plain * 1e-30,
    }[case]  # fmt: skip
    for gamma, mining in itertools.product((1e-3, 1e5), ("hardest", "top", "random")):
        settings = config(2, distance=distance, neg_mining=mining, gamma=gamma)
        loss, terms, gradient = computed(x, settings, torch.float32)
        assert math.isfinite(loss)
        assert all(map(math.isfinite, terms.values()))
        assert np.isfinite(gradient).all()


# -- every built-in loss in both frameworks ----------------------------------------------------------


def given_to(name, settings, seed=0):
    """Embedding, and what the loss needs."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 5, settings.rows)
    if settings.online is None:
        for k in range(settings.distributions):
            start = 3 * settings.b * k
            label[start + settings.b : start + 2 * settings.b] = label[start : start + settings.b]
    else:
        label = np.repeat(np.arange(settings.online.identities), settings.online.images)
    centres = rng.normal(size=(9, 6))
    needs = registry.get_loss(name).needs
    known = {"label": label.astype(np.float64), "losses": rng.permutation(settings.rows) / 7.0 + 0.1}
    return centres[label] + rng.normal(size=(settings.rows, 6)), {need: known[need] for need in needs}


def settings_of(name):
    online = {"online": {"identities": 4, "images": 6}} if name == "online_ddl" else {}
    return config(**({**online, "bins": 30} if online else {"K": 2, "bins": 30}))


def built_in_torch(name, options, dtype=torch.float32):
    """Loss, terms, gradients by the embedding and by the losses."""
    settings = settings_of(name)
    x, needed = given_to(name, settings)
    x = torch.tensor(x, dtype=dtype, requires_grad=True)
    needed = {
        need: torch.tensor(value, dtype=dtype, requires_grad=need == "losses")
        for need, value in needed.items()
    }
    loss, terms = DDLLoss(settings, loss=name, options=options)(x, **needed)
    loss.backward()
    losses = needed.get("losses")
    slopes = [None if t is None or t.grad is None else t.grad.double().numpy() for t in (x, losses)]
    return loss.item(), terms.double().numpy(), slopes


OPTIONS = {
    "histogram": {"weight": 0.5, "bins": 21},
    "semihard_triplet": {"alpha": 0.5},
    "ohem": {"keep": 0.3},
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_built_in_loss_is_one_in_both_frameworks(mx, name):
    settings, entry, options = settings_of(name), registry.get_loss(name), OPTIONS.get(name, {})
    x, needed = given_to(name, settings)
    x, needed = mx.nd.array(x), {need: mx.nd.array(value) for need, value in needed.items()}
    for array in (x, *needed.values()):
        array.attach_grad()
    with mx.autograd.record():
        expected, terms, names = entry.build(mx.nd, x, settings, entry.resolve(options), **needed)
    expected.backward()
    loss, found, (by_embedding, by_losses) = built_in_torch(name, options)
    assert loss == pytest.approx(expected.asscalar(), rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(found, terms.asnumpy()[0], rtol=1e-5, atol=1e-5)
    assert names == DDLLoss(settings, loss=name).term_names
    for gradient, array in ((by_embedding, x), (by_losses, needed.get("losses"))):
        if array is not None:
            gradient = 0 * array.asnumpy() if gradient is None else gradient
            np.testing.assert_allclose(gradient, array.grad.asnumpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_a_built_in_loss_has_the_gradient_of_its_finite_differences(name):
    settings, options = settings_of(name), OPTIONS.get(name, {})
    x, needed = given_to(name, settings)
    module = DDLLoss(settings, loss=name, options=options)
    by = "losses" if name in ("ohem", "focal") else "embedding"
    _, _, slopes = built_in_torch(name, options, torch.float64)
    gradient = slopes[by == "losses"]
    assert np.abs(gradient).max() > 1e-4
    given = {"embedding": x, **needed}
    for place in list(np.ndindex(given[by].shape))[::7]:
        ends = []
        for sign in (1, -1):
            moved = {name: value.copy() for name, value in given.items()}
            moved[by][place] += sign * 1e-7
            moved = {name: torch.tensor(value) for name, value in moved.items()}
            ends.append(module(moved.pop("embedding"), **moved)[0].item())
        assert gradient[place] == pytest.approx((ends[0] - ends[1]) / 2e-7, rel=1e-3, abs=1e-6)


# -- precision, compilation, waiting -----------------------------------------------------------------


def test_under_autocast_all_is_float32():
    settings = config(2, b=8, bins=100)
    x = torch.tensor(embeddings(settings) * 30, dtype=torch.bfloat16, requires_grad=True)
    module = DDLLoss(settings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, terms = module(x)
    assert (loss.dtype, terms.dtype) == (torch.float32, torch.float32)
    loss.backward()
    assert x.grad.dtype == torch.bfloat16
    exact = x.detach().double().numpy()
    assert terms.tolist() == pytest.approx(list(reference.ddl(exact, settings).values()), rel=1e-5, abs=1e-5)
    by_hand = reference.ddl_gradient(exact, settings)
    np.testing.assert_allclose(x.grad.double().numpy(), by_hand, rtol=1e-2, atol=1e-2 * np.abs(by_hand).max())


@pytest.mark.parametrize("name", LOSSES)
def test_it_compiles_into_one_graph_once(name):
    settings = settings_of(name)
    module = DDLLoss(settings, loss=name, options=OPTIONS.get(name, {}))
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(module, fullgraph=True, backend=backend)
    for seed in range(2):
        x, needed = given_to(name, settings, seed)
        needed = {need: torch.tensor(value, dtype=torch.float32) for need, value in needed.items()}
        by = "losses" if name in ("ohem", "focal") else "embedding"
        results = []
        for run in (module, compiled):
            given = {"embedding": torch.tensor(x, dtype=torch.float32), **needed}
            given[by] = given[by].clone().requires_grad_()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss, terms = run(given["embedding"], **{need: given[need] for need in needed})
            loss.backward()
            results.append((loss.item(), terms, given[by].grad))
        assert results[1][0] == pytest.approx(results[0][0], rel=1e-6)
        assert torch.equal(results[1][1], results[0][1])
        torch.testing.assert_close(results[1][2], results[0][2], rtol=1e-5, atol=1e-6)
    assert len(graphs) == 1


def test_groups_compile_too():
    settings = config(groups=GROUPS)
    module = DDLLoss(settings)
    x = torch.tensor(embeddings(settings))
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), module(x))


@pytest.mark.parametrize("mining", ["hardest", "top", "random"])
@pytest.mark.parametrize("name", LOSSES)
def test_nothing_in_a_step_asks_for_a_value(name, mining):
    """Fake tensors have no values: .item(), nonzero and a branch on one raise."""
    from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

    settings = settings_of(name)
    if name == "ddl":
        settings = dataclasses.replace(settings, neg_mining=mining)
    module = DDLLoss(settings, loss=name)
    with FakeTensorMode():
        with pytest.raises((RuntimeError, DynamicOutputShapeException)):
            torch.ones(3).nonzero()
        x = torch.ones(settings.rows, 6, requires_grad=True)
        known = {"label": torch.ones(settings.rows), "losses": torch.ones(settings.rows, requires_grad=True)}
        loss, terms = module(x, **{need: known[need] for need in module.needs})
        loss.backward()
        assert terms.shape == (len(module.term_names),)


# -- what it refuses, and users' losses --------------------------------------------------------------


def test_its_names_and_settings_can_be_read():
    settings = config(2, distance="emd")
    module = DDLLoss(settings)
    assert module.term_names == term_names(settings)
    assert (module.needs, module.replaces_identity) == ((), False)
    assert DDLLoss(settings, loss="focal").needs == ("losses",)
    assert DDLLoss(settings, loss="focal").replaces_identity
    assert not list(module.parameters())
    assert not module.state_dict()
    assert repr(module) == "DDLLoss(ddl, rows=36, scope=device)"


def test_scope_global_of_one_process_is_that_of_its_rows():
    settings = config(2)
    x = embeddings(settings)
    alone = computed(x, settings)
    everywhere = computed(x, dataclasses.replace(settings, scope="global"))
    assert everywhere[:2] == alone[:2]
    np.testing.assert_array_equal(everywhere[2], alone[2])


def test_the_losses_may_be_of_the_singles_alone():
    settings = config(identity_rows="singles")
    module, x = DDLLoss(settings, loss="focal"), torch.ones(settings.rows, 6)
    losses = torch.linspace(0.1, 2.0, settings.rows // 3)
    gamma = module.options["gamma"]
    expected = np.mean([(1 - math.exp(-v)) ** gamma * v for v in losses.tolist()])
    assert module(x, losses=losses)[0].item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(UserError, match="expected losses of 8 rows, got a tensor of shape"):
        module(x, losses=torch.ones(settings.rows))


def test_labels_may_be_whole_numbers():
    settings = settings_of("histogram")
    x, needed = given_to("histogram", settings)
    module = DDLLoss(settings, loss="histogram")
    found = [
        module(torch.tensor(x), label=torch.tensor(needed["label"]).to(t))[0]
        for t in (torch.int64, torch.float64)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: DDLLoss(config(), loss="dll"), "loss: expected one of ddl, .*got 'dll'; did you mean 'ddl'"),
        (
            lambda: DDLLoss(config(), loss="arcface"),
            r"loss 'arcface': expected a loss beside .*IdentityLoss",
        ),
        (
            lambda: DDLLoss(config(), loss="ohem", options={"kep": 1}),
            r"loss 'ohem': options: unknown key 'kep'; did you mean 'keep'",
        ),
        (
            lambda: DDLLoss(config(), loss="ohem", options={"keep": 2}),
            r"ohem\.keep: expected a part of the rows",
        ),
        (
            lambda: DDLLoss(config(scope="global"), loss="histogram"),
            r"loss 'histogram': expected a graph that has label of each row; set ddl\.scope = 'device'",
        ),
        (
            lambda: DDLLoss(config())(torch.ones(20, 6)),
            r"loss 'ddl': expected an embedding of shape \(24, D\), which is 3b\(K\+1\), got \(20, 6\)",
        ),
        (lambda: DDLLoss(config())(torch.ones(24)), r"expected an embedding of shape \(24, D\).*got \(24,\)"),
        (
            lambda: DDLLoss(config(), loss="focal")(torch.ones(24, 6)),
            "loss 'focal': expected losses of each row, got none",
        ),
        (
            lambda: DDLLoss(config(), loss="focal")(torch.ones(24, 6), losses=torch.ones(8)),
            r"loss 'focal': expected losses of 24 rows, got a tensor of shape \(8,\)",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.fixture
def own_losses(monkeypatch):
    monkeypatch.setattr(registry, "LOSSES", dict(registry.LOSSES))


def test_a_users_loss_trains(own_losses):
    def spread(F, embedding, settings, options, *, label):
        assert F.Cast(embedding, dtype="float32").tensor is embedding.tensor
        far = 1 - (embedding < options["above"])
        value = (far * embedding.square()).mean()
        terms = F.stack(value, F.mean(label), axis=1)
        return value, F.BlockGrad(terms), ["spread", "label"]

    registry.register_loss("spread", spread, description="a test", defaults={"above": 0.0}, needs=("label",))
    settings = config()
    module = DDLLoss(settings, loss="spread", options={"above": 0.2})
    assert module.term_names == ("spread", "label")
    x = torch.tensor(embeddings(settings), requires_grad=True)
    label = torch.arange(settings.rows)
    loss, terms = torch.compile(module, fullgraph=True, backend="eager")(x, label=label)
    loss.backward()
    values = x.detach().numpy()
    assert loss.item() == pytest.approx(np.where(values >= 0.2, values**2, 0).mean())
    assert terms.tolist() == pytest.approx([loss.item(), label.double().mean().item()])
    expected = np.where(values >= 0.2, 2 * values, 0) / values.size
    np.testing.assert_allclose(x.grad.numpy(), expected, atol=1e-12)


def test_the_documents_loss_trains(own_losses):
    document = Path(__file__).parents[2] / "docs" / "LOSS.md"
    exec(re.search(r"```python\n(.*?)```", document.read_text(), flags=re.S)[1], {})
    settings = config()
    x = torch.tensor(embeddings(settings), requires_grad=True)
    loss, terms = DDLLoss(settings, loss="reverse", options={"weight": 0.5})(x)
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * terms.item())
    assert 0 < terms.item() < 1
    assert x.grad.any()


@pytest.mark.parametrize(
    "build, message",
    [
        (
            lambda F, x, settings, options: F.Convolution(x),
            r"loss 'mine': build\(\) raised AttributeError: F\.Convolution is not among the operators .*\.py, line \d+\)$",
        ),
        (
            lambda F, x, settings, options: x.shape,
            r"loss 'mine': build\(\) raised AttributeError: F\.shape is not among",
        ),
        (
            lambda F, x, settings, options: 3,
            r"loss 'mine': expected build\(\) to return .* two Arrays, got int",
        ),
        (
            lambda F, x, settings, options: (x.tensor.sum(), x, ("a",)),
            r"loss 'mine': expected build\(\) to return .* two Arrays",
        ),
        (
            lambda F, x, settings, options: (F.sum(x), F.ones((1, 2)), ("a",)),
            r"loss 'mine': expected terms of shape \(1, 1\), one for each of the names \('a',\), got \(1, 2\)",
        ),
        (
            lambda F, x, settings, options: (F.sum(x, axis=1), F.ones((1, 1)), ("a",)),
            r"loss 'mine': expected loss of shape \(1,\), got \(24,\)",
        ),
        (
            lambda F, x, settings, options: (F.sum(x), F.ones((1, 2)), ("a", "a")),
            "loss 'mine': expected distinct names",
        ),
        (
            lambda F, x, settings, options: F.sum(x) if x else x,
            r"loss 'mine': build\(\) raised TypeError: a loss may not branch",
        ),
        (
            lambda F, x, settings, options: F.dot(x, x),
            r"loss 'mine': build\(\) raised ValueError: dot: shapes \(24, 16\) and \(24, 16\)",
        ),
    ],
)
def test_a_users_loss_that_is_wrong_is_named_in_one_line(own_losses, build, message):
    registry.register_loss("mine", build, description="a test")
    with pytest.raises(UserError, match=message) as raised:
        DDLLoss(config(), loss="mine")
    assert "\n" not in str(raised.value)
