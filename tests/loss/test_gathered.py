"""The loss over the embeddings of several devices: layout, scopes, gradients, contexts, user losses."""

import dataclasses

import numpy as np
import pytest

from ddl_plugin import registry
from ddl_plugin.errors import UserError
from ddl_plugin.loss.gathered import GatheredLoss
from ddl_plugin.loss.reference import ddl, ddl_gradient
from ddl_plugin.loss.scope import together
from ddl_plugin.loss.symbol import training_symbol
from ddl_plugin.loss.terms import term_names
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.settings import DDLSettings

DEVICES, DIM = 3, 5
SETTINGS = DDLSettings(b=2, hard=("abs(yaw) > 45", {"size": 14}), bins=20)
GLOBAL = dataclasses.replace(SETTINGS, scope="global")
ROWS = SETTINGS.rows


def pooled_rows():
    """Row of the gathered batch for each row of the pooled one, by plain loops."""
    order = []
    for k in range(SETTINGS.distributions):
        for part in range(3):
            for device in range(DEVICES):
                for i in range(SETTINGS.b):
                    order.append(device * ROWS + 3 * SETTINGS.b * k + part * SETTINGS.b + i)
    return order


def embeddings(seed=0):
    return np.random.default_rng(seed).normal(size=(DEVICES * ROWS, DIM)).astype(np.float32) + 0.3


def gathered(settings, **changes):
    given = {"devices": DEVICES, "emb_size": DIM, "context": mx.cpu(), **changes}
    return GatheredLoss("ddl", settings, {}, **given)


def expected(x, settings):
    """Value of the loss and gradient in float64, by scope."""
    if settings.scope == "global":
        pooled = dataclasses.replace(settings, b=DEVICES * settings.b, scope="device")
        order = pooled_rows()
        gradient = np.empty(x.shape)
        gradient[order] = ddl_gradient(x[order], pooled)
        return ddl(x[order], pooled), gradient
    blocks = x.reshape(DEVICES, ROWS, DIM)
    terms = [ddl(block, settings) for block in blocks]
    means = {name: np.mean([t[name] for t in terms]) for name in terms[0]}
    return means, np.concatenate([ddl_gradient(block, settings) for block in blocks]) / DEVICES


@pytest.mark.parametrize("F", [mx.nd, mx.sym])
def test_blocks_of_devices_become_one_block(F):
    rows = np.arange(DEVICES * ROWS * 2, dtype=np.float32).reshape(-1, 2)
    if F is mx.nd:
        pooled = together(mx.nd, mx.nd.array(rows), SETTINGS, DEVICES)
    else:
        pooled = together(mx.sym, mx.sym.Variable("x"), SETTINGS, DEVICES).eval(x=mx.nd.array(rows))[0]
    assert np.array_equal(pooled.asnumpy(), rows[pooled_rows()])


@pytest.mark.parametrize("mining", ["hardest", "random"])
@pytest.mark.parametrize("settings", [SETTINGS, GLOBAL], ids=["device", "global"])
def test_value_and_gradient_are_those_of_the_reference(settings, mining):
    settings = dataclasses.replace(settings, neg_mining=mining)
    x = embeddings()
    loss = gathered(settings)
    parts = [mx.nd.array(block) for block in x.reshape(DEVICES, ROWS, DIM)]
    gradients = np.concatenate([g.asnumpy() for g in loss.gradients(parts, factor=7.0)])
    terms, gradient = expected(x, settings)
    assert gradients == pytest.approx(7 * gradient, rel=1e-4, abs=2e-5)
    assert loss.terms() == pytest.approx(terms, rel=1e-4, abs=1e-5)
    assert loss.loss() == pytest.approx(terms["ddl"], rel=1e-5)
    assert loss.names == term_names(settings)


def test_the_scopes_differ():
    x = [mx.nd.array(embeddings())]
    device, everything = gathered(SETTINGS), gathered(GLOBAL)
    assert not np.allclose(device.gradients(x, 1.0)[0].asnumpy(), everything.gradients(x, 1.0)[0].asnumpy())


def test_one_array_with_all_devices_gives_the_same_as_one_a_device():
    x, loss = embeddings(), gathered(GLOBAL)
    whole = loss.gradients([mx.nd.array(x)], 1.0)[0].asnumpy()
    parts = loss.gradients([mx.nd.array(x[d * ROWS : (d + 1) * ROWS]) for d in range(DEVICES)], 1.0)
    assert np.array_equal(whole, np.concatenate([part.asnumpy() for part in parts]))


