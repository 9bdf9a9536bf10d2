"""The torch network beside MXNet's executor: embeddings, and a step of training."""

import sys
from pathlib import Path

import numpy as np
import pytest

from ddl_plugin.backbone.checkpoint import load_backbone as load_in_mxnet
from ddl_plugin.backbone.checkpoint import new_backbone
from ddl_plugin.backbone.graph_rewrite import with_frozen_batchnorm
from ddl_plugin.export.graph import cut, parse_symbol
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.pytorch.network import Network
from ddl_plugin.pytorch.torch_setup import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "export"))
from export_cases import CASES, SIZE, embedded
from export_networks import random_params

#: Here stock MXNet's gradient of the slope is not the definition's; `test_torch_network` holds torch's to it.
WRONG_IN_MXNET = {("prelu of vectors", "a_gamma")}
#: Gradients that are nothing but rounding: of what BatchNorm takes away again.
NOTHING = {("batch norm of vectors", "f_bias"), ("batch norm last axis", "f_bias")}


def difference(found, expected):
    """Relative, of whole arrays."""
    return np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-12)


def in_mxnet(symbol, arg, aux, pixels, head=None):
    """(output, gradients of all arguments, moving statistics); with `head`, in training."""
    executor = symbol.simple_bind(mx.cpu(), grad_req="null" if head is None else "write", data=pixels.shape)
    executor.copy_params_from(*({n: mx.nd.array(a) for n, a in part.items()} for part in (arg, aux)))
    (output,) = executor.forward(is_train=head is not None, data=mx.nd.array(pixels))
    if head is None:
        return output.asnumpy(), {}, {}
    executor.backward(mx.nd.array(head))
    gradients, states = (
        {n: a.asnumpy() for n, a in d.items()} for d in (executor.grad_dict, executor.aux_dict)
    )
    return output.asnumpy(), gradients, states


def step(net, pixels, head):
    """The same of a torch network."""
    x = torch.tensor(pixels, requires_grad=True)
    y = net.train()(x)
    if y.requires_grad:  # not behind a BlockGrad
        y.backward(torch.tensor(head))
    given = {**net.parameters_by_name(), "data": x}
    gradients = {n: np.zeros(t.shape) if t.grad is None else t.grad.numpy() for n, t in given.items()}
    return y.detach().numpy(), gradients, net.arrays()[1]


def head_of(output):
    return np.random.default_rng(9).normal(size=output.shape).astype(np.float32)


@pytest.mark.parametrize("name", CASES)
def test_every_operator(name):
    symbol = embedded(CASES[name])
    arg, aux = ({n: a.asnumpy() for n, a in part.items()} for part in random_params(symbol, SIZE))
    net = Network(parse_symbol(symbol.tojson(), "m"), arg, aux, image_size=SIZE)
    pixels = np.random.default_rng(0).normal(0, 1, (3, 3, SIZE, SIZE)).astype(np.float32)
    expected, _, _ = in_mxnet(symbol, arg, aux, pixels)
    with torch.no_grad():
        found = net.eval()(torch.tensor(pixels)).numpy()
    assert found.shape == expected.shape
    assert difference(found, expected) < 1e-6
    if name == "dropped":  # draws in training
        return
    expected, gradients, states = in_mxnet(symbol, arg, aux, pixels, head_of(expected))
    found, own_gradients, own_states = step(net, pixels, head_of(expected))
    assert difference(found, expected) < 1e-6
    assert own_gradients.keys() == gradients.keys()
    assert own_states.keys() == states.keys()
    for key, gradient in gradients.items():
        if (name, key) not in WRONG_IN_MXNET | NOTHING:
            assert difference(own_gradients[key], gradient) < 1e-5, key
    for key, state in states.items():
        assert difference(own_states[key], state) < 1e-6, key


def spread(arg, aux):
    """The same with slopes, scales and statistics of their own."""
    rng = np.random.default_rng(5)
    ranges = {"_relu_gamma": (-0.3, 0.6), "_gamma": (0.7, 1.3), "_var": (0.5, 2), "_mean": (-0.1, 0.1)}

    def drawn(name, array):
        found = next((limits for end, limits in ranges.items() if name.endswith(end)), None)
        return array if found is None else rng.uniform(*found, array.shape).astype(np.float32)

    return tuple({name: drawn(name, array) for name, array in part.items()} for part in (arg, aux))


