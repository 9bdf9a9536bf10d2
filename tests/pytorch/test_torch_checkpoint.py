"""Checkpoints without MXNet: what is read, what is written, and how what does not fit is named."""

import numpy as np
import pytest

from ddl_plugin.backbone.networks import NETWORKS
from ddl_plugin.backbone.symbol_json import GraphBuilder, symbol_json
from ddl_plugin.errors import UserError
from ddl_plugin.export.convert import read_model
from ddl_plugin.export.params import save_params
from ddl_plugin.pytorch.checkpoint import fingerprint, load_backbone, new_backbone, save_backbone
from ddl_plugin.pytorch.torch_setup import torch


@pytest.fixture(scope="module")
def tiny():
    return new_backbone("tiny", 32, seed=0)


@pytest.fixture
def saved(tiny, tmp_path):
    """saved(change=None, symbol=None): 'PREFIX,EPOCH' of the tiny network after change(arg, aux)."""

    def save(change=None, symbol=None):
        arg, aux = dict(tiny.arg), dict(tiny.aux)
        if change is not None:
            change(arg, aux)
        (tmp_path / "model-symbol.json").write_text(tiny.symbol if symbol is None else symbol)
        save_params(tmp_path / "model-0007.params", arg, aux)
        return f"{tmp_path / 'model'},7"

    return save


def same_arrays(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name])


def images(count=2):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, 112, 112))
    return torch.tensor(pixels, dtype=torch.float32)


