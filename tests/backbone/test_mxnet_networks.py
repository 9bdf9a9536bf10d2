"""The graphs that are built anew, in MXNet: the very symbols that `mx.sym` makes."""

import math

import pytest
from mxnet_networks import built

from ddl_plugin.backbone.arrays import IMAGE_SHAPE
from ddl_plugin.backbone.checkpoint import expected_shapes
from ddl_plugin.backbone.networks import NETWORKS, build_network
from ddl_plugin.backbone.symbol_json import symbol_json
from ddl_plugin.mxnet_setup import mx, symbol_from_json


def symbol_of(name, emb_size=None):
    return symbol_from_json(symbol_json(build_network(name, emb_size)))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("emb_size", [None, 96])
def test_the_text_is_that_of_mxnet(name, emb_size):
    expected = built(name, emb_size or NETWORKS[name].emb_size).tojson()
    assert symbol_json(build_network(name, emb_size)) == expected
    assert symbol_of(name, emb_size).tojson() == expected


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("emb_size", [None, 96])
def test_mxnet_makes_an_embedding_of_it(name, emb_size):
    symbol = symbol_of(name, emb_size)
    assert symbol.list_outputs() == ["fc1_output"]
    assert symbol.infer_shape(data=(5, *IMAGE_SHAPE))[1] == [(5, emb_size or NETWORKS[name].emb_size)]
    assert len(set(symbol.list_inputs())) == len(symbol.list_inputs())


def test_y1_has_the_papers_number_of_parameters():
    """0.99 million (Chen et al. 2018, Table 2)."""
    arg, aux, _ = expected_shapes(symbol_of("y1"), "y1")
    assert sum(math.prod(shape) for shape in arg.values()) / 1e6 == pytest.approx(0.99, rel=0.02)
    assert arg["conv_1_conv2d_weight"] == (64, 3, 3, 3)
    assert all(name.endswith(("_moving_mean", "_moving_var")) for name in aux)


def test_y1_has_the_published_checkpoints_graph(shared_data):
    published = mx.sym.load(str(shared_data / "y1_ms1m" / "model-symbol.json")).get_internals()["fc1_output"]
    symbol = symbol_of("y1")
    assert set(published.list_arguments()) ^ set(symbol.list_arguments()) == {"fc1_weight", "pre_fc1_weight"}
    renamed = [{"fc1_weight": "pre_fc1_weight"}.get(name, name) for name in published.list_arguments()]
    assert renamed == symbol.list_arguments()
    assert published.list_auxiliary_states() == symbol.list_auxiliary_states()
    given = {"data": (2, *IMAGE_SHAPE)}
    assert published.infer_shape(**given) == symbol.infer_shape(**given)
