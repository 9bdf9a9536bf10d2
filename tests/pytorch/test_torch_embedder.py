"""Embeddings by torch: independent of the batch, in float32, equal to the exported file's and to MXNet's."""

import importlib.util

import numpy as np
import pytest

from ddl_plugin.errors import UserError
from ddl_plugin.evaluate.models import open_model
from ddl_plugin.evaluation.onnx_model import OnnxEmbedder
from ddl_plugin.export.convert import convert
from ddl_plugin.pytorch.checkpoint import load_backbone, new_backbone, save_backbone
from ddl_plugin.pytorch.embedder import TorchEmbedder
from ddl_plugin.pytorch.torch_setup import torch


def network(seed, name="tiny"):
    """Random weights whose embeddings spread: the statistics are not the identity."""
    backbone = new_backbone(name, 32, seed)
    rng = np.random.default_rng(seed)
    for array in backbone.aux.values():
        array[:] = rng.uniform(0.5, 1.5, array.shape)
    return backbone


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 112, 112, 3), dtype=np.uint8)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


def test_the_embedding_of_rgb_pixels():
    backbone = network(0)
    result = TorchEmbedder(backbone, batch=4)(images(4))
    assert (result.dtype, result.shape) == (np.float32, (4, 32))
    pixels = torch.tensor(images(4).transpose(0, 3, 1, 2).copy()).float()
    close(result, backbone.network().eval()(pixels).detach().numpy())
    assert np.abs(TorchEmbedder(backbone)(images(4)[..., ::-1]) - result).max() > 1e-3
    assert not np.allclose(np.linalg.norm(result, axis=1), 1)


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_the_batch_makes_no_difference(batch):
    embed, expected = TorchEmbedder(network(0), batch=batch), TorchEmbedder(network(0), batch=7)(images(7))
    close(embed(images(7)), expected)
    close(embed(images(7)[:2]), expected[:2])


def test_no_images_have_no_embeddings():
    assert TorchEmbedder(network(0))(images(0)).shape == (0, 32)


def test_images_that_may_not_be_written_to():
    pixels = images(2)
    pixels.flags.writeable = False
    assert TorchEmbedder(network(0))(pixels).shape == (2, 32)


def test_new_weights_and_two_embedders():
    first, second, pixels = network(0), network(1), images(2)
    embed, other = TorchEmbedder(first), TorchEmbedder(second)
    before, expected = embed(pixels), other(pixels)
    embed.set_parameters(second.arg, second.aux)
    np.testing.assert_array_equal(embed(pixels), expected)
    embed.set_parameters(first.arg, first.aux)
    np.testing.assert_array_equal(embed(pixels), before)
    np.testing.assert_array_equal(other(pixels), expected)


def test_no_convolution_may_use_tf32():
    embed, usual, found = TorchEmbedder(network(0)), torch.backends.cudnn.allow_tf32, []
    embed._network.register_forward_hook(lambda *given: found.append(torch.backends.cudnn.allow_tf32))
    embed(images(1))
    assert found == [False]
    assert torch.backends.cudnn.allow_tf32 == usual


def test_images_of_another_size():
    with pytest.raises(UserError, match=r"expected images \(n, 112, 112, 3\), got \(1, 96, 112, 3\)"):
        TorchEmbedder(network(0))(np.zeros((1, 96, 112, 3), np.uint8))


def test_it_embeds_as_the_exported_file(tmp_path):
    backbone = network(0)
    save_backbone(tmp_path / "model", 0, backbone)
    exported = OnnxEmbedder(convert(f"{tmp_path / 'model'},0", tmp_path / "model.onnx"))
    close(TorchEmbedder(backbone)(images(3)), exported(images(3)))


def test_it_embeds_as_mxnet(needs_mxnet, shared_data):
    from ddl_plugin.backbone.checkpoint import load_backbone as load_in_mxnet
    from ddl_plugin.backbone.embedder import MXNetEmbedder

    name = f"{shared_data / 'y1_ms1m' / 'model'},0"
    found, expected = (
        TorchEmbedder(load_backbone(name))(images(3)),
        MXNetEmbedder(load_in_mxnet(name))(images(3)),
    )
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_evaluation_takes_checkpoints_without_mxnet(tmp_path, monkeypatch):
    backbone = network(0)
    save_backbone(tmp_path / "model", 0, backbone)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mxnet" else found(name))
    embed = open_model(f"{tmp_path / 'model'},0")
    assert isinstance(embed, TorchEmbedder)
    np.testing.assert_array_equal(embed(images(2)), TorchEmbedder(backbone)(images(2)))
