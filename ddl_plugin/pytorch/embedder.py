"""Embeddings of images by a torch network."""

from __future__ import annotations

import numpy as np

from ddl_plugin.backbone.arrays import IMAGE_SHAPE, Arrays
from ddl_plugin.errors import UserError
from ddl_plugin.pytorch.checkpoint import Backbone
from ddl_plugin.pytorch.precision import without_tf32
from ddl_plugin.pytorch.torch_setup import torch


class TorchEmbedder:
    """embed(images uint8 (n, 112, 112, 3) RGB) -> float32 (n, emb_size), not normalised.

    In float32 throughout, whatever a GPU would take for it (TF32); `batch` images at a time.
    """

    def __init__(self, backbone: Backbone, device: torch.device | str = "cpu", batch: int = 32):
        self._batch = batch
        self._source = backbone.source
        self.emb_size = backbone.emb_size
        self._device = torch.device(device)
        network = backbone.network().eval().requires_grad_(False)
        self._network = network.to(self._device, memory_format=torch.channels_last)

    def set_parameters(self, arg: Arrays, aux: Arrays) -> None:
        """Take new weights (NumPy arrays) for the calls that follow."""
        self._network.set_arrays(arg, aux)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        channels, *sides = IMAGE_SHAPE
        if images.shape[1:] != (*sides, channels):
            raise UserError(f"{self._source}: expected images (n, 112, 112, 3), got {images.shape}")
        result = np.empty((len(images), self.emb_size), np.float32)
        with torch.inference_mode(), without_tf32():
            for start in range(0, len(images), self._batch):
                part = torch.from_numpy(np.array(images[start : start + self._batch], order="C"))
                pixels = part.to(self._device).permute(0, 3, 1, 2).float()
                result[start : start + len(part)] = self._network(pixels).cpu().numpy()
        return result
