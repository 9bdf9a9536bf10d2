import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.onnx_model import OnnxEmbedder

WEIGHTS = np.random.default_rng(0).normal(0, 0.01, (3, 5)).astype(np.float32)


def write(path, *, shape=("N", 3, 112, 112), scaled=False, output=("N", 5)):
    """A model whose embedding is a linear map of the mean colour; `scaled`: of (x - 127.5) * 0.0078125."""
    nodes, constants, x = [], [numpy_helper.from_array(WEIGHTS, "w")], "data"
    if scaled:
        constants += [numpy_helper.from_array(np.float32(v), n) for n, v in (("m", 127.5), ("s", 0.0078125))]
        nodes.append(helper.make_node("Sub", ["data", "m"], ["a"], name="_minusscalar0"))
        nodes.append(helper.make_node("Mul", ["a", "s"], ["b"], name="_mulscalar0"))
        x = "b"
    nodes += [
        helper.make_node("ReduceMean", [x], ["c"], name="mean", axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["c", "w"], ["fc1"], name="map"),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("fc1", TensorProto.FLOAT, output)],
        constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    onnx.save(model, path)
    return path


@pytest.fixture
def images():
    return np.random.default_rng(1).integers(0, 256, (7, 112, 112, 3), dtype=np.uint8)


def expected(images, mean, divisor):
    colours = images.reshape(len(images), -1, 3).mean(axis=1)
    return (colours - mean) / divisor @ WEIGHTS


def test_a_graph_that_normalises_gets_raw_rgb(tmp_path, images):
    embed = OnnxEmbedder(write(tmp_path / "m.onnx", scaled=True), threads=1)
    assert embed.dimension == 5
    assert embed.provider in ("CPUExecutionProvider", "CUDAExecutionProvider")
    found = embed(images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected(images, 127.5, 128), atol=1e-6)


def test_a_graph_that_does_not_is_fed_as_insightface_feeds_it(tmp_path, images):
    found = OnnxEmbedder(write(tmp_path / "m.onnx"))(images)
    np.testing.assert_allclose(found, expected(images, 127.5, 127.5), atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_batches_do_not_change_the_result(batch_size, tmp_path, images):
    embed = OnnxEmbedder(write(tmp_path / "m.onnx", scaled=True), batch_size=batch_size)
    np.testing.assert_allclose(embed(images), expected(images, 127.5, 128), atol=1e-6)
    assert embed(images[:0]).shape == (0, 5)


@pytest.mark.parametrize("fixed", [1, 3])
def test_models_with_a_fixed_batch(fixed, tmp_path, images):
    path = write(tmp_path / "m.onnx", shape=(fixed, 3, 112, 112), output=(fixed, 5), scaled=True)
    np.testing.assert_allclose(OnnxEmbedder(path)(images), expected(images, 127.5, 128), atol=1e-6)


def test_dimension_that_the_file_does_not_state(tmp_path):
    assert (
        OnnxEmbedder(write(tmp_path / "m.onnx", shape=("N", 3, "h", "w"), output=("N", "D"))).dimension == 5
    )


def test_models_that_take_no_faces(tmp_path):
    message = (
        r"m\.onnx: expected one float input \(n, 3, 112, 112\), got data tensor\(float\) \['N', 3, 128, 128\]"
    )
    with pytest.raises(UserError, match=message):
        OnnxEmbedder(write(tmp_path / "m.onnx", shape=("N", 3, 128, 128)))


def test_models_that_give_no_embedding(tmp_path):
    shape = ("N", 3, 112, 112)
    graph = helper.make_graph(
        [helper.make_node("Relu", ["data"], ["map"])],
        "g",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, shape)],
    )
    opsets = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=7), tmp_path / "m.onnx")
    with pytest.raises(UserError, match=r"m\.onnx: expected one output \(n, D\), got map"):
        OnnxEmbedder(tmp_path / "m.onnx")


def test_files_that_are_no_models(tmp_path):
    with pytest.raises(UserError, match=r"none\.onnx: no such ONNX file"):
        OnnxEmbedder(tmp_path / "none.onnx")
    (tmp_path / "m.onnx").write_text("not a model")
    with pytest.raises(UserError, match=r"m\.onnx: expected an ONNX model"):
        OnnxEmbedder(tmp_path / "m.onnx")


def test_images_of_another_size(tmp_path, images):
    embed = OnnxEmbedder(write(tmp_path / "m.onnx"))
    with pytest.raises(UserError, match=r"expected images \(n, 112, 112, 3\), got \(7, 96, 96, 3\)"):
        embed(images[:, :96, :96])


@pytest.mark.usefixtures("needs_mxnet")
def test_y1_equals_mxnet_on_real_faces(shared_data, tmp_path):
    from ddl_plugin.export.convert import convert
    from ddl_plugin.export.graph import find_checkpoint
    from ddl_plugin.export.images import real_images
    from ddl_plugin.export.mxnet_network import MXNetNetwork

    faces = real_images(shared_data / "lfw112_dev" / "val.rec", count=5)
    embed = OnnxEmbedder(convert(str(shared_data / "y1_ms1m"), tmp_path / "y1.onnx"))
    network = MXNetNetwork(find_checkpoint(shared_data / "y1_ms1m"))
    assert embed.dimension == 128
    np.testing.assert_allclose(
        embed(faces), network(faces.transpose(0, 3, 1, 2).astype(np.float32)), atol=1e-5
    )
