"""`python -m ddl_plugin.train` as a user runs it: what it leaves, how it resumes, how it refuses."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from small_runs import assert_same_arrays, rows

from ddl_plugin import registry
from ddl_plugin.backbone.checkpoint import new_backbone, save_backbone
from ddl_plugin.data.attributes import AttributeTable
from ddl_plugin.data.records import Records, RecordWriter
from ddl_plugin.data.sampler import ImageSampler
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.train import main
from ddl_plugin.training.output import locked

STEPS = 16


# -- a finished run --------------------------------------------------------------------------------------


def test_it_ends_well_and_says_what_it_did(finished):
    out, done = finished
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"easy +abs\(yaw\) < 20 +\d+ +10 +\d+ +\d+\n", done.stdout)
    assert re.search(r"set +measure +base +arcface +ddl\n", done.stdout)
    for name in ("arcface", "ddl"):
        assert f"{name}.onnx: MXNet and ONNX Runtime agree" in done.stdout
        assert re.search(rf"^{name}: \d+ s, \d+ images/s$", done.stdout, re.MULTILINE)
    assert done.stdout.count("graph identical to the base model's") == 2
    result = json.loads((out / "result.json").read_text())
    assert list(result["models"]) == ["base", "arcface", "ddl"]
    assert result["settings"] == json.loads((out / "recipe.json").read_text())
    assert result["peak_megabytes"] > 100
    assert {"report.md", "distributions.png", "pairs.npz", "ddl.onnx"} <= {p.name for p in out.iterdir()}


def test_the_log_holds_every_step_once_with_all_terms(finished):
    out, _ = finished
    terms = {"ce_loss", "ddl", "kl_pos", "kl_neg", "order"}
    terms |= {
        f"{s}_{d}"
        for s in ("mean_pos", "mean_neg", "margin", "intersection", "outliers")
        for d in ("easy", "hard")
    }
    assert [row["step"] for row in rows(out / "ddl")] == list(range(STEPS))
    assert all(set(row) == {"kind", "step", "lr", "images_per_second", *terms} for row in rows(out / "ddl"))
    assert [row["lr"] for row in rows(out / "ddl")] == pytest.approx([0.02] * 8 + [0.002] * 8)
    for name in ("arcface", "ddl"):
        assert [row["step"] for row in rows(out / name, "validation")] == [5, 10, 15, 16]
        assert all(0 <= row["accuracy_easy"] <= 1 for row in rows(out / name, "validation"))
        (board,) = (out / name / "tensorboard").iterdir()
        assert b"train/ce_loss" in board.read_bytes()
        assert b"validation/accuracy_easy" in board.read_bytes()


@pytest.mark.parametrize("name", ["model", "best"])
def test_checkpoints_are_the_base_models_graph_with_other_weights(finished, backbone, name):
    out, _ = finished
    symbol, arg, aux = mx.model.load_checkpoint(str(out / "ddl" / name), 1)
    assert json.loads(symbol.tojson())["nodes"] == json.loads(backbone.symbol.tojson())["nodes"]
    assert "LeakyReLU" in symbol.tojson()
    assert symbol.list_outputs() == ["fc1_output"]
    assert arg.keys() == backbone.arg.keys()
    assert aux.keys() == backbone.aux.keys()
    assert np.abs(arg["pre_fc1_weight"].asnumpy() - backbone.arg["pre_fc1_weight"]).max() > 0
    assert not (out / "ddl" / "state.npz").exists()


def test_best_is_the_step_that_validated_best(finished):
    out, _ = finished
    accuracies = {row["step"]: row["accuracy_easy"] for row in rows(out / "ddl", "validation")}
    _, last, _ = mx.model.load_checkpoint(str(out / "ddl" / "model"), 1)
    _, best, _ = mx.model.load_checkpoint(str(out / "ddl" / "best"), 1)
    same = all((last[name] == best[name]).asnumpy().all() for name in last)
    assert same == (accuracies[STEPS] > max(value for step, value in accuracies.items() if step < STEPS))


def test_a_finished_run_is_not_overwritten(finished, write_recipe, tmp_path, capfd):
    out, _ = finished
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for lines in (("config.baseline = True",), ("config.loss = 'cosface'",)):
        recipe = write_recipe(tmp_path, *lines)
        assert main([str(recipe), "--output", str(out), "--quiet"]) == 2
        message = r"error: --output: .*arcface holds a finished run; add --resume to go on with it, or use another --output\n"
        assert re.fullmatch(message, capfd.readouterr().err)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_finished_run_with_other_settings_is_not_resumed(finished, write_recipe, tmp_path, capfd):
    out, _ = finished
    recipe = write_recipe(tmp_path, "config.baseline = True", "config.wd = 0.1")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main([str(recipe), "--output", str(out), "--resume", "--quiet"]) == 2
    message = r"error: --resume: wd is 0.1, but a run with 0.0005 was begun in .*out; set it back, or use another --output\n"
    assert re.match(message, capfd.readouterr().err)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


# -- resuming --------------------------------------------------------------------------------------------


def wait_for_step(process, log: Path, step: int) -> None:
    limit = time.monotonic() + 120
    while not log.is_file() or log.read_text().count("\n") <= step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_ctrl_c_and_resume_end_as_an_uninterrupted_run(
    finished, train_command, train_in_background, write_recipe, tmp_path
):
    reference, _ = finished
    out = tmp_path / "out"
    recipe = write_recipe(tmp_path, "config.baseline = True")
    process = train_in_background(recipe, "--output", out, "--quiet")
    wait_for_step(process, out / "ddl" / "log.jsonl", 1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.fullmatch(r"interrupted: saved after step \d+ of 16; continue with --resume\n", err)
    assert (out / "ddl" / "state.npz").is_file()
    baseline = (out / "arcface" / "log.jsonl").stat().st_mtime_ns

    again = train_command(recipe, "--output", out)
    assert again.returncode == 2
    assert re.fullmatch(r"error: --output: .*ddl holds an unfinished run; add --resume .*\n", again.stderr)

    resumed = train_command(recipe, "--output", out, "--resume")
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert f"arcface: already trained in {out / 'arcface'}" in resumed.stdout
    assert (out / "arcface" / "log.jsonl").stat().st_mtime_ns == baseline
    for name in ("model", "best"):
        assert_same_arrays(out / "ddl" / f"{name}-0001.params", reference / "ddl" / f"{name}-0001.params")
    for kind in ("train", "validation"):
        mine, theirs = rows(out / "ddl", kind), rows(reference / "ddl", kind)
        for row in (*mine, *theirs):
            row.pop("images_per_second", None)
        assert mine == theirs
    assert not (out / "ddl" / "state.npz").exists()


def test_a_killed_run_resumes_from_its_last_state(
    finished, train_command, train_in_background, write_recipe, tmp_path
):
    reference, _ = finished
    out = tmp_path / "out"
    recipe = write_recipe(tmp_path)
    process = train_in_background(recipe, "--output", out, "--quiet")
    wait_for_step(process, out / "ddl" / "log.jsonl", 7)
    process.kill()
    process.communicate()
    resumed = train_command(recipe, "--output", out, "--resume")
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert_same_arrays(out / "ddl" / "model-0001.params", reference / "ddl" / "model-0001.params")
    assert [row["step"] for row in rows(out / "ddl")] == list(range(STEPS))


def test_resume_where_nothing_was_begun(write_recipe, tmp_path, capfd):
    recipe = write_recipe(tmp_path)
    assert main([str(recipe), "--output", str(tmp_path / "mistyped"), "--resume"]) == 2
    message = r"error: --resume: expected a run to go on with in .*mistyped, found none; check --output, .*\n"
    assert re.fullmatch(message, capfd.readouterr().err)
    assert not (tmp_path / "mistyped").exists()


def test_a_damaged_state_is_one_line(write_recipe, tmp_path, capfd):
    recipe = write_recipe(tmp_path)
    (tmp_path / "out" / "ddl").mkdir(parents=True)
    (tmp_path / "out" / "ddl" / "state.npz").write_bytes(b"PK\x03\x04 half a state")
    assert main([str(recipe), "--output", str(tmp_path / "out"), "--resume", "--quiet"]) == 2
    assert re.fullmatch(
        r"error: --resume: .*state\.npz is damaged .*delete it and .*\n", capfd.readouterr().err
    )


# -- a base model trained by its own recipe, from scratch --------------------------------------------------

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


@pytest.fixture
def base_recipe(tmp_path, small_synthetic):
    (tmp_path / "base.py").write_text(BASE.format(dataset=str(small_synthetic)))
    return tmp_path / "base.py"


def test_a_base_model_by_recipe_is_trained_once(base_recipe, write_recipe, tmp_path, capfd):
    recipe = write_recipe(tmp_path, "config.max_steps = 2", "config.val_targets = []", pretrained="base.py")
    out = str(tmp_path / "out")
    assert main([str(recipe), "--output", out, "--quiet"]) == 0
    assert "already trained" not in capfd.readouterr().out
    assert main([str(recipe), "--output", out, "--quiet", "--resume"]) == 0
    assert "softmax: already trained in" in capfd.readouterr().out
    assert_same_arrays(
        tmp_path / "out" / "base" / "model-0000.params",
        tmp_path / "out" / "pretraining" / "softmax" / "model-0001.params",
    )


def test_dry_run_prints_everything_and_trains_nothing(base_recipe, write_recipe, tmp_path, capfd):
    recipe = write_recipe(tmp_path, pretrained="base.py")
    out = tmp_path / "out"
    assert main([str(recipe), "ddl.lambda_order=0.4", "--output", str(out), "--quiet", "--dry-run"]) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    assert '"lambda_order": 0.4' in printed.out
    assert re.search(r"hard +abs\(yaw\) > 30 +\d+ +10 +\d+ +\d+\n", printed.out)
    assert "batch: 18 images a device, 18 a step on 1 device(s)" in printed.out
    assert re.search(r"hard +abs\(yaw\) > 30 +9-11 +12-14 +15-17\n", printed.out)
    for term in ("ce_loss", "ddl", "kl_pos", "order", "margin_hard"):
        assert re.search(rf"^{term} +-?\d+\.\d{{4}}$", printed.out, re.MULTILINE)
    assert re.search(r"memory: [1-9]\d* MB planned by MXNet .* has reached [1-9]\d+ MB", printed.out)
    assert "base.py has not trained it yet; here its network stands in with random weights" in printed.out
    assert not out.exists()


def test_dry_run_leaves_the_pairs_of_a_base_model_that_is_there(finished, write_recipe, tmp_path, capfd):
    recipe = write_recipe(tmp_path)
    out = tmp_path / "out"
    assert main([str(recipe), "--output", str(out), "--devices", "cpu:0,1", "--quiet", "--dry-run"]) == 0
    assert "18 images a device, 36 a step on 2 device(s)" in capfd.readouterr().out
    assert [path.name for path in out.iterdir()] == ["pairs.npz"]
    assert_pairs_equal(out / "pairs.npz", finished[0] / "pairs.npz")


def assert_pairs_equal(one: Path, other: Path) -> None:
    with np.load(one) as mine, np.load(other) as theirs:
        assert mine.files == theirs.files
        for name in mine.files:
            np.testing.assert_array_equal(mine[name], theirs[name])


# -- what a recipe adds ----------------------------------------------------------------------------------

OWN_LOSS = """
from ddl_plugin.registry import register_loss

