"""The training graph: outputs, free variables, gradients, devices, precision, user losses, messages."""

import numpy as np
import pytest

from ddl_plugin import registry
from ddl_plugin.errors import UserError
from ddl_plugin.loss.identity import IdentitySettings, logits, row_losses
from ddl_plugin.loss.symbol import training_symbol
from ddl_plugin.loss.terms import ddl_terms, singles, term_names
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.settings import IDENTITY_LOSSES, DDLSettings

CLASSES, DIM, INPUT = 9, 5, 4
SETTINGS = DDLSettings(b=3, hard=("abs(yaw) > 45", {"size": 14}), bins=20)


def backbone():
    """Not linear, so that a gradient that misses a row shows."""
    data = mx.sym.Variable("data")
    hidden = mx.sym.FullyConnected(data, num_hidden=6, name="hidden")
    return mx.sym.FullyConnected(mx.sym.tanh(hidden), num_hidden=DIM, name="fc1")


def build(**changes):
    return training_symbol(
        **{"embedding": backbone(), "num_classes": CLASSES, "emb_size": DIM, "settings": SETTINGS, **changes}
    )


def module(symbol, rows, devices=1, params=None, dtype=np.float32):
    found = mx.mod.Module(symbol, context=[mx.cpu(i) for i in range(devices)])
    data = mx.io.DataDesc("data", (rows * devices, INPUT), dtype)
    found.bind([data], [("softmax_label", (rows * devices,))])
    found.init_params(mx.init.Normal(0.5), arg_params=params, force_init=True)
    return found


def batch(rows, seed=0):
    rng = np.random.default_rng(seed)
    data = mx.nd.array(rng.normal(size=(rows, INPUT)) + 0.3)
    return mx.io.DataBatch([data], [mx.nd.array(rng.integers(0, CLASSES, rows))])


def step(found, given):
    """Outputs by name and gradients by parameter, summed over the devices as kvstore does."""
    found.forward_backward(given)
    outputs = dict(zip(found.output_names, found.get_outputs(), strict=True))
    group = found._exec_group
    sums = {
        name: sum(g.asnumpy() for g in grads)
        for name, grads in zip(group.param_names, group.grad_arrays, strict=True)
    }
    return {name: value.asnumpy() for name, value in outputs.items()}, sums


def expected_gradients(params, given, identity, settings):
    """The same two losses eagerly, without SoftmaxOutput, MakeLoss or Module."""
    arrays = {name: value.copy() for name, value in params.items()}
    for array in arrays.values():
        array.attach_grad()
    label = given.label[0]
    with mx.autograd.record():
        hidden = mx.nd.FullyConnected(
            given.data[0], arrays["hidden_weight"], arrays["hidden_bias"], num_hidden=6
        )
        embedding = mx.nd.FullyConnected(
            mx.nd.tanh(hidden), arrays["fc1_weight"], arrays["fc1_bias"], num_hidden=DIM
        )
        seen, labels = embedding, label
        if identity.rows == "singles":
            seen, labels = singles(mx.nd, embedding, settings), singles(mx.nd, label, settings)
        fc7 = logits(
            mx.nd, seen, labels, arrays["fc7_weight"], arrays.get("fc7_bias"),
            num_classes=CLASSES, settings=identity,
        )  # fmt: skip
        entropy = row_losses(mx.nd, fc7, labels).mean()
        total = entropy + ddl_terms(mx.nd, embedding, settings).loss
    total.backward()
    return entropy.asscalar(), {name: array.grad.asnumpy() for name, array in arrays.items()}


@pytest.mark.parametrize("rows", ["all", "singles"])
@pytest.mark.parametrize("name", IDENTITY_LOSSES)
def test_outputs_stand_in_the_hosts_order_with_documented_shapes(name, rows):
    built = build(identity=IdentitySettings.preset(name, rows=rows))
    assert built.term_names == term_names(SETTINGS)
    assert built.symbol.list_outputs() == [
        "embedding_output", "softmax_output", "ddl_loss_output", "ddl_terms_output", "ce_loss_output",
    ]  # fmt: skip
    seen = 27 if rows == "all" else 9
    shapes = built.symbol.infer_shape(data=(27, INPUT), softmax_label=(27,))[1]
    assert shapes == [(27, DIM), (seen, CLASSES), (1,), (1, len(built.term_names)), (1,)]


