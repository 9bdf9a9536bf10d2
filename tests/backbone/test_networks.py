"""The graphs that are built anew."""

import math

import pytest

from ddl_plugin.backbone.checkpoint import IMAGE_SHAPE, expected_shapes
from ddl_plugin.backbone.networks import NETWORKS, build_network
from ddl_plugin.errors import UserError
from ddl_plugin.mxnet_setup import mx


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("emb_size", [None, 96])
def test_every_network_ends_in_an_embedding_of_the_size_asked_for(name, emb_size):
    symbol = build_network(name, emb_size)
    assert symbol.list_outputs() == ["fc1_output"]
    assert symbol.infer_shape(data=(5, *IMAGE_SHAPE))[1] == [(5, emb_size or NETWORKS[name].emb_size)]
    assert NETWORKS[name].description
    assert len(set(symbol.list_inputs())) == len(symbol.list_inputs())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_build_has_the_same_names(name):
    mx.sym.Variable("x") + 1  # auto-generated names count up
    first, second = build_network(name), build_network(name)
    assert first.tojson() == second.tojson()


@pytest.mark.parametrize(("name", "residual"), [("y1", 12), ("y2", 2 + 8 + 16 + 4)])
def test_mobilefacenets_have_their_residual_blocks(name, residual):
    outputs = build_network(name).get_internals().list_outputs()
    assert len([output for output in outputs if output.startswith("_plus")]) == residual


def test_y1_has_the_papers_number_of_parameters():
    """0.99 million (Chen et al. 2018, Table 2)."""
    arg, aux, _ = expected_shapes(build_network("y1"), "y1")
    assert sum(math.prod(shape) for shape in arg.values()) / 1e6 == pytest.approx(0.99, rel=0.02)
    assert arg["conv_1_conv2d_weight"] == (64, 3, 3, 3)
    assert all(name.endswith(("_moving_mean", "_moving_var")) for name in aux)


def test_y1_has_the_published_checkpoints_graph(shared_data):
    published = mx.sym.load(str(shared_data / "y1_ms1m" / "model-symbol.json")).get_internals()["fc1_output"]
    built = build_network("y1")
    assert set(published.list_arguments()) ^ set(built.list_arguments()) == {"fc1_weight", "pre_fc1_weight"}
    renamed = [{"fc1_weight": "pre_fc1_weight"}.get(name, name) for name in published.list_arguments()]
    assert renamed == built.list_arguments()
    assert published.list_auxiliary_states() == built.list_auxiliary_states()
    given = {"data": (2, *IMAGE_SHAPE)}
    assert published.infer_shape(**given) == built.infer_shape(**given)


def test_an_unknown_network_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="network: unknown 'tinny'; did you mean 'tiny'"):
        build_network("tinny")