def pull(F, embedding, settings, options):
    size = F.mean(F.square(embedding), axis=(0, 1))
    loss = F.reshape(size * options["weight"], (1,))
    return loss, F.reshape(size, (1, 1)), ("size",)

register_loss("pull", pull, description="pulls embeddings to zero", defaults={"weight": 1.0})
config.loss = "pull"
config.pull = EasyDict(weight=0.5)
"""

OWN_SAMPLER = """
import numpy as np
from ddl_plugin.data.sampler import SampledBatch
from ddl_plugin.registry import register_sampler

class Alike:
    steps_per_epoch = 1
    def __init__(self, labels, rows, first):
        self.rows = rows
        self._positions = np.flatnonzero(labels == labels[first])[:rows]
    def batch(self, step):
        return SampledBatch(np.resize(self._positions, self.rows), np.zeros(self.rows, np.int16))

def alike(labels, partition, pairs, settings, *, rows, devices, seed, options):
    return Alike(labels, rows * devices, options["first"])

register_sampler("alike", alike, description="images of one identity", defaults={"first": 0})
config.loss = "softmax"
config.sampler = "alike"
config.per_batch_size = 12
config.ddl = None
config.alike = EasyDict(first=20)
"""


@pytest.fixture
def own_registries():
    """What a recipe registers is gone after the test."""
    before = [(registry.LOSSES, dict(registry.LOSSES)), (registry.SAMPLERS, dict(registry.SAMPLERS))]
    yield
    for entries, old in before:
        entries.clear()
        entries.update(old)


SHORT = ("config.max_steps = 2", "config.verbose = 0", "config.val_targets = []")


def test_a_loss_of_ones_own(own_registries, write_recipe, tmp_path, capfd):
    recipe = write_recipe(tmp_path, OWN_LOSS, *SHORT)
    assert main([str(recipe), "--output", str(tmp_path / "out"), "--quiet"]) == 0, capfd.readouterr().err
    log = rows(tmp_path / "out" / "pull")
    assert [set(row) - {"kind", "step", "lr", "images_per_second"} for row in log] == [
        {"ce_loss", "size"}
    ] * 2
    assert (tmp_path / "out" / "pull.onnx").is_file()


def test_a_sampler_of_ones_own(own_registries, write_recipe, tmp_path, capfd):
    recipe = write_recipe(tmp_path, OWN_SAMPLER, *SHORT)
    assert main([str(recipe), "--output", str(tmp_path / "out"), "--quiet"]) == 0, capfd.readouterr().err
    first, second = (row["ce_loss"] for row in rows(tmp_path / "out" / "softmax"))
    assert second < first  # twice the same images of one identity


# -- faults: exit code 2, one line -------------------------------------------------------------------------


def copy_of(folder: Path, source: Path) -> Path:
    shutil.copytree(source, folder)
    return folder


def no_records(data: Path) -> None:
    (data / "train.rec").unlink()


def truncated(data: Path) -> None:
    file = data / "train.rec"
    file.write_bytes(file.read_bytes()[:100_000])


def spoil_image(data: Path, position: int) -> bytes:
    """Overwrite the image at `position`; returns what the file held."""
    file = data / "train.rec"
    content, payload = file.read_bytes(), Records(data).payload(position)
    assert content.count(payload) == 1
    file.write_bytes(content.replace(payload, b"\x00" * len(payload)))
    return content


def no_image(data: Path) -> None:
    spoil_image(data, 16)


def write_records(data: Path, images_each: int, identities: int) -> None:
    records = Records(data)
    payloads = [
        (records.payload(i), label)
        for label in range(identities)
        for i in np.flatnonzero(records.labels == label)[:images_each]
    ]
    del records
    with RecordWriter(data) as writer:
        for payload, label in payloads:
            writer.add(payload, label)
    yaw = np.tile([0.0, 50.0], len(payloads))[: len(payloads)]
    AttributeTable(columns={"yaw": yaw}, keys=np.arange(1, len(payloads) + 1)).save(data / "attributes.npz")


def table_with_holes(data: Path) -> None:
    table = AttributeTable.load(data / "attributes.npz")
    yaw = table.columns["yaw"].astype(float)
    yaw[[4, 9]] = np.nan
    AttributeTable(columns={"yaw": yaw}, keys=table.keys).save(data / "attributes.npz")


def table_without_rows(data: Path) -> None:
    table = AttributeTable.load(data / "attributes.npz")
    AttributeTable(columns={"yaw": table.columns["yaw"][5:]}, keys=table.keys[5:]).save(
        data / "attributes.npz"
    )


ALL = ("config.ddl.easy = None", "config.ddl.hard = [EasyDict(size=14)]")


@pytest.mark.parametrize(
    ("damage", "lines", "message"),
    [
        (None, ("config.max_step = 1",), r".*small\.py: config: unknown key 'max_step'; did you mean 'max_steps'\?"),
        (None, ("config.ddl.lambda_odrer = 1",), r".*config\.ddl: unknown key 'lambda_odrer'; did you mean 'lambda_order'\?"),
        (None, ("config.ddl.hard = []",), r".*ddl\.hard: expected K >= 1 hard distributions, .*got \[\]"),
        (no_records, (), r"dataset_path: expected train\.rec and train\.idx in .*found no train\.rec; .*dataset_path=FOLDER"),
        (truncated, (), r".*train\.rec: truncated: expected all of record \d+, got the end of the file \(100000 bytes\)"),
        (no_image, ALL, r".*train\.rec: record 17 is no image: expected an encoded image, got \d+ bytes that cannot"),
        (lambda data: write_records(data, 1, 10), ALL, r"ddl: easy \(all\): expected identities with two images or more .*"),
        (lambda data: write_records(data, 4, 2), ALL, r"ddl: easy .*too few identities for b: expected at least b = 3 .* got 2 "),
        (table_with_holes, (), r".*attributes\.npz: column 'yaw': expected a value for each of 80 records, got .* 2 of them \(records 5, 10\)"),
        (table_without_rows, (), r".*attributes\.npz: column 'yaw': expected a value for each of 80 records, got no row for 5 of them"),
        (None, ("config.val_targets = ['esay']",), r"val_targets: no esay\.bin in .*; \.bin sets there: easy, hard"),
        (None, ("config.pretrained = 'nowhere/model,3'",), r".*nowhere/model-0003\.params|.*nowhere/model-symbol\.json"),
    ],
)  # fmt: skip
def test_faults_of_recipe_and_data(damage, lines, message, small_synthetic, write_recipe, tmp_path, capfd):
    data = small_synthetic
    if damage is not None:
        data = copy_of(tmp_path / "data", small_synthetic)
        damage(data)
    assert_refused(write_recipe(tmp_path, *lines, dataset=data), message, tmp_path, capfd)


def assert_refused(recipe: Path, message: str, folder: Path, capfd) -> None:
    code = main([str(recipe), "--output", str(folder / "out"), "--quiet"])
    err = capfd.readouterr().err
    assert code == 2
    assert re.match(f"error: (?:{message})", err), err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert not (folder / "out" / "ddl").exists()


def test_a_checkpoint_without_fc1_output(write_recipe, tmp_path, capfd):
    symbol = mx.sym.FullyConnected(mx.sym.Variable("data"), num_hidden=4, name="embedding")
    arrays = {"embedding_weight": np.ones((4, 37632), np.float32), "embedding_bias": np.ones(4, np.float32)}
    save_backbone(tmp_path / "odd", 0, symbol, arrays, {})
    recipe = write_recipe(tmp_path, pretrained=f"{tmp_path / 'odd'},0")
    assert_refused(recipe, r".*odd.*fc1_output", tmp_path, capfd)


def test_nan_weights(write_recipe, tmp_path, backbone, capfd):
    arg = {name: array.copy() for name, array in backbone.arg.items()}
    arg["pre_fc1_weight"][0, :3] = np.nan
    save_backbone(tmp_path / "nan", 0, backbone.symbol, arg, backbone.aux)
    recipe = write_recipe(tmp_path, pretrained=f"{tmp_path / 'nan'},0")
    message = r".*nan-0000\.params: array 'pre_fc1_weight' holds 3 NaN or infinite values of \d+; .*earlier checkpoint"
    assert_refused(recipe, message, tmp_path, capfd)


def test_a_checkpoint_of_another_network_says_the_likely_match(write_recipe, tmp_path, backbone, capfd):
    arg = {name.replace("pre_fc1_", "fc1_"): array for name, array in backbone.arg.items()}
    save_backbone(tmp_path / "old", 0, backbone.symbol, arg, backbone.aux)
    recipe = write_recipe(tmp_path, pretrained=f"{tmp_path / 'old'},0")
    assert_refused(recipe, r".*likely match '\w*fc1_\w+': set rename = ", tmp_path, capfd)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--devices", "tpu"), "--devices: expected cpu, cpu:0,1, gpu or gpu:0,1, got 'tpu'"),
        (("--devices", "cpu:0,0"), "--devices: expected distinct numbers"),
        (("--max-steps", "0"), ".*max_steps: expected a whole number >= 1, got 0"),
        (("--max-steps", "many"), "argument --max-steps: invalid int value: 'many'"),
        (("lr",), "override: expected KEY=VALUE"),
        (("--resmue",), "unrecognized arguments: --resmue"),
    ],
)
def test_faults_of_the_command_line(arguments, message, write_recipe, tmp_path, capfd):
    recipe = write_recipe(tmp_path)
    assert main([str(recipe), *arguments, "--output", str(tmp_path / "out")]) == 2
    err = capfd.readouterr().err
    assert re.match(f"error: {message}", err), err
    assert err.count("\n") == 1


def test_output_that_is_a_file(write_recipe, tmp_path, capfd):
    recipe = write_recipe(tmp_path)
    assert main([str(recipe), "--output", str(recipe)]) == 2
    assert re.match("error: --output: expected a folder, got the file", capfd.readouterr().err)


def test_nan_is_exit_code_one(write_recipe, train_command, tmp_path):
    done = train_command(write_recipe(tmp_path), "lr=1e30", "--output", tmp_path / "out")
    assert done.returncode == 1
    message = r"check failed: step 1: the network's embedding has NaN in 18 of 18 rows, so loss term '\w+' is nan; .*\n"
    assert re.fullmatch(message, done.stderr)


def test_a_record_met_in_training_that_is_no_image(small_synthetic, train_command, tmp_path):
    """Nothing reads all images before: the run stops at it, and goes on when the record is mended."""
    data = copy_of(tmp_path / "data", small_synthetic)
    steps = [ImageSampler(np.arange(80), 16).batch(step).positions for step in range(3)]
    position = int(np.setdiff1d(steps[2], np.concatenate(steps[:2]))[0])
    good = spoil_image(data, position)
    recipe = tmp_path / "scratch.py"
    recipe.write_text(BASE.format(dataset=str(data)))
    out = tmp_path / "out"
    stopped = train_command(recipe, "--output", out)
    assert stopped.returncode == 2
    message = rf"error: .*record {position + 1} is no image: .*; the run stopped at step 2, its state is saved in .*\n"
    assert re.fullmatch(message, stopped.stderr)
    (data / "train.rec").write_bytes(good)
    assert main([str(recipe), "--output", str(out), "--resume", "--quiet"]) == 0
    assert [row["step"] for row in rows(out / "softmax")] == [0, 1, 2]


def test_the_bar_fits_a_terminal_of_100_columns(write_recipe, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    recipe = write_recipe(tmp_path, *SHORT)
    assert main([str(recipe), "--output", str(tmp_path / "out")]) == 0
    bars = re.findall(r"(ddl +\d+%\|[^\r\n]*)", capfd.readouterr().err)
    assert bars
    assert re.match(r"ddl 100%\|█+\| 2/2 \d\d:\d\d<00:00, \d+ img/s ce \S+ ddl \S+ kl_pos", bars[-1])


def test_a_log_file_gets_lines_instead_of_bars(write_recipe, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("ddl_plugin.training.progress._LINE_EVERY", 2)
    recipe = write_recipe(tmp_path, *SHORT)
    assert main([str(recipe), "--output", str(tmp_path / "out")]) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    lines = [line for line in printed.out.splitlines() if line.startswith("ddl ")]
    assert [line.split()[:2] for line in lines] == [["ddl", "2/2"]]
    assert re.search(r" \d+ img/s ce \S+ ddl \S+ kl_pos", lines[0])


def test_a_base_model_that_changed_is_refused_before_anything_is_written(
    write_recipe, base_checkpoint, tmp_path, capfd
):
    source = Path(base_checkpoint.removesuffix(",0"))
    for suffix in ("-symbol.json", "-0000.params"):
        shutil.copy(f"{source}{suffix}", tmp_path / f"own{suffix}")
    recipe = write_recipe(tmp_path, *SHORT, pretrained=f"{tmp_path / 'own'},0")
    out = tmp_path / "out"
    assert main([str(recipe), "--output", str(out), "--quiet"]) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = new_backbone("tiny", 16, seed=5)
    save_backbone(tmp_path / "own", 0, other.symbol, other.arg, other.aux)
    capfd.readouterr()
    assert main([str(recipe), "--output", str(out), "--quiet", "--resume"]) == 2
    assert re.fullmatch(
        r"error: --resume: the base model changed since the run in .* was begun .*\n", capfd.readouterr().err
    )
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_what_is_wrong_with_the_evaluation_is_said_before_the_training(write_recipe, tmp_path, capfd):
    recipe = write_recipe(tmp_path, *SHORT)
    out = tmp_path / "out"
    assert main([str(recipe), "--output", str(out), "--quiet", "identification.rec=nix.rec"]) == 2
    assert "nix.rec" in capfd.readouterr().err
    assert not (out / "ddl").exists()


def test_a_finished_run_can_be_looked_at_with_other_sets(write_recipe, tmp_path, capfd):
    recipe = write_recipe(tmp_path, *SHORT)
    command = [str(recipe), "--output", str(tmp_path / "out"), "--quiet"]
    assert main(command) == 0
    assert main([*command, "--resume", "val_targets=easy,hard"]) == 0
    printed = capfd.readouterr().out
    assert "ddl: already trained" in printed
    assert re.search(r"^hard +accuracy", printed, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "kvstore"),
    [((), "local"), (("--kvstore", "local"), "local"), (("--kvstore", "device"), "device")],
)
def test_kvstore_is_where_the_devices_gradients_are_summed(
    write_recipe, tmp_path, monkeypatch, arguments, kvstore
):
    class Seen(Exception):  # noqa: N818
        pass

    def note(self, kvstore, *rest):
        raise Seen(kvstore)

    monkeypatch.setattr(mx.mod.Module, "init_optimizer", note)
    recipe = write_recipe(tmp_path, *SHORT)
    with pytest.raises(Seen, match=f"^{kvstore}$"):
        main([str(recipe), *arguments, "--devices", "cpu:0,1", "--output", str(tmp_path / "out"), "--quiet"])


def test_two_jobs_do_not_work_in_one_folder(write_recipe, tmp_path, capfd):
    recipe, out = write_recipe(tmp_path, *SHORT), tmp_path / "out"
    with locked(out, create=True):
        assert main([str(recipe), "--output", str(out), "--quiet"]) == 2
    assert re.fullmatch(r"error: --output: another run is working in .*\n", capfd.readouterr().err)
    assert main([str(recipe), "--output", str(out), "--quiet"]) == 0


@pytest.mark.parametrize("name", ["recipe.json", "origin.json", "ddl/done.json"])
@pytest.mark.parametrize("content", ['{"a', "[]"])
def test_damaged_bookkeeping_is_one_line(finished_copy, name, content, capfd):
    recipe, out = finished_copy
    (out / name).write_text(content)
    assert main([str(recipe), "--output", str(out), "--quiet", "--resume"]) == 2
    assert re.search(
        rf"^error: .*{name} (cannot be read|is damaged).*delete the folder", capfd.readouterr().err
    )


@pytest.fixture(scope="module")
def finished_short(tmp_path_factory, write_recipe):
    folder = tmp_path_factory.mktemp("finished")
    recipe = write_recipe(folder, *SHORT)
    assert main([str(recipe), "--output", str(folder / "out"), "--quiet"]) == 0
    return recipe, folder / "out"


@pytest.fixture
def finished_copy(finished_short, tmp_path):
    recipe, out = finished_short
    shutil.copytree(out, tmp_path / "out")
    return recipe, tmp_path / "out"


def test_a_recipe_is_not_its_own_base(write_recipe, tmp_path, capfd):
    recipe = write_recipe(tmp_path, *SHORT, pretrained="small.py")
    assert main([str(recipe), "--output", str(tmp_path / "out"), "--quiet"]) == 2
    assert "expected another recipe that trains the base model, got 'small.py'" in capfd.readouterr().err


def test_recipes_that_name_each_other_end(write_recipe, tmp_path, capfd):
    recipe = write_recipe(tmp_path, *SHORT, pretrained="other.py")
    (tmp_path / "other.py").write_text(recipe.read_text().replace("other.py", "small.py"))
    assert main([str(recipe), "--output", str(tmp_path / "out"), "--quiet"]) == 2
    assert "expected another recipe that trains the base model" in capfd.readouterr().err
