"""A small drawn data set, recipes on it, and the command in a process: what the tests of both hosts share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ddl_plugin.data.attributes import AttributeTable
from ddl_plugin.data.pairs import build_pairs
from ddl_plugin.data.partition import build_partition
from ddl_plugin.data.records import Records
from ddl_plugin.data.synthetic import generate
from ddl_plugin.export.params import Arrays, load_params
from ddl_plugin.settings import DDLSettings, RunSettings
from ddl_plugin.training.backends import Backbone
from ddl_plugin.training.dataset import Dataset

IDENTITIES, EMBEDDING = 10, 16
RULES = {"easy": "abs(yaw) < 20", "hard": ("abs(yaw) > 30",)}


@pytest.fixture(scope="session")
def small_synthetic(tmp_path_factory) -> Path:
    """The embedded data set with 10 identities of 8 images."""
    folder = tmp_path_factory.mktemp("data") / "synthetic"
    generate(folder, identities=IDENTITIES, images=8, processes=1, progress=False)
    return folder


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


def start_train(*arguments: object, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    """`launcher`: modules and options that start the command's module."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "ddl_plugin.train", *map(str, arguments)],
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


# -- what a run left ---------------------------------------------------------------------------------


def parameters(backbone: Backbone) -> Arrays:
    return {**backbone.arg, **backbone.aux, "fc7_weight": backbone.fc7}


def assert_same(one: Backbone, other: Backbone) -> None:
    _assert_equal(parameters(one), parameters(other))


def assert_same_arrays(one: Path, other: Path) -> None:
    """Of two .params files."""
    for mine, theirs in zip(load_params(one), load_params(other), strict=True):
        _assert_equal(mine, theirs)


def _assert_equal(mine: Arrays, theirs: Arrays) -> None:
    assert mine.keys() == theirs.keys()
    for name in mine:
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)


def rows(folder: Path, kind: str = "train") -> list[dict]:
    """The lines of a run's log that are of this kind."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]
