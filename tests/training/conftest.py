"""A small drawn data set, a base model with random weights, and runs of the command that several tests look at."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ddl_plugin.backbone.checkpoint import Backbone, new_backbone, save_backbone
from ddl_plugin.data.attributes import AttributeTable
from ddl_plugin.data.pairs import build_pairs
from ddl_plugin.data.partition import build_partition
from ddl_plugin.data.records import Records
from ddl_plugin.data.synthetic import generate
from ddl_plugin.errors import CheckError, UserError
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.settings import DDLSettings, RunSettings
from ddl_plugin.training.dataset import Dataset
from ddl_plugin.training.link import Door, connect
from ddl_plugin.training.machines import Machines

IDENTITIES, EMBEDDING = 10, 16
RULES = {"easy": "abs(yaw) < 20", "hard": ("abs(yaw) > 30",)}


@pytest.fixture(scope="session")
def small_synthetic(tmp_path_factory) -> Path:
    """The embedded data set with 10 identities of 8 images."""
    folder = tmp_path_factory.mktemp("data") / "synthetic"
    generate(folder, identities=IDENTITIES, images=8, processes=1, progress=False)
    return folder


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    return new_backbone("tiny", EMBEDDING, seed=1)


@pytest.fixture(scope="session")
def base_checkpoint(tmp_path_factory, backbone) -> str:
    """'PREFIX,EPOCH' of `backbone`."""
    prefix = tmp_path_factory.mktemp("base") / "tiny"
    save_backbone(prefix, 0, backbone.symbol, backbone.arg, backbone.aux)
    return f"{prefix},0"


@pytest.fixture(scope="session")
def settings_of(small_synthetic) -> Callable[..., RunSettings]:
    """settings_of(ddl={...}, **changes): settings of a run on `small_synthetic`, 18 images a step."""

    def make(ddl: dict | None = None, **changes) -> RunSettings:
        values = {
            "dataset_path": str(small_synthetic), "attributes": "attributes.npz", "pretrained": "given",
            "lr": 0.01, "loss_s": 16.0, "max_steps": 3,
            "ddl": DDLSettings(**{"b": 3, **RULES, **(ddl or {})}),
        }  # fmt: skip
        return RunSettings(**{**values, **changes})

    return make


def pooled(images: np.ndarray) -> np.ndarray:
    """Stands in for a base model: 8x8 means of the pixels, float32 (n, 588)."""
    n = len(images)
    return images.reshape(n, 14, 8, 14, 8, 3).mean(axis=(2, 4)).reshape(n, -1).astype(np.float32) - 100


@pytest.fixture(scope="session")
def dataset_of(small_synthetic) -> Callable[[RunSettings], Dataset]:
    def make(settings: RunSettings) -> Dataset:
        records = Records(small_synthetic)
        table = AttributeTable.load(small_synthetic / "attributes.npz")
        partition = build_partition(records, settings.ddl, table)
        pairs = build_pairs(records, partition, pooled, b=settings.ddl.b, progress=False)
        return Dataset(small_synthetic, records, partition, pairs)

    return make


@pytest.fixture(scope="session")
def fc7() -> np.ndarray:
    return np.random.default_rng(5).normal(0, 0.1, (IDENTITIES, EMBEDDING)).astype(np.float32)


# -- several workers, as threads ----------------------------------------------------------------------------


class Store:
    """One worker's KVStore, which adds up as MXNet's does. A key's first value is worker 0's; then a push makes it the sum of all pushes."""

    def __init__(self, rank, shared, barrier):
        self.rank, self.num_workers = rank, barrier.parties
        self._shared, self._barrier = shared, barrier

    def init(self, keys, values):
        keys, values = (keys, values) if isinstance(keys, list) else ([keys], [values])
        if self.rank == 0:
            for key, value in zip(keys, values, strict=True):
                assert key not in self._shared, f"duplicate init of {key}"
                self._shared[key] = value.asnumpy()
        self._barrier.wait(20)

    def push(self, key, values, priority):
        self._shared[key, self.rank] = sum(value.asnumpy() for value in values)

    def pull(self, key, out, priority=0):
        outs = out if isinstance(out, list) else [out]
        self._barrier.wait(20)
        pushed = [self._shared.get((key, rank)) for rank in range(self.num_workers)]
        total = self._shared[key] if pushed[0] is None else sum(pushed)
        assert total.shape == outs[0].shape
        for array in outs:
            array[:] = mx.nd.array(total, dtype=total.dtype)
        self._barrier.wait(20)


@pytest.fixture
def everywhere() -> Callable[..., list]:
    """everywhere(function) -> what function(machines) returns or raises in each of 3 workers, by rank."""

    def run(function, workers=3, linked=False):
        shared, barrier = {}, threading.Barrier(workers)
        links = [None] * workers
        if linked:
            door = Door("127.0.0.1")
            links[1:] = [connect(door.address, rank) for rank in range(1, workers)]
            links[0] = door.admit(workers)

        def one(rank):
            machines = Machines(Store(rank, shared, barrier), links[rank])
            try:
                return function(machines)
            except (UserError, CheckError) as error:
                return error

        with ThreadPoolExecutor(workers) as pool:
            results = list(pool.map(one, range(workers)))
        for link in filter(None, links):
            link.close()
        return results

    return run


# -- the command -------------------------------------------------------------------------------------

RECIPE = """
from easydict import EasyDict
config = EasyDict()
config.loss = "ddl"
config.dataset_path = {dataset!r}
config.attributes = "attributes.npz"
config.pretrained = {pretrained!r}
config.ddl = EasyDict(b=3, easy="abs(yaw) < 20", hard=["abs(yaw) > 30"])
config.max_steps = 16
config.lr = 0.02
config.loss_s = 16.0
config.verbose = 5
config.val_targets = ["easy"]
"""


@pytest.fixture(scope="session")
def write_recipe(small_synthetic, base_checkpoint) -> Callable[..., Path]:
    """write_recipe(folder, *lines, dataset=, pretrained=): a recipe of 16 steps with `lines` at its end."""

    def write(folder: Path, *lines: str, dataset=small_synthetic, pretrained: str = base_checkpoint) -> Path:
        path = folder / "small.py"
        path.write_text("\n".join([RECIPE.format(dataset=str(dataset), pretrained=pretrained), *lines, ""]))
        return path

    return write


def start_train(*arguments: object) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    return subprocess.Popen(
        [sys.executable, "-m", "ddl_plugin.train", *map(str, arguments)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run_train(*arguments: object) -> subprocess.CompletedProcess:
    process = start_train(*arguments, "--quiet")
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture(scope="session")
def train_command() -> Callable[..., subprocess.CompletedProcess]:
    """train_command(recipe, ...): `python -m ddl_plugin.train ... --quiet` in a process of its own."""
    return run_train


@pytest.fixture(scope="session")
def train_in_background() -> Callable[..., subprocess.Popen]:
    return start_train


@pytest.fixture(scope="session")
def finished(tmp_path_factory, write_recipe) -> tuple[Path, subprocess.CompletedProcess]:
    """The output folder of a finished run with its baseline, and what the command printed."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = write_recipe(folder, "config.baseline = True")
    return folder / "out", run_train(recipe, "--output", folder / "out")
