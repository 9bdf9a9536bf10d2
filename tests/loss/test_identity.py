"""Identity losses: equal to the host's formula, finite at its edges, gradients, presets, messages."""

import math

import numpy as np
import pytest

from ddl_plugin.errors import UserError
from ddl_plugin.loss.identity import IdentitySettings, logits, row_losses
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.settings import IDENTITY_LOSSES

CLASSES, DIM, ROWS = 7, 5, 6
MARGINS = [name for name in IDENTITY_LOSSES if name != "softmax"]


def batch(seed=0):
    rng = np.random.default_rng(seed)
    embedding = rng.normal(size=(ROWS, DIM)) * 3
    weight = rng.normal(size=(CLASSES, DIM))
    return embedding, rng.integers(0, CLASSES, ROWS), weight, rng.normal(size=CLASSES)


def eager_logits(embedding, label, weight, bias, settings):
    bias = None if settings.margin_softmax else mx.nd.array(bias)
    return logits(
        mx.nd, mx.nd.array(embedding), mx.nd.array(label), mx.nd.array(weight), bias,
        num_classes=len(weight), settings=settings,
    )  # fmt: skip


def naive_logits(embedding, label, weight, bias, settings):
    """s (cos(m1 theta + m2) - m3) for the true class, s cos(theta) for the others, one by one."""
    found = np.zeros((len(embedding), len(weight)))
    for i, x in enumerate(embedding):
        for c, w in enumerate(weight):
            if settings.name == "softmax":
                found[i, c] = x @ w + bias[c]
                continue
            cosine = x @ w / math.hypot(*x) / math.hypot(*w)
            if c == label[i]:
                cosine = math.cos(settings.m1 * math.acos(cosine) + settings.m2) - settings.m3
            found[i, c] = settings.s * cosine
    return found


def naive_cross_entropy(embedding, label, weight, bias, settings):
    total = 0.0
    for row, y in zip(naive_logits(embedding, label, weight, bias, settings), label, strict=True):
        top = max(row)
        total += top + math.log(sum(math.exp(v - top) for v in row)) - row[y]
    return total / len(label)


