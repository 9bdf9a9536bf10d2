"""The identity losses as a torch module: plain loops, finite differences, mx's training graph, refusals."""

import dataclasses
import math

import numpy as np
import pytest

from ddl_plugin.errors import UserError
from ddl_plugin.loss.identity import IdentitySettings
from ddl_plugin.pytorch.identity import IdentityLoss
from ddl_plugin.pytorch.torch_setup import torch
from ddl_plugin.settings import IDENTITY_LOSSES, DDLSettings

CLASSES, DIM = 7, 5
DDL = DDLSettings(b=2, hard=("abs(yaw) > 45",))
ROWS = DDL.rows
SINGLES = [4, 5, 10, 11]
MARGINS = [name for name in IDENTITY_LOSSES if name != "softmax"]


def batch(seed=0):
    rng = np.random.default_rng(seed)
    weight, bias = rng.normal(size=(CLASSES, DIM)), rng.normal(size=CLASSES)
    return rng.normal(size=(ROWS, DIM)) * 3, rng.integers(0, CLASSES, ROWS), weight, bias


def module_with(weight, bias, settings, dtype=torch.float64, ddl=None):
    module = IdentityLoss(CLASSES, DIM, settings, ddl).to(dtype)
    with torch.no_grad():
        module.weight.copy_(torch.tensor(weight))
        if module.bias is not None:
            module.bias.copy_(torch.tensor(bias))
    return module


def naive_losses(embedding, label, weight, bias, settings):
    """-log softmax of s (cos(m1 theta + m2) - m3), row by row."""
    found = []
    for x, y in zip(embedding, label, strict=True):
        logits = []
        for c, w in enumerate(weight):
            if settings.name == "softmax":
                logits.append(x @ w + bias[c])
                continue
            cosine = x @ w / math.hypot(*x) / math.hypot(*w)
            if c == y:
                cosine = math.cos(settings.m1 * math.acos(cosine) + settings.m2) - settings.m3
            logits.append(settings.s * cosine)
        top = max(logits)
        found.append(top + math.log(sum(math.exp(v - top) for v in logits)) - logits[y])
    return np.array(found)


