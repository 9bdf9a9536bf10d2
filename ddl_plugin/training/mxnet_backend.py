"""MXNet as a backend: see `training.backends.Backend`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ddl_plugin.backbone import checkpoint
from ddl_plugin.backbone.checkpoint import Backbone, fingerprint, load_backbone, new_backbone
from ddl_plugin.backbone.embedder import MXNetEmbedder
from ddl_plugin.export.graph import find_checkpoint
from ddl_plugin.export.mxnet_network import open_mxnet
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.training.devices import parse_devices
from ddl_plugin.training.machines import Machines
from ddl_plugin.training.mxnet_engine import MXNetEngine

__all__ = ["fingerprint", "load_backbone", "new_backbone", "parse_devices"]

TITLE = "MXNet"

engine = MXNetEngine
embedder = MXNetEmbedder
open_network = open_mxnet


def join(kvstore: str, devices: Sequence[mx.Context]) -> Machines:
    return Machines.join(kvstore)


def require_checkpoint(name: str) -> None:
    find_checkpoint(name)


def save_backbone(prefix: Path, epoch: int, backbone: Backbone) -> None:
    checkpoint.save_backbone(prefix, epoch, backbone.symbol, backbone.arg, backbone.aux)


def graph_of(backbone: Backbone) -> str:
    return backbone.symbol.tojson()