@pytest.mark.parametrize("name", IDENTITY_LOSSES)
def test_logits_equal_the_hosts_formula(name):
    settings = IdentitySettings.preset(name)
    given = batch()
    found = eager_logits(*given, settings).asnumpy()
    np.testing.assert_allclose(found, naive_logits(*given, settings), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("margins", [(0.9, 0.4, 0.15), (1.35, 0.0, 0.0), (1.0, 0.2, 0.3)], ids=str)
def test_any_margins_combine(margins):
    settings = IdentitySettings("combined", *margins, s=30.0)
    given = batch(1)
    found = eager_logits(*given, settings).asnumpy()
    np.testing.assert_allclose(found, naive_logits(*given, settings), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", IDENTITY_LOSSES)
def test_gradients_equal_finite_differences(name):
    settings = IdentitySettings.preset(name, **({} if name == "softmax" else {"s": 4.0}))
    embedding, label, weight, bias = batch(2)
    x, w = mx.nd.array(embedding), mx.nd.array(weight)
    x.attach_grad()
    w.attach_grad()
    y, offsets = mx.nd.array(label), mx.nd.array(bias) if name == "softmax" else None
    with mx.autograd.record():
        value = row_losses(mx.nd, logits(mx.nd, x, y, w, offsets, num_classes=7, settings=settings), y).mean()
    value.backward()
    assert value.shape == (1,)
    assert value.asscalar() == pytest.approx(naive_cross_entropy(*batch(2), settings), rel=1e-5)
    step = 1e-6
    for index in np.ndindex(ROWS, DIM):
        shift = np.zeros_like(embedding)
        shift[index] = step
        ends = [naive_cross_entropy(embedding + e, label, weight, bias, settings) for e in (shift, -shift)]
        assert x.grad.asnumpy()[index] == pytest.approx((ends[0] - ends[1]) / 2 / step, rel=1e-3, abs=1e-5)
    for index in np.ndindex(CLASSES, DIM):
        shift = np.zeros_like(weight)
        shift[index] = step
        ends = [naive_cross_entropy(embedding, label, weight + e, bias, settings) for e in (shift, -shift)]
        assert w.grad.asnumpy()[index] == pytest.approx((ends[0] - ends[1]) / 2 / step, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", MARGINS)
@pytest.mark.parametrize("direction", [1, -1, 0], ids=["on its class", "opposite", "zero"])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_finite_where_the_cosine_is_at_its_ends(name, direction, scale):
    weight = np.eye(CLASSES)[:, :CLASSES]
    x = mx.nd.array(direction * scale * weight[:3])
    w, y = mx.nd.array(weight), mx.nd.array([0, 1, 2])
    x.attach_grad()
    w.attach_grad()
    with mx.autograd.record():
        settings = IdentitySettings.preset(name)
        fc7 = logits(mx.nd, x, y, w, None, num_classes=CLASSES, settings=settings)
        value = row_losses(mx.nd, fc7, y).mean()
    value.backward()
    for array in (fc7, value, x.grad, w.grad):
        assert np.isfinite(array.asnumpy()).all()


def test_logit_on_its_own_class_is_that_of_the_margin():
    settings = IdentitySettings.preset("arcface")
    found = eager_logits(np.eye(3), [0, 1, 2], np.eye(3), None, settings).asnumpy()
    assert np.diag(found) == pytest.approx([64 * math.cos(0.5)] * 3, abs=0.1)
    assert found[0, 1] == pytest.approx(0, abs=1e-4)


def test_length_of_the_embedding_matters_to_softmax_alone():
    embedding, label, weight, bias = batch()
    for name in IDENTITY_LOSSES:
        settings = IdentitySettings.preset(name)
        once = eager_logits(embedding, label, weight, bias, settings).asnumpy()
        twice = eager_logits(2 * embedding, label, weight, bias, settings).asnumpy()
        assert np.allclose(once, twice, rtol=1e-4, atol=1e-3) == (name != "softmax")


def test_float16_embeddings_give_float32_logits():
    embedding, label, weight, bias = batch()
    settings = IdentitySettings.preset("arcface")
    half = mx.nd.array(embedding, dtype="float16")
    found = logits(
        mx.nd, half, mx.nd.array(label), mx.nd.array(weight), None, num_classes=CLASSES, settings=settings
    )
    assert found.dtype == np.float32
    expected = naive_logits(half.asnumpy().astype(float), label, weight, bias, settings)
    np.testing.assert_allclose(found.asnumpy(), expected, rtol=1e-4, atol=1e-3)


def test_cross_entropy_is_finite_where_a_probability_is_zero():
    value = row_losses(mx.nd, mx.nd.array([[0.0, 1000.0], [3.0, 3.0]]), mx.nd.array([0, 1])).mean()
    assert value.asnumpy() == pytest.approx([(1000 + math.log(2)) / 2])


def test_presets_are_the_hosts_table():
    for name, values in IDENTITY_LOSSES.items():
        preset = IdentitySettings.preset(name)
        assert preset.margin_softmax == (values is not None)
        if values is not None:
            assert (preset.m1, preset.m2, preset.m3, preset.s) == values
    changed = IdentitySettings.preset("arcface", m2=0.4, rows="singles")
    assert (changed.m1, changed.m2, changed.s, changed.rows) == (1.0, 0.4, 64.0, "singles")


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: IdentitySettings.preset("arcfase"),
            "identity: expected one of softmax.*'arcfase'.*'arcface'",
        ),
        (lambda: IdentitySettings(name="ArcFace"), "identity: expected one of"),
        (lambda: IdentitySettings(rows="single"), "identity_rows: .*'single'; did you mean 'singles'"),
        (lambda: IdentitySettings(s=0), "loss_s: expected a number > 0, got 0"),
        (lambda: IdentitySettings(m2=-0.5), "loss_m2: expected a number >= 0, got -0.5"),
        (lambda: IdentitySettings(m3="0.35"), "loss_m3: expected a number >= 0, got '0.35'"),
        (lambda: IdentitySettings(fc7_lr_mult=math.nan), "fc7_lr_mult: expected a number"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
