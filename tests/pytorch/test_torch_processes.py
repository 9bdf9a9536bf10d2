"""torchrun with two processes over gloo: what they exchange, and that they train what one process would."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ddl_plugin.data.batches import BatchSource
from ddl_plugin.export.params import load_params
from ddl_plugin.pytorch.checkpoint import fingerprint
from ddl_plugin.pytorch.identity import IdentityLoss
from ddl_plugin.pytorch.loss import DDLLoss
from ddl_plugin.pytorch.torch_setup import torch
from ddl_plugin.recipe import load_recipe
from ddl_plugin.registry import get_sampler
from ddl_plugin.settings import Degradation
from ddl_plugin.training.classifier import initial_fc7
from ddl_plugin.training.dataset import open_dataset
from ddl_plugin.training.engine import identity_settings

STEPS = 6
LINES = (
    "config.backend = 'torch'", f"config.max_steps = {STEPS}", "config.verbose = 0", "config.val_targets = []",
    "config.ddl.b = 2", "config.ddl.scope = 'global'", "config.mom = 0.8", "config.lr = 0.0005",
    "config.fc7_init = 'random'",
)  # fmt: skip
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
PATIENCE = 480.0  # seconds; a quiet machine needs 15


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, write_recipe) -> Path:
    return write_recipe(tmp_path_factory.mktemp("processes"), *LINES)


@pytest.fixture(scope="module")
def two(train_in_background):
    """two(recipe, ...): the command in two processes, started by torchrun; they end with the tests."""
    started: list[subprocess.Popen] = []

    def start(*arguments):
        started.append(train_in_background(*arguments, "--quiet", launcher=LAUNCHER))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def together(recipe, two) -> tuple[Path, str]:
    """The output folder of a run of two processes, and what they printed."""
    process = two(recipe, "--output", recipe.parent / "together")
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    return recipe.parent / "together", out


def steps_logged(folder: Path) -> int:
    log = folder / "ddl" / "log.jsonl"
    return log.read_text().count("\n") if log.is_file() else 0


def wait_for_step(process: subprocess.Popen, folder: Path, steps: int) -> None:
    limit = time.monotonic() + PATIENCE
    while steps_logged(folder) < steps:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_worker_0_alone_leaves_files_and_says_so(together):
    out, printed = together
    assert "worker 1 of 2 has trained ddl" in printed
    assert printed.count("results: ") == 1
    assert {"ddl.onnx", "base.onnx", "result.json", "pairs.npz"} <= {path.name for path in out.iterdir()}
    assert "6 steps of 24 images on cpu of each of 2 workers" in printed
    assert steps_logged(out) == STEPS


def test_two_processes_train_what_one_would_on_both_blocks(together, recipe, backbone):
    """The loss of all rows together, BatchNorm of each block by itself, gradients in the mean."""
    out, _ = together
    settings = load_recipe(str(recipe))
    dataset = open_dataset(
        settings, lambda images: pytest.fail("the pairs are there"), fingerprint(backbone), out / "pairs.npz", print, False
    )  # fmt: skip
    records, partition, pairs = dataset.records, dataset.partition, dataset.pairs
    sampler = get_sampler("pairs").build(
        records.labels, partition, pairs, settings.ddl, rows=12, devices=2, seed=0, options={}
    )
    source = BatchSource(records, sampler, records.labels, [Degradation(), Degradation()], seed=0)
    network = backbone.network()
    identity = IdentityLoss(records.num_classes, backbone.emb_size, identity_settings(settings), settings.ddl)
    with torch.no_grad():
        identity.weight.copy_(torch.from_numpy(initial_fc7(settings, backbone, records, None, False)))
    whole = DDLLoss(dataclasses.replace(settings.ddl, b=4, scope="device"))
    # Rows of both blocks as one block of twice the pairs has them: every part of block 0 before that of block 1.
    order = np.arange(24).reshape(2, 6, 2).transpose(1, 0, 2).reshape(-1)
    parameters = {**network.parameters_by_name(), "fc7_weight": identity.weight}
    parameters = {name: p for name, p in parameters.items() if p.requires_grad}
    decays = {name: settings.wd * name.endswith(("_weight", "_gamma")) for name in parameters}
    momenta = {name: torch.zeros_like(p) for name, p in parameters.items()}
    logged = [json.loads(line) for line in (out / "ddl" / "log.jsonl").read_text().splitlines()]
    for step in range(STEPS):
        batch = source.batch(step)
        images = torch.from_numpy(batch.pixels).permute(0, 3, 1, 2).float()
        labels = torch.from_numpy(batch.labels.astype(np.int64))
        statistics = [buffer.clone() for buffer in network.buffers()]
        second = network(images[12:])  # worker 0's statistics are those that count
        for buffer, kept in zip(network.buffers(), statistics, strict=True):
            buffer.copy_(kept)
        embedding = torch.cat([network(images[:12]), second])
        losses = identity(embedding, labels)
        loss, terms = whole(embedding[order])
        for parameter in parameters.values():
            parameter.grad = None
        (losses.mean() + loss).backward()
        assert logged[step]["ce_loss"] == pytest.approx(float(losses.mean().detach()), rel=1e-4)
        shown = dict(zip(whole.term_names, terms.tolist(), strict=True))
        assert {n: logged[step][n] for n in shown} == pytest.approx(shown, rel=2e-3, abs=5e-4)
        lr = settings.lr if step < STEPS // 2 else settings.lr / 10
        with torch.no_grad():
            for name, p in parameters.items():
                momenta[name] = 0.8 * momenta[name] - lr * (p.grad + decays[name] * p)
                p += momenta[name]
    arg, aux = load_params(out / "ddl" / "model-0001.params")
    expected, statistics = network.arrays()
    for name, array in expected.items():
        moved = np.linalg.norm(array - backbone.arg[name])
        assert np.linalg.norm(arg[name] - array) < 5e-3 * moved + 1e-7 * np.sqrt(array.size), name
    for name, array in statistics.items():
        moved = np.linalg.norm(array - backbone.aux[name])
        assert np.linalg.norm(aux[name] - array) < 5e-3 * moved + 1e-6 * np.sqrt(array.size), name


def test_ctrl_c_saves_and_the_run_goes_on(together, recipe, two, tmp_path):
    """Both stop after the same step, also where Ctrl-C comes to all of them more than once."""
    process = two(recipe, "max_steps=400", "lr_steps=[3]", "--output", tmp_path / "out")
    wait_for_step(process, tmp_path / "out", 2)
    for worker in workers_of(process).values():
        for _ in range(2):
            os.kill(worker, signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert (
        len(re.findall(r"interrupted: saved after step \d+ of 400; continue with --resume", out + err)) == 1
    )
    assert len(re.findall(r"interrupted: after step \d+ of 400", out + err)) == 1
    with np.load(tmp_path / "out" / "ddl" / "state.npz") as state:
        meta = json.loads(str(state["meta"]))
    step = steps_logged(tmp_path / "out")
    assert meta["step"] == step
    assert meta["settings"]["number of devices"] == "1 on each of 2 processes"


def test_a_lost_process_ends_the_other_with_its_state(recipe, two, tmp_path):
    process = two(recipe, "max_steps=400", "--output", tmp_path / "out")
    wait_for_step(process, tmp_path / "out", 2)
    os.kill(workers_of(process)[1], signal.SIGKILL)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    message = r"check failed: another process was lost \(.*\), in step (\d+); stopped, the state before step (\d+) is in .*state\.npz; torchrun ends"
    found = re.search(message, out + err)
    assert found, out + err
    assert found[1] == found[2] == str(steps_logged(tmp_path / "out"))


def workers_of(process: subprocess.Popen) -> dict[int, int]:
    """The process of each rank."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            parent = int(re.search(r"^PPid:\s+(\d+)", (folder / "status").read_text(), re.MULTILINE)[1])
            environment = (folder / "environ").read_bytes()
        except (OSError, TypeError):
            continue
        rank = re.search(rb"\0RANK=(\d+)\0", b"\0" + environment)
        if parent == process.pid and rank:
            found[int(rank[1])] = int(folder.name)
    return found


