"""`python -m ddl_plugin.train --backend torch` as a user runs it: what it leaves, how it resumes, how it refuses."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from small_runs import assert_same_arrays, rows

from ddl_plugin.data.records import Records
from ddl_plugin.data.sampler import ImageSampler
from ddl_plugin.export.graph import parse_symbol
from ddl_plugin.export.params import load_params
from ddl_plugin.pytorch.torch_setup import torch
from ddl_plugin.train import main

STEPS = 16
TORCH = "config.backend = 'torch'"
SHORT = (TORCH, "config.max_steps = 2", "config.verbose = 0", "config.val_targets = []")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, write_recipe, train_command) -> tuple[Path, subprocess.CompletedProcess]:
    """The output folder of a finished run with its baseline, and what the command printed."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = write_recipe(folder, "config.baseline = True")
    return folder / "out", train_command(recipe, "--backend", "torch", "--output", folder / "out")


# -- a finished run --------------------------------------------------------------------------------------


def test_it_leaves_what_mxnets_runs_leave(finished):
    out, done = finished
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"set +measure +base +arcface +ddl\n", done.stdout)
    for name in ("arcface", "ddl"):
        assert re.search(
            rf"{name}\.onnx: PyTorch and ONNX Runtime agree to \d\.\de-\d\d on unit", done.stdout
        )
        assert re.search(rf"^{name}: \d+ s, \d+ images/s$", done.stdout, re.MULTILINE)
    assert done.stdout.count("graph identical to the base model's") == 2
    result = json.loads((out / "result.json").read_text())
    assert list(result) == ["settings", "distributions", "models", "runs", "peak_megabytes"]
    assert list(result["models"]) == ["base", "arcface", "ddl"]
    assert result["settings"]["backend"] == "torch"
    assert result["settings"] == json.loads((out / "recipe.json").read_text())
    left = {
        "report.md",
        "distributions.png",
        "pairs.npz",
        "base.onnx",
        "ddl.onnx",
        "arcface.onnx",
        "result.json",
    }
    assert left <= {path.name for path in out.iterdir()}
    for name in ("model", "best"):
        assert parse_symbol((out / "ddl" / f"{name}-symbol.json").read_text(), name).nodes[-1].name == "fc1"
    assert not (out / "ddl" / "state.npz").exists()


def test_the_log_is_that_of_mxnet(finished):
    out, _ = finished
    terms = {"ce_loss", "ddl", "kl_pos", "kl_neg", "order"}
    terms |= {
        f"{s}_{d}"
        for s in ("mean_pos", "mean_neg", "margin", "intersection", "outliers")
        for d in ("easy", "hard")
    }
    assert [row["step"] for row in rows(out / "ddl")] == list(range(STEPS))
    assert all(set(row) == {"kind", "step", "lr", "images_per_second", *terms} for row in rows(out / "ddl"))
    for name in ("arcface", "ddl"):
        assert [row["step"] for row in rows(out / name, "validation")] == [5, 10, 15, 16]
        (board,) = (out / name / "tensorboard").iterdir()
        assert b"train/ce_loss" in board.read_bytes()


def test_the_models_weights_are_new(finished, base_checkpoint):
    out, _ = finished
    before, _ = load_params(f"{base_checkpoint.removesuffix(',0')}-0000.params")
    after, _ = load_params(out / "ddl" / "model-0001.params")
    assert np.abs(after["pre_fc1_weight"] - before["pre_fc1_weight"]).max() > 1e-4


def test_ctrl_c_and_resume_end_as_an_uninterrupted_run(
    finished, train_command, train_in_background, write_recipe, tmp_path
):
    reference, _ = finished
    out = tmp_path / "out"
    recipe = write_recipe(tmp_path, TORCH)
    process = train_in_background(recipe, "--output", out, "--quiet")
    log, limit = out / "ddl" / "log.jsonl", time.monotonic() + 240
    while not log.is_file() or log.read_text().count("\n") < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130
    assert re.fullmatch(r"interrupted: saved after step \d+ of 16; continue with --resume\n", err)
    resumed = train_command(recipe, "--output", out, "--resume")
    assert (resumed.returncode, resumed.stderr) == (0, "")
    for name in ("model", "best"):
        assert_same_arrays(out / "ddl" / f"{name}-0001.params", reference / "ddl" / f"{name}-0001.params")


