import copy

import numpy as np
import onnx
import pytest

from ddl_plugin.errors import CheckError
from ddl_plugin.export.convert import read_model, to_model
from ddl_plugin.export.cost import check_same_cost, cost
from ddl_plugin.export.graph import find_checkpoint, parse_symbol
from ddl_plugin.export.params import load_params, save_params
from ddl_plugin.export.sameness import check_same_graph, same_graph


def weight(graph, name):
    return next(t for t in graph.initializer if t.name == name)


def put(graph, name, array):
    weight(graph, name).CopyFrom(onnx.numpy_helper.from_array(np.asarray(array, np.float32), name))


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
    "node 6: Conv.* 'conv1' from relu0, .* against Conv.* 'conv1' from bn0,": lambda g: g.node[
        5
    ].input.__setitem__(0, "bn0"),
    "node 2: Mul.* against Mul.* from _minusscalar0, _minusscalar0_scalar": lambda g: g.node[
        1
    ].input.__setitem__(1, "_minusscalar0_scalar"),
    "only one bears the node names": lambda g: setattr(g.node[0], "name", "first"),
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
    assert same_graph(model, other) == ["operator sets: ai.onnx 13 against ai.onnx 14"]


def test_another_network_is_another_graph(checkpoint, mx):
    from export_networks import embedding_network, random_params

    symbol = mx.sym.FullyConnected(
        embedding_network().get_internals()["pool0_output"], num_hidden=16, name="fc1"
    )
    arg, aux = ({n: a.asnumpy() for n, a in arrays.items()} for arrays in random_params(symbol, 112))
    assert same_graph(read_model(checkpoint), to_model(parse_symbol(symbol.tojson(), "s"), arg, aux))


def renamed(model, names):
    """A copy whose values and nodes bear other names."""
    other = copy.deepcopy(model)
    for node in other.graph.node:
        node.name = names.get(node.name, node.name)
        for values in (node.input, node.output):
            values[:] = [names.get(value, value) for value in values]
    for tensor in other.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    return other


def test_other_inner_names_are_the_same_graph_and_are_told(checkpoint):
    model = read_model(checkpoint)
    other = renamed(model, {"pre_fc1_weight": "fc1_weight", "bn0": "norm"})
    found = check_same_graph(model, other, "base.onnx")
    assert sorted(found["renamed"]) == ["fc1_weight -> pre_fc1_weight", "norm -> bn0"]
    assert check_same_graph(model, copy.deepcopy(model), "base.onnx")["renamed"] == []
    assert check_same_cost(model, other, "base.onnx")["model"]["file_bytes"] > model.ByteSize() - 1


def test_names_that_do_not_map_one_to_one_are_another_graph(checkpoint):
    model = read_model(checkpoint)
    shared = renamed(model, {"bn0_beta": "bn0_moving_mean"})  # two arrays become one
    assert "bn0" in same_graph(model, shared)[0]
    assert "bn0" in same_graph(shared, model)[0]


def test_exchanged_inputs_are_another_graph_and_exchanged_values_are_weights(checkpoint):
    base, wired, valued = (read_model(checkpoint) for _ in range(3))
    norm = next(node for node in wired.graph.node if node.op_type == "BatchNormalization")
    norm.input[1], norm.input[2] = norm.input[2], norm.input[1]
    assert "not in the same place of the same nodes' inputs" in same_graph(wired, base)[0]
    first, second = (t for t in valued.graph.initializer if t.name in norm.input[1:3])
    first.raw_data, second.raw_data = second.raw_data, first.raw_data
    assert same_graph(valued, base) == []


def test_outer_names_must_be_the_same(checkpoint):
    model = read_model(checkpoint)
    other = renamed(model, {"data": "input"})
    other.graph.input[0].name = "input"
    assert same_graph(model, other) == [
        "inputs: data FLOAT[N, 3, 112, 112] against input FLOAT[N, 3, 112, 112]"
    ]


def test_the_first_of_many_departing_nodes_is_named_with_both_sides(checkpoint):
    model = read_model(checkpoint)
    other = copy.deepcopy(model)
    del other.graph.node[4:]
    other.graph.node[3].op_type = "InstanceNormalization"
    with pytest.raises(
        CheckError, match=r"node 4: BatchNormalization\(.*'bn0'.* against InstanceNormalization"
    ):
        check_same_graph(model, other, "base.onnx")


def test_cost_by_hand(checkpoint):
    found = cost(read_model(checkpoint))
    maps = 8 * 16 * 16  # conv0 has stride 7 on 112
    assert found["multiply_adds"] == {
        "Sub": 3 * 112 * 112,
        "Mul": 3 * 112 * 112,
        "Conv": maps * 3 * 7 * 7 + maps * 3 * 3,
        "BatchNormalization": maps + 16,
        "PRelu": maps,
        "Add": maps,
        "AveragePool": 8 * 4 * 4 * 16,
        "Flatten": 0,
        "Gemm": 128 * 16,
    }
    assert found["total_multiply_adds"] == sum(found["multiply_adds"].values())
    convolutions = 8 * 3 * 49 + 8 * 9 + 8
    assert found["parameters"] == 2 + convolutions + 4 * 8 + 8 + 16 * 128 + 16 + 4 * 16
    assert found["weight_bytes"] >= 4 * found["parameters"]


def test_other_cost_is_refused(checkpoint):
    model = read_model(checkpoint)
    other = copy.deepcopy(model)
    put(other.graph, "fc1_beta", np.zeros((1, 16)))
    check_same_cost(model, other, "base.onnx")
    extra = other.graph.initializer.add()
    extra.CopyFrom(onnx.numpy_helper.from_array(np.zeros(5, np.float32), "idle"))
    with pytest.raises(CheckError, match=r"parameters are not those of base\.onnx: \d+ against \d+"):
        check_same_cost(model, other, "base.onnx")


def test_latency_of_both_models_as_a_ratio(checkpoint, tmp_path):
    from ddl_plugin.export import latency

    onnx.save(read_model(checkpoint), tmp_path / "m.onnx")
    found = latency.compare_latency(tmp_path / "m.onnx", tmp_path / "m.onnx", batches=(1, 3))
    assert [row["batch"] for row in found["batches"]] == [1, 3]
    for row in found["batches"]:
        low, high = row["ratio_quartiles"]
        assert 0 < low <= row["ratio"] <= high
        assert row["rounds"] >= 5
        assert row["milliseconds"] > 0
        assert row["base_milliseconds"] > 0


def test_latency_divides_the_model_by_the_base(checkpoint, tmp_path, monkeypatch):
    from ddl_plugin.export import latency

    clock = [0.0]
    onnx.save(read_model(checkpoint), tmp_path / "m.onnx")

    class Session:
        def __init__(self, seconds):
            self.seconds = seconds

        def get_inputs(self):
            return [type("Input", (), {"name": "data"})]

        def run(self, outputs, feeds):
            clock[0] += self.seconds

    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock[0])
    row = latency._rounds([Session(0.003), Session(0.002)], np.zeros((2, 3, 8, 8), np.float32))
    assert row["ratio"] == pytest.approx(1.5)
    assert (row["milliseconds"], row["base_milliseconds"]) == (pytest.approx(3), pytest.approx(2))
    assert row["batch"] == 2
