import numpy as np
import onnx
import pytest

from ddl_plugin.errors import CheckError
from ddl_plugin.export.convert import convert
from ddl_plugin.export.departure import departures, explain
from ddl_plugin.export.graph import find_checkpoint
from ddl_plugin.export.images import as_input, random_images
from ddl_plugin.export.parity import TOLERANCE, compare_runtimes
from ddl_plugin.training.backends import get_backend


@pytest.fixture
def exported(checkpoint, tmp_path):
    return convert(checkpoint, tmp_path / "m.onnx")


@pytest.fixture
def open_network(backend):
    """The host that the export is compared with: MXNet where it is installed."""
    return get_backend(backend).open_network


@pytest.fixture
def network(checkpoint, open_network):
    return open_network(find_checkpoint(checkpoint))[0]


def scaled(model, name, factor, channels=slice(None)):
    tensor = next(t for t in model.graph.initializer if t.name == name)
    array = onnx.numpy_helper.to_array(tensor).copy()
    array[channels] *= factor
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))


def batch(count=2):
    return as_input(random_images(count, 112))


def test_every_node_of_a_right_export_agrees_when_looked_at_alone(network, exported):
    found = list(departures(network, onnx.load(exported), batch()))
    assert [entry.name for entry in found] == [
        "_minusscalar0", "_mulscalar0", "conv0", "bn0", "relu0", "conv1", "_plus0", "pool0", "pre_fc1", "fc1",
    ]  # fmt: skip
    assert max(entry.relative for entry in found) < 1e-5
    assert "no single node departs" in explain(network, onnx.load(exported), batch())


@pytest.mark.parametrize(
    ("weight", "node", "operator"),
    [("relu0_gamma", "relu0", "PRelu"), ("bn0_gamma", "bn0", "BatchNormalization"), ("conv1_weight", "conv1", "Conv"),
     ("fc1_beta", "fc1", "BatchNormalization"), ("conv0_weight", "conv0", "Conv")],
)  # fmt: skip
def test_one_wrong_channel_names_its_node_and_no_other(network, exported, weight, node, operator):
    model = onnx.load(exported)
    scaled(model, weight, 1.05, slice(0, 1))
    wrong = [entry.name for entry in departures(network, model, batch()) if entry.relative > 1e-4]
    assert wrong == [node]
    assert f"the first node that departs is '{node}' ({operator})" in explain(network, model, batch())


def test_the_first_of_two_is_named(network, exported):
    model = onnx.load(exported)
    scaled(model, "conv1_weight", 2)
    scaled(model, "relu0_gamma", 2)
    assert "departs is 'relu0' (PRelu)" in explain(network, model, batch())


def test_a_wrong_input_and_a_wrong_shape_are_departures(network, exported):
    model = onnx.load(exported)
    next(n for n in model.graph.node if n.name == "conv1").input[0] = "bn0"
    assert "departs is 'conv1' (Conv)" in explain(network, model, batch())
    model = onnx.load(exported)
    pool = next(n for n in model.graph.node if n.name == "pool0")
    next(a for a in pool.attribute if a.name == "strides").ints[:] = [2, 2]
    said = f"'pool0' (AveragePool): given {network.title}'s values as its inputs, its output has shape"
    assert said in explain(network, model, batch())


def test_chunks_do_not_change_what_is_found(network, exported, monkeypatch):
    from ddl_plugin.export import departure

    whole = [(e.name, e.relative) for e in departures(network, onnx.load(exported), batch())]
    monkeypatch.setattr(departure, "_CHUNK", 1)
    assert [(e.name, e.relative) for e in departures(network, onnx.load(exported), batch())] == whole


def test_parity_names_the_node(checkpoint, exported, open_network):
    model = onnx.load(exported)
    scaled(model, "relu0_gamma", 1.5)
    onnx.save(model, exported)
    with pytest.raises(CheckError, match=r"worst on .*; the first node that departs is 'relu0' \(PRelu\)"):
        compare_runtimes(checkpoint, exported, None, TOLERANCE, open_network)


def test_not_a_number_names_its_node(checkpoint, exported, open_network):
    model = onnx.load(exported)
    scaled(model, "bn0_beta", np.nan)
    onnx.save(model, exported)
    with pytest.raises(CheckError, match=r"not finite; the first node that departs is 'bn0'"):
        compare_runtimes(checkpoint, exported, None, TOLERANCE, open_network)
