"""A small trainer in a folder of its own, data and a checkpoint for it, and runs of the host's command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from ddl_plugin.data.records import RecordWriter

SMALL_HOST = Path(__file__).parent / "small_host"
IDENTITIES, EMBEDDING = 12, 16

#: What a user appends to config.py: the data set's entry, and that of the loss.
CONFIG = """
dataset.small = EasyDict(
    dataset="small", dataset_path={dataset!r}, num_classes=12, image_shape=(112, 112, 3), val_targets=["any"]
)
loss.ddl = EasyDict(b=3, hard=[{{"darken": (0.2, 0.5)}}], lambda_pos=0.3, loss_s=16.0, gamma=20.0)
default.dataset = "small"
default.pretrained, default.pretrained_epoch = {prefix!r}, 0
config.max_steps = 2
"""


@pytest.fixture(scope="session")
def small_records(tmp_path_factory) -> Path:
    """A folder of train.rec: 12 identities of 6 smooth random pictures each, alike within an identity."""
    folder = tmp_path_factory.mktemp("records")
    rng = np.random.default_rng(0)
    with RecordWriter(folder) as writer:
        for identity in range(IDENTITIES):
            face = rng.integers(0, 256, (4, 4, 3))
            for _ in range(6):
                small = np.clip(face + rng.normal(0, 25, face.shape), 0, 255).astype(np.uint8)
                writer.add(cv2.resize(small, (112, 112), interpolation=cv2.INTER_CUBIC), identity)
    return folder


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory, mx) -> Path:
    """Prefix of epoch 0 of the small trainer's network, with random weights."""
    prefix = tmp_path_factory.mktemp("checkpoint") / "small"
    sys.path.insert(0, str(SMALL_HOST))
    try:
        import small
    finally:
        sys.path.remove(str(SMALL_HOST))
    symbol = small.get_symbol()
    shapes, _, aux_shapes = symbol.infer_shape(data=(1, 3, 112, 112))
    rng = np.random.default_rng(3)
    arg = {
        n: rng.normal(0, 0.2, s) for n, s in zip(symbol.list_arguments(), shapes, strict=True) if n != "data"
    }
    arg = {n: np.ones_like(a) if n.endswith("gamma") else a for n, a in arg.items()}
    aux = dict(zip(symbol.list_auxiliary_states(), map(np.ones, aux_shapes), strict=True))
    as_mxnet = ({n: mx.nd.array(a) for n, a in arrays.items()} for arrays in (arg, aux))
    mx.model.save_checkpoint(str(prefix), 0, symbol, *as_mxnet)
    return prefix


@pytest.fixture
def small_host(tmp_path, small_records, small_checkpoint) -> Path:
    """A checkout of the small trainer with its config.py, as a user has one."""
    folder = tmp_path / "host"
    shutil.copytree(SMALL_HOST, folder, ignore=shutil.ignore_patterns("__pycache__"))
    text = (folder / "sample_config.py").read_text()
    entries = CONFIG.format(dataset=str(small_records), prefix=str(small_checkpoint))
    (folder / "config.py").write_text(text + entries)
    return folder


Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def run_python(tmp_path) -> Run:
    """run_python(*arguments of python): a process in a folder of its own."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
        given = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=tmp_path, env=given, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    return run


@pytest.fixture
def run_host(run_python, small_host) -> Run:
    """run_host(*ours, its=(...)): `python -m ddl_plugin.host` on the small trainer, on two CPU devices."""

    def run(*ours: object, its: tuple = (), folder: Path = small_host) -> subprocess.CompletedProcess:
        devices = () if "--devices" in ours else ("--devices", "cpu:0,1")
        return run_python("-m", "ddl_plugin.host", folder, *devices, *ours, "--", *its)

    return run
