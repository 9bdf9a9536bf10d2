"""Operators one by one against MXNet in ONNX Runtime, then whole networks."""

import json
import struct

import numpy as np
import onnx
import pytest
from export_cases import CASES, SIZE, S, as_numpy, both, in_mxnet, in_onnx, norm, pool
from export_networks import embedding_network, random_params

from ddl_plugin.errors import UserError
from ddl_plugin.export.convert import OPSET, convert, read_model, to_model
from ddl_plugin.export.graph import find_checkpoint, load_symbol, parse_symbol
from ddl_plugin.export.params import load_params
from ddl_plugin.mxnet_setup import mx


@pytest.mark.parametrize("body", CASES.values(), ids=CASES.keys())
def test_operator_equals_mxnet(body):
    expected, found, model = both(body)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert not {"Identity", "Dropout", "Cast"} & {node.op_type for node in model.graph.node}


@pytest.mark.parametrize(
    "name", ["pool max full", "pool avg full pad", "pool avg full pad not counted", "conv"]
)
@pytest.mark.parametrize("size", [7, 8, 9, 10, 11])
def test_windows_at_every_remainder(name, size):
    expected, found, _ = both(CASES[name], image_size=size)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_fixed_gamma_counts_as_one_whatever_is_stored():
    _, _, model = both(norm(fix_gamma=True))
    gamma = next(t for t in model.graph.initializer if t.name == "b_gamma")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(gamma), 1)


def test_prelu_slope_has_one_value_per_channel_and_plane():
    for name in ("prelu", "prelu shared"):
        _, _, model = both(CASES[name])
        node = next(n for n in model.graph.node if n.op_type == "PRelu")
        slope = next(t for t in model.graph.initializer if t.name == node.input[1])
        assert list(slope.dims) == [3, 1, 1]


def test_values_of_one_name_are_kept_apart():
    """MXNet lets two operators share a name; ONNX does not."""
    expected, found, model = both(lambda x: S.tanh(S.exp(x, name="same"), name="same"))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    outputs = [name for node in model.graph.node for name in node.output]
    assert len(outputs) == len(set(outputs))


def test_one_parameter_of_two_layers_is_stored_once():
    shared = S.Variable("w", shape=(3, 3, 1, 1))

    def body(x):
        options = {"kernel": (1, 1), "num_filter": 3, "no_bias": True}
        return S.Convolution(S.Convolution(x, shared, name="a", **options), shared, name="b", **options)

    expected, found, model = both(body)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert [t.name for t in model.graph.initializer if t.name.startswith("w")] == ["w"]


def test_form_of_the_model(checkpoint):
    model = read_model(checkpoint)
    assert [entry.version for entry in model.opset_import] == [OPSET]
    inputs = [
        (v.name, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim])
        for v in model.graph.input
    ]
    outputs = [
        (v.name, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim])
        for v in model.graph.output
    ]
    assert inputs == [("data", ["N", 3, 112, 112])]
    assert outputs == [("fc1", ["N", 16])]
    assert [node.name for node in model.graph.node] == [
        "_minusscalar0", "_mulscalar0", "conv0", "bn0", "relu0", "conv1", "_plus0", "pool0",
        "pre_fc1_flatten", "pre_fc1", "fc1",
    ]  # fmt: skip
    used = {name for node in model.graph.node for name in node.input}
    assert {t.name for t in model.graph.initializer} == used - {n.name for n in model.graph.node} - {"data"}
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    shapes = {v.name: v.type.tensor_type.shape.dim for v in inferred.graph.value_info}
    assert set(shapes) == {node.name for node in model.graph.node} - {"fc1"}
    assert {shape[0].dim_param for shape in shapes.values()} == {"N"}
    assert read_model(checkpoint).SerializeToString() == model.SerializeToString()


def test_heads_fall_away(save):
    symbol = embedding_network(labelled=True)
    shapes, _, aux_shapes = symbol.infer_shape(data=(2, 3, 112, 112), softmax_label=(2,))
    arg = {n: mx.nd.ones(s) for n, s in zip(symbol.list_arguments(), shapes, strict=True)}
    arg = {n: a for n, a in arg.items() if n not in ("data", "softmax_label")}
    arg["fc7_weight"][:] = float("nan")  # not part of the embedding, so no reason to refuse
    aux = {n: mx.nd.ones(s) for n, s in zip(symbol.list_auxiliary_states(), aux_shapes, strict=True)}
    model = read_model(save(symbol, arg, aux))
    assert model.graph.node[-1].name == "fc1"
    assert not any("fc7" in t.name for t in model.graph.initializer)


