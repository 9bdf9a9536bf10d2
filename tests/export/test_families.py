"""Small networks of the kinds that face recognition uses, whole, against MXNet. They are our own, not anyone's code."""

import json

import numpy as np
import onnx
import pytest
from export_cases import S, both_of
from export_networks import random_params

from ddl_plugin.evaluation.onnx_model import open_session
from ddl_plugin.export.half import to_half
from ddl_plugin.export.images import as_input, random_images
from ddl_plugin.export.parity import difference
from ddl_plugin.mxnet_setup import mx

SIDE = 28  # two halvings to 7x7, as 112 has four
WIDTH = 8


def act(x, kind, name):
    if kind == "prelu":
        return S.LeakyReLU(x, act_type="prelu", name=name)
    if kind == "swish":
        return x * S.sigmoid(x, name=name)
    if kind == "hard swish":
        return x * S.hard_sigmoid(x, alpha=1 / 6, beta=0.5, name=name)
    return S.Activation(x, act_type=kind, name=name)


def norm(x, name, **options):
    return S.BatchNorm(x, fix_gamma=False, eps=2e-5, name=name, **options)


def conv(x, filters, name, kernel=3, stride=1, groups=1, bias=False):
    return S.Convolution(
        x, num_filter=filters, kernel=(kernel, kernel), stride=(stride, stride), num_group=groups,
        pad=(kernel // 2, kernel // 2), no_bias=not bias, name=name,
    )  # fmt: skip


def gate(x, filters, name, kind, squash):
    """Squeeze and excitation; MXNet wants a kernel written even where it is not used."""
    y = S.Pooling(x, global_pool=True, kernel=(7, 7), pool_type="avg", name=f"{name}_squeeze")
    y = act(conv(y, filters // 2, f"{name}_down", kernel=1, bias=True), kind, f"{name}_act")
    y = conv(y, filters, f"{name}_up", kernel=1, bias=True)
    y = S.hard_sigmoid(y) if squash == "hard" else S.Activation(y, act_type="sigmoid")
    return S.broadcast_mul(x, y, name=f"{name}_scale")


def stem(kind="prelu"):
    x = (S.Variable("data") - 0.5) * 0.25
    return act(norm(conv(x, WIDTH, "stem", stride=2), "stem_bn"), kind, "stem_act")


def shortcut(x, filters, stride, name):
    return norm(conv(x, filters, f"{name}_sc", kernel=1, stride=stride), f"{name}_sc_bn")


def post_activation(x, filters, stride, name, kind="prelu", gated=False):
    """ResNet's own unit: the activation after the sum."""
    y = act(norm(conv(x, filters, f"{name}_1", stride=stride), f"{name}_bn1"), kind, f"{name}_act1")
    y = norm(conv(y, filters, f"{name}_2"), f"{name}_bn2")
    y = gate(y, filters, name, kind, "soft") if gated else y
    return act(y + shortcut(x, filters, stride, name), kind, f"{name}_act2")


def pre_normalised(x, filters, stride, name, kind="prelu", gated=False, mirrored=False):
    """IResNet's unit: BatchNorm on both sides, one activation, none after the sum."""
    y = norm(conv(norm(x, f"{name}_bn0"), filters, f"{name}_1"), f"{name}_bn1")
    y = norm(conv(act(y, kind, f"{name}_act"), filters, f"{name}_2", stride=stride), f"{name}_bn2")
    y = gate(y, filters, name, kind, "soft") if gated else y
    side = shortcut(x, filters, stride, name)
    if mirrored:
        side._set_attr(mirror_stage="True")
    return y + side


def residual(unit, **options):
    return unit(unit(stem(options.get("kind", "prelu")), 16, 2, "u1", **options), 16, 1, "u2", **options)


def inverted(squash, kind):
    """Inverted residuals with a gate, as in MNASNet and MobileNetV3."""
    x = stem(kind)
    for i, stride in enumerate((2, 1)):
        y = act(norm(conv(x, 24, f"i{i}_wide", kernel=1), f"i{i}_bn1"), kind, f"i{i}_act1")
        y = act(norm(conv(y, 24, f"i{i}_dw", stride=stride, groups=24), f"i{i}_bn2"), kind, f"i{i}_act2")
        y = gate(y, 24, f"i{i}", "relu", squash)
        y = norm(conv(y, WIDTH, f"i{i}_narrow", kernel=1), f"i{i}_bn3")
        x = S.elemwise_add(x, y) if stride == 1 else y
    return x


def dense():
    """Dense blocks: everything before is concatenated, transitions average."""
    x = stem("relu")
    for block in range(2):
        for layer in range(2):
            y = act(norm(x, f"d{block}{layer}_bn"), "relu", f"d{block}{layer}_act")
            y = S.Dropout(conv(y, 4, f"d{block}{layer}"), p=0.2)
            x = S.Concat(x, y, dim=1, name=f"d{block}{layer}_join")
        if block == 0:
            x = conv(act(norm(x, "t_bn"), "relu", "t_act"), WIDTH, "t", kernel=1)
            x = S.Pooling(x, kernel=(2, 2), stride=(2, 2), pool_type="avg", name="t_pool")
    return x


def grouped():
    """Convolutions of a fixed number of channels a group, two branches summed, as in VarGNet."""
    x = stem()
    for i, stride in enumerate((2, 1)):
        one = act(norm(conv(x, 16, f"g{i}_a", stride=stride, groups=2), f"g{i}_bna"), "prelu", f"g{i}_acta")
        two = act(norm(conv(x, 16, f"g{i}_b", 5, stride, groups=4), f"g{i}_bnb"), "prelu", f"g{i}_actb")
        x = norm(conv(S.add_n(one, two), 16, f"g{i}_out", 1, groups=8), f"g{i}_bno")
    return x


def tail(x, name="fc1"):
    return S.BatchNorm(x, fix_gamma=True, eps=2e-5, name=name)


def dense_layer(x, name):
    return S.FullyConnected(x, num_hidden=12, name=name)


def norm_aware(x):
    x = S.BatchNorm(x, fix_gamma=True, eps=2e-5, name="before")
    length = S.sqrt(S.sum(x * x, axis=1, keepdims=True))
    x = x * S.tile(S.broadcast_div(S.mean(length), length), reps=(1, 16, 1, 1))
    x = S.Pooling(x, global_pool=True, kernel=(7, 7), pool_type="avg")
    return tail(dense_layer(S.BatchNorm(x, fix_gamma=True, name="middle"), "pre_fc1"))


def mean_pooled(x):
    x = act(norm(x, "before"), "prelu", "act")
    x = S.Pooling(x, global_pool=True, kernel=(7, 7), pool_type="avg", name="pool")
    return tail(dense_layer(S.Flatten(x), "pre_fc1"))


HEADS = {
    "E": lambda x: tail(dense_layer(S.Dropout(norm(x, "before"), p=0.4), "pre_fc1")),
    "F": lambda x: dense_layer(S.Dropout(norm(x, "before"), p=0.4), "fc1"),
    "FC": lambda x: tail(dense_layer(norm(x, "before"), "pre_fc1")),
    "GAP": mean_pooled,
    "GNAP": norm_aware,
    "GNAP flat": lambda x: tail(S.Flatten(S.Pooling(x, global_pool=True, kernel=(7, 7), pool_type="avg"))),
    "GDC": lambda x: tail(
        dense_layer(
            norm(
                S.Convolution(x, num_filter=16, num_group=16, kernel=(7, 7), no_bias=True, name="dw"), "dw_bn"
            ),
            "pre_fc1",
        )
    ),
}

BODIES = {
    "unit 1": lambda: residual(post_activation),
    "unit 1 relu": lambda: residual(post_activation, kind="relu"),
    "unit 1 gated": lambda: residual(post_activation, gated=True),
    "unit 3": lambda: residual(pre_normalised),
    "unit 3 relu gated": lambda: residual(pre_normalised, kind="relu", gated=True),
    "unit 3 mirrored": lambda: residual(pre_normalised, mirrored=True),
    "inverted hard": lambda: inverted("hard", "relu"),
    "inverted swish": lambda: inverted("soft", "swish"),
    "inverted hard swish": lambda: inverted("hard", "hard swish"),
    "dense": dense,
    "grouped": grouped,
}


def require_useful(model):
    """What a current tool asks of a file: nothing dead, no parameter among the inputs, the batch open throughout."""
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    shapes = {value.name: value.type.tensor_type.shape.dim for value in inferred.graph.value_info}
    nodes = model.graph.node
    assert set(shapes) == {name for node in nodes for name in node.output} - {"fc1"}
    assert all(dims[0].dim_param for dims in shapes.values() if dims)  # a name, not a number
    read = {name for node in nodes for name in node.input}
    assert {name for node in nodes for name in node.output} - read == {"fc1"}
    assert {tensor.name for tensor in model.graph.initializer} <= read
    assert not {"Identity", "Dropout", "Cast"} & {node.op_type for node in nodes}
    assert [value.name for value in model.graph.input] == ["data"]
    assert [value.name for value in model.graph.output] == ["fc1"]


def require_equal(symbol):
    """Equal to MXNet at every batch size, and useful; returns the model."""
    for batch in (1, 3):
        expected, found, model = both_of(symbol.tojson(), batch=batch, image_size=SIDE)
        assert np.ptp(expected, axis=1).min() > 0.1  # an embedding that says something
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)
    require_useful(model)
    return model


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_bodies(body):
    require_equal(HEADS["E"](body()))


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
def test_heads(head):
    require_equal(head(residual(pre_normalised)))


def require_near_in_half(symbol, folder, kept_nodes=0):
    """In half precision every layer's weights are float16, and the embeddings of both are near."""
    single = both_of(symbol.tojson(), image_size=SIDE)[2]
    images = random_images(4, SIDE) // 200  # these networks' pixels are 0..1
    half, kept = to_half(single, images)
    assert len(kept) == kept_nodes, kept
    weights = {t.name: t.data_type for t in half.graph.initializer}
    of_layers = {n.input[1] for n in half.graph.node if n.op_type in ("Conv", "Gemm", "BatchNormalization")}
    assert {weights[name] for name in of_layers} == {onnx.TensorProto.FLOAT16}
    found = []
    for name, model in (("single", single), ("half", half)):
        onnx.save(model, folder / f"{name}.onnx")
        found.append(open_session(folder / f"{name}.onnx").run(None, {"data": as_input(images)})[0])
    assert difference(*found)[1] > 0.999


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_bodies_in_half_precision(body, tmp_path):
    require_near_in_half(HEADS["E"](body()), tmp_path)


@pytest.mark.parametrize("head", HEADS.keys())
def test_heads_in_half_precision(head, tmp_path):
    large = head == "GNAP"  # squares, whose values come near half precision's largest
    require_near_in_half(HEADS[head](residual(pre_normalised)), tmp_path, kept_nodes=int(large))


def test_memonger_s_marks_change_nothing():
    """Attributes for the training's memory are no part of what is computed."""
    plain, marked = (
        both_of(HEADS["E"](residual(pre_normalised, mirrored=mirrored)).tojson(), image_size=SIDE)[2]
        for mirrored in (False, True)
    )
    assert [n.op_type for n in plain.graph.node] == [n.op_type for n in marked.graph.node]
    symbol = HEADS["E"](residual(pre_normalised, mirrored=True))
    assert "mirror_stage" in symbol.tojson()


def test_the_symbols_of_old_versions():
    """MXNet 0.8 to 0.11 wrote `param` and `attr`, and its own names for arithmetic."""
    symbol = HEADS["E"](residual(pre_normalised))
    content = json.loads(symbol.tojson())
    old = {"elemwise_add": "_Plus", "_minus_scalar": "_MinusScalar", "_mul_scalar": "_MulScalar"}
    for node in content["nodes"]:
        node["op"] = old.get(node["op"], node["op"])
        node["attr"] = node.pop("attrs", {})
    del content["attrs"]
    text = json.dumps(content)
    assert "_MinusScalar" in text
    expected, found, model = both_of(text, image_size=SIDE)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)
    assert [node.op_type for node in model.graph.node][:2] == ["Sub", "Mul"]


def test_norm_aware_embeddings_depend_on_the_batch_in_both():
    """Its mean runs over the batch: the same image has another embedding in other company. ONNX keeps that."""
    symbol = HEADS["GNAP"](residual(pre_normalised))
    alone, _, model = both_of(symbol.tojson(), batch=1, image_size=SIDE)
    together = both_of(symbol.tojson(), batch=3, image_size=SIDE)[0]
    assert np.abs(together[0] - alone[0]).max() > 1e-3
    assert "ReduceMean" in {node.op_type for node in model.graph.node}


def test_gluon_s_export(tmp_path):
    """HybridBlock.export has names of its own and no fc1: its only output is the embedding."""
    from export_cases import in_onnx

    from ddl_plugin.export.convert import read_model

    net = mx.gluon.nn.HybridSequential(prefix="net_")
    with net.name_scope():
        net.add(
            mx.gluon.nn.Conv2D(8, 3, strides=2, use_bias=False),
            mx.gluon.nn.BatchNorm(),
            mx.gluon.nn.PReLU(),
            mx.gluon.nn.GlobalAvgPool2D(),
            mx.gluon.nn.Flatten(),
            mx.gluon.nn.Dense(16),
        )
    net.initialize(mx.init.Normal(0.1))
    net.hybridize()
    batch = np.random.default_rng(0).uniform(0, 255, (2, 3, 112, 112)).astype(np.float32)
    expected = net(mx.nd.array(batch)).asnumpy()
    net.export(str(tmp_path / "face"), epoch=3)
    model = read_model(tmp_path)
    require_useful(model)
    np.testing.assert_allclose(in_onnx(model, batch), expected, rtol=1e-4, atol=1e-4)


def test_random_params_reach_every_layer():
    """The oracle of this file: parameters that are far from 0 and 1."""
    arg, aux = random_params(HEADS["E"](residual(pre_normalised)), SIDE)
    assert all(float(array.asnumpy().std()) > 0.05 for name, array in arg.items() if array.size > 1)
    assert all(float(array.asnumpy().std()) > 0.05 for array in aux.values())
