"""The torch network: MXNet's arithmetic, its training, its names; and what torch's own tools need of it."""

import copy
import itertools
import pickle

import numpy as np
import pytest

from ddl_plugin.backbone.networks import build_network
from ddl_plugin.backbone.symbol_json import GraphBuilder
from ddl_plugin.errors import UserError
from ddl_plugin.export.convert import to_model
from ddl_plugin.export.graph import Graph, Node
from ddl_plugin.export.ops import OPERATORS as EXPORTED
from ddl_plugin.pytorch.network import Network, expected_shapes
from ddl_plugin.pytorch.operators import OPERATORS
from ddl_plugin.pytorch.torch_setup import torch

SIZE = 16


def small(*, fixed=False, layers=None):
    """(graph, arg, aux): convolution, BatchNorm, PReLU, residual, linear, BatchNorm on 16x16, statistics of its own."""
    g = GraphBuilder("small")
    x = g.add("_minus_scalar", [g.variable("data")], scalar=127.5)
    x = g.convolution(g.add("_mul_scalar", [x], scalar=0.0078125), "c0", 4, 3, 2, 1)
    x = g.prelu(g.batch_norm(x, "b0", fix_gamma=False, momentum=0.9), "p0")
    y = g.batch_norm(
        g.convolution(x, "c1", 4, 3, 1, 1, groups=4), "b1", fix_gamma=fixed, eps=2e-5, momentum=0.7
    )
    x = g.add("elemwise_add", [y, x])
    x = x if layers is None else layers(g, x)
    graph = g.graph(
        g.batch_norm(g.fully_connected(x, "pre_fc1", 5), "fc1", fix_gamma=True, eps=2e-5, momentum=0.9)
    )
    shapes = expected_shapes(graph, "small", image_size=SIZE)
    rng = np.random.default_rng(0)
    arg = {name: rng.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.arg.items()}
    aux = {name: rng.uniform(0.5, 2, shape).astype(np.float32) for name, shape in shapes.aux.items()}
    return graph, arg, aux


def network(**options):
    return Network(*small(**options), image_size=SIZE)


def images(count=3, size=SIZE, seed=1):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, size, size))
    return torch.tensor(pixels, dtype=torch.float32)


def in_numpy(graph, arg, aux, pixels, training):
    """The small network in plain NumPy, float64: (embedding, moving statistics after it)."""
    aux = {name: array.astype(np.float64) for name, array in aux.items()}
    values = {}
    for node in graph.nodes:
        x, *rest = (values[graph.nodes[i].name] for i, _ in node.inputs) if node.inputs else (None,)
        if node.op == "null":
            value = pixels if node.name == "data" else arg.get(node.name, aux.get(node.name))
        elif node.op == "_minus_scalar":
            value = x - node.number("scalar", 0)
        elif node.op == "_mul_scalar":
            value = x * node.number("scalar", 0)
        elif node.op == "elemwise_add":
            value = x + rest[0]
        elif node.op == "LeakyReLU":
            value = np.where(x > 0, x, rest[0][:, None, None] * x)
        elif node.op == "FullyConnected":
            value = x.reshape(len(x), -1) @ rest[0].T + rest[1]
        elif node.op == "Convolution":
            value = convolution(x, rest[0], node.wholes("stride", ())[0], node.whole("num_group", 1))
        else:
            value = batch_norm(node, x, [graph.nodes[i].name for i, _ in node.inputs[1:]], arg, aux, training)
        values[node.name] = value
    return value, aux


def convolution(x, weight, stride, groups):
    x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    size = (x.shape[2] - 3) // stride + 1
    out = np.zeros((len(x), len(weight), size, size))
    per_group, fan_in = len(weight) // groups, weight.shape[1]
    for o in range(len(weight)):
        first = o // per_group * fan_in
        for i in range(size):
            for j in range(size):
                window = x[
                    :, first : first + fan_in, i * stride : i * stride + 3, j * stride : j * stride + 3
                ]
                out[:, o, i, j] = (window * weight[o]).sum((1, 2, 3))
    return out


