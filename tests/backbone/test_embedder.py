"""Embeddings by MXNet: independent of the batch, equal to a plain forward and to the ONNX export."""

import dataclasses

import numpy as np
import pytest

from ddl_plugin.backbone.checkpoint import new_backbone, save_backbone
from ddl_plugin.backbone.embedder import MXNetEmbedder
from ddl_plugin.errors import UserError
from ddl_plugin.evaluate.models import open_model
from ddl_plugin.evaluation.onnx_model import OnnxEmbedder
from ddl_plugin.export.convert import read_model
from ddl_plugin.export.graph import find_checkpoint
from ddl_plugin.mxnet_setup import mx


def network(seed, name="tiny"):
    """Random weights whose embeddings spread: the statistics are not the identity."""
    backbone = new_backbone(name, 32, seed)
    rng = np.random.default_rng(seed)
    for array in backbone.aux.values():
        array[:] = rng.uniform(0.5, 1.5, array.shape)
    return backbone


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 112, 112, 3), dtype=np.uint8)


def plain_forward(backbone, pixels):
    arg, aux = ({name: mx.nd.array(a) for name, a in part.items()} for part in (backbone.arg, backbone.aux))
    data = np.stack([np.moveaxis(image, 2, 0) for image in pixels]).astype(np.float32)
    executor = backbone.symbol.bind(mx.cpu(), {**arg, "data": mx.nd.array(data)}, aux_states=aux)
    return executor.forward(is_train=False)[0].asnumpy()


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


def test_the_embedding_of_rgb_pixels():
    backbone = network(0)
    result = MXNetEmbedder(backbone, batch=4)(images(4))
    assert (result.dtype, result.shape) == (np.float32, (4, 32))
    close(result, plain_forward(backbone, images(4)))
    assert np.abs(MXNetEmbedder(backbone)(images(4)[..., ::-1]) - result).max() > 1e-3
    assert not np.allclose(np.linalg.norm(result, axis=1), 1)


@pytest.mark.parametrize("batch", [1, 3, 7, 32])
def test_the_batch_makes_no_difference(batch):
    backbone, pixels = network(0), images(7)
    embed = MXNetEmbedder(backbone, batch=batch)
    expected = plain_forward(backbone, pixels)
    close(embed(pixels), expected)
    close(embed(pixels[:2]), expected[:2])
    close(embed(pixels), expected)  # nothing of the call before is left


def test_no_images_have_no_embeddings():
    assert MXNetEmbedder(network(0))(images(0)).shape == (0, 32)


@pytest.mark.parametrize("name", ["tiny", "y1"])
def test_new_weights_after_a_forward(name):
    first, second, pixels = network(0, name), network(1, name), images(2)
    embed = MXNetEmbedder(first, batch=2)
    before = embed(pixels)
    embed.set_parameters(second.arg, second.aux)
    after = embed(pixels)
    np.testing.assert_array_equal(after, MXNetEmbedder(second, batch=2)(pixels))
    assert np.abs(after - before).max() > 1e-3
    embed.set_parameters(first.arg, first.aux)
    np.testing.assert_array_equal(embed(pixels), before)


def test_two_embedders_do_not_share_weights():
    first, second, pixels = MXNetEmbedder(network(0), batch=1), MXNetEmbedder(network(1), batch=1), images(1)
    alone = first(pixels)
    second(pixels)
    np.testing.assert_array_equal(first(pixels), alone)


@pytest.mark.parametrize("shape", [(2, 3, 112, 112), (2, 112, 96, 3), (112, 112, 3)])
def test_images_of_another_shape_are_refused(shape):
    embed = MXNetEmbedder(dataclasses.replace(network(0), source="model-0007.params"), batch=1)
    with pytest.raises(UserError, match=r"model-0007\.params: expected images \(n, 112, 112, 3\), got \("):
        embed(np.zeros(shape, np.uint8))


def test_onnx_and_mxnet_embed_alike(tmp_path):
    backbone = network(0)
    save_backbone(tmp_path / "model", 0, backbone.symbol, backbone.arg, backbone.aux)
    (tmp_path / "model.onnx").write_bytes(read_model(find_checkpoint(tmp_path)).SerializeToString())
    from_folder, from_onnx = open_model(str(tmp_path)), open_model(str(tmp_path / "model.onnx"))
    assert isinstance(from_folder, MXNetEmbedder)
    assert isinstance(from_onnx, OnnxEmbedder)
    close(from_onnx(images(3)), from_folder(images(3)))
    np.testing.assert_array_equal(open_model(f"{tmp_path / 'model'},0")(images(3)), from_folder(images(3)))


def test_models_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match=r"none\.onnx: no such ONNX file"):
        open_model(str(tmp_path / "none.onnx"))
    with pytest.raises(UserError, match=r"none-symbol\.json: no such symbol file"):
        open_model(f"{tmp_path / 'none'},0")
