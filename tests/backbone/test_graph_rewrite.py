"""Rewritten graphs compute what the original does, under the same names."""

import json

import numpy as np
import pytest

from ddl_plugin.backbone.checkpoint import IMAGE_SHAPE, new_backbone
from ddl_plugin.backbone.graph_rewrite import with_fast_prelu, with_frozen_batchnorm
from ddl_plugin.mxnet_setup import mx


def backbone(network):
    """A random network whose slopes have both signs and zeros, and whose statistics are its own."""
    built = new_backbone(network, 32, seed=3)
    rng = np.random.default_rng(5)
    for name, array in built.arg.items():
        if name.endswith("_relu_gamma"):
            array[:] = rng.uniform(-0.5, 0.7, array.shape)
            array[0] = 0
        elif name.endswith("_gamma"):
            array[:] = rng.uniform(0.7, 1.3, array.shape)
    for name, array in built.aux.items():
        array[:] = (
            rng.uniform(0.5, 2, array.shape) if name.endswith("var") else rng.normal(0, 0.1, array.shape)
        )
    return built


def step(symbol, arg, aux, data, train=True):
    """Outputs, gradients of all arguments and the auxiliary states after one step of training."""
    executor = symbol.simple_bind(mx.cpu(), grad_req="write", data=data.shape)
    given = {name: mx.nd.array(array) for name, array in arg.items()}
    executor.copy_params_from(given, {name: mx.nd.array(array) for name, array in aux.items()})
    (output,) = executor.forward(is_train=train, data=mx.nd.array(data))
    gradients = {}
    if train:
        head = np.random.default_rng(9).normal(size=output.shape)
        executor.backward(mx.nd.array(head))
        gradients = {name: array.asnumpy() for name, array in executor.grad_dict.items()}
    return output.asnumpy(), gradients, {name: array.asnumpy() for name, array in executor.aux_dict.items()}


def count_prelu(symbol):
    nodes = json.loads(symbol.tojson())["nodes"]
    return sum(n["op"] == "LeakyReLU" and n["attrs"]["act_type"] == "prelu" for n in nodes)


def images(count, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (count, *IMAGE_SHAPE)).astype(np.float32)


def difference(a, b):
    return np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-20)


