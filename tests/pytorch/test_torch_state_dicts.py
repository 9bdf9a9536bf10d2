"""State dicts of arcface_torch: the same embeddings, the same dict back, and whatever is none refused in a line."""

import os
import sys
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from torch_networks import IResNet, MobileFaceNet, randomised

from ddl_plugin.errors import UserError
from ddl_plugin.evaluate.models import open_model, require_model_outputs
from ddl_plugin.export.convert import to_model
from ddl_plugin.pytorch.checkpoint import load_backbone, new_backbone, save_backbone
from ddl_plugin.pytorch.state_dicts import read_state_dict, to_state_dict
from ddl_plugin.pytorch.torch_setup import torch

NETWORKS = {
    "r10": lambda: IResNet((1, 1, 1, 2), 16),
    "mbf": lambda: MobileFaceNet((1, 1, 2, 1), 2, 16),
    "mbf_large": lambda: MobileFaceNet((2, 1, 1, 1), 4, 16),
}


@pytest.fixture(scope="module")
def mbf():
    return randomised(NETWORKS["mbf"]())


def pixels(count=2):
    return torch.tensor(np.random.default_rng(0).integers(0, 256, (count, 3, 112, 112)), dtype=torch.float32)


def embeddings(net, x):
    with torch.no_grad():
        return net(x)


def same(state, expected):
    assert list(state) == list(expected)
    for key, tensor in expected.items():
        assert state[key].dtype == tensor.dtype
        assert torch.equal(state[key], tensor), key


def close(found, expected):
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def saved(state, tmp_path, name="backbone.pth"):
    torch.save(state, tmp_path / name)
    return str(tmp_path / name)


@pytest.mark.parametrize("name", NETWORKS)
def test_embeddings_are_equal_and_the_dict_comes_back(name, tmp_path):
    net = randomised(NETWORKS[name]())
    backbone = load_backbone(saved(net.state_dict(), tmp_path), emb_size=16)
    expected = embeddings(net, (pixels() / 255 - 0.5) / 0.5)
    close(embeddings(backbone.network().eval(), pixels()), expected)
    same(to_state_dict(backbone), net.state_dict())
    save_backbone(tmp_path / "model", 0, backbone)  # through files of MXNet's form too
    same(to_state_dict(load_backbone(str(tmp_path))), net.state_dict())


def test_what_was_trained_goes_back(mbf, tmp_path):
    backbone = load_backbone(saved(mbf.state_dict(), tmp_path))
    net = backbone.network()
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)
    net(pixels(4)).square().sum().backward()
    optimizer.step()
    trained = type(backbone)(backbone.symbol, *net.arrays(), backbone.emb_size, "trained")
    own = NETWORKS["mbf"]()
    own.load_state_dict(to_state_dict(trained))
    close(embeddings(own.eval(), (pixels() - 127.5) / 127.5), embeddings(net.eval(), pixels()))
    assert (embeddings(own, pixels()) - embeddings(mbf, pixels())).abs().max() > 1e-3


def test_a_last_scale_that_is_not_one_counts(tmp_path):
    net = randomised(NETWORKS["r10"]())
    net.features.weight.data.fill_(0.5)
    backbone = load_backbone(saved(net.state_dict(), tmp_path))
    close(embeddings(backbone.network().eval(), pixels()), embeddings(net, (pixels() - 127.5) / 127.5))
    assert "fc1_gamma" not in backbone.network().fixed_gammas


def test_the_last_scale_stays_one_in_training(tmp_path):
    backbone = load_backbone(saved(randomised(NETWORKS["r10"]()).state_dict(), tmp_path))
    assert backbone.network().fixed_gammas == ("fc1_gamma",)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "module._orig_mod."])
def test_names_of_wrappers_fall_away(mbf, tmp_path, prefix):
    wrapped = OrderedDict((prefix + key, tensor) for key, tensor in mbf.state_dict().items())
    same(read_state_dict(saved(wrapped, tmp_path)), mbf.state_dict())


def test_training_checkpoints_of_arcface_torch(mbf, tmp_path):
    whole = {
        "epoch": 3,
        "global_step": 12,
        "state_dict_backbone": mbf.state_dict(),
        "state_optimizer": {"state": {}},
    }
    path = saved(whole, tmp_path, "checkpoint_gpu_0.pt")
    same(to_state_dict(load_backbone(path)), mbf.state_dict())


def test_half_precision_and_dicts_without_counts(mbf, tmp_path):
    state = {k: v.half() if v.is_floating_point() else v for k, v in mbf.state_dict().items()}
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    found = to_state_dict(load_backbone(saved(state, tmp_path)))
    same(found, {key: tensor.float() for key, tensor in state.items()})


