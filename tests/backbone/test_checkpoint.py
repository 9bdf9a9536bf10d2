"""Checkpoints: what is read and cut, and how everything that does not fit is named."""

import dataclasses
import re

import numpy as np
import pytest

from ddl_plugin.backbone.arrays import renamed
from ddl_plugin.backbone.checkpoint import load_backbone, new_backbone, save_backbone
from ddl_plugin.backbone.embedder import MXNetEmbedder
from ddl_plugin.errors import UserError
from ddl_plugin.mxnet_setup import mx


@pytest.fixture(scope="module")
def tiny():
    return new_backbone("tiny", 32, seed=0)


@pytest.fixture
def saved(tiny, tmp_path):
    """saved(change=None): 'PREFIX,EPOCH' of the tiny network after change(arg, aux)."""

    def save(change=None, symbol=None):
        arg, aux = dict(tiny.arg), dict(tiny.aux)
        if change is not None:
            change(arg, aux)
        save_backbone(tmp_path / "model", 7, tiny.symbol if symbol is None else symbol, arg, aux)
        return f"{tmp_path / 'model'},7"

    return save


def training_checkpoint(tiny, folder, **more):
    """What a trainer saves: the whole graph with classifier and loss, and their arrays."""
    label = mx.sym.Variable("softmax_label")
    unit = mx.sym.L2Normalization(tiny.symbol, name="fc1n")
    fc7 = mx.sym.FullyConnected(unit, mx.sym.Variable("fc7_weight"), num_hidden=9, no_bias=True, name="fc7")
    fc7 = fc7 * mx.sym.Variable("head_scale", shape=(1, 9))
    softmax = mx.sym.SoftmaxOutput(fc7, label, name="softmax")
    symbol = mx.sym.Group([mx.sym.BlockGrad(tiny.symbol), softmax])
    classifier = np.random.default_rng(1).normal(size=(9, 32)).astype(np.float32)
    arg = {**tiny.arg, "fc7_weight": classifier, "head_scale": np.ones((1, 9), np.float32), **more}
    arg = {name: mx.nd.array(array) for name, array in arg.items()}
    aux = {name: mx.nd.array(array) for name, array in tiny.aux.items()}
    mx.model.save_checkpoint(str(folder / "model"), 3, symbol, arg, aux)
    return f"{folder / 'model'},3", classifier


def images(count=2):
    return np.random.default_rng(0).integers(0, 256, (count, 112, 112, 3), dtype=np.uint8)


