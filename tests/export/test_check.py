import copy

import numpy as np
import onnx
import pytest
from export_networks import embedding_network, random_params

from ddl_plugin.errors import CheckError, UserError
from ddl_plugin.export import check
from ddl_plugin.export.check import check_same_graph, compare_runtimes, real_images, same_graph
from ddl_plugin.export.convert import convert, read_model, to_model
from ddl_plugin.export.graph import find_checkpoint, parse_symbol
from ddl_plugin.export.params import load_params, save_params
from ddl_plugin.mxnet_setup import mx


@pytest.fixture
def exported(checkpoint, tmp_path):
    return convert(checkpoint, tmp_path / "m.onnx")


def changed(path, change):
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, path)
    return path


def weight(graph, name):
    return next(t for t in graph.initializer if t.name == name)


def put(graph, name, array):
    weight(graph, name).CopyFrom(onnx.numpy_helper.from_array(np.asarray(array, np.float32), name))


def test_the_export_agrees_with_mxnet(checkpoint, exported):
    faces = check.smooth_images(5, 112, seed=3)
    result = compare_runtimes(checkpoint, exported, faces)
    assert result["compared"]
    assert result["mxnet"] == mx.__version__
    assert [(row["images"], row["batch"]) for row in result["rows"]] == [
        (name, batch) for batch in (1, 4, 33) for name in ("random", "smooth", "real")
    ]
    assert 0 <= result["max_difference"] < 1e-5
    assert result["min_cosine"] > 1 - 1e-6


def test_a_slightly_wrong_weight_is_caught_with_its_figures(checkpoint, exported):
    changed(
        exported, lambda g: put(g, "conv1_bias", onnx.numpy_helper.to_array(weight(g, "conv1_bias")) + 0.1)
    )
    message = r"differ by \d\.\de-\d\d on unit embeddings \(tolerance 0\.0001\), least cosine 0\.\d+, worst on .* batch \d"
    with pytest.raises(CheckError, match=message):
        compare_runtimes(checkpoint, exported)
    assert compare_runtimes(checkpoint, exported, tolerance=2.0)["max_difference"] > 1e-4


def test_embeddings_that_are_not_finite_are_caught(checkpoint, exported):
    changed(exported, lambda g: put(g, "fc1_beta", np.full(16, np.nan)))
    with pytest.raises(CheckError, match="ONNX embeddings of random images at batch 1 are not finite"):
        compare_runtimes(checkpoint, exported)


def test_without_mxnet_the_result_says_so(checkpoint, exported, monkeypatch):
    def missing(self, files):
        raise UserError("MXNet cannot be imported: pip install it")

    monkeypatch.setattr(check._MXNetNetwork, "__init__", missing)
    result = compare_runtimes(checkpoint, exported)
    assert not result["compared"]
    assert "pip install" in result["mxnet"]
    assert "max_difference" not in result


def test_half_precision_checkpoints_are_compared_in_float32(save, tmp_path):
    body = mx.sym.Cast(mx.sym.Variable("data"), dtype="float16") * 0.01
    body = mx.sym.Cast(mx.sym.FullyConnected(body, num_hidden=8, name="f"), dtype="float32")
    symbol = mx.sym.BatchNorm(body, name="fc1")
    arg, aux = random_params(symbol, 112)
    text = save(symbol, {n: a.astype("float16") if n.startswith("f_") else a for n, a in arg.items()}, aux)
    assert compare_runtimes(text, convert(text, tmp_path / "m.onnx"))["max_difference"] < 1e-4


def test_difference_of_known_vectors():
    first = np.array([[1.0, 0.0], [0.0, 2.0]])
    second = np.array([[5.0, 0.0], [3.0, 3.0]])
    largest, cosine = check.difference(first, second)
    assert largest == pytest.approx(np.sqrt(0.5))
    assert cosine == pytest.approx(np.sqrt(0.5))


