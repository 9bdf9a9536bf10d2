"""The hosts that train, by name. Everything that differs between them stands behind a backend.

A backend is a module: training/mxnet_backend.py, pytorch/backend.py. What it imports of its framework is imported
when it is asked for.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ddl_plugin.cli import uninterrupted
from ddl_plugin.errors import UserError
from ddl_plugin.export.graph import is_state_dict
from ddl_plugin.settings import BACKENDS, RunSettings, require
from ddl_plugin.training.engine import Arrays, Engine
from ddl_plugin.training.workers import Workers

_MODULES = {"mxnet": "ddl_plugin.training.mxnet_backend", "torch": "ddl_plugin.pytorch.backend"}


class Backbone(Protocol):
    """An embedding network of a host: a frozen dataclass with these fields and a graph."""

    arg: Arrays
    aux: Arrays
    emb_size: int
    source: str
    fc7: np.ndarray | None


class Embedder(Protocol):
    """embed(images uint8 (n, 112, 112, 3)) -> float32 (n, D), by weights that can be changed."""

    def __call__(self, images: np.ndarray) -> np.ndarray: ...

    def set_parameters(self, arg: Arrays, aux: Arrays) -> None: ...


class Backend(Protocol):
    """What a job needs of its host."""

    TITLE: str  # as people write it

    def parse_devices(self, text: str) -> list[Any]:
        """What `--devices` names; `UserError` where that is not there."""

    def join(self, kvstore: str | None, devices: Sequence[Any]) -> AbstractContextManager[Workers]:
        """The other workers, where there are several; returns when all are there."""

    def load_backbone(
        self,
        checkpoint: str,
        *,
        network: str | None = None,
        emb_size: int | None = None,
        rename: Mapping[str, str] = {},
    ) -> Backbone: ...

    def require_checkpoint(self, checkpoint: str) -> None:
        """`UserError` where there are no files that `load_backbone` would read."""

    def new_backbone(self, network: str, emb_size: int | None, seed: int) -> Backbone: ...

    def save_backbone(self, prefix: Path, epoch: int, backbone: Backbone) -> None: ...

    def fingerprint(self, backbone: Backbone) -> str: ...

    def graph_of(self, backbone: Backbone) -> str:
        """The symbol's JSON."""

    def engine(
        self,
        settings: RunSettings,
        backbone: Backbone,
        num_classes: int,
        devices: Sequence[Any],
        rows: int,
        *,
        kvstore: str | None,
        machines: Workers | None,
    ) -> Engine:
        """`rows`: images of a step on all of `devices`."""

    def embedder(self, backbone: Backbone, device: Any) -> Embedder: ...

    def open_network(self, files: Any) -> tuple[Callable[[np.ndarray], np.ndarray] | None, str]:
        """What the export is compared with, as `export.mxnet_network.open_mxnet` gives it."""


def backend_of(checkpoint: str) -> Backend:
    """The host that reads `checkpoint`: PyTorch a state dict, and where MXNet is not installed; else MXNet."""
    alone = _installed("torch") and not _installed("mxnet")
    return get_backend("torch" if alone or is_state_dict(checkpoint) else "mxnet")


def get_backend(name: str) -> Backend:
    """`UserError` where it is unknown, or where its framework cannot be imported."""
    require(name in BACKENDS, "backend", name, f"one of {', '.join(BACKENDS)}")
    try:
        with uninterrupted():
            return importlib.import_module(_MODULES[name])
    except UserError as error:
        other = "torch" if name == "mxnet" else "mxnet"
        if not _installed(other):  # a backend's name is its package's
            raise
        raise UserError(f"{error}; or train with --backend {other}, which is installed") from error


def _installed(package: str) -> bool:
    """Whether a framework is there, broken or not; what stands in for MXNet in PyTorch's host has no loader."""
    found = importlib.util.find_spec(package)
    return found is not None and found.loader is not None