def same_arrays(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("network", [None, "tiny"])
def test_a_training_checkpoint_is_cut_at_the_embedding(tiny, tmp_path, network):
    checkpoint, classifier = training_checkpoint(tiny, tmp_path)
    loaded = load_backbone(checkpoint, network=network, emb_size=32)
    assert loaded.symbol.list_outputs() == ["fc1_output"]
    assert loaded.symbol.list_arguments() == tiny.symbol.list_arguments()
    same_arrays(loaded.arg, tiny.arg)
    same_arrays(loaded.aux, tiny.aux)
    np.testing.assert_array_equal(loaded.fc7, classifier)
    assert (loaded.emb_size, loaded.source) == (32, str(tmp_path / "model-0003.params"))
    same = MXNetEmbedder(tiny, batch=2)(images()), MXNetEmbedder(loaded, batch=2)(images())
    np.testing.assert_array_equal(*same)


def test_a_classifier_beside_a_graph_without_one_is_kept(tiny, saved):
    classifier = np.ones((9, 32), np.float32)
    loaded = load_backbone(saved(lambda arg, aux: arg.update(fc7_weight=classifier)))
    np.testing.assert_array_equal(loaded.fc7, classifier)
    same_arrays(loaded.arg, tiny.arg)


def test_a_folder_is_read_at_its_newest_epoch(tiny, saved, tmp_path):
    saved()
    save_backbone(tmp_path / "model", 12, tiny.symbol, {n: a + 1 for n, a in tiny.arg.items()}, tiny.aux)
    loaded = load_backbone(str(tmp_path))
    assert loaded.fc7 is None
    np.testing.assert_array_equal(loaded.arg["fc1_beta"], tiny.arg["fc1_beta"] + 1)


def test_mxnet_itself_reads_what_is_saved(tiny, saved, tmp_path):
    saved()
    symbol, arg, aux = mx.model.load_checkpoint(str(tmp_path / "model"), 7)
    assert symbol.tojson() == tiny.symbol.tojson()
    same_arrays({n: a.asnumpy() for n, a in arg.items()}, tiny.arg)
    same_arrays({n: a.asnumpy() for n, a in aux.items()}, tiny.aux)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model-0007.params", "model-symbol.json"]


def test_saving_and_loading_gives_the_same(tiny, saved):
    loaded = load_backbone(saved())
    same_arrays(loaded.arg, tiny.arg)
    same_arrays(loaded.aux, tiny.aux)
    assert loaded.symbol.tojson() == tiny.symbol.tojson()
    assert loaded.shapes == {name: array.shape for name, array in tiny.arg.items()}


def move(arrays, old, new):
    arrays[new] = arrays.pop(old)


def refuses(checkpoint, message, **options):
    with pytest.raises(UserError) as error:
        load_backbone(checkpoint, **options)
    assert message in str(error.value)
    return str(error.value)


def test_an_array_of_another_name_is_answered_with_the_likely_one(tiny, saved):
    checkpoint = saved(lambda arg, aux: move(arg, "pre_fc1_weight", "fc1_weight"))
    message = refuses(
        checkpoint,
        "no array for 'pre_fc1_weight' (32, 128) of the graph; likely match 'fc1_weight': "
        "set rename = {'fc1_weight': 'pre_fc1_weight'} in the recipe if they are the same",
    )
    assert message.startswith(checkpoint.replace(",7", "-0007.params"))
    same_arrays(load_backbone(checkpoint, rename={"fc1_weight": "pre_fc1_weight"}).arg, tiny.arg)


def test_an_auxiliary_state_of_another_name_too(tiny, saved):
    checkpoint = saved(lambda arg, aux: move(aux, "fc1_moving_mean", "fc1_running_mean"))
    refuses(checkpoint, "no array for 'fc1_moving_mean' (32,) of the graph; likely match 'fc1_running_mean'")
    same_arrays(load_backbone(checkpoint, rename={"fc1_running_mean": "fc1_moving_mean"}).aux, tiny.aux)


def test_the_likely_one_has_the_same_shape(saved):
    def change(arg, aux):
        move(arg, "pre_fc1_weight", "zzz")
        arg["pre_fc1_weigth"] = np.zeros((3, 3), np.float32)

    refuses(saved(change), "likely match 'zzz'")


def test_what_is_missing_for_good(saved):
    def change(arg, aux):
        del arg["pre_fc1_weight"], arg["fc1_beta"]

    refuses(
        saved(change),
        "no array for 'fc1_beta' (32,) of the graph (and 1 more); "
        "no array of that shape is left over: is this the checkpoint of another network?",
    )


def test_what_has_no_place(saved):
    def change(arg, aux):
        arg["extra_b"] = arg["extra_a"] = arg["fc1_beta"]

    message = refuses(
        saved(change),
        "array 'extra_a' (32,) has no place in the graph (and 1 more), whose other arrays are all there",
    )
    assert "rename" not in message  # every array of the graph has its own already


def test_an_auxiliary_state_without_a_place(saved):
    def change(arg, aux):
        aux["extra"] = aux["fc1_moving_mean"]

    refuses(saved(change), "array 'extra' (32,) has no place in the graph, whose")


def test_another_shape(saved):
    def change(arg, aux):
        for name in arg:  # the first by name is told, whatever the order of the file
            if name.endswith(("_beta", "_gamma", "_bias")):
                arg[name] = np.zeros(33, np.float32)

    refuses(
        saved(change),
        "array 'fc1_beta': expected the graph's shape (32,), got (33,); "
        "is this the checkpoint of another network or embedding size?",
    )


def test_another_embedding_size(tiny, saved):
    refuses(saved(), "expected the graph's shape (64,), got (32,)", network="tiny", emb_size=64)
    refuses(saved(), "emb_size: expected 32 as in the graph of ", emb_size=64)
    assert load_backbone(saved(), emb_size=32).emb_size == 32


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("kind", "name"), [("arg", "pre_fc1_weight"), ("aux", "fc1_moving_var")])
def test_weights_that_are_not_finite(saved, kind, name, value):
    def change(arg, aux):
        arrays = {"arg": arg, "aux": aux}[kind]
        arrays[name] = arrays[name].copy()
        arrays[name].flat[:2] = value

    size = {"pre_fc1_weight": 32 * 128, "fc1_moving_var": 32}[name]
    refuses(
        saved(change), f"array {name!r} holds 2 NaN or infinite values of {size}; expected finite weights"
    )


def test_a_classifier_that_is_not_finite(tiny, tmp_path):
    checkpoint, _ = training_checkpoint(tiny, tmp_path, fc7_weight=np.full((9, 32), np.nan, np.float32))
    refuses(checkpoint, "array 'fc7_weight' holds 288 NaN or infinite values of 288")