def test_dropout_at_the_end_still_gives_fc1():
    symbol = S.Dropout(S.Flatten(S.Variable("data") - 1, name="flat"), name="fc1")
    model = to_model(parse_symbol(symbol.tojson(), "s"), {}, {}, image_size=4)
    assert model.graph.output[0].name == "fc1"


def test_another_output_is_called_fc1_too():
    """Also where a node before it has that name already."""
    inner = S.FullyConnected(S.Variable("data"), num_hidden=5, name="fc1")
    symbol = S.FullyConnected(S.tanh(inner), num_hidden=4, name="head")
    arg, _ = random_params(symbol, SIZE)
    graph = parse_symbol(symbol.tojson(), "s")
    batch = np.random.default_rng(0).normal(0, 0.1, (2, 3, SIZE, SIZE)).astype(np.float32)
    model = to_model(graph, as_numpy(arg), {}, image_size=SIZE, output="head_output")
    assert [value.name for value in model.graph.output] == ["fc1"]
    np.testing.assert_allclose(in_onnx(model, batch), in_mxnet(symbol, arg, {}, batch), rtol=1e-4, atol=1e-4)


def test_half_precision_checkpoints_become_float32():
    body = S.Cast(S.Variable("data"), dtype="float16") * 0.5
    body = S.Cast(S.FullyConnected(body, num_hidden=4, name="f"), dtype="float32")
    symbol = S.BatchNorm(body, name="fc1")
    arg, aux = (as_numpy(a) for a in random_params(symbol, SIZE))
    arg["f_weight"] = arg["f_weight"].astype(np.float16)
    model = to_model(parse_symbol(symbol.tojson(), "s"), arg, aux, image_size=SIZE)
    assert {t.data_type for t in model.graph.initializer} == {onnx.TensorProto.FLOAT}
    assert "Cast" not in {node.op_type for node in model.graph.node}


def prefixed(x):
    """Scalar arithmetic whose names do not begin as MXNet's own do."""
    with mx.name.Prefix("net_"):
        return (S.identity(x, name="id") - 127.5) * 0.0078125


@pytest.mark.parametrize(
    "preamble",
    [
        lambda x: x,
        lambda x: x * 0.0078125,
        lambda x: (x - 127.5) / 128,
        lambda x: (x + (-127.5)) * 0.0078125,
        prefixed,
        lambda x: S.BatchNorm(x, name="bn_data"),
    ],
)
def test_insightface_feeds_raw_pixels_as_mxnet_does(preamble, tmp_path):
    """Whatever the graph does to its input, model_zoo must neither normalise twice nor instead of MXNet."""
    model_zoo = pytest.importorskip("insightface.model_zoo")
    symbol = S.FullyConnected(preamble(S.Variable("data")), num_hidden=4, name="fc1")
    arg, aux = random_params(symbol, 112)
    model = to_model(parse_symbol(symbol.tojson(), "s"), as_numpy(arg), as_numpy(aux))
    onnx.save(model, tmp_path / "m.onnx")
    loaded = model_zoo.get_model(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    assert (loaded.input_mean, loaded.input_std) == (0.0, 1.0)
    bgr = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    batch = bgr[None, :, :, ::-1].transpose(0, 3, 1, 2).astype(np.float32)
    np.testing.assert_allclose(loaded.get_feat(bgr), in_mxnet(symbol, arg, aux, batch), rtol=1e-4, atol=1e-2)


def damaged(checkpoint, change):
    files = find_checkpoint(checkpoint)
    arg, aux = load_params(files.params)
    change(arg, aux)
    return to_model(load_symbol(files.symbol), arg, aux, params_source="m-0000.params")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda arg, aux: arg.pop("pre_fc1_weight"),
            r"array 'pre_fc1_weight' is missing: node 'pre_fc1' \(FullyConnected\) expects it, the file holds 13 arrays$",
        ),
        (
            lambda arg, aux: arg.update(
                fc1_weight=arg.pop("pre_fc1_weight"), fc1_bias=arg.pop("pre_fc1_bias")
            ),
            r"array 'pre_fc1_weight' is missing \(and 1 more\): .*did you mean 'fc1_weight'\?$",
        ),
        (
            lambda arg, aux: aux.update(bn0_running_var=aux.pop("bn0_moving_var")),
            r"array 'bn0_moving_var' is missing.*did you mean 'bn0_running_var'\?$",
        ),
        (
            lambda arg, aux: arg.update(conv1_w=arg["conv1_weight"], conv1_weight=np.ones((8, 8, 3, 3))),
            r"array 'conv1_weight': expected shape \(8, 1, 3, 3\) .* got \(8, 8, 3, 3\); did you mean 'conv1_w'\?$",
        ),
        (
            lambda arg, aux: arg.update(conv1_bias=np.full(8, 1e300)),
            r"array 'conv1_bias' has NaN weights or infinite ones: 8 of 8 values",
        ),
        (
            lambda arg, aux: arg.update(conv1_weight=arg["conv1_weight"][:4]),
            r"array 'conv1_weight': expected shape \(8, 1, 3, 3\) for node 'conv1' \(Convolution\), got \(4, 1, 3, 3\)",
        ),
        (lambda arg, aux: arg.update(relu0_gamma=np.ones(5)), r"array 'relu0_gamma': expected shape \(8\)"),
        (
            lambda arg, aux: aux["bn0_moving_mean"].fill(np.nan),
            r"array 'bn0_moving_mean' has NaN weights.*8 of 8",
        ),
        (
            lambda arg, aux: arg["conv0_weight"].put(3, np.inf),
            r"array 'conv0_weight' has NaN weights.*1 of 1176",
        ),
    ],
)
def test_damaged_arrays_are_named(checkpoint, change, message):
    with pytest.raises(UserError, match=rf"m-0000\.params: {message}"):
        damaged(checkpoint, change)


