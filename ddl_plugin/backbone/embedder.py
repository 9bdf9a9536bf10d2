"""Embeddings of images by a checkpoint (MXNet) or an ONNX file, behind one call."""

from __future__ import annotations

import numpy as np

from ddl_plugin.backbone.checkpoint import IMAGE_SHAPE, Backbone
from ddl_plugin.errors import UserError
from ddl_plugin.mxnet_setup import mx


class MXNetEmbedder:
    """embed(images uint8 (n, 112, 112, 3) RGB) -> float32 (n, emb_size), not normalised.

    One bind of `batch` images on one device serves all calls; the last batch is filled up with zeros.
    """

    def __init__(self, backbone: Backbone, context: mx.Context | None = None, batch: int = 32):
        self._batch = batch
        self._source = backbone.source
        self.emb_size = backbone.emb_size
        self._context = context or mx.cpu()
        shapes = {"data": (batch, *IMAGE_SHAPE)}
        self._executor = backbone.symbol.simple_bind(self._context, grad_req="null", **shapes)
        self.set_parameters(backbone.arg, backbone.aux)

    def set_parameters(self, arg: dict, aux: dict) -> None:
        """Take new weights (NumPy arrays) for the calls that follow."""
        # copy_params_from can write arrays that oneDNN has put in a layout of its own; `array[:] =` cannot.
        self._executor.copy_params_from(
            {name: mx.nd.array(array) for name, array in arg.items()},
            {name: mx.nd.array(array) for name, array in aux.items()},
        )

    def __call__(self, images: np.ndarray) -> np.ndarray:
        channels, *sides = IMAGE_SHAPE
        if images.shape[1:] != (*sides, channels):
            raise UserError(f"{self._source}: expected images (n, 112, 112, 3), got {images.shape}")
        result = np.empty((len(images), self.emb_size), np.float32)
        for start in range(0, len(images), self._batch):
            part = images[start : start + self._batch]
            data = np.zeros((self._batch, *IMAGE_SHAPE), np.float32)
            data[: len(part)] = part.transpose(0, 3, 1, 2)
            (output,) = self._executor.forward(is_train=False, data=mx.nd.array(data, ctx=self._context))
            result[start : start + len(part)] = output.asnumpy()[: len(part)]
        return result