def test_the_exported_file_normalises_by_itself(mbf, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    backbone = load_backbone(saved(mbf.state_dict(), tmp_path))
    model = to_model(backbone.graph, backbone.arg, backbone.aux)
    # What insightface's model_zoo looks for.
    assert [node.name.split("scalar")[0] for node in model.graph.node[:2]] == ["_minus", "_mul"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = torch.tensor(session.run(None, {"data": pixels().numpy()})[0])
    close(found, embeddings(mbf, (pixels() - 127.5) / 127.5))


def test_mxnet_runs_it(needs_mxnet, mbf, tmp_path):
    from ddl_plugin.backbone.checkpoint import load_backbone as load_in_mxnet
    from ddl_plugin.backbone.embedder import MXNetEmbedder

    save_backbone(tmp_path / "model", 0, load_backbone(saved(mbf.state_dict(), tmp_path)))
    images = pixels().numpy().astype(np.uint8).transpose(0, 2, 3, 1)
    found = MXNetEmbedder(load_in_mxnet(str(tmp_path)), batch=2)(images)
    close(torch.tensor(found), embeddings(mbf, (pixels() - 127.5) / 127.5))


def test_evaluation_takes_it(mbf, tmp_path):
    path = saved(mbf.state_dict(), tmp_path)
    images = pixels().numpy().astype(np.uint8).transpose(0, 2, 3, 1)
    close(torch.tensor(open_model(path)(images)), embeddings(mbf, (pixels() - 127.5) / 127.5))
    with pytest.raises(UserError, match="--json"):
        require_model_outputs({"--json": path}, [path], [])


def refuses(path, message, **options):
    with pytest.raises(UserError) as error:
        load_backbone(str(path), **options)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_keys_that_do_not_fit(mbf, tmp_path):
    state = dict(mbf.state_dict())

    def changed(change):
        other = dict(state)
        change(other)
        return saved(other, tmp_path)

    key = "layers.3.layers.0.layers.1.layers.0.weight"
    refuses(
        changed(lambda s: s.pop(key)),
        f"no array for {key!r} (128, 1, 3, 3) of the graph; no array of that shape",
    )
    # A graph is not built as large as a number says.
    far = "layers.3.layers.999999999.layers.1.bias"
    refuses(changed(lambda s: s.update({far: torch.ones(2)})), "no array for 'layers.3.layers.")
    refuses(changed(lambda s: s.update(more=torch.ones(2))), "array 'more' (2,) has no place in the graph")
    refuses(
        changed(lambda s: s.update({key: torch.ones(3)})),
        f"array {key!r}: expected the graph's shape (128, 1, 3, 3), got (3,)",
    )
    refuses(
        changed(lambda s: s.update({key: state[key] * np.nan})),
        f"array {key!r} holds 1152 NaN or infinite values of 1152",
    )
    moved = changed(lambda s: s.update({"conv_sep.weight": s.pop("conv_sep.layers.1.bias")}))
    refuses(
        moved, "likely match 'conv_sep.weight': set rename = {'conv_sep.weight': 'conv_sep.layers.1.bias'}"
    )
    assert load_backbone(moved, rename={"conv_sep.weight": "conv_sep.layers.1.bias"}).emb_size == 16
    refuses(moved, "rename: no array 'zz'", rename={"zz": "y"})
    refuses(saved(state, tmp_path), "emb_size: expected 16 as in the graph of ", emb_size=512)
    refuses(saved(state, tmp_path), "network: expected none with the state dict ", network="y1")


def test_files_that_are_no_state_dicts_of_these_networks(mbf, tmp_path):
    other = torch.nn.Sequential(torch.nn.Linear(2, 2)).state_dict()
    refuses(
        saved(other, tmp_path),
        "expected a state dict of arcface_torch's iresnet (r18, r34, r50, r100, r200) or MobileFaceNet",
    )
    refuses(saved(torch.ones(3), tmp_path), "expected a state dict, names and tensors, got a Tensor")
    refuses(
        saved({"epoch": 3}, tmp_path), "expected a state dict, names and tensors, got a dict with 'epoch'"
    )
    refuses(saved({}, tmp_path), "got a dict with nothing in it")
    refuses(tmp_path / "none.pth", "no such file, expected a state dict")
    (tmp_path / "text.pth").write_text("weights")
    refuses(tmp_path / "text.pth", "text.pth: ")
    whole = Path(saved(mbf.state_dict(), tmp_path)).read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "short.pth").write_bytes(whole[:size])
        refuses(tmp_path / "short.pth", "short.pth: truncated or no file of torch.save (")
    with pytest.raises(UserError, match="expected a graph that was read from a state dict of arcface_torch"):
        to_state_dict(new_backbone("tiny", 32, 0))


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_code_in_a_file_is_not_executed(mbf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refuses(
        saved({"a": Evil()}, tmp_path),
        "expected a state dict with nothing but tensors, got a file with Python objects",
    )
    refuses(saved(mbf, tmp_path), "save it with torch.save(model.state_dict(), path)")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["r18", "r34", "r50", "r100", "r200", "mbf", "mbf_large"])
def test_the_networks_of_a_checkout(name, tmp_path, monkeypatch):
    """INSIGHTFACE_TORCH_DIR: a folder with backbones/, recognition/arcface_torch of a checkout of insightface."""
    folder = os.environ.get("INSIGHTFACE_TORCH_DIR")
    if not folder:
        pytest.skip("set INSIGHTFACE_TORCH_DIR to recognition/arcface_torch of a checkout of insightface")
    monkeypatch.syspath_prepend(folder)
    backbones = __import__("backbones")
    assert sys.modules["backbones"].__file__.startswith(folder)
    net = randomised(backbones.get_model(name, dropout=0.0, fp16=False, num_features=512))
    if name.startswith("r"):
        net.features.weight.data.fill_(1.0)
    backbone = load_backbone(saved(net.state_dict(), tmp_path, "model.pt"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # their torch.cuda.amp.autocast
        expected = embeddings(net, (pixels() - 127.5) / 127.5)
    close(embeddings(backbone.network().eval(), pixels()), expected)
    same(to_state_dict(backbone), net.state_dict())


def test_the_export_takes_it(mbf, tmp_path):
    pytest.importorskip("onnxruntime")
    from ddl_plugin.export.__main__ import main

    path, output = saved(mbf.state_dict(), tmp_path), tmp_path / "mbf.onnx"
    assert main([path, "--output", str(output), "--base", path]) == 0
    images = pixels().numpy().astype(np.uint8).transpose(0, 2, 3, 1)
    found = torch.tensor(open_model(str(output))(images))
    close(found, embeddings(mbf, (pixels() - 127.5) / 127.5))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["backbone.pth", "mbf.onnx"]