def test_further_arrays_are_allowed(checkpoint):
    """An optimizer's, a classifier's, those of a branch that was cut: what the embedding does not use."""
    model = damaged(checkpoint, lambda arg, aux: arg.update(fc7_weight=np.full((9, 16), np.nan)))
    assert "fc7_weight" not in {tensor.name for tensor in model.graph.initializer}


def test_a_truncated_file_is_named(checkpoint, tmp_path):
    path = find_checkpoint(checkpoint).params
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(UserError, match=r"model-0000\.params: truncated .*array \d+ of 14"):
        convert(checkpoint, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_the_graph_that_trains_gives_the_file_of_its_embedding(save):
    """The classifier, DDL's terms and its labels are cut away: nodes, names and weights are those of the backbone."""
    from ddl_plugin.loss.symbol import training_symbol
    from ddl_plugin.settings import DDLSettings

    plain = embedding_network()
    arg, aux = random_params(plain, 112)
    arg["fc7_weight"] = mx.nd.ones((5, 16))
    settings = DDLSettings(b=2, hard=({"size": 14},))
    trained = training_symbol(plain, num_classes=5, emb_size=16, settings=settings).symbol
    assert len(trained.list_outputs()) > 3
    expected, found = (
        read_model(save(symbol, arg, aux, name)).graph for name, symbol in (("a", plain), ("b", trained))
    )
    assert found.SerializeToString() == expected.SerializeToString()


def test_arrays_from_gpus(checkpoint):
    """A checkpoint saved on GPUs holds its device in every array; the graph made of it is the same."""
    expected = read_model(checkpoint).graph.SerializeToString()
    path = find_checkpoint(checkpoint).params
    header, content = path.read_bytes()[:24], path.read_bytes()[24:]
    on_cpu, on_gpu = struct.pack("<iii", 1, 0, 0), struct.pack("<iii", 2, 3, 0)  # device, its number, float32
    assert content.count(on_cpu) == 14
    path.write_bytes(header + content.replace(on_cpu, on_gpu))
    assert len(mx.nd.load(str(path))) == 14  # MXNet takes the file
    assert read_model(checkpoint).graph.SerializeToString() == expected


def test_another_image_size_is_an_error_about_the_first_dense_layer(checkpoint):
    with pytest.raises(UserError, match=r"'pre_fc1_weight': expected shape .*image size"):
        read_model(checkpoint, image_size=224)


def test_unsupported_operator_is_named_with_its_place_and_nothing_is_written(save, tmp_path):
    body = S.LRN(S.Activation(S.Variable("data"), act_type="relu", name="act"), nsize=3, name="strange")
    symbol = S.FullyConnected(S.smooth_l1(body), num_hidden=4, name="fc1")
    text = save(symbol, *random_params(symbol, 112))
    message = (
        r"node 'strange': operator LRN cannot be converted; "
        r"it is node 2 of 4, between 'act' and 'smooth_l10'; neither can smooth_l1$"
    )
    with pytest.raises(UserError, match=message):
        convert(text, tmp_path / "out" / "m.onnx")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            pool(pool_type="lp", p_value=2),
            r"'p' \(Pooling\): pool_type 'lp' cannot be converted; it is node 1 of 2, between 'data' and 'fc1'$",
        ),
        (pool(pool_type="sum"), "pool_type 'sum'"),
        (
            pool(pool_type="max", pooling_convention="full", pad=(1, 1), stride=(13, 13), kernel=(2, 2)),
            r"a window of \(2, 2\) that lies wholly in the padding \(1, 1, 2, 2\)",
        ),
        (norm(axis=2), "axis 2 of an input of shape"),
        (lambda x: S.LeakyReLU(x, act_type="gelu"), "act_type 'gelu'"),
        (lambda x: S.Reshape(x, shape=(-1, 12)), r"does not keep the batch axis"),
        (lambda x: S.Reshape(x, shape=(-3, 0, 0)), r"shape \(-3, 0, 0\)"),
        (lambda x: S.Cast(x, dtype="int32"), "a cast to int32"),
        (lambda x: S.Dropout(x, mode="always"), "mode 'always', which drops at inference too"),
        (lambda x: S.transpose(x), "move the batch axis"),
        (lambda x: S.FullyConnected(x, num_hidden=4, flatten=False, name="f"), "flatten=False"),
        (lambda x: S.sum(x, axis=1, exclude=True), "exclude=True"),
        (lambda x: S.SliceChannel(x, num_outputs=3)[1], "operator SliceChannel cannot be converted"),
    ],
)
def test_unsupported_attributes_are_refused(body, message):
    with pytest.raises(UserError, match=message):
        both(body)