def test_a_run_of_the_other_backend_is_not_resumed(needs_mxnet, finished, write_recipe, tmp_path, capfd):
    out, _ = finished
    recipe = write_recipe(tmp_path, "config.baseline = True")
    assert main([str(recipe), "--output", str(out), "--resume", "--quiet"]) == 2
    assert "--resume: backend is 'mxnet', but a run with 'torch' was begun in" in capfd.readouterr().err


def test_it_can_be_the_base_model_of_another(finished, write_recipe, tmp_path, capfd):
    """A folder of a run, and a recipe that trains it by the same backend."""
    out, _ = finished
    recipe = write_recipe(tmp_path, *SHORT, pretrained=str(out / "ddl"))
    assert main([str(recipe), "--output", str(tmp_path / "out"), "--quiet"]) == 0, capfd.readouterr().err
    (tmp_path / "base.py").write_text(BASE.format(dataset=_dataset(recipe)))
    other = write_recipe(tmp_path, *SHORT, pretrained="base.py")
    assert main([str(other), "--output", str(tmp_path / "by recipe"), "--quiet"]) == 0, capfd.readouterr().err
    folder = tmp_path / "by recipe" / "pretraining" / "softmax"
    assert json.loads((folder / "done.json").read_text())["settings"]["backend"] == "torch"


def test_online_ddl_trains(write_recipe, tmp_path, capfd):
    """Hard samples by their loss, in batches of whole identities."""
    online = (
        "config.loss = 'online_ddl'", "config.sampler = 'identities'",
        "config.ddl = EasyDict(online=EasyDict(identities=4, images=4))",
    )  # fmt: skip
    recipe = write_recipe(tmp_path, *SHORT, *online)
    out = tmp_path / "out"
    assert main([str(recipe), "--output", str(out), "--quiet"]) == 0, capfd.readouterr().err
    logged = rows(out / "online_ddl")
    assert [row["step"] for row in logged] == [0, 1]
    assert {"ce_loss", "kl_pos", "kl_neg", "order", "margin_hard"} <= set(logged[0])
    before, _ = load_params(out / "base" / "model-0000.params")
    after, _ = load_params(out / "online_ddl" / "model-0001.params")
    assert np.abs(after["pre_fc1_weight"] - before["pre_fc1_weight"]).max() > 1e-6


def _dataset(recipe: Path) -> str:
    return re.search(r"dataset_path = '(.*)'", recipe.read_text())[1]


BASE = """
from easydict import EasyDict
config = EasyDict()
config.loss = "softmax"
config.sampler = "images"
config.per_batch_size = 16
config.dataset_path = {dataset!r}
config.network = "tiny"
config.emb_size = 16
config.fc7_init = "random"
config.max_steps = 3
"""


def test_dry_run_prints_everything_and_trains_nothing(write_recipe, tmp_path, capfd):
    recipe = write_recipe(tmp_path, TORCH, "config.amp = 'bf16'")
    out = tmp_path / "out"
    assert main([str(recipe), "--output", str(out), "--quiet", "--dry-run"]) == 0, capfd.readouterr().err
    printed = capfd.readouterr()
    assert printed.err == ""
    assert '"amp": "bf16"' in printed.out
    for term in ("ce_loss", "ddl", "kl_pos", "order", "margin_hard"):
        assert re.search(rf"^{term} +-?\d+\.\d{{4}}$", printed.out, re.MULTILINE)
    assert re.search(r"^memory: this process has reached [1-9]\d+ MB", printed.out, re.MULTILINE)
    assert [path.name for path in out.iterdir()] == ["pairs.npz"]