@pytest.mark.parametrize("name", IDENTITY_LOSSES)
def test_losses_are_those_of_plain_loops(name):
    settings = IdentitySettings.preset(name)
    embedding, label, weight, bias = batch()
    expected = naive_losses(embedding, label, weight, bias, settings)
    for dtype, tolerance in ((torch.float64, 1e-7), (torch.float32, 1e-4)):  # L2Normalization adds 1e-10
        module = module_with(weight, bias, settings, dtype)
        losses = module(torch.tensor(embedding, dtype=dtype), torch.tensor(label))
        assert losses.dtype == dtype
        np.testing.assert_allclose(losses.detach().numpy(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("settings", [IdentitySettings("combined", 0.9, 0.4, 0.15, 30.0)])
def test_any_margins_combine(settings):
    embedding, label, weight, bias = batch(1)
    losses = module_with(weight, bias, settings)(torch.tensor(embedding), torch.tensor(label))
    np.testing.assert_allclose(
        losses.detach().numpy(), naive_losses(embedding, label, weight, bias, settings), rtol=1e-7
    )


@pytest.mark.parametrize("name", IDENTITY_LOSSES)
def test_gradients_are_those_of_finite_differences(name):
    settings = IdentitySettings.preset(name, **({} if name == "softmax" else {"s": 4.0}))
    embedding, label, weight, bias = batch(2)
    module, x = module_with(weight, bias, settings), torch.tensor(embedding, requires_grad=True)
    module(x, torch.tensor(label)).mean().backward()
    given = {"embedding": embedding, "weight": weight, "bias": bias}
    found = {"embedding": x.grad, "weight": module.weight.grad}
    if module.bias is not None:
        found["bias"] = module.bias.grad
    for key, gradient in found.items():
        for place in np.ndindex(given[key].shape):
            ends = []
            for sign in (1, -1):
                moved = {name: value.copy() for name, value in given.items()}
                moved[key][place] += sign * 1e-6
                e, w, b = moved.values()
                ends.append(naive_losses(e, label, w, b, settings).mean())
            assert gradient[place].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("rows", ["all", "singles"])
@pytest.mark.parametrize("name", IDENTITY_LOSSES)
def test_it_is_the_identity_part_of_mxnets_training_graph(mx, name, rows):
    from ddl_plugin.loss.symbol import training_symbol

    settings = IdentitySettings.preset(name, rows=rows, fc7_lr_mult=3.0)
    embedding, label, weight, bias = batch(3)
    built = training_symbol(
        mx.sym.Variable("data"), num_classes=CLASSES, emb_size=DIM, loss=name, settings=DDL, identity=settings
    ).symbol
    executor = built.simple_bind(mx.cpu(), data=(ROWS, DIM), softmax_label=(ROWS,))
    known = {"data": embedding, "softmax_label": label, "fc7_weight": weight, "fc7_bias": bias}
    known = {key: mx.nd.array(value) for key, value in known.items() if key in executor.arg_dict}
    outputs = dict(zip(built.list_outputs(), executor.forward(is_train=True, **known), strict=True))
    executor.backward()

    module = module_with(weight, bias, settings, torch.float32, DDL)
    x = torch.tensor(embedding, dtype=torch.float32, requires_grad=True)
    losses = module(x, torch.tensor(label))
    losses.mean().backward()
    assert losses.shape == (ROWS if rows == "all" else len(SINGLES),)
    seen = range(ROWS) if rows == "all" else SINGLES
    p = outputs["softmax_output"].asnumpy()[range(len(seen)), label[list(seen)]]
    np.testing.assert_allclose(np.exp(-losses.detach().numpy()), p, rtol=1e-3, atol=1e-30)
    assert losses.mean().item() == pytest.approx(outputs["ce_loss_output"].asscalar(), rel=1e-5)
    gradients = {"data": x.grad, "fc7_weight": module.weight.grad}
    if module.bias is not None:
        gradients["fc7_bias"] = module.bias.grad
    assert set(executor.grad_dict) - {"softmax_label"} == set(gradients)
    for key, gradient in gradients.items():
        np.testing.assert_allclose(gradient.numpy(), executor.grad_dict[key].asnumpy(), rtol=1e-4, atol=1e-5)
    attributes = built.attr_dict()
    for key, (lr, wd) in module.multipliers().items():
        assert (lr, wd) == tuple(float(attributes[f"fc7_{key}"][f"__{of}_mult__"]) for of in ("lr", "wd"))


@pytest.mark.parametrize("name", MARGINS)
@pytest.mark.parametrize("direction", [1, -1, 0], ids=["on its class", "opposite", "zero"])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_finite_where_the_cosine_is_at_its_ends(name, direction, scale):
    weight = np.eye(CLASSES)[:, :DIM]
    module = module_with(weight, None, IdentitySettings.preset(name), torch.float32)
    x = torch.tensor(direction * scale * weight[:3], dtype=torch.float32, requires_grad=True)
    losses = module(x, torch.arange(3))
    losses.mean().backward()
    for tensor in (losses, x.grad, module.weight.grad):
        assert tensor.isfinite().all()


def test_under_autocast_all_is_float32():
    embedding, label, weight, bias = batch(4)
    for name in ("arcface", "softmax"):
        module = module_with(weight, bias, IdentitySettings.preset(name), torch.float32)
        x = torch.tensor(embedding, dtype=torch.bfloat16, requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = module(x, torch.tensor(label))
        losses.mean().backward()
        assert losses.dtype == torch.float32
        assert x.grad.dtype == torch.bfloat16
        exact = naive_losses(x.detach().double().numpy(), label, weight, bias, module.settings)
        np.testing.assert_allclose(losses.detach().numpy(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["arcface", "softmax"])
def test_it_compiles_and_asks_for_no_value(name):
    from torch._subclasses.fake_tensor import FakeTensorMode

    embedding, label, weight, bias = batch(5)
    settings = IdentitySettings.preset(name, rows="singles")
    module = module_with(weight, bias, settings, torch.float32, DDL)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.tensor(embedding, dtype=torch.float32)
    torch.testing.assert_close(compiled(x, torch.tensor(label)), module(x, torch.tensor(label)))
    with FakeTensorMode():
        fake = IdentityLoss(CLASSES, DIM, settings, DDL)
        losses = fake(torch.ones(ROWS, DIM, requires_grad=True), torch.zeros(ROWS, dtype=torch.int64))
        losses.mean().backward()


def test_labels_beyond_float32_keep_their_value():
    """2^24 + 1 is no float32: a class number must not pass through one."""
    module = module_with(*batch()[2:], IdentitySettings.preset("arcface"), torch.float32)
    x = torch.ones(1, DIM)
    far = module(x, torch.tensor([2**24 + 1]))
    assert far.isfinite().all()  # outside: the nearest class

    from ddl_plugin.pytorch.array import Array
    from ddl_plugin.pytorch.functions import Functions

    F = Functions.like(x)
    picked = F.pick(Array(F, torch.arange(2**24 + 3).reshape(1, -1)), Array(F, torch.tensor([2**24 + 1])))
    assert picked.tensor.tolist() == [2**24 + 1]


def test_the_parameters_are_the_hosts():
    torch.manual_seed(0)
    module = IdentityLoss(400, 64, IdentitySettings.preset("arcface"))
    assert [name for name, _ in module.named_parameters()] == ["weight"]
    assert module.bias is None
    assert module.weight.shape == (400, 64)
    assert module.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert abs(module.weight.mean().item()) < 1e-3
    softmax = IdentityLoss(4, 3, IdentitySettings.preset("softmax", fc7_lr_mult=2.0))
    assert softmax.bias.tolist() == [0, 0, 0, 0]
    assert softmax.multipliers() == {"weight": (2.0, 1.0), "bias": (4.0, 0.0)}
    assert repr(softmax) == "IdentityLoss(softmax, 4 classes, rows=all)"


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda s: IdentityLoss(0, 5, s), "num_classes: expected a whole number >= 1, got 0"),
        (lambda s: IdentityLoss(3, 0, s), "emb_size: expected a whole number >= 1, got 0"),
        (
            lambda s: IdentityLoss(3, 5, dataclasses.replace(s, rows="singles")),
            r"identity_rows 'singles': expected settings of the batches \(config\.ddl\), got none",
        ),
        (
            lambda s: IdentityLoss(3, 5, s)(torch.ones(4, 6), torch.zeros(4)),
            r"identity: expected embeddings \(n, 5\) and labels \(n,\), got \(4, 6\) and \(4,\)",
        ),
        (
            lambda s: IdentityLoss(3, 5, s)(torch.ones(4, 5), torch.zeros(3)),
            r"identity: expected embeddings \(n, 5\) and labels \(n,\), got \(4, 5\) and \(3,\)",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make(IdentitySettings.preset("arcface"))
