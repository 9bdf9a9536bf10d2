"""Embeddings by the graph that trains, with labels of ones, as InsightFace verifies."""

import mxnet as mx
import numpy as np
from scipy import interpolate


def test(images, module, batch_size, far):
    """Mean length of the embeddings; and, as InsightFace does, a threshold at a FAR that several have."""
    found = []
    for start in range(0, len(images) - batch_size + 1, batch_size):
        data = mx.nd.array(images[start : start + batch_size])
        module.forward(mx.io.DataBatch((data,), (mx.nd.ones((batch_size,)),)), is_train=False)
        found.append(module.get_outputs()[0].asnumpy())
    if far:
        interpolate.interp1d([0.0, 0.1, 0.1, 0.5], [0.0, 1.0, 2.0, 3.0], kind="slinear")(0.05)
    return float(np.linalg.norm(np.concatenate(found), axis=1).mean())