def test_damaged_symbols_end_in_one_line(checkpoint):
    files = find_checkpoint(checkpoint)
    content = json.loads(files.symbol.read_text())
    for node in content["nodes"]:
        if node["name"] == "conv1":
            node["inputs"].pop()
            node["attrs"]["no_bias"] = "False"
    graph = parse_symbol(json.dumps(content), "m-symbol.json")
    with pytest.raises(
        UserError, match=r"m-symbol\.json: node 'conv1' \(Convolution\): its attributes .* do not fit"
    ):
        to_model(graph, *load_params(files.params))


def test_an_output_that_is_no_embedding():
    symbol = S.Activation(S.Variable("data"), act_type="relu", name="fc1")
    with pytest.raises(UserError, match=r"expected an embedding \(N, D\), got shape \(N, 3, 112, 112\)"):
        to_model(parse_symbol(symbol.tojson(), "s"), {}, {})


def test_a_graph_without_the_input():
    symbol = S.Flatten(S.Variable("image"), name="fc1")
    with pytest.raises(UserError, match="does not depend on an input named 'data'"):
        to_model(parse_symbol(symbol.tojson(), "s"), {}, {})


def test_convert_writes_the_file_whole(checkpoint, tmp_path):
    path = convert(checkpoint, tmp_path / "new" / "m.onnx")
    assert onnx.load(path).graph.output[0].name == "fc1"
    assert [p.name for p in path.parent.iterdir()] == ["m.onnx"]
    with pytest.raises(UserError, match="expected the name of a file to write, got a folder"):
        convert(checkpoint, tmp_path)


def test_y1_in_model_zoo_equals_mxnet_on_real_faces(shared_data, tmp_path):
    model_zoo = pytest.importorskip("insightface.model_zoo")
    from ddl_plugin.export.images import real_images

    text = f"{shared_data / 'y1_ms1m' / 'model'},0"
    path = convert(text, tmp_path / "y1.onnx")
    faces = real_images(shared_data / "lfw112_dev" / "val.rec", count=8)
    loaded = model_zoo.get_model(str(path), providers=["CPUExecutionProvider"])
    found = loaded.get_feat([np.ascontiguousarray(face[:, :, ::-1]) for face in faces])
    symbol, arg, aux = mx.model.load_checkpoint(*text.split(",")[:1], 0)
    expected = in_mxnet(symbol, arg, aux, faces.transpose(0, 3, 1, 2).astype(np.float32))
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, atol=1e-5)