def test_other_weights_are_the_same_graph(checkpoint):
    model = read_model(checkpoint)
    files = find_checkpoint(checkpoint)
    arg, aux = load_params(files.params)
    save_params(files.params, {n: a * 2 for n, a in arg.items()}, {n: a + 1 for n, a in aux.items()})
    other = read_model(checkpoint)
    assert other.SerializeToString() != model.SerializeToString()
    assert same_graph(model, other) == []
    found = check_same_graph(model, other, "base.onnx")
    assert found["nodes"] == len(model.graph.node)


def set_attribute(graph):
    node = next(n for n in graph.node if n.name == "bn0")
    node.attribute[0].f = 1e-3


DIFFERENCES = {
    "epsilon": set_attribute,
    "from _mulscalar0, conv0_weight to conv0 against Conv": lambda g: setattr(g.node[2], "name", "other"),
    "Relu": lambda g: setattr(g.node[0], "op_type", "Relu"),
    "nodes": lambda g: g.node.pop(),
    "_minusscalar0_scalar FLOAT.* = 127.5 against .* = 127.0": lambda g: put(
        g, "_minusscalar0_scalar", 127.0
    ),
    r"conv1_bias FLOAT\[8\] against .*conv1_bias FLOAT\[4\]": lambda g: put(g, "conv1_bias", np.zeros(4)),
    r"fc1 FLOAT\[N, 16\] against fc1 FLOAT\[N, 8\]": lambda g: setattr(
        g.output[0].type.tensor_type.shape.dim[1], "dim_value", 8
    ),
    r"data FLOAT\[N, 3, 112, 112\] against data FLOAT\[1, 3, 112, 112\]": lambda g: setattr(
        g.input[0].type.tensor_type.shape.dim[0], "dim_value", 1
    ),
}


@pytest.mark.parametrize("message", DIFFERENCES)
def test_every_other_difference_is_named(checkpoint, message):
    model = read_model(checkpoint)
    other = copy.deepcopy(model)
    DIFFERENCES[message](other.graph)
    assert same_graph(model, other)
    with pytest.raises(CheckError, match=rf"the graph is not that of base\.onnx: .*{message}"):
        check_same_graph(model, other, "base.onnx")


def test_operator_sets_are_compared(checkpoint):
    model = read_model(checkpoint)
    other = copy.deepcopy(model)
    other.opset_import[0].version = 14
    assert same_graph(model, other) == ["ai.onnx 13 against ai.onnx 14"]


def test_another_network_is_another_graph(checkpoint):
    symbol = mx.sym.FullyConnected(
        embedding_network().get_internals()["pool0_output"], num_hidden=16, name="fc1"
    )
    arg, aux = ({n: a.asnumpy() for n, a in arrays.items()} for arrays in random_params(symbol, 112))
    assert same_graph(read_model(checkpoint), to_model(parse_symbol(symbol.tojson(), "s"), arg, aux))


def test_images_for_comparison_are_reproducible_and_different():
    for make in (check.random_images, check.smooth_images):
        images = make(3, 112)
        assert images.shape == (3, 112, 112, 3)
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(images, make(3, 112))
        assert (images[0] != images[1]).mean() > 0.5
    rough = np.abs(np.diff(check.random_images(3, 112).astype(int), axis=1)).mean()
    assert np.abs(np.diff(check.smooth_images(3, 112).astype(int), axis=1)).mean() < rough / 10


def test_real_images_come_from_all_of_a_record_file(tmp_path):
    from ddl_plugin.data.records import RecordWriter

    images = check.smooth_images(6, 112)
    with RecordWriter(tmp_path) as writer:
        for label, image in enumerate(images):
            writer.add(image, label)
    found = real_images(tmp_path / "train.rec", count=3)
    assert found.shape == (3, 112, 112, 3)
    for position, image in zip((0, 2, 5), found, strict=True):
        assert np.abs(image.astype(int) - images[position]).mean() < 10
    with pytest.raises(UserError, match=r"image 0: expected 64x64 RGB, got shape \(112, 112, 3\)"):
        real_images(tmp_path / "train.rec", size=64)