def test_saving_and_loading_gives_the_same_bits(tiny, tmp_path):
    save_backbone(tmp_path / "a" / "model", 3, tiny)
    loaded = load_backbone(f"{tmp_path / 'a' / 'model'},3")
    assert loaded.symbol == tiny.symbol
    assert (loaded.emb_size, loaded.fc7, loaded.source) == (
        32,
        None,
        str(tmp_path / "a" / "model-0003.params"),
    )
    same_arrays(loaded.arg, tiny.arg)
    same_arrays(loaded.aux, tiny.aux)
    assert loaded.shapes == {name: array.shape for name, array in tiny.arg.items()}
    save_backbone(tmp_path / "b" / "model", 3, loaded)
    for name in ("model-symbol.json", "model-0003.params"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert fingerprint(loaded) == fingerprint(tiny)


def test_what_a_network_learnt_is_saved(tiny, tmp_path):
    net = tiny.network()
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    (net(images()) * torch.arange(64).view(2, 32)).sum().backward()
    optimizer.step()
    arg, aux = net.arrays()
    trained = type(tiny)(tiny.symbol, arg, aux, 32, "trained")
    save_backbone(tmp_path / "model", 1, trained)
    loaded = load_backbone(str(tmp_path))
    same_arrays(loaded.arg, arg)
    same_arrays(loaded.aux, aux)
    changed = [name for name in arg if (arg[name] != tiny.arg[name]).any()]
    assert {"stem_conv2d_weight", "stem_relu_gamma", "fc1_beta"} <= set(changed)
    assert fingerprint(loaded) != fingerprint(tiny)
    net.eval()
    assert torch.equal(net(images()), loaded.network().eval()(images()))
    onnxruntime = pytest.importorskip("onnxruntime")
    exported = onnxruntime.InferenceSession(
        read_model(f"{tmp_path / 'model'},1").SerializeToString(), providers=["CPUExecutionProvider"]
    ).run(None, {"data": images().numpy()})[0]
    found = net(images()).detach().numpy()
    np.testing.assert_allclose(found, exported, atol=1e-5 * np.abs(exported).max())


def training_symbol(name="fc1"):
    """What a trainer saves: an embedding with a classifier and a loss on top."""
    g = GraphBuilder("whole")
    x = g.fully_connected(g.variable("data"), "pre_fc1", 4)
    x = g.batch_norm(x, name, fix_gamma=True, eps=2e-5, momentum=0.9)
    unit = g.add("L2Normalization", [x], name="unit")
    fc7 = g.add("FullyConnected", [unit], name="fc7", parameters={"weight": {}}, num_hidden=9, no_bias=True)
    scaled = g.add("broadcast_mul", [fc7, g.variable("head_scale", {"__shape__": "(1, 9)"})], name="scaled")
    return symbol_json(g.graph(g.add("SoftmaxOutput", [scaled, g.variable("softmax_label")], name="softmax")))


def training_arrays():
    rng = np.random.default_rng(1)
    shapes = {"pre_fc1_weight": (4, 3 * 112 * 112), "pre_fc1_bias": (4,), "fc1_gamma": (4,), "fc1_beta": (4,)}
    arg = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    heads = {
        "fc7_weight": rng.normal(size=(9, 4)).astype(np.float32),
        "head_scale": np.ones((1, 9), np.float32),
    }
    aux = {"fc1_moving_mean": np.zeros(4, np.float32), "fc1_moving_var": np.ones(4, np.float32)}
    return arg, heads, aux


def test_a_training_checkpoint_is_cut_at_the_embedding(tmp_path):
    arg, heads, aux = training_arrays()
    (tmp_path / "model-symbol.json").write_text(training_symbol())
    save_params(tmp_path / "model-0000.params", {**arg, **heads}, aux)
    loaded = load_backbone(str(tmp_path), emb_size=4)
    same_arrays(loaded.arg, arg)
    same_arrays(loaded.aux, aux)
    np.testing.assert_array_equal(loaded.fc7, heads["fc7_weight"])
    assert loaded.graph.nodes[-1].name == "fc1"
    assert "softmax_label" not in loaded.symbol


def test_arrays_of_other_types_become_float32_in_the_network(saved):
    def halve(arg, aux):
        arg.update({name: array.astype(np.float16) for name, array in arg.items()})

    loaded = load_backbone(saved(halve))
    assert loaded.arg["fc1_beta"].dtype == np.float16
    found, _ = loaded.network().arrays()
    same_arrays(found, {name: array.astype(np.float32) for name, array in loaded.arg.items()})


def test_random_weights_follow_the_seed():
    one, same, other = (new_backbone("tiny", 32, seed) for seed in (1, 1, 2))
    same_arrays(one.arg, same.arg)
    assert (one.arg["pre_fc1_weight"] != other.arg["pre_fc1_weight"]).any()
    assert (one.arg["fc1_gamma"] == 1).all()
    assert (one.arg["pre_fc1_bias"] == 0).all()
    assert (one.aux["fc1_moving_var"] == 1).all()
    assert (one.aux["fc1_moving_mean"] == 0).all()
    assert (one.arg["stem_relu_gamma"] == 0.25).all()
    weights = one.arg["stage3_down_conv2d_weight"]  # He: variance 2 / fan out
    assert weights.std() == pytest.approx(np.sqrt(2 / (128 * 9)), rel=0.05)
    depthwise = one.arg["gdc_conv2d_weight"]
    assert depthwise.std() == pytest.approx(np.sqrt(2 / (128 * 49)), rel=0.05)
    assert all(array.dtype == np.float32 for array in (*one.arg.values(), *one.aux.values()))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_can_be_made(name):
    made = new_backbone(name, None, 0)
    assert made.emb_size == NETWORKS[name].emb_size
    assert made.source == f"network {name!r} with random weights"


def refuses(checkpoint, message, **options):
    with pytest.raises(UserError) as error:
        load_backbone(checkpoint, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def move(arrays, old, new):
    arrays[new] = arrays.pop(old)


def test_an_array_of_another_name_is_answered_with_the_likely_one(tiny, saved):
    checkpoint = saved(lambda arg, aux: move(arg, "pre_fc1_weight", "fc1_weight"))
    refuses(
        checkpoint,
        "no array for 'pre_fc1_weight' (32, 128) of the graph; likely match 'fc1_weight': "
        "set rename = {'fc1_weight': 'pre_fc1_weight'} in the recipe if they are the same",
    )
    same_arrays(load_backbone(checkpoint, rename={"fc1_weight": "pre_fc1_weight"}).arg, tiny.arg)
    refuses(checkpoint, "rename: no array 'zz' in ", rename={"zz": "pre_fc1_weight"})


def test_what_does_not_fit_is_named(saved):
    refuses(
        saved(lambda arg, aux: arg.pop("fc1_beta")),
        "no array for 'fc1_beta' (32,) of the graph; no array of that shape",
    )
    refuses(
        saved(lambda arg, aux: aux.update(more=np.ones(3))), "array 'more' (3,) has no place in the graph"
    )
    wrong = np.ones(33, np.float32)
    refuses(
        saved(lambda arg, aux: arg.update(fc1_beta=wrong)),
        "array 'fc1_beta': expected the graph's shape (32,), got (33,)",
    )
    nan = np.full(32, np.nan, np.float32)
    refuses(
        saved(lambda arg, aux: aux.update(fc1_moving_mean=nan)),
        "array 'fc1_moving_mean' holds 32 NaN or infinite values",
    )
    refuses(saved(), "emb_size: expected 32 as in the graph of ", emb_size=64)
    refuses(saved(), "expected the graph's shape (64,), got (32,)", network="tiny", emb_size=64)
    refuses(saved(), "network: unknown 'tinny'; did you mean 'tiny'", network="tinny")


def test_graphs_that_cannot_be_taken(tiny, saved):
    refuses(
        saved(symbol=tiny.symbol.replace('"fc1"', '"fc2"')),
        "no output 'fc1_output', where InsightFace keeps the embedding",
    )
    refuses(
        saved(symbol=tiny.symbol.replace('"Convolution"', '"Konvolution"')),
        "operator Konvolution is not supported with PyTorch",
    )
    refuses(
        saved(symbol=tiny.symbol.replace('"data"', '"pixels"')),
        "expected a graph from `data` (n, 3, 112, 112) to fc1_output",
    )


def test_mxnet_reads_what_is_saved_and_the_other_way_round(mx, tiny, tmp_path):
    from ddl_plugin.backbone import checkpoint as in_mxnet

    save_backbone(tmp_path / "torch" / "model", 7, tiny)
    symbol, arg, aux = mx.model.load_checkpoint(str(tmp_path / "torch" / "model"), 7)
    assert symbol.tojson() == tiny.symbol
    same_arrays({name: array.asnumpy() for name, array in arg.items()}, tiny.arg)
    same_arrays({name: array.asnumpy() for name, array in aux.items()}, tiny.aux)
    there = in_mxnet.load_backbone(str(tmp_path / "torch"))
    assert in_mxnet.fingerprint(there) == fingerprint(tiny)
    in_mxnet.save_backbone(tmp_path / "mxnet" / "model", 7, there.symbol, there.arg, there.aux)
    for name in ("model-symbol.json", "model-0007.params"):
        assert (tmp_path / "torch" / name).read_bytes() == (tmp_path / "mxnet" / name).read_bytes()


def test_the_published_checkpoint_round_trips(shared_data, tmp_path):
    loaded = load_backbone(f"{shared_data / 'y1_ms1m' / 'model'},0")
    assert loaded.emb_size == 128
    arg, aux = loaded.network().arrays()
    save_backbone(tmp_path / "model", 0, type(loaded)(loaded.symbol, arg, aux, 128, "again"))
    again = load_backbone(str(tmp_path))
    same_arrays(again.arg, loaded.arg)
    same_arrays(again.aux, loaded.aux)
    assert fingerprint(again) == fingerprint(loaded)
    anew = load_backbone(
        f"{shared_data / 'y1_ms1m' / 'model'},0", network="y1", rename={"fc1_weight": "pre_fc1_weight"}
    )
    with torch.no_grad():
        assert torch.equal(anew.network().eval()(images()), loaded.network().eval()(images()))
