"""The reference: what MXNet computes, in pieces where images do not depend on each other."""

import numpy as np
import pytest
from export_networks import embedding_network, random_params

from ddl_plugin.export.graph import find_checkpoint
from ddl_plugin.export.images import as_input, random_images
from ddl_plugin.export.mxnet_network import MXNetNetwork
from ddl_plugin.mxnet_setup import mx


def test_the_checkpoint_of_these_tests_is_one_that_mxnet_writes(checkpoint):
    symbol, files = embedding_network(), find_checkpoint(checkpoint)
    assert files.symbol.read_text() == symbol.tojson()
    written = mx.nd.load(str(files.params))
    expected = (
        {f"{kind}:{n}": a.shape for n, a in part.items()}
        for kind, part in zip(("arg", "aux"), random_params(symbol, 112), strict=True)
    )
    assert {name: array.shape for name, array in written.items()} == next(expected) | next(expected)


def over_the_batch():
    """An embedding divided by a mean over the whole batch, as InsightFace's GNAP is."""
    pooled = mx.sym.Pooling(mx.sym.Variable("data"), global_pool=True, pool_type="max", kernel=(1, 1))
    dense = mx.sym.FullyConnected(pooled, num_hidden=8, name="dense")
    return mx.sym.broadcast_div(dense, mx.sym.mean(mx.sym.abs(dense), keepdims=True), name="fc1")


@pytest.mark.parametrize(("network", "largest"), [(embedding_network, 4), (over_the_batch, 9)])
def test_pieces_give_what_the_whole_batch_gives(network, largest, save, monkeypatch):
    symbol = network()
    arg, aux = random_params(symbol, 112)
    text = save(symbol, arg, aux)
    batch = as_input(random_images(9, 112))
    whole = symbol.simple_bind(mx.cpu(), grad_req="null", data=batch.shape)
    whole.copy_params_from(
        *({name: mx.nd.array(array) for name, array in part.items()} for part in (arg, aux))
    )
    expected = whole.forward(is_train=False, data=mx.nd.array(batch))[0].asnumpy()

    bound, bind = [], MXNetNetwork._bind
    monkeypatch.setattr(
        MXNetNetwork,
        "_bind",
        lambda self, what, images: bound.append(len(images)) or bind(self, what, images),
    )
    found = MXNetNetwork(find_checkpoint(text))(batch)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert max(bound) == largest
