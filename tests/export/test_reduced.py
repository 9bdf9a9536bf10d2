"""Half precision and 8 bits: how near they stay, what callers see, and what is refused."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from ddl_plugin.errors import CheckError
from ddl_plugin.evaluation.onnx_model import OnnxEmbedder, normalises_itself
from ddl_plugin.export import reduced
from ddl_plugin.export.convert import read_model
from ddl_plugin.export.half import to_half
from ddl_plugin.export.images import images_of_identities, random_images, real_images, smooth_images
from ddl_plugin.export.parity import difference
from ddl_plugin.export.quantised import to_int8


@pytest.fixture
def model(checkpoint):
    return read_model(checkpoint)


@pytest.fixture
def images():
    return smooth_images(4, 112)


def saved(model, path):
    onnx.save(model, path)
    return path


def put(model, name, change):
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)).astype(np.float32), name))


def cosine(model, half, tmp_path, pixels):
    paths = saved(model, tmp_path / "single.onnx"), saved(half, tmp_path / "half.onnx")
    return difference(*(OnnxEmbedder(path)(pixels) for path in paths))[1]


def test_half_precision_is_near_and_looks_the_same_from_outside(model, images, tmp_path):
    half, kept = to_half(model, images)
    assert kept == {}
    assert half.graph.input == model.graph.input
    assert half.graph.output == model.graph.output
    assert normalises_itself(half.graph.node)
    kinds = {t.name: t.data_type for t in half.graph.initializer}
    assert kinds["conv0_weight"] == kinds["fc1_gamma"] == TensorProto.FLOAT16
    assert kinds["_minusscalar0_scalar"] == TensorProto.FLOAT
    assert [n.op_type for n in half.graph.node].count("Cast") == 2
    assert cosine(model, half, tmp_path, random_images(4, 112)) > 0.9999
    assert half.ByteSize() < 0.7 * model.ByteSize()


@pytest.mark.parametrize(
    ("name", "change", "node"),
    [
        ("conv1_weight", lambda a: a * 1e-9, "conv1"),
        ("fc1_moving_var", lambda a: a * 0 + 1e6, "fc1"),
        ("conv1_bias", lambda a: a + 1e5, "conv1"),
    ],
)
def test_weights_that_half_precision_cannot_hold_stay_and_are_named(
    model, images, tmp_path, name, change, node
):
    put(model, name, change)
    half, kept = to_half(model, images)
    assert f"half precision cannot hold {name}" in kept[node]
    assert next(t for t in half.graph.initializer if t.name == name).data_type == TensorProto.FLOAT
    assert cosine(model, half, tmp_path, images) > 0.999


def test_small_biases_are_no_reason(model, images):
    put(model, "fc1_beta", lambda a: a * 1e-8)
    assert to_half(model, images)[1] == {}


def test_values_that_would_overflow_stay_in_float32(model, images, tmp_path):
    put(model, "bn0_gamma", lambda a: a * 1e5)
    put(model, "bn0_gamma", lambda a: np.minimum(a, 6e4))
    half, kept = to_half(model, images)
    assert "values up to" in kept["bn0"]
    assert "values up to" in kept["relu0"]
    assert np.isfinite(OnnxEmbedder(saved(half, tmp_path / "h.onnx"))(images)).all()
    assert cosine(model, half, tmp_path, images) > 0.999


def test_a_reduced_model_that_is_far_is_refused(model, tmp_path, images):
    single = saved(model, tmp_path / "s.onnx")
    put(model, "conv1_weight", lambda a: -a)
    wrong = saved(model, tmp_path / "w.onnx")
    assert reduced.compare_reduced("fp16", single, single, None)["random"]["min_cosine"] > 1 - 1e-9
    with pytest.raises(CheckError, match=r"fp16 model: least cosine .* expected at least 0\.999"):
        reduced.compare_reduced("fp16", wrong, single, None)
    with pytest.raises(CheckError, match=r"int8 model: mean cosine .* on real images"):
        reduced.compare_reduced("int8", wrong, single, random_images(4, 112))


def test_int8_has_8_bit_weights_and_the_preamble_first(model, tmp_path, images):
    single = saved(model, tmp_path / "s.onnx")
    to_int8(single, tmp_path / "i.onnx", images)
    found = onnx.load(tmp_path / "i.onnx")
    assert [node.name for node in found.graph.node][:2] == ["_minusscalar0", "_mulscalar0"]
    assert found.graph.input == model.graph.input
    assert [v.name for v in found.graph.output] == ["fc1"]
    assert any(t.data_type == TensorProto.INT8 and len(t.dims) == 4 for t in found.graph.initializer)
    assert difference(OnnxEmbedder(tmp_path / "i.onnx")(images), OnnxEmbedder(single)(images))[1] > 0.9


def test_y1_in_fewer_bits_in_model_zoo(shared_data, tmp_path):
    model_zoo = pytest.importorskip("insightface.model_zoo")
    model = read_model(f"{shared_data / 'y1_ms1m' / 'model'},0")
    faces = real_images(shared_data / "lfw112_dev" / "val.rec", count=6)
    single = saved(model, tmp_path / "s.onnx")
    half = saved(to_half(model, faces[:2])[0], tmp_path / "h.onnx")
    to_int8(
        single, tmp_path / "i.onnx", images_of_identities(shared_data / "lfw112_dev" / "train.rec", 112, 12)
    )
    expected = OnnxEmbedder(single)(faces)
    for path, least in ((half, 0.9999), (tmp_path / "i.onnx", 0.9)):
        loaded = model_zoo.get_model(str(path), providers=["CPUExecutionProvider"])
        assert (loaded.input_mean, loaded.input_std) == (0, 1)
        found = loaded.get_feat([np.ascontiguousarray(face[:, :, ::-1]) for face in faces])
        assert found.dtype == np.float32
        assert difference(found, expected)[1] > least
        np.testing.assert_array_equal(found, OnnxEmbedder(path)(faces))
