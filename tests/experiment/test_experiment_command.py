"""`python -m ddl_plugin.experiment` as a user calls it: a run that fails, going on, changed studies, Ctrl-C."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddl_plugin.experiment.columns import measured_by
from ddl_plugin.experiment.study import load_study

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def line(*arguments):
    return [sys.executable, "-m", "ddl_plugin.experiment", *map(str, arguments)]


def experiment(*arguments):
    return subprocess.run(line(*arguments), capture_output=True, text=True, check=False, env=ENVIRONMENT)


def rows_of(path: Path):
    return list(csv.DictReader(path.open()))


def test_what_fails_does_not_take_the_others_and_is_made_up_for(write_study, tmp_path):
    """No pair of the third row's set is there; then the row is mended and the study goes on. The others share pairs."""
    bad = "study['rows'].append(dict(name='Broken', set={'ddl.hard': ['abs(yaw) > 89']}))"
    first = experiment(write_study(bad), "--output", tmp_path / "out")
    assert first.returncode == 1, first.stderr
    assert first.stderr.splitlines()[-1].startswith(
        "check failed: 1 of 3 runs failed: Broken, seed 0: error: ddl: hard"
    )
    assert str(tmp_path / "out/runs/broken/seed0.log") in first.stderr
    assert {row["row"] for row in rows_of(tmp_path / "out/values.csv")} == {"base model", "ArcFace", "DDL"}
    pairs = [(tmp_path / f"out/runs/{name}/seed0/pairs.npz") for name in ("arcface", "ddl")]
    assert pairs[0].read_bytes() == pairs[1].read_bytes()
    logs = [path.parent.with_suffix(".log").read_text() for path in pairs]
    assert ["positive pairs: building" in log for log in logs] == [True, False]
    assert "(paper 86.3)" in first.stdout
    for name in ("table.md", "table.csv", "figure.png", "figure.pdf"):
        assert (tmp_path / "out" / name).stat().st_size > 100
    made = json.loads((tmp_path / "out/runs/ddl/seed0/result.json").read_text())
    assert made["settings"]["ddl"]["lambda_order"] == 0.25
    study = load_study(str(write_study()))
    promised = measured_by(study.settings(study.rows[1], 0))
    assert {row["measure"] for row in rows_of(tmp_path / "out/table.csv")} == set(promised)

    mended = bad.replace("> 89", "> 25")
    second = experiment(write_study(mended), "--output", tmp_path / "out")
    assert second.returncode == 0, second.stderr
    assert "2 of 3 runs are there already" in second.stdout
    assert "3 of 3 runs" in second.stdout
    assert (tmp_path / "out/runs/ddl/seed0/result.json").stat().st_mtime < (
        tmp_path / "out/table.md"
    ).stat().st_mtime

    changed = experiment(
        write_study("study['rows'][1]['set']['ddl.lambda_order'] = 0.5"), "--output", tmp_path / "out"
    )
    assert changed.returncode == 2
    assert (
        "expected a run with ddl.lambda_order = 0.5, as the study has it now, got one with 0.25"
        in changed.stderr
    )
    assert len(changed.stderr.splitlines()) == 1


def test_only_and_dry_run(write_study, tmp_path):
    study = write_study("study['seeds'] = [0, 1]")
    listed = experiment(study, "--output", tmp_path / "out", "--only", "arc", "--dry-run")
    assert listed.returncode == 0, listed.stderr
    assert "ArcFace, seed 1: " in listed.stdout
    assert "DDL" not in listed.stdout
    assert "2 runs; left: about " in listed.stdout
    assert "steps of 'ArcFace'" in listed.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nothing.py"], "study: no file 'nothing.py'"),
        (["STUDY", "--jobs", "0"], "--jobs: expected a whole number >= 1, got 0"),
        (["STUDY", "--devices", "tpu"], "--devices: expected cpu"),
        (["STUDY", "--only", "Nobody"], "--only: expected part of a row's name, got 'Nobody'"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(write_study, tmp_path, arguments, message):
    study = write_study()
    arguments = [str(study) if word == "STUDY" else word for word in arguments]
    ended = experiment(*arguments, "--output", tmp_path / "out")
    assert ended.returncode == 2
    assert message in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_ctrl_c_ends_the_runs_and_the_same_command_goes_on(write_study, tmp_path):
    study = write_study("study['common'] = {'max_steps': 300}\nstudy['rows'] = study['rows'][:1]")
    process = subprocess.Popen(
        line(study, "--output", tmp_path / "out"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    log = tmp_path / "out/runs/arcface/seed0"
    deadline = time.monotonic() + 120
    while not list(log.glob("arcface/log*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.strip().endswith(f"what is done is kept in {tmp_path / 'out'}; the same command goes on")
    text = log.with_suffix(".log").read_text()
    assert "interrupted" in text