def test_gradients_come_in_the_embeddings_dtype_and_on_their_device():
    x = embeddings()
    halves = [
        mx.nd.array(x[d * ROWS : (d + 1) * ROWS], ctx=mx.cpu(d), dtype="float16") for d in range(DEVICES)
    ]
    loss = gathered(GLOBAL, context=mx.cpu(1))
    result = loss.gradients(halves, 1.0)
    assert [part.context for part in result] == [mx.cpu(d) for d in range(DEVICES)]
    assert {part.dtype for part in result} == {np.float16}
    exact = expected(np.concatenate([h.asnumpy().astype(np.float32) for h in halves]), GLOBAL)[1]
    assert np.concatenate([part.asnumpy() for part in result]) == pytest.approx(exact, rel=2e-3, abs=1e-4)


def test_scopes_are_one_on_one_device():
    x = embeddings()[:ROWS]
    results = [
        gathered(settings, devices=1).gradients([mx.nd.array(x)], 1.0)[0].asnumpy()
        for settings in (SETTINGS, GLOBAL)
    ]
    assert np.allclose(*results, rtol=0, atol=1e-7)


def test_a_wrong_number_of_rows_is_refused():
    with pytest.raises(ValueError, match=f"expected {DEVICES * ROWS} rows of embeddings, got {ROWS}"):
        gathered(GLOBAL).gradients([mx.nd.array(embeddings()[:ROWS])], 1.0)


def test_nan_in_one_devices_rows_reaches_the_loss():
    x = embeddings()
    x[ROWS] = np.nan
    loss = gathered(GLOBAL)
    loss.gradients([mx.nd.array(x)], 1.0)
    assert np.isnan(loss.loss())


def test_a_registered_loss_is_pooled_and_checked_too(monkeypatch):
    seen = []

    def sizes(F, embedding, settings, options):
        seen.append(settings.b)
        value = options["weight"] * F.mean(embedding).reshape((1,))
        return value, F.BlockGrad(F.reshape(value, shape=(1, 1))), ("mean",)

    monkeypatch.setattr(registry, "LOSSES", dict(registry.LOSSES))
    registry.register_loss("sizes", sizes, description="for this test", defaults={"weight": 2.0})
    loss = GatheredLoss("sizes", GLOBAL, {"weight": 3.0}, devices=DEVICES, emb_size=DIM, context=mx.cpu())
    x = embeddings()
    assert loss.gradients([mx.nd.array(x)], 1.0)[0].asnumpy() == pytest.approx(3 / x.size)
    assert loss.terms() == {"mean": pytest.approx(3 * x.mean(), rel=1e-4)}
    assert DEVICES * SETTINGS.b in seen

    registry.register_loss("wrong", lambda *_: 3, description="for this test")
    with pytest.raises(UserError, match=r"loss 'wrong': expected build\(\) to return"):
        GatheredLoss("wrong", GLOBAL, {}, devices=DEVICES, emb_size=DIM, context=mx.cpu())


def test_the_training_graph_leaves_the_loss_out_and_takes_its_gradient():
    data = mx.sym.Variable("data")
    embedding = mx.sym.FullyConnected(data, num_hidden=DIM, name="fc1")
    built = training_symbol(embedding, num_classes=4, emb_size=DIM, settings=GLOBAL, gathered=True)
    assert built.term_names == ()
    assert built.symbol.list_outputs() == ["embedding_output", "softmax_output", "ce_loss_output"]
    executor = built.symbol.simple_bind(mx.cpu(), data=(6, 3), softmax_label=(6,))
    rng = np.random.default_rng(0)
    for array in executor.arg_dict.values():
        array[:] = mx.nd.array(rng.normal(size=array.shape))
    executor.arg_dict["softmax_label"][:] = mx.nd.array([0, 1, 2, 3, 0, 1])
    executor.forward(is_train=True)
    zeros = [mx.nd.zeros(output.shape) for output in executor.outputs]
    executor.backward(zeros)
    alone = executor.grad_dict["fc1_weight"].asnumpy()
    head = rng.normal(size=(6, DIM)).astype(np.float32)
    executor.forward(is_train=True)
    executor.backward([mx.nd.array(head), *zeros[1:]])
    added = executor.grad_dict["fc1_weight"].asnumpy() - alone
    assert np.abs(alone).max() > 0.01
    assert added == pytest.approx(head.T @ executor.arg_dict["data"].asnumpy(), rel=1e-3, abs=1e-4)
