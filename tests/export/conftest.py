"""Checkpoints written by MXNet itself, small enough to convert in milliseconds."""

from __future__ import annotations

import pytest
from export_networks import embedding_network, random_params

from ddl_plugin.mxnet_setup import mx


@pytest.fixture
def save(tmp_path):
    """save(symbol, arg, aux, name='model', epoch=0) writes a checkpoint and returns 'PREFIX,EPOCH'."""

    def write(symbol, arg, aux, name="model", epoch=0):
        prefix = tmp_path / name
        prefix.parent.mkdir(parents=True, exist_ok=True)
        mx.model.save_checkpoint(str(prefix), epoch, symbol, arg, aux)
        return f"{prefix},{epoch}"

    return write


@pytest.fixture
def checkpoint(save):
    """'PREFIX,EPOCH' of a small embedding network with random weights."""
    symbol = embedding_network()
    return save(symbol, *random_params(symbol, 112))