# -- what goes wrong -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "message"), [
    (("--devices", "gpu:77"), r"--devices: 'gpu:77' needs gpu:77, PyTorch sees \d+ GPU\(s\); use"),
    (("--devices", "cpu:0,1"), "--devices: expected one device, .* start torchrun --nproc_per_node=2 "),
    (("--kvstore", "device"), r"--kvstore: expected none with backend 'torch', got device; start .* torchrun"),
    (("backend=mxnet", "amp=bf16"), ".*amp: expected None with backend 'mxnet', got 'bf16'"),
    (("amp=fp16",), ".*amp: expected one of bf16, got 'fp16'"),
    (("backend=jax",), ".*backend: expected one of mxnet, torch, got 'jax'"),
    (("--backend", "jax"), "argument --backend: invalid choice: 'jax'"),
    (("pretrained=nowhere.pth",), r".*nowhere\.pth"),
])  # fmt: skip
def test_faults_of_the_command_line(arguments, message, write_recipe, tmp_path, capfd):
    recipe = write_recipe(tmp_path, TORCH)
    assert main([str(recipe), *arguments, "--output", str(tmp_path / "out"), "--quiet"]) == 2
    err = capfd.readouterr().err
    assert re.match(f"error: {message}", err), err
    assert err.count("\n") == 1


def test_mxnet_started_by_torchrun_is_refused(write_recipe, tmp_path, capfd, monkeypatch):
    environment = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    recipe = write_recipe(tmp_path)
    assert main([str(recipe), "--output", str(tmp_path / "out")]) == 2
    assert "got no MASTER_ADDR, MASTER_PORT; start the processes with torchrun" in capfd.readouterr().err
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    assert main([str(recipe), "--output", str(tmp_path / "out")]) == 2
    assert (
        "expected backend 'torch', got 'mxnet', with which every process would train for itself"
        in capfd.readouterr().err
    )
    assert main([str(recipe), "--backend", "torch", "--dry-run", "--output", str(tmp_path / "out")]) == 2
    assert "--dry-run: expected one process, got torchrun; leave torchrun out" in capfd.readouterr().err


def test_nan_is_exit_code_one(write_recipe, tmp_path, capfd):
    recipe = write_recipe(tmp_path, TORCH)
    assert main([str(recipe), "lr=1e30", "--output", str(tmp_path / "out"), "--quiet"]) == 1
    message = r"check failed: step 1: the network's embedding has NaN in 18 of 18 rows, so loss term '\w+' is nan; .*\n"
    assert re.fullmatch(message, capfd.readouterr().err)


def test_a_record_met_in_training_that_is_no_image(small_synthetic, tmp_path, capfd):
    data = tmp_path / "data"
    shutil.copytree(small_synthetic, data)
    steps = [ImageSampler(np.arange(80), 16).batch(step).positions for step in range(3)]
    position = int(np.setdiff1d(steps[2], np.concatenate(steps[:2]))[0])
    file, payload = data / "train.rec", Records(data).payload(position)
    good = file.read_bytes()
    file.write_bytes(good.replace(payload, b"\x00" * len(payload)))
    recipe = tmp_path / "scratch.py"
    recipe.write_text(BASE.format(dataset=str(data)) + TORCH)
    command = [str(recipe), "--output", str(tmp_path / "out"), "--quiet"]
    assert main(command) == 2
    message = rf"error: .*record {position + 1} is no image: .*; the run stopped at step 2, its state is saved in .*\n"
    assert re.fullmatch(message, capfd.readouterr().err)
    assert main([*command, "--resume", "max_damaged=0.1"]) == 0
    printed = capfd.readouterr()
    assert (
        re.search(rf"softmax: 1 .*record.* {position + 1}.*, skipped", printed.out)
        or "skipped" in printed.out
    )
    assert [row["step"] for row in rows(tmp_path / "out" / "softmax")] == [0, 1, 2]