def test_an_identity_loss_alone_has_no_terms():
    built = build(loss="cosface", settings=None)
    assert built.term_names == ()
    assert built.symbol.list_outputs() == ["embedding_output", "softmax_output", "ce_loss_output"]


@pytest.mark.parametrize("name", IDENTITY_LOSSES)
def test_free_variables_are_data_label_and_parameters(name):
    symbol = build(identity=IdentitySettings.preset(name, fc7_lr_mult=10.0)).symbol
    own = set(symbol.list_arguments()) - set(backbone().list_arguments())
    bias = {"fc7_bias"} if name == "softmax" else set()
    assert own == {"softmax_label", "fc7_weight"} | bias
    attributes = symbol.attr_dict()
    assert float(attributes["fc7_weight"]["__lr_mult__"]) == 10
    assert float(attributes["fc7_weight"]["__wd_mult__"]) == 1
    if bias:
        assert float(attributes["fc7_bias"]["__lr_mult__"]) == 20
        assert float(attributes["fc7_bias"]["__wd_mult__"]) == 0


@pytest.mark.parametrize("rows", ["all", "singles"])
@pytest.mark.parametrize("name", ["arcface", "cosface", "softmax"])
def test_values_and_gradients_are_those_of_the_sum_of_both_losses(name, rows):
    identity = IdentitySettings.preset(name, rows=rows)
    found = module(build(identity=identity).symbol, 27)
    given = batch(27)
    outputs, gradients = step(found, given)
    params = found.get_params()[0]
    entropy, expected = expected_gradients(params, given, identity, SETTINGS)
    assert outputs["ce_loss_output"] == pytest.approx([entropy], rel=1e-4)
    np.testing.assert_allclose(outputs["softmax_output"].sum(axis=1), 1, rtol=1e-5)
    embedding = mx.nd.array(outputs["embedding_output"])
    loss, terms = ddl_terms(mx.nd, embedding, SETTINGS)
    assert outputs["ddl_loss_output"] == pytest.approx(loss.asnumpy(), rel=1e-5)
    np.testing.assert_allclose(outputs["ddl_terms_output"], terms.asnumpy(), rtol=1e-4, atol=1e-5)
    assert set(gradients) == set(expected)
    for key, gradient in gradients.items():
        np.testing.assert_allclose(gradient, expected[key], rtol=1e-3, atol=1e-4, err_msg=key)


@pytest.mark.parametrize("mining", ["hardest", "top", "random"])
def test_gradient_of_two_devices_is_the_mean_of_the_blocks(mining):
    settings = DDLSettings(b=3, hard=SETTINGS.hard, bins=20, neg_mining=mining)
    symbol = build(settings=settings).symbol
    one = module(symbol, 27)
    params = one.get_params()[0]
    both = batch(54)
    blocks = [
        step(one, mx.io.DataBatch([both.data[0][i : i + 27]], [both.label[0][i : i + 27]])) for i in (0, 27)
    ]
    outputs, gradients = step(module(symbol, 27, devices=2, params=params), both)
    for name, gradient in gradients.items():
        mean = (blocks[0][1][name] + blocks[1][1][name]) / 2
        # rescale_grad = 1 / devices
        np.testing.assert_allclose(gradient / 2, mean, rtol=1e-5, atol=1e-6, err_msg=name)
    for name, value in outputs.items():
        both_blocks = np.concatenate([blocks[0][0][name], blocks[1][0][name]])
        np.testing.assert_allclose(value, both_blocks, rtol=1e-5, atol=1e-6, err_msg=name)


def test_two_devices_step_as_one_that_saw_the_mean_gradient():
    symbol = build().symbol
    found = module(symbol, 27, devices=2)
    before = {name: value.asnumpy() for name, value in found.get_params()[0].items()}
    found.init_optimizer(
        kvstore="device",
        optimizer="sgd",
        optimizer_params={"learning_rate": 0.01, "rescale_grad": 1 / 2},
    )
    gradients = step(found, batch(54))[1]
    found.update()
    for name, value in found.get_params()[0].items():
        moved = before[name] - 0.01 * gradients[name] / 2
        np.testing.assert_allclose(value.asnumpy(), moved, rtol=1e-4, atol=1e-6, err_msg=name)


