"""The model that training starts from: a state dict of one of the trainer's own networks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ddl_plugin.errors import UserError
from ddl_plugin.export.graph import is_state_dict
from ddl_plugin.host.arcface_torch.batches import normalised
from ddl_plugin.pytorch.checkpoint import load_backbone
from ddl_plugin.pytorch.state_dicts import read_state_dict, to_state_dict
from ddl_plugin.pytorch.torch_setup import torch

_IMAGES = 64  # embedded at a time


class BaseModel:
    """`config.pretrained`: what the trainer saves as model.pt and InsightFace publishes as backbone.pth, or the
    PREFIX,EPOCH of one that was trained further here.

    build(): a network as the trainer trains it, with whatever weights. device: where it embeds.

    `UserError` for what is no state dict, holds a NaN, or is of another network.
    """

    def __init__(self, path: str, network: str, build: Callable[[], Any], device: torch.device):
        self.path = path
        self._network = network
        self._arrays = _read(path)
        self._device = device
        # The weights it starts with are drawn, and the trainer's own are to be what they are without us.
        with torch.random.fork_rng(devices=[]):
            self._model = build()
        self.load_into(self._model)
        self._model.eval()

    def load_into(self, model: Any) -> None:
        """Give `model`, one of the same network, these weights."""
        wanted = model.state_dict()
        missing = [name for name in wanted if name not in self._arrays]
        other = [name for name in self._arrays if name not in wanted]
        if missing or other:
            missed, unknown = (
                f"{names[0]} ({len(names)} such)" if names else "" for names in (missing, other)
            )
            raise self._not_of_network(f"no {missed}" if missing else unknown)
        for name, array in wanted.items():
            if array.shape != self._arrays[name].shape:
                raise self._not_of_network(
                    f"{name} of shape {tuple(self._arrays[name].shape)} instead of {tuple(array.shape)}"
                )
        model.load_state_dict(self._arrays)

    def embed(self, images: np.ndarray) -> np.ndarray:
        """uint8 (n, 112, 112, 3) RGB -> float32 (n, D)."""
        self._model.to(self._device)
        with torch.no_grad():
            parts = [
                self._model(normalised(torch.from_numpy(images[start : start + _IMAGES]).to(self._device)))
                for start in range(0, len(images), _IMAGES)
            ]
        return torch.cat(parts).float().cpu().numpy()

    def fingerprint(self) -> str:
        """Hash of every array's name and values, 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for name, array in sorted(self._arrays.items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(array.numpy()))
        return digest.hexdigest()[:16]

    def release(self) -> None:
        """Give the device's memory back; `embed` takes it again."""
        self._model.to("cpu")

    def _not_of_network(self, found: str) -> UserError:
        return UserError(
            f"config.pretrained: expected a state dict of config.network {self._network!r}, got {found} in {self.path}"
        )


def _read(path: str) -> dict[str, torch.Tensor]:
    try:
        arrays = read_state_dict(path) if is_state_dict(path) else to_state_dict(load_backbone(path))
    except UserError as error:
        raise UserError(f"config.pretrained: {error}") from error
    for name, array in arrays.items():
        if array.is_floating_point() and not torch.isfinite(array).all():
            raise UserError(f"config.pretrained: {path}: {name} holds NaN or infinite values")
    return arrays
