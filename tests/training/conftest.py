"""A base model of MXNet, its workers as threads, and runs of the command that several tests look at."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from small_runs import (  # noqa: F401 - fixtures
    EMBEDDING,
    dataset_of,
    fc7,
    run_train,
    settings_of,
    small_synthetic,
    train_command,
    train_in_background,
    write_recipe,
)

from ddl_plugin.errors import CheckError, UserError

if TYPE_CHECKING:
    from ddl_plugin.backbone.checkpoint import Backbone


@pytest.fixture(scope="session")
def backbone(needs_mxnet) -> Backbone:
    from ddl_plugin.backbone.checkpoint import new_backbone

    return new_backbone("tiny", EMBEDDING, seed=1)


@pytest.fixture(scope="session")
def base_checkpoint(tmp_path_factory, backbone) -> str:
    """'PREFIX,EPOCH' of `backbone`."""
    from ddl_plugin.backbone.checkpoint import save_backbone

    prefix = tmp_path_factory.mktemp("base") / "tiny"
    save_backbone(prefix, 0, backbone.symbol, backbone.arg, backbone.aux)
    return f"{prefix},0"


# -- several workers, as threads ----------------------------------------------------------------------------


class Store:
    """One worker's KVStore, which adds up as MXNet's does. A key's first value is worker 0's; then a push makes it the sum of all pushes."""

    def __init__(self, rank, shared, barrier):
        from ddl_plugin.mxnet_setup import mx

        self._mx = mx
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
            array[:] = self._mx.nd.array(total, dtype=total.dtype)
        self._barrier.wait(20)


@pytest.fixture
def everywhere(needs_mxnet) -> Callable[..., list]:
    """everywhere(function) -> what function(machines) returns or raises in each of 3 workers, by rank."""
    from ddl_plugin.training.link import Door, connect
    from ddl_plugin.training.machines import Machines

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


@pytest.fixture(scope="session")
def finished(tmp_path_factory, write_recipe) -> tuple[Path, subprocess.CompletedProcess]:  # noqa: F811
    """The output folder of a finished run with its baseline, and what the command printed."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = write_recipe(folder, "config.baseline = True")
    return folder / "out", run_train(recipe, "--output", folder / "out")
