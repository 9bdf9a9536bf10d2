"""`--kvstore dist_sync` as several machines run it: a scheduler, a server and two workers on 127.0.0.1."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ddl_plugin.export.params import load_params

STEPS = 24
LINES = (
    f"config.max_steps = {STEPS}", "config.verbose = 0", "config.val_targets = []",
    "config.ddl.b = 2", "config.mom = 0.8",
)  # fmt: skip
PATIENCE = 240.0  # seconds; a quiet machine needs 10


@pytest.fixture(scope="module")
def start_cluster() -> Iterator[Callable]:
    """start_cluster(recipe, *arguments, outputs=) -> (servers, workers): processes that end with the tests."""
    everything: list[subprocess.Popen] = []

    def start(recipe: Path, *arguments: str, outputs: list[Path]) -> tuple[list, list]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "DMLC_PS_ROOT_URI": "127.0.0.1",
            "DMLC_PS_ROOT_PORT": str(port), "DMLC_NUM_SERVER": "1", "DMLC_NUM_WORKER": str(len(outputs)),
        }  # fmt: skip
        command = [
            sys.executable,
            "-m",
            "ddl_plugin.train",
            str(recipe),
            "--kvstore",
            "dist_sync",
            *arguments,
        ]

        def process(role: str, output: Path) -> subprocess.Popen:
            started = subprocess.Popen(
                [*command, "--output", str(output), "--quiet"],
                env={**environment, "DMLC_ROLE": role},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            everything.append(started)
            return started

        servers = [process(role, outputs[0]) for role in ("scheduler", "server")]
        return servers, [process("worker", output) for output in outputs]

    try:
        yield start
    finally:
        for process in everything:
            process.kill()
        for process in everything:
            process.communicate()


def ended(processes: list[subprocess.Popen]) -> list[SimpleNamespace]:
    """What each printed, and its exit code."""
    outcomes = []
    for process in processes:
        out, err = process.communicate(timeout=PATIENCE)
        outcomes.append(SimpleNamespace(code=process.returncode, out=out, err=err))
    return outcomes


def logged(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "ddl" / "log.jsonl").read_text().splitlines()]


def wait_for_steps(outputs: list[Path], workers: list[subprocess.Popen], steps: int) -> int:
    """The number of the worker that writes a log, once that has so many lines: worker 0."""
    limit = time.monotonic() + PATIENCE
    while True:
        for number, output in enumerate(outputs):
            log = output / "ddl" / "log.jsonl"
            if log.is_file() and log.read_text().count("\n") >= steps:
                return number
        assert all(worker.poll() is None for worker in workers), [worker.communicate() for worker in workers]
        assert time.monotonic() < limit
        time.sleep(0.005)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, write_recipe) -> Path:
    return write_recipe(tmp_path_factory.mktemp("machines"), *LINES)


@pytest.fixture(scope="module")
def after_a_loss(recipe, start_cluster) -> SimpleNamespace:
    """A run whose worker 1 was killed while it trained. Each worker has an --output of its own."""
    outputs = [recipe.parent / "one", recipe.parent / "other"]
    servers, workers = start_cluster(recipe, outputs=outputs)
    first = wait_for_steps(outputs, workers, 3)
    workers[1 - first].kill()
    began = time.monotonic()
    (left,) = ended([workers[first]])
    seconds = time.monotonic() - began
    waiting = [server.poll() is None for server in servers]
    for server in servers:
        server.kill()
    out = outputs[first]
    with np.load(out / "ddl" / "state.npz") as state:
        step = json.loads(str(state["meta"]))["step"]
    return SimpleNamespace(
        out=out, unused=outputs[1 - first], worker=left, seconds=seconds, step=step, rows=logged(out), waiting=waiting
    )  # fmt: skip


@pytest.fixture(scope="module")
def resumed(recipe, start_cluster, after_a_loss) -> SimpleNamespace:
    """The same run, gone on with by two new workers, of which one or the other is worker 0."""
    servers, workers = start_cluster(recipe, "--resume", outputs=[after_a_loss.out, after_a_loss.out])
    return SimpleNamespace(workers=ended(workers), servers=ended(servers))


def test_a_lost_worker_ends_the_others_with_one_line_and_a_state(after_a_loss):
    worker, step = after_a_loss.worker, after_a_loss.step
    assert worker.code == 1
    assert re.fullmatch(
        rf"check failed: worker 1 on 127\.0\.0\.1 was lost, in step {step}; stopped, the state before step {step} is "
        r"in .*state\.npz; end the scheduler and the servers by hand, and start all again with --resume\n",
        worker.err,
    )
    assert 3 <= step < STEPS
    assert [row["step"] for row in after_a_loss.rows] == list(range(step))
    assert after_a_loss.seconds < 30
    assert after_a_loss.waiting == [True, True]  # as the line says


def test_resumed_on_new_workers_it_ends_as_one_machine_with_two_devices(
    recipe, after_a_loss, resumed, train_command
):
    """Within rounding: the sum of two numbers does not depend on who adds them."""
    assert [worker.code for worker in resumed.workers] == [0, 0], [worker.err for worker in resumed.workers]
    out, one = after_a_loss.out, recipe.parent / "one machine"
    # A process of its own, with as many threads as a worker: another order of sums grows over the steps.
    assert train_command(recipe, "--devices", "cpu:0,1", "--output", one).returncode == 0
    (arg, _), (expected, _) = (load_params(folder / "ddl" / "model-0001.params") for folder in (out, one))
    base, _ = load_params(one / "base" / "model-0000.params")
    assert arg.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(arg[name], array, rtol=1e-5, atol=1e-5 * np.abs(array).max(), err_msg=name)
    assert np.abs(expected["pre_fc1_weight"] - base["pre_fc1_weight"]).max() > 1e-3
    for row, alone in zip(logged(out), logged(one), strict=True):
        assert row.pop("kind") == alone.pop("kind") == "train"
        assert row.pop("images_per_second") > 0 < alone.pop("images_per_second")
        assert row == pytest.approx(alone, rel=1e-4, abs=1e-6)  # means over all devices, not worker 0's


def test_only_worker_0_writes(after_a_loss, resumed):
    assert not after_a_loss.unused.exists()
    folders = {path.name for path in after_a_loss.out.iterdir() if path.is_dir()}
    assert folders == {"base", "ddl"}
    assert {path.name for path in (after_a_loss.out / "ddl").iterdir()} == {
        "done.json", "log.jsonl", "model-0001.params", "model-symbol.json", "tensorboard",
    }  # fmt: skip
    (other,) = [worker.out for worker in resumed.workers if "worker 1" in worker.out]
    assert other == "worker 1 of 2 has trained ddl\n"
    result = json.loads((after_a_loss.out / "result.json").read_text())
    assert list(result["models"]) == ["base", "ddl"]
    (report,) = [worker.out for worker in resumed.workers if "worker 1" not in worker.out]
    assert f"{STEPS} steps of 24 images on cpu(0) of each of 2 workers, seed 0" in report


def test_scheduler_and_server_end_with_the_workers(resumed):
    assert [(server.code, server.out, server.err) for server in resumed.servers] == [(0, "", "")] * 2