def test_with_zero_weights_gradients_are_those_of_the_identity_loss():
    weightless = DDLSettings(b=3, hard=SETTINGS.hard, bins=20, lambda_pos=0, lambda_neg=0, lambda_order=0)
    with_loss = module(build(settings=weightless).symbol, 27)
    params = with_loss.get_params()[0]
    alone = module(build(loss="arcface").symbol, 27, params=params)
    first, second = step(with_loss, batch(27))[1], step(alone, batch(27))[1]
    for name in second:
        np.testing.assert_allclose(first[name], second[name], rtol=1e-5, atol=1e-7, err_msg=name)


def test_singles_alone_move_the_classifier():
    symbol = build(loss="arcface", identity=IdentitySettings.preset("arcface", rows="singles")).symbol
    executor = symbol.simple_bind(mx.cpu(), data=(27, INPUT), softmax_label=(27,), grad_req="write")
    for array in executor.arg_arrays:
        array[:] = mx.nd.random.normal(shape=array.shape)
    executor.arg_dict["softmax_label"][:] = mx.nd.arange(27) % CLASSES
    executor.forward(is_train=True)
    executor.backward()
    moved = np.abs(executor.grad_dict["data"].asnumpy()).max(axis=1) > 0
    assert moved.reshape(3, 3, 3).all(axis=2).tolist() == [[False, False, True]] * 3


def test_a_float16_backbone_is_trained_with_float32_losses():
    half = mx.sym.Cast(backbone(), dtype="float16")
    symbol = build(embedding=half).symbol
    types = symbol.infer_type(data=np.float32, softmax_label=np.float32)
    assert dict(zip(symbol.list_arguments(), types[0], strict=True))["fc7_weight"] == np.float32
    assert [np.dtype(t).name for t in types[1]] == ["float16"] + ["float32"] * 4
    outputs, gradients = step(module(symbol, 27), batch(27))
    assert all(np.isfinite(value).all() for value in [*outputs.values(), *gradients.values()])
    assert np.abs(gradients["hidden_weight"]).max() > 0


def test_names_do_not_repeat_those_of_a_backbone_read_from_a_file():
    data = mx.sym.Variable("data")
    with mx.name.NameManager():
        body = mx.sym.sqrt(mx.sym.square((data - 127.5) * 0.0078125))
        embedding = mx.sym.Cast(mx.sym.FullyConnected(body, num_hidden=DIM, name="fc1"), dtype="float32")
    loaded = mx.sym.load_json(embedding.tojson())
    with mx.name.NameManager():
        names = build(embedding=loaded).symbol.get_internals().list_outputs()
    assert len(names) == len(set(names))
    assert "fc1_output" in names


def test_all_pairs_masked_still_trains():
    found = module(build().symbol, 27)
    given = batch(27)
    found.forward(given, is_train=False)
    outputs, gradients = step(found, mx.io.DataBatch([mx.nd.zeros((27, INPUT))], given.label))
    assert all(np.isfinite(value).all() for value in [*outputs.values(), *gradients.values()])


def spread(F, embedding, settings, options):
    """A user's loss: keeps the mean square of the components at a target."""
    value = F.reshape(F.mean(F.square(embedding)), shape=(1,)) - options["target"]
    return F.square(value), F.expand_dims(value, axis=0), ("spread",)


@pytest.fixture
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "LOSSES", dict(registry.LOSSES))


def test_a_registered_loss_takes_the_place_of_ddl(own_registry):
    registry.register_loss("spread", spread, description="a test", defaults={"target": 1.0})
    built = build(loss="spread", options={"target": 0.25})
    assert built.term_names == ("spread",)
    assert built.symbol.list_outputs()[2:4] == ["spread_loss_output", "spread_terms_output"]
    outputs = step(module(built.symbol, 27), batch(27))[0]
    value = np.square(outputs["embedding_output"]).mean() - 0.25
    assert outputs["spread_loss_output"] == pytest.approx([value**2], rel=1e-4)
    assert outputs["spread_terms_output"] == pytest.approx(np.array([[value]]), rel=1e-4)