# -- what they exchange ------------------------------------------------------------------------------------

EXCHANGE = """
import json, sys
import numpy as np
from ddl_plugin.errors import UserError
from ddl_plugin.pytorch.checkpoint import new_backbone
from ddl_plugin.pytorch.engine import TorchEngine
from ddl_plugin.pytorch.processes import Processes
from ddl_plugin.pytorch.torch_setup import torch
from ddl_plugin.settings import RunSettings
from ddl_plugin.training.state import RunState

settings = RunSettings(
    dataset_path="-", pretrained="-", loss="arcface", sampler="images", per_batch_size=4, lr=0.1, max_steps=1, backend="torch"
)
backbone = new_backbone("tiny", 16, seed=1)

with Processes.join(torch.device("cpu")) as processes:
    rank = processes.rank
    seen = {"workers": processes.workers}
    seen["published"] = processes.publish({"step": 3 + rank, "to": [1.5, None]})
    contents = [b"", b"a", bytes(range(256)) * 41]
    given = [processes.publish_bytes(content if rank == 0 else b"other") for content in contents]
    seen["bytes"] = given == contents
    total = torch.arange(3.0) * (rank + 1)
    processes.sum(total)
    seen["sum"] = total.tolist()
    order = []
    with processes.worker_0_first():
        order.append(rank)
    processes.require_same({"seed": 3, "hard": ("a", 1)})
    try:
        processes.require_same({"lr": 0.1 * (rank + 1)})
    except UserError as error:
        seen["refused"] = str(error)
    engine = TorchEngine(settings, backbone, 5, [torch.device("cpu")], 4, None, processes)
    arg = {**backbone.arg, "fc7_weight": np.zeros((5, 16), np.float32)}
    own = [{name: np.full_like(a, 1 + rank) for name, a in arrays.items()} for arrays in (arg, backbone.aux)]
    engine.start(RunState(0, *own, b"", 0.0))
    seen["arrays"] = sorted({float(v) for group in engine.arrays() for a in group.values() for v in np.unique(a)})
    open(f"{sys.argv[1]}/{rank}.json", "w").write(json.dumps(seen))
"""


def test_what_processes_exchange(tmp_path):
    (tmp_path / "exchange.py").write_text(EXCHANGE)
    command = [sys.executable, *LAUNCHER, str(tmp_path / "exchange.py"), str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for one in seen:
        assert one["workers"] == 2
        assert one["published"] == {"step": 3, "to": [1.5, None]}
        assert one["bytes"]
        assert one["sum"] == [0, 3, 6]
        assert one["arrays"] == [1]  # worker 0's, BatchNorm's statistics among them
    assert "refused" not in seen[0]
    assert seen[1]["refused"].startswith(
        "lr: expected 0.1 as worker 0 has, got 0.2 in worker 1; start all workers"
    )