def batch_norm(node, x, names, arg, aux, training):
    gamma, beta, mean, variance = arg[names[0]], arg[names[1]], aux[names[2]], aux[names[3]]
    if node.flag("fix_gamma", True):
        gamma = np.ones_like(gamma)
    axes = (0, *range(2, x.ndim))
    if training:
        keep = node.number("momentum", 0)
        batch = x.mean(axes), x.var(axes)  # the variance of the batch as it is
        aux[names[2]], aux[names[3]] = (
            keep * old + (1 - keep) * new for old, new in zip((mean, variance), batch, strict=True)
        )
        mean, variance = batch
    shape = (1, -1, *[1] * (x.ndim - 2))
    x = (x - mean.reshape(shape)) / np.sqrt(variance.reshape(shape) + node.number("eps", 1e-3))
    return x * gamma.reshape(shape) + beta.reshape(shape)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_the_values_and_the_statistics_of_the_definition(training, fixed, count):
    graph, arg, aux = small(fixed=fixed)
    net = Network(graph, arg, aux, image_size=SIZE).double().train(training)
    y = net(images(count).double())
    expected, statistics = in_numpy(graph, arg, aux, images(count).numpy(), training)
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-9, atol=1e-9)
    for name, array in net.arrays()[1].items():
        np.testing.assert_allclose(array, statistics[name], rtol=1e-9, err_msg=name)
        assert (array == aux[name]).all() != training, name


def vectors(g, x):
    """A PReLU whose input is no map."""
    return g.prelu(g.fully_connected(x, "v", 6), "pv")


