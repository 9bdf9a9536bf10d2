"""Checkpoints of MXNet's format, small enough to convert in milliseconds."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from ddl_plugin.export.params import save_params

#: What MXNet 1.9.1 writes of `export_networks.embedding_network`; a test looks whether it still does.
EMBEDDING_NETWORK = Path(__file__).parent / "embedding_network.json"
ARGUMENTS = {
    "conv0_weight": (8, 3, 7, 7), "bn0_gamma": (8,), "bn0_beta": (8,), "relu0_gamma": (8,),
    "conv1_weight": (8, 1, 3, 3), "conv1_bias": (8,), "pre_fc1_weight": (16, 128), "pre_fc1_bias": (16,),
    "fc1_gamma": (16,), "fc1_beta": (16,),
}  # fmt: skip
STATES = {
    "bn0_moving_mean": (8,), "bn0_moving_var": (8,), "fc1_moving_mean": (16,), "fc1_moving_var": (16,)
}  # fmt: skip


@pytest.fixture
def save(tmp_path, mx):
    """save(symbol, arg, aux, name='model', epoch=0) has MXNet write a checkpoint and returns 'PREFIX,EPOCH'."""

    def write(symbol, arg, aux, name="model", epoch=0):
        prefix = tmp_path / name
        prefix.parent.mkdir(parents=True, exist_ok=True)
        mx.model.save_checkpoint(str(prefix), epoch, symbol, arg, aux)
        return f"{prefix},{epoch}"

    return write


@pytest.fixture
def checkpoint(tmp_path):
    """'PREFIX,EPOCH' of a small embedding network with random weights, BatchNorm's far from the identity."""
    rng = np.random.default_rng(0)

    def values(name, shape):
        far = name.endswith(("_gamma", "_moving_var"))
        return (rng.uniform(0.5, 2.0, shape) if far else rng.normal(0, 0.3, shape)).astype(np.float32)

    arg, aux = ({n: values(n, shape) for n, shape in shapes.items()} for shapes in (ARGUMENTS, STATES))
    shutil.copy(EMBEDDING_NETWORK, tmp_path / "model-symbol.json")
    save_params(tmp_path / "model-0000.params", arg, aux)
    return f"{tmp_path / 'model'},0"