@pytest.mark.parametrize(("network", "count", "frozen"), [("tiny", 6, False), ("y1", 1, True)])
def test_fast_prelu_has_the_values_and_gradients_of_the_original(network, count, frozen):
    built = backbone(network)
    symbol = with_frozen_batchnorm(built.symbol) if frozen else built.symbol
    fast = with_fast_prelu(symbol, built.shapes)
    slow, slow_gradients, slow_aux = step(symbol, built.arg, built.aux, images(count))
    quick, quick_gradients, quick_aux = step(fast, built.arg, built.aux, images(count))
    assert difference(quick, slow) < 1e-5
    assert quick_gradients.keys() == slow_gradients.keys()
    slopes = [name for name in slow_gradients if name.endswith("_relu_gamma")]
    assert len(slopes) == count_prelu(symbol)
    for name, gradient in slow_gradients.items():
        if np.linalg.norm(gradient) > 1e-5 * np.linalg.norm(slow_gradients["data"]):  # not rounding alone
            assert difference(quick_gradients[name], gradient) < 2e-4, name
    assert all(np.linalg.norm(slow_gradients[name]) > 0 for name in slopes)
    for name, state in slow_aux.items():
        np.testing.assert_allclose(quick_aux[name], state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", ["tiny", "y1", "y2"])
def test_fast_prelu_keeps_names_and_order_and_leaves_the_original(network):
    built = new_backbone(network, None, seed=0)
    before = built.symbol.tojson()
    fast = with_fast_prelu(built.symbol, built.shapes)
    assert built.symbol.tojson() == before
    assert count_prelu(built.symbol) > 0
    assert count_prelu(fast) == 0
    assert "LeakyReLU" not in {node["op"] for node in json.loads(fast.tojson())["nodes"]}
    assert fast.list_arguments() == built.symbol.list_arguments()
    assert fast.list_auxiliary_states() == built.symbol.list_auxiliary_states()
    assert fast.list_outputs() == built.symbol.list_outputs()
    given = {"data": (2, *IMAGE_SHAPE)}
    assert fast.infer_shape(**given) == built.symbol.infer_shape(**given)
    assert set(built.symbol.get_internals().list_outputs()) <= set(fast.get_internals().list_outputs())


def prelu_gradients(x, slope, head):
    """By the definition: y = x where x > 0, else slope x."""
    negative = x <= 0
    by_channel = slope[None, :, None, None]
    y = np.where(negative, by_channel * x, x)
    return y, np.where(negative, by_channel, 1) * head, (np.where(negative, x, 0) * head).sum((0, 2, 3))


def test_fast_prelu_against_the_definition():
    rng = np.random.default_rng(0)
    x, head = rng.normal(size=(2, 3, 4, 5, 4)).astype(np.float32)  # two of (3, 4, 5, 4)
    x[0, :, 0, 0] = 0
    slope = np.array([0.25, -0.5, 0, 2], np.float32)
    symbol = mx.sym.LeakyReLU(mx.sym.Variable("x"), act_type="prelu", name="p")
    fast = with_fast_prelu(symbol, {"p_gamma": (4,)})
    executor = fast.simple_bind(mx.cpu(), x=x.shape)
    executor.arg_dict["p_gamma"][:] = slope
    (y,) = executor.forward(is_train=True, x=mx.nd.array(x))
    executor.backward(mx.nd.array(head))
    value, of_x, of_slope = prelu_gradients(x, slope, head)
    np.testing.assert_allclose(y.asnumpy(), value, rtol=1e-6)
    np.testing.assert_allclose(executor.grad_dict["x"].asnumpy(), of_x, rtol=1e-6)
    np.testing.assert_allclose(executor.grad_dict["p_gamma"].asnumpy(), of_slope, rtol=1e-5)


def test_a_single_slope_and_vectors_keep_the_prelu_of_mxnet():
    x = mx.sym.LeakyReLU(mx.sym.Variable("data"), act_type="prelu", name="one_slope")
    x = mx.sym.FullyConnected(x, num_hidden=5, name="fc")
    symbol = mx.sym.LeakyReLU(mx.sym.BatchNorm(x, name="bn"), act_type="prelu", name="on_vectors")
    fast = with_fast_prelu(symbol, {"one_slope_gamma": (1,), "on_vectors_gamma": (5,)})
    assert count_prelu(fast) == count_prelu(symbol) == 2
    executor = fast.simple_bind(mx.cpu(), data=(2, 3, 4, 4), one_slope_gamma=(1,))
    assert executor.forward()[0].shape == (2, 5)


def test_other_activations_outputs_and_variables_attributes_stay():
    weight = mx.sym.Variable("w", lr_mult=2.0, init=mx.init.One(), shape=(4, 3, 1, 1))
    x = mx.sym.Convolution(
        mx.sym.Variable("data"), weight, kernel=(1, 1), num_filter=4, no_bias=True, name="c"
    )
    shared = mx.sym.Variable("slope")
    first = mx.sym.LeakyReLU(x, shared, act_type="prelu", name="p1")
    second = mx.sym.LeakyReLU(first, shared, act_type="prelu", name="p2")
    leaky = mx.sym.LeakyReLU(second, act_type="leaky", slope=0.3, name="leaky")
    parts = mx.sym.split(leaky, num_outputs=2, name="parts")
    later = mx.sym.LeakyReLU(parts[1], act_type="leaky", slope=0.5, name="later")
    symbol = mx.sym.Group([mx.sym.BlockGrad(first, name="seen"), parts[1], later])
    fast = with_fast_prelu(symbol, {"slope": (4,)})
    assert count_prelu(symbol) == 2
    assert count_prelu(fast) == 0
    assert fast.list_outputs() == symbol.list_outputs() == ["seen_output", "parts_output1", "later_output"]
    assert fast.attr_dict()["w"] == symbol.attr_dict()["w"]
    assert fast.attr_dict()["leaky"]["slope"] == "0.3"
    data, w = np.random.default_rng(0).normal(size=(2, 2, 3, 4, 4)).astype(np.float32)
    w, slope = w.ravel()[:12].reshape(4, 3, 1, 1), np.array([0.1, -0.2, 0, 0.5], np.float32)
    given = {"data": mx.nd.array(data), "w": mx.nd.array(w), "slope": mx.nd.array(slope)}
    for a, b in zip(symbol.eval(**given), fast.eval(**given), strict=True):
        np.testing.assert_allclose(a.asnumpy(), b.asnumpy(), rtol=1e-5, atol=1e-6)


def test_frozen_batchnorm_keeps_the_statistics_and_uses_them_in_training():
    built = backbone("tiny")
    frozen = with_frozen_batchnorm(built.symbol)
    data = images(4)
    inference, _, _ = step(built.symbol, built.arg, built.aux, data, train=False)
    executor = frozen.simple_bind(mx.cpu(), data=data.shape)
    executor.copy_params_from(
        {name: mx.nd.array(array) for name, array in built.arg.items()},
        {name: mx.nd.array(array) for name, array in built.aux.items()},
    )
    for seed in range(3):
        (output,) = executor.forward(is_train=True, data=mx.nd.array(images(4, seed)))
        executor.backward(mx.nd.ones(output.shape))
        for name, array in executor.arg_dict.items():
            if name.endswith("weight"):
                array -= 1e-6 * executor.grad_dict[name]
    for name, array in executor.aux_dict.items():
        assert (array.asnumpy() == built.aux[name]).all(), name
    trained, _, _ = step(frozen, built.arg, built.aux, data)
    np.testing.assert_allclose(trained, inference, rtol=1e-4, atol=1e-4)


def test_without_it_the_statistics_move():
    built = backbone("tiny")
    inference, _, _ = step(built.symbol, built.arg, built.aux, images(4), train=False)
    trained, _, aux = step(built.symbol, built.arg, built.aux, images(4))
    assert difference(trained, inference) > 0.1
    assert all((array != built.aux[name]).any() for name, array in aux.items())


def test_frozen_batchnorm_changes_nothing_else():
    symbol = new_backbone("tiny", None, seed=0).symbol
    before = symbol.tojson()
    frozen = with_frozen_batchnorm(symbol)
    assert symbol.tojson() == before
    old, new = (json.loads(s.tojson())["nodes"] for s in (symbol, frozen))
    assert [node["name"] for node in old] == [node["name"] for node in new]
    for a, b in zip(old, new, strict=True):
        more = {"use_global_stats": "True"} if a["op"] == "BatchNorm" else {}
        assert {**a.get("attrs", {}), **more} == b.get("attrs", {})


def test_both_rewrites_together():
    built = backbone("tiny")
    both = with_fast_prelu(with_frozen_batchnorm(built.symbol), built.shapes)
    inference, _, _ = step(built.symbol, built.arg, built.aux, images(2), train=False)
    trained, _, aux = step(both, built.arg, built.aux, images(2))
    np.testing.assert_allclose(trained, inference, rtol=1e-4, atol=1e-4)
    assert all((array == built.aux[name]).all() for name, array in aux.items())
