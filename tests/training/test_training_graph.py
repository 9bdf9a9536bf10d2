import json

import pytest

from ddl_plugin.mxnet_setup import mx
from ddl_plugin.training.engine import identity_settings
from ddl_plugin.training.graph import fixed_gammas, training_graph

CPU, GPU = [mx.cpu(0), mx.cpu(1)], [mx.gpu(0)]


def operators(symbol):
    return [node["op"] for node in json.loads(symbol.tojson())["nodes"]]


def test_presets_and_what_the_recipe_changes(settings_of):
    preset = identity_settings(settings_of(loss_s=None))
    assert (preset.name, preset.m1, preset.m2, preset.m3, preset.s) == ("arcface", 1, 0.5, 0, 64)
    changed = identity_settings(
        settings_of(loss_m1=0.9, loss_m2=0.4, loss_m3=0.15, loss_s=30.0, fc7_lr_mult=10)
    )
    assert (changed.m1, changed.m2, changed.m3, changed.s) == (0.9, 0.4, 0.15, 30)
    assert changed.fc7_lr_mult == 10


def test_a_margin_of_zero_is_not_the_preset(settings_of):
    assert identity_settings(settings_of(loss_m2=0.0)).m2 == 0


def test_the_identity_loss_is_the_loss_itself_or_the_one_beside_it(settings_of):
    assert identity_settings(settings_of(loss="cosface")).name == "cosface"
    assert identity_settings(settings_of(ddl={"identity": "combined"})).name == "combined"
    assert identity_settings(settings_of(ddl={"identity_rows": "singles"})).rows == "singles"


def test_slow_prelu_is_replaced_on_the_cpu_alone(settings_of, backbone):
    own = operators(backbone.symbol).count("LeakyReLU")
    assert own > 0
    assert "LeakyReLU" not in operators(training_graph(settings_of(), backbone, 10, CPU).symbol)
    assert operators(training_graph(settings_of(), backbone, 10, GPU).symbol).count("LeakyReLU") == own
    assert operators(backbone.symbol).count("LeakyReLU") == own


@pytest.mark.parametrize("frozen", [False, True])
def test_batchnorm_is_frozen_where_the_recipe_says_so(settings_of, backbone, frozen):
    symbol = training_graph(settings_of(bn_frozen=frozen), backbone, 10, CPU).symbol
    nodes = [node for node in json.loads(symbol.tojson())["nodes"] if node["op"] == "BatchNorm"]
    assert len(nodes) > 5
    assert all((node["attrs"].get("use_global_stats") == "True") == frozen for node in nodes)


def test_parameters_are_those_of_the_checkpoint_and_the_classifier(settings_of, backbone):
    symbol = training_graph(settings_of(), backbone, 10, CPU).symbol
    assert set(symbol.list_arguments()) == {*backbone.arg, "fc7_weight", "data", "softmax_label"}
    assert set(symbol.list_auxiliary_states()) == set(backbone.aux)


@pytest.mark.parametrize(("rows", "seen"), [("all", 18), ("singles", 6)])
def test_rows_that_the_identity_loss_sees(settings_of, backbone, rows, seen):
    graph = training_graph(settings_of(ddl={"identity_rows": rows}), backbone, 10, CPU)
    _, shapes, _ = graph.symbol.infer_shape(data=(18, 3, 112, 112), softmax_label=(18,))
    by_name = dict(zip(graph.symbol.list_outputs(), shapes, strict=True))
    assert by_name["softmax_output"] == (seen, 10)
    assert by_name["embedding_output"] == (18, 16)
    assert by_name["ddl_terms_output"] == (1, len(graph.term_names))


def test_without_distributions_there_are_no_terms(settings_of, backbone):
    graph = training_graph(settings_of().without_distributions_loss(), backbone, 10, CPU)
    assert graph.term_names == ()
    assert graph.symbol.list_outputs() == ["embedding_output", "softmax_output", "ce_loss_output"]


def test_gammas_that_mxnet_takes_for_one(backbone):
    assert fixed_gammas(backbone.symbol) == ["fc1_gamma"]
    default = mx.sym.BatchNorm(mx.sym.Variable("data"), name="bn")
    assert fixed_gammas(mx.sym.load_json(default.tojson())) == ["bn_gamma"]
    assert fixed_gammas(mx.sym.BatchNorm(mx.sym.Variable("data"), fix_gamma=False)) == []