@pytest.mark.parametrize("layers", [None, vectors], ids=["maps", "vectors"])
def test_gradients_of_every_parameter_by_finite_differences(layers):
    net = network(layers=layers).double()
    names, tensors = zip(
        *((n, p) for n, p in net.parameters_by_name().items() if p.requires_grad), strict=True
    )
    x, head = images().double(), torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).double()
    gradients = torch.autograd.grad((net(x) * head).sum(), tensors)
    for name, tensor, gradient in zip(names, tensors, gradients, strict=True):
        for place in range(0, tensor.numel(), max(1, tensor.numel() // 3)):
            found = []
            for sign in (1, -1):
                with torch.no_grad():
                    tensor.view(-1)[place] += sign * 1e-5
                    found.append((net(x) * head).sum().item())
                    tensor.view(-1)[place] -= sign * 1e-5
            assert gradient.view(-1)[place].item() == pytest.approx(
                (found[0] - found[1]) / 2e-5, rel=1e-4, abs=1e-6
            ), name


def test_fixed_gammas_count_as_one_and_do_not_train():
    graph, arg, aux = small(fixed=True)
    net = Network(graph, arg, aux, image_size=SIZE)
    assert net.fixed_gammas == ("b1_gamma", "fc1_gamma")
    ones = {name: np.ones_like(a) if name in net.fixed_gammas else a for name, a in arg.items()}
    assert torch.equal(net(images()), Network(graph, ones, aux, image_size=SIZE)(images()))
    net(images()).sum().backward()
    without = [name for name, p in net.parameters_by_name().items() if p.grad is None]
    assert sorted(without) == ["b1_gamma", "fc1_gamma"]
    assert (net.arrays()[0]["b1_gamma"] == arg["b1_gamma"]).all()  # what was stored stays


def test_arrays_come_back_bit_for_bit():
    graph, arg, aux = small()
    net = Network(graph, arg, aux, image_size=SIZE).to(memory_format=torch.channels_last)
    for given, found in zip((arg, aux), net.arrays(), strict=True):
        assert list(found) == list(given)
        for name, array in found.items():
            assert array.dtype == np.float32
            assert array.flags.c_contiguous
            np.testing.assert_array_equal(array, given[name])
    found["b0_moving_var"][:] = -1  # a copy
    assert (net.arrays()[1]["b0_moving_var"] > 0).all()


def test_new_values_take_the_place_of_the_old():
    graph, arg, aux = small()
    net, other = (
        Network(graph, *arrays, image_size=SIZE)
        for arrays in ((arg, aux), ({n: a + 1 for n, a in arg.items()}, aux))
    )
    net.eval()
    before = net(images())
    net.set_arrays(*other.arrays())
    assert torch.equal(net(images()), other.eval()(images()))
    net.set_arrays(arg, aux)
    assert torch.equal(net(images()), before)
    with pytest.raises(UserError, match=r"new weights: no array for 'c0_weight' \(4, 3, 3, 3\)"):
        net.set_arrays({name: a for name, a in arg.items() if name != "c0_weight"}, aux)


def test_frozen_batchnorm_keeps_its_statistics_and_trains_the_rest():
    graph, arg, aux = small()
    net = Network(graph, arg, aux, bn_frozen=True, image_size=SIZE)
    y = net(images())
    assert torch.equal(y, Network(graph, arg, aux, image_size=SIZE).eval()(images()))
    y.sum().backward()
    assert all((array == aux[name]).all() for name, array in net.arrays()[1].items())
    assert {name for name, p in net.parameters_by_name().items() if p.grad is None} == {"fc1_gamma"}


def test_multipliers_are_what_the_variables_say_and_mxnets_defaults():
    graph, arg, aux = small()
    nodes = [
        Node(n.name, n.op, {**n.attrs, "__lr_mult__": "10.0", "__wd_mult__": "0.5"}, n.inputs)
        if n.name == "pre_fc1_bias"
        else n
        for n in graph.nodes
    ]
    found = Network(Graph(tuple(nodes), graph.heads, "m"), arg, aux, image_size=SIZE).multipliers()
    assert found.keys() == arg.keys()
    assert found["pre_fc1_bias"] == (10.0, 0.5)
    assert {found[name] for name in ("c0_weight", "p0_gamma", "b0_gamma")} == {(1.0, 1.0)}
    assert found["b0_beta"] == (1.0, 0.0)


@pytest.mark.parametrize("name", ["tiny", "y1"])
def test_the_exported_file_gives_the_same(name):
    onnxruntime = pytest.importorskip("onnxruntime")
    graph = build_network(name, 32)
    shapes = expected_shapes(graph, name)
    rng = np.random.default_rng(2)
    arg = {n: rng.normal(0, 0.1, s).astype(np.float32) for n, s in shapes.arg.items()}
    aux = {n: rng.uniform(0.5, 1.5, s).astype(np.float32) for n, s in shapes.aux.items()}
    model = to_model(graph, arg, aux)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = images(2, 112)
    expected = session.run(None, {"data": pixels.numpy()})[0]
    with torch.no_grad():
        y = Network(graph, arg, aux).eval()(pixels).numpy()
    assert y.shape == (2, 32)
    np.testing.assert_allclose(y, expected, atol=1e-5 * np.abs(expected).max())


def test_memory_formats_give_the_same():
    net = network().eval()
    expected = net(images())
    net.to(memory_format=torch.channels_last)
    found = net(images().contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_copies_are_whole_and_independent():
    net = network()
    twins = [copy.deepcopy(net), pickle.loads(pickle.dumps(net))]
    before = net.arrays()[1]
    net(images())
    for twin in twins:
        assert all((array == before[name]).all() for name, array in twin.arrays()[1].items())
        assert torch.equal(twin.eval()(images()), copy.deepcopy(twin)(images()))


def test_state_dicts_of_torch_hold_everything():
    graph, arg, aux = small()
    net, other = (
        network(),
        Network(
            graph, {n: a * 2 for n, a in arg.items()}, {n: a * 2 for n, a in aux.items()}, image_size=SIZE
        ),
    )
    other.load_state_dict(net.state_dict())
    assert torch.equal(net.eval()(images()), other.eval()(images()))


@pytest.mark.parametrize("training", [False, True])
def test_it_compiles_whole(training):
    net, compiled = network().train(training), network().train(training)
    run = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    for seed in range(2):
        expected, found = net(images(seed=seed)), run(images(seed=seed))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for name, array in net.arrays()[1].items():
        np.testing.assert_allclose(compiled.arrays()[1][name], array, rtol=1e-4, atol=1e-6)
    found.sum().backward()
    expected.sum().backward()
    for name, parameter in net.parameters_by_name().items():
        if parameter.requires_grad and name != "pre_fc1_bias":  # whose gradient is nothing but rounding
            torch.testing.assert_close(
                compiled.parameters_by_name()[name].grad, parameter.grad, rtol=1e-3, atol=1e-4
            )


def test_autocast_keeps_the_embedding_and_the_statistics_in_float32():
    net, plain = network(), network()
    with torch.autocast("cpu", torch.bfloat16):
        y = net(images(16))
    assert y.dtype == torch.float32
    y.square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in net.parameters_by_name().values() if p.requires_grad)
    statistics = net.arrays()[1]
    assert all(array.dtype == np.float32 for array in statistics.values())
    expected = plain(images(16))
    assert (y - expected).norm() / expected.norm() < 0.05
    for name, array in plain.arrays()[1].items():
        np.testing.assert_allclose(statistics[name], array, rtol=0.05, atol=0.05 * np.abs(array).max())


def test_names_that_a_module_cannot_have():
    g = GraphBuilder("m")
    x = g.fully_connected(g.variable("data"), "fc1", 4)
    graph = g.graph(x)
    odd = {"fc1_weight": "train", "fc1_bias": "a.b"}
    nodes = tuple(Node(odd.get(n.name, n.name), n.op, n.attrs, n.inputs) for n in graph.nodes)
    arg = {"train": np.ones((4, 3 * SIZE * SIZE), np.float32), "a.b": np.ones(4, np.float32)}
    net = Network(Graph(nodes, graph.heads, "m"), arg, {}, image_size=SIZE)
    assert list(net.arrays()[0]) == ["train", "a.b"]
    assert net.train().training
    expected = images().sum((1, 2, 3))[:, None] + 1
    torch.testing.assert_close(net(images()), expected.expand(-1, 4))


def refuses(graph, message, arg=None, aux=None):
    with pytest.raises(UserError) as error:
        if arg is None:
            expected_shapes(graph, "m-symbol.json", image_size=SIZE)
        else:
            Network(graph, arg, aux, image_size=SIZE)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_operators_are_those_of_the_export():
    assert set(OPERATORS) == set(EXPORTED)


#: What the export does not tell from others, because it is for inference or looks at the operand's side itself.
APART = {
    "BlockGrad": "without gradient", "stop_gradient": "without gradient",
    "_rminus_scalar": "scalar first", "_RMinusScalar": "scalar first",
    "_rdiv_scalar": "scalar first", "_RDivScalar": "scalar first",
}  # fmt: skip


def test_other_names_of_an_operator_compute_the_same():
    """`test_torch_network_mxnet` compares those under which MXNet writes them."""
    needed = {"scalar": "2.5", "kernel": "(3, 3)", "mode": "edge", "pad_width": "(0, 0, 0, 0, 1, 1)"}
    needed = {**needed, "dtype": "float32", "shape": "(0, -1)"}
    compared = 0
    for name, other in itertools.combinations(OPERATORS, 2):
        if EXPORTED[name] == EXPORTED[other] and APART.get(name) == APART.get(other):
            made = [repr(OPERATORS[one].build(Node("n", one, needed, ()))) for one in (name, other)]
            assert made[0] == made[1], (name, other)
            assert OPERATORS[name].parameters is OPERATORS[other].parameters
            compared += 1
    assert compared > 50


def test_an_operator_that_is_not_supported_is_named_with_its_place():
    def layers(g, x):
        return g.add("LRN", [g.add("smooth_l1", [x], name="s")], name="strange")

    with pytest.raises(UserError) as error:
        small(layers=layers)
    assert str(error.value) == (
        "small: node 's': operator smooth_l1 is not supported with PyTorch; it is node 9 of 12, between '_plus0' and "
        "'strange'; neither is LRN"
    )


@pytest.mark.parametrize(
    ("operator", "attributes", "message"),
    [
        (
            "Pooling",
            {"pool_type": "lp", "kernel": "(2, 2)"},
            "node 'n' (Pooling): pool_type 'lp' is not supported",
        ),
        ("Pooling", {"kernel": "(2,)"}, "kernel (2,), not two numbers, is not supported"),
        ("Activation", {"act_type": "mish"}, "act_type 'mish' is not supported"),
        ("LeakyReLU", {"act_type": "gelu"}, "act_type 'gelu' is not supported"),
        ("Reshape", {"shape": "(-4, 1, 2)"}, "shape (-4, 1, 2) is not supported"),
        ("Cast", {"dtype": "int32"}, "a cast to int32 is not supported"),
        ("sum", {"exclude": "True", "axis": "1"}, "exclude=True is not supported"),
    ],
)
def test_uses_that_are_not_supported(operator, attributes, message):
    def layers(g, x):
        return g.add(operator, [x], name="n", **attributes)

    with pytest.raises(UserError) as error:
        small(layers=layers)
    assert message in str(error.value)
    assert "it is node 9 of 11, between '_plus0' and 'pre_fc1'" in str(error.value)


def test_arrays_that_do_not_fit():
    graph, arg, aux = small()
    refuses(
        graph,
        "small: no array for 'c0_weight' (4, 3, 3, 3) of the graph",
        {n: a for n, a in arg.items() if n != "c0_weight"},
        aux,
    )
    refuses(
        graph,
        "array 'p0_gamma': expected the graph's shape (4,), got (1,)",
        {**arg, "p0_gamma": np.ones(1, np.float32)},
        aux,
    )
    refuses(
        graph,
        "array 'b0_moving_var': expected the graph's shape (4,), got (5,)",
        arg,
        {**aux, "b0_moving_var": np.ones(5, np.float32)},
    )


def test_graphs_that_are_no_embedding_networks():
    message = "m-symbol.json: expected a graph from `data` (n, 3, 112, 112) to fc1_output (n, emb_size)"
    for build in (
        lambda g: g.convolution(g.variable("data"), "fc1", 4, 3),  # maps
        lambda g: g.convolution(g.variable("data"), "fc1", 4, 40),  # a kernel larger than the image
        lambda g: g.fully_connected(g.variable("pixels"), "fc1", 4),  # another input
        lambda g: g.add(
            "broadcast_add", [g.fully_connected(g.variable("data"), "f", 4), g.variable("free")], name="fc1"
        ),
    ):
        g = GraphBuilder("m")
        refuses(g.graph(build(g)), message)