def test_no_embedding_names_the_outputs_that_come_near(tiny, saved):
    symbol = mx.sym.Activation(tiny.symbol.get_internals()["pre_fc1_output"], act_type="relu", name="fc2")
    message = refuses(saved(symbol=symbol), "no output 'fc1_output', where InsightFace keeps the embedding")
    assert re.search(r"nearest outputs: .*fc2_output", message)


def test_a_graph_that_is_no_embedding_network(saved):
    data = mx.sym.Variable("pixels")
    refuses(
        saved(symbol=mx.sym.FullyConnected(data, num_hidden=4, name="fc1")),
        "model-symbol.json: expected a graph from `data` (n, 3, 112, 112) to fc1_output (n, emb_size)",
    )
    fixed = mx.sym.Variable("pixels", shape=(1, 8))
    refuses(
        saved(symbol=mx.sym.FullyConnected(fixed, num_hidden=4, name="fc1")), "expected a graph from `data`"
    )
    maps = mx.sym.Convolution(mx.sym.Variable("data"), kernel=(3, 3), num_filter=4, name="fc1")
    refuses(saved(symbol=maps), "expected a graph from `data`")
    five = mx.sym.Convolution(
        mx.sym.Variable("data"),
        mx.sym.Variable("w", shape=(4, 5, 3, 3)),
        kernel=(3, 3),
        num_filter=4,
        name="fc1",
    )
    refuses(saved(symbol=five), "expected a graph from `data`")


def test_an_operator_that_mxnet_does_not_have(tiny, saved, tmp_path):
    checkpoint = saved()
    path = tmp_path / "model-symbol.json"
    path.write_text(path.read_text().replace('"Convolution"', '"Konvolution"'))
    message = refuses(checkpoint, "model-symbol.json: expected a graph of this MXNet's operators: ")
    assert "Konvolution" in message
    assert "\n" not in message


def test_renames_that_name_nothing_or_clash(saved):
    refuses(
        saved(), "rename: no array 'fc1_wieght' in ", rename={"fc1_wieght": "pre_fc1_weight"}
    )  # fmt: skip
    refuses(saved(), "; did you mean 'pre_fc1_weight'?", rename={"pre_fc1_wieght": "pre_fc1_weight"})
    refuses(saved(), "rename: two arrays of", rename={"fc1_beta": "fc1_gamma"})


def test_renames_may_swap_two_names():
    arrays = {"a": np.zeros(1), "b": np.ones(1), "c": np.ones(2)}
    swapped = renamed(arrays, {"a": "b", "b": "a"}, "model")
    assert (swapped["a"], swapped["b"], len(swapped["c"])) == (1, 0, 2)


def test_random_weights_follow_the_seed():
    one, same, other = (new_backbone("tiny", 32, seed) for seed in (1, 1, 2))
    same_arrays(one.arg, same.arg)
    assert (one.arg["pre_fc1_weight"] != other.arg["pre_fc1_weight"]).any()
    assert one.emb_size == 32
    assert (one.arg["fc1_gamma"] == 1).all()
    assert (one.aux["fc1_moving_var"] == 1).all()
    assert (one.arg["stem_relu_gamma"] == 0.25).all()
    weights = one.arg["stage3_down_conv2d_weight"]  # He: variance 2 / fan out
    assert weights.std() == pytest.approx(np.sqrt(2 / (128 * 9)), rel=0.05)


def test_a_new_backbone_can_be_saved_and_read(tiny, tmp_path):
    backbone = dataclasses.replace(tiny, source="elsewhere")
    save_backbone(tmp_path / "a" / "model", 0, backbone.symbol, backbone.arg, backbone.aux)
    same_arrays(load_backbone(str(tmp_path / "a"), network="tiny", emb_size=32).arg, tiny.arg)


def test_the_published_y1_needs_a_rename_for_the_graph_of_today(shared_data):
    checkpoint = f"{shared_data / 'y1_ms1m' / 'model'},0"
    refuses(
        checkpoint,
        "no array for 'pre_fc1_weight' (128, 512) of the graph; likely match 'fc1_weight': "
        "set rename = {'fc1_weight': 'pre_fc1_weight'}",
        network="y1",
    )
    own = load_backbone(checkpoint)
    anew = load_backbone(checkpoint, network="y1", rename={"fc1_weight": "pre_fc1_weight"})
    assert own.emb_size == anew.emb_size == 128
    embeddings = [MXNetEmbedder(backbone, batch=2)(images()) for backbone in (own, anew)]
    np.testing.assert_array_equal(*embeddings)
    assert np.linalg.norm(embeddings[0], axis=1).min() > 1