def iresnet(units, width):
    """InsightFace's residual network (unit 3, head E without Dropout), small: (n, 3, 112, 112) -> 32."""
    S = mx.sym

    def conv(x, filters, name, kernel=3, stride=1):
        return S.Convolution(
            x, num_filter=filters, kernel=(kernel, kernel), stride=(stride, stride), pad=(kernel // 2,) * 2,
            no_bias=True, name=name,
        )  # fmt: skip

    def norm(x, name, fixed=False):
        return S.BatchNorm(x, fix_gamma=fixed, eps=2e-5, momentum=0.9, name=name)

    with mx.name.NameManager():
        x = (S.identity(S.Variable("data"), name="id") - 127.5) * 0.0078125
        x = S.LeakyReLU(norm(conv(x, width, "conv0"), "bn0"), act_type="prelu", name="relu0")
        for stage, count in enumerate(units):
            for unit in range(count):
                name, filters, stride = f"stage{stage + 1}_unit{unit + 1}", width * 2**stage, 1 if unit else 2
                y = norm(conv(norm(x, f"{name}_bn1"), filters, f"{name}_conv1"), f"{name}_bn2")
                y = conv(
                    S.LeakyReLU(y, act_type="prelu", name=f"{name}_relu"), filters, f"{name}_conv2", 3, stride
                )
                side = x if unit else norm(conv(x, filters, f"{name}_conv1sc", 1, stride), f"{name}_sc")
                x = norm(y, f"{name}_bn3") + side
        x = S.FullyConnected(norm(x, "bn1"), num_hidden=32, name="pre_fc1")
        return norm(x, "fc1", fixed=True)


def built(name):
    """(symbol, arg, aux)"""
    if name == "iresnet":
        symbol = iresnet((2, 2, 2, 2), 8)
        arg, aux = ({n: a.asnumpy() for n, a in part.items()} for part in random_params(symbol, 112))
        # He's, so that the values keep their size.
        arg = {
            n: a * (4.7 / np.sqrt(np.prod(a.shape[1:])) if n.endswith("weight") else 1)
            for n, a in arg.items()
        }
        return symbol, {n: a.astype(np.float32) for n, a in arg.items()}, aux
    made = new_backbone(name, 32, seed=3)
    return made.symbol, *spread(made.arg, made.aux)


def without_kinks(arg):
    """The same with PReLUs of slope 1. Of 50,000 inputs one may be so near to 0 that rounding decides which slope it
    takes, and moves a bias's gradient by 2%."""
    return {name: np.ones_like(a) if "relu" in name else a for name, a in arg.items()}


@pytest.mark.parametrize(
    ("name", "frozen"),
    [("tiny", False), ("tiny", True), ("y1", False), ("iresnet", False), ("iresnet", True)],
)
def test_a_step_of_training(name, frozen):
    """Both frameworks against the same step of torch in float64."""
    symbol, arg, aux = built(name)
    graph = cut(parse_symbol(symbol.tojson(), name))
    pixels = np.random.default_rng(1).integers(0, 256, (4, 3, 112, 112)).astype(np.float32)
    expected, _, _ = in_mxnet(symbol, arg, aux, pixels)
    net = Network(graph, arg, aux, bn_frozen=frozen)
    with torch.no_grad():
        assert difference(net.eval()(torch.tensor(pixels)).numpy(), expected) < 1e-5
    arg, head = without_kinks(arg), head_of(expected)
    net, exact = (Network(graph, arg, aux, bn_frozen=frozen) for _ in range(2))
    expected, gradients, states = step(exact.double(), pixels.astype(np.float64), head.astype(np.float64))
    assert expected.dtype == gradients["data"].dtype == np.float64
    largest = max(np.linalg.norm(gradient) for name, gradient in gradients.items() if name != "data")
    trained = with_frozen_batchnorm(symbol) if frozen else symbol
    for found in (step(net, pixels, head), in_mxnet(trained, arg, aux, pixels, head)):
        assert difference(found[0], expected) < 1e-4
        assert found[1].keys() == gradients.keys()
        assert found[2].keys() == states.keys()
        for key, gradient in gradients.items():
            error = np.linalg.norm(found[1][key] - gradient)
            assert error < 1e-4 * np.linalg.norm(gradient) + 1e-6 * largest, key  # or rounding of larger ones
        for key, state in states.items():
            assert difference(found[2][key], state) < 1e-5, key
            assert (found[2][key] == aux[key]).all() == frozen, key


def test_multipliers_are_those_of_mxnets_optimizers():
    weight = mx.sym.Variable("w", lr_mult=3.0, wd_mult=0.25)
    x = mx.sym.FullyConnected(mx.sym.Variable("data"), weight, num_hidden=4, name="f")
    x = mx.sym.LeakyReLU(mx.sym.BatchNorm(x, fix_gamma=False, name="b"), act_type="prelu", name="p")
    symbol = mx.sym.FullyConnected(x, mx.sym.Variable("own_name", wd_mult=2.0), num_hidden=4, name="fc1")
    arg, aux = ({n: a.asnumpy() for n, a in part.items()} for part in random_params(symbol, 8))
    found = Network(parse_symbol(symbol.tojson(), "m"), arg, aux, image_size=8).multipliers()
    optimizer = mx.optimizer.SGD(sym=symbol, param_idx2name=dict(enumerate(arg)), learning_rate=1.0, wd=1.0)
    for number, name in enumerate(arg):
        assert found[name] == (optimizer._get_lr(number), optimizer._get_wd(number)), name


def test_the_published_checkpoint(shared_data):
    loaded = load_in_mxnet(f"{shared_data / 'y1_ms1m' / 'model'},0")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 112, 112)).astype(np.float32)
    expected, _, _ = in_mxnet(loaded.symbol, loaded.arg, loaded.aux, pixels)
    net = Network(parse_symbol(loaded.symbol.tojson(), "y1"), loaded.arg, loaded.aux).eval()
    with torch.no_grad():
        found = net(torch.tensor(pixels)).numpy()
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    units = [y / np.linalg.norm(y, axis=1, keepdims=True) for y in (found, expected)]
    assert np.abs(units[0] - units[1]).max() < 1e-6
