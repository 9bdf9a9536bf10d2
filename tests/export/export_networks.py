"""Small networks of InsightFace's pattern with random weights, for the tests of the export."""

from __future__ import annotations

import numpy as np

from ddl_plugin.mxnet_setup import mx


def random_params(symbol, image_size, seed=0):
    """Random parameters, BatchNorm's far from the identity, as ({name: NDArray}, {name: NDArray})."""
    rng = np.random.default_rng(seed)
    arg_shapes, _, aux_shapes = symbol.infer_shape(data=(1, 3, image_size, image_size))

    def values(name, shape):
        if name.endswith(("_gamma", "_moving_var")):
            return mx.nd.array(rng.uniform(0.5, 2.0, shape))
        return mx.nd.array(rng.normal(0, 0.3, shape))

    arg = {n: values(n, s) for n, s in zip(symbol.list_arguments(), arg_shapes, strict=True) if n != "data"}
    aux = {n: values(n, s) for n, s in zip(symbol.list_auxiliary_states(), aux_shapes, strict=True)}
    return arg, aux


def embedding_network(*, labelled=False):
    """A residual network of InsightFace's pattern on 112x112: scalars, PReLU, depthwise, Dropout, fixed gamma."""
    with mx.name.NameManager():  # numbers unnamed operators from 0, as a fresh process does
        return _embedding_network(labelled)


def _embedding_network(labelled):
    data = (mx.sym.Variable("data") - 127.5) * 0.0078125
    body = mx.sym.Convolution(data, kernel=(7, 7), stride=(7, 7), num_filter=8, no_bias=True, name="conv0")
    body = mx.sym.BatchNorm(body, fix_gamma=False, eps=2e-5, name="bn0")
    body = mx.sym.LeakyReLU(body, act_type="prelu", name="relu0")
    side = mx.sym.Convolution(body, kernel=(3, 3), pad=(1, 1), num_filter=8, num_group=8, name="conv1")
    body = mx.sym.Pooling(body + side, kernel=(4, 4), stride=(4, 4), pool_type="avg", name="pool0")
    body = mx.sym.Dropout(body, p=0.4, name="drop0")
    body = mx.sym.FullyConnected(body, num_hidden=16, name="pre_fc1")
    embedding = mx.sym.BatchNorm(body, fix_gamma=True, eps=2e-5, name="fc1")
    if not labelled:
        return embedding
    logits = mx.sym.FullyConnected(mx.sym.L2Normalization(embedding), num_hidden=5, no_bias=True, name="fc7")
    return mx.sym.Group([mx.sym.BlockGrad(embedding), mx.sym.SoftmaxOutput(logits, name="softmax")])
