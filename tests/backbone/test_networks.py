"""The graphs that are built anew, by themselves."""

import pytest

from ddl_plugin.backbone.networks import NETWORKS, build_network
from ddl_plugin.backbone.symbol_json import symbol_json
from ddl_plugin.errors import UserError
from ddl_plugin.export.graph import parse_symbol


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_one_input_one_output_and_names_of_its_own(name):
    graph = build_network(name)
    names = [node.name for node in graph.nodes]
    assert len(set(names)) == len(names)
    assert [node.name for node in graph.nodes if not node.inputs and not node.attrs] == ["data"]
    assert graph.nodes[graph.heads[0][0]].name == "fc1"
    assert NETWORKS[name].description


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("emb_size", [None, 96])
def test_the_embedding_has_the_size_asked_for(name, emb_size):
    node = next(node for node in build_network(name, emb_size).nodes if node.name == "pre_fc1")
    assert node.whole("num_hidden", 0) == (emb_size or NETWORKS[name].emb_size)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_build_is_the_same_and_survives_its_json(name):
    first, second = build_network(name), build_network(name)
    assert first == second
    assert parse_symbol(symbol_json(first), name) == first


@pytest.mark.parametrize(("name", "residual"), [("y1", 12), ("y2", 2 + 8 + 16 + 4), ("tiny", 2)])
def test_residual_blocks(name, residual):
    assert sum(node.op == "elemwise_add" for node in build_network(name).nodes) == residual


def test_an_unknown_network_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="network: unknown 'tinny'; did you mean 'tiny'"):
        build_network("tinny")
