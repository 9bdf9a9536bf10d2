import numpy as np
import onnx
import pytest
from export_networks import random_params

from ddl_plugin.errors import CheckError, UserError
from ddl_plugin.export.convert import convert
from ddl_plugin.export.images import smooth_images
from ddl_plugin.export.mxnet_network import MXNetNetwork
from ddl_plugin.export.parity import _batches, compare_runtimes, difference
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
    faces = smooth_images(5, 112, seed=3)
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

    monkeypatch.setattr(MXNetNetwork, "__init__", missing)
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


def test_large_batches_hold_every_kind_and_know_which_is_where():
    sets = {
        name: np.full((count, 8, 8, 3), value, np.uint8) for name, count, value in (("a", 33, 1), ("b", 2, 2))
    }
    sets["a"][5] = 9
    batches = list(_batches(sets))
    assert [(len(batch), list(places)) for batch, places in batches] == [
        (1, ["a"]), (1, ["b"]), (4, ["a", "b"]), (33, ["a", "b"])
    ]  # fmt: skip
    batch, places = batches[-1]
    assert batch.shape == (33, 3, 8, 8)
    assert [int(image[0, 0, 0]) for image in batch[places["a"]]] == [1] * 5 + [9] + [1] * 11
    assert [int(image[0, 0, 0]) for image in batch[places["b"]]] == [2] * 16


def test_difference_of_known_vectors():
    first = np.array([[1.0, 0.0], [0.0, 2.0]])
    second = np.array([[5.0, 0.0], [3.0, 3.0]])
    largest, cosine = difference(first, second)
    assert largest == pytest.approx(np.sqrt(0.5))
    assert cosine == pytest.approx(np.sqrt(0.5))
