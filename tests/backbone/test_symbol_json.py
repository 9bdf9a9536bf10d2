"""The text of a graph, byte for byte as MXNet writes it."""

import json

import pytest

from ddl_plugin.backbone.symbol_json import symbol_json
from ddl_plugin.export.graph import cut, load_symbol, parse_symbol
from ddl_plugin.mxnet_setup import mx, symbol_from_json

S = mx.sym


def same(symbol):
    text = symbol.tojson()
    assert symbol_json(parse_symbol(text, "m")) == text


def test_a_variable_and_one_operator():
    with mx.name.NameManager():
        same(S.Variable("x") + 1)


def test_operators_with_several_outputs_and_states():
    x = S.BatchNorm(S.Variable("x"), fix_gamma=False, name="b")
    x = S.Dropout(S.L2Normalization(S.LeakyReLU(x, act_type="prelu", name="p"), name="n"), p=0.3, name="d")
    same(S.LeakyReLU(S.Pooling(x, kernel=(2, 2), pool_type="max", name="q"), act_type="leaky", name="l"))


@pytest.mark.parametrize("kind", ["max", "avg", "sum"])
def test_pooling(kind):
    same(S.Pooling(S.Variable("x"), kernel=(2, 2), pool_type=kind, name="p"))


@pytest.mark.parametrize("count", [10, 11])
def test_lists_of_more_than_ten(count):
    same(S.add_n(*(S.Variable(f"v{i}") for i in range(count)), name="sum"))
    same(S.Group([S.identity(S.Variable(f"v{i}"), name=f"i{i}") for i in range(count)]))


def test_attributes_of_the_users_own_and_letters_of_every_kind():
    weight = S.Variable(
        "w", lr_mult=2.0, wd_mult=0.0, init=mx.init.Constant(0.5), shape=(4, 3), attr={"__é__": 'a"b\\c'}
    )
    same(S.FullyConnected(S.Variable("x"), weight, num_hidden=4, name="f", attr={"__mood__": "good"}))


def test_nodes_stand_in_the_order_of_mxnet_whatever_theirs_was():
    x, y = S.Variable("x"), S.Variable("y")
    whole = S.Group(
        [S.exp(y, name="late"), S.elemwise_add(S.tanh(x, name="a"), S.relu(y, name="b"), name="fc1")]
    )
    assert symbol_json(cut(parse_symbol(whole.tojson(), "m"))) == whole["fc1_output"].tojson()


def test_what_was_hidden_before_mxnet_1_gets_its_underscores():
    """As MXNet renames them on loading."""
    old = {
        "nodes": [
            {"op": "null", "param": {}, "name": "x", "inputs": [], "backward_source_id": -1},
            {"op": "null", "param": {}, "name": "w", "inputs": [], "backward_source_id": -1, "attr": {"lr_mult": "3"}},
            {
                "op": "FullyConnected", "param": {"num_hidden": "4", "no_bias": "True"}, "name": "fc1",
                "inputs": [[0, 0], [1, 0]], "backward_source_id": -1,
            },
        ],
        "arg_nodes": [0, 1],
        "heads": [[2, 0]],
    }  # fmt: skip
    text = symbol_json(parse_symbol(json.dumps(old), "m"))
    assert json.loads(text)["nodes"][1]["attrs"] == {"__lr_mult__": "3"}
    assert symbol_from_json(text).attr_dict()["w"] == mx.sym.load_json(json.dumps(old)).attr_dict()["w"]


def test_the_published_checkpoints_graph(shared_data):
    path = shared_data / "y1_ms1m" / "model-symbol.json"
    symbol = symbol_from_json(path.read_text()).get_internals()["fc1_output"]
    assert symbol_json(cut(load_symbol(path))) == symbol.tojson()
