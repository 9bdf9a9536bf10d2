"""PyTorch as a backend: see `training.backends.Backend`."""

from __future__ import annotations

from collections.abc import Sequence

from ddl_plugin.export.graph import find_checkpoint, is_state_dict
from ddl_plugin.pytorch.checkpoint import (
    Backbone,
    fingerprint,
    load_backbone,
    new_backbone,
    save_backbone,
)
from ddl_plugin.pytorch.devices import parse_devices
from ddl_plugin.pytorch.embedder import TorchEmbedder
from ddl_plugin.pytorch.engine import TorchEngine
from ddl_plugin.pytorch.processes import Processes
from ddl_plugin.pytorch.reference import open_torch
from ddl_plugin.pytorch.torch_setup import torch

__all__ = ["fingerprint", "load_backbone", "new_backbone", "parse_devices", "save_backbone"]

TITLE = "PyTorch"

engine = TorchEngine
embedder = TorchEmbedder
open_network = open_torch


def join(kvstore: str | None, devices: Sequence[torch.device]) -> Processes:
    return Processes.join(devices[0])


def require_checkpoint(name: str) -> None:
    if not is_state_dict(name):
        find_checkpoint(name)


def graph_of(backbone: Backbone) -> str:
    return backbone.symbol