@pytest.mark.parametrize(
    "result, message",
    [
        (lambda loss: loss, r"loss 'bad': expected build\(\) to return \(loss, terms, names\).*got Symbol"),
        (lambda loss: (loss, 3.0, ("a",)), "two Symbols"),
        (lambda loss: (loss, loss, ()), r"loss 'bad': expected distinct names of its terms, got \(\)"),
        (lambda loss: (loss, loss, ("a", "a")), "distinct names of its terms"),
        (lambda loss: (loss, loss, "ab"), "distinct names of its terms, got 'ab'"),
        (
            lambda loss: (loss, mx.sym.reshape(loss, shape=(1, 1)), ("a", "b")),
            r"loss 'bad': expected terms of shape \(1, 2\).*\('a', 'b'\), got \(1, 1\)",
        ),
        (
            lambda loss: (mx.sym.reshape(loss, shape=(1, 1)), mx.sym.reshape(loss, shape=(1, 1)), ("a",)),
            r"loss 'bad': expected loss of shape \(1,\), got \(1, 1\)",
        ),
    ],
)
def test_a_registered_loss_that_returns_something_else_is_named(own_registry, result, message):
    registry.register_loss("bad", lambda F, x, s, o: result(F.mean(x)), description="a test")
    with pytest.raises(UserError, match=message):
        build(loss="bad")


def test_shapes_that_do_not_fit_the_embedding_are_named(own_registry):
    def bad(F, embedding, settings, options):
        loss = F.mean(F.elemwise_add(embedding, F.slice_axis(embedding, axis=0, begin=0, end=2)))
        return loss, F.expand_dims(loss, axis=0), ("a",)

    registry.register_loss("bad", bad, description="a test")
    with pytest.raises(UserError, match=r"loss 'bad': shapes do not fit an embedding of \(\d+, \d+\): \S"):
        build(loss="bad")


def test_terms_may_be_constants(own_registry):
    def constant(F, embedding, settings, options):
        return F.mean(embedding), F.ones((1, 1)), ("one",)

    registry.register_loss("constant", constant, description="a test")
    assert build(loss="constant").term_names == ("one",)


def test_a_registered_loss_that_raises_is_named_with_its_line(own_registry):
    def raising(F, embedding, settings, options):
        return 1 + "a"

    registry.register_loss("bad", raising, description="a test")
    with pytest.raises(
        UserError, match=r"^loss 'bad': build\(\) raised TypeError: .*\(.*test_symbol\.py, line \d+\)$"
    ):
        build(loss="bad")
    registry.register_loss("other", lambda F: None, description="a test")
    with pytest.raises(UserError, match=r"^loss 'other': build\(\) raised TypeError: .*positional argument"):
        build(loss="other")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"loss": "dll"}, "loss: expected one of ddl, .*got 'dll'; did you mean 'ddl'"),
        ({"settings": None}, "loss 'ddl': expected settings .*config.ddl.*got none"),
        ({"num_classes": 0}, "num_classes: expected a whole number >= 1, got 0"),
        ({"emb_size": None}, "emb_size: expected a whole number >= 1, got None"),
        ({"options": {"gama": 1}}, "loss 'ddl': options: unknown key 'gama'"),
        (
            {"loss": "arcface", "identity": IdentitySettings.preset("softmax")},
            "identity: expected 'arcface'.*got 'softmax'",
        ),
        (
            {"loss": "arcface", "settings": None, "identity": IdentitySettings(rows="singles")},
            "identity_rows 'singles': expected settings",
        ),
    ],
)
def test_bad_configuration_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        build(**changes)


def test_the_identity_loss_comes_from_the_settings():
    settings = DDLSettings(b=3, hard=SETTINGS.hard, identity="softmax", identity_rows="singles")
    symbol = build(settings=settings).symbol
    assert "fc7_bias" in symbol.list_arguments()
    assert symbol.infer_shape(data=(27, INPUT), softmax_label=(27,))[1][1] == (9, CLASSES)
