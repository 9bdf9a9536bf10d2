"""The command line of data preparation."""

import json
import subprocess
import sys

import cv2
import pytest

from ddl_plugin.prepare.__main__ import main


def call(*arguments):
    command = [sys.executable, "-m", "ddl_plugin.prepare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_synthetic_writes_a_data_set_a_sheet_and_json(tmp_path):
    folder, result = tmp_path / "a" / "set", tmp_path / "result.json"
    done = call(
        "synthetic", "--output", folder, "--identities", 8, "--images", 8, "--sheet", "--json", result
    )
    assert done.returncode == 0, done.stderr
    assert "64 images of 8 identities" in done.stdout
    assert cv2.imread(str(folder / "sheet.png")).shape == (8 * 112, 8 * 112, 3)
    assert json.loads(result.read_text()) == json.loads((folder / "dataset.json").read_text())
    assert sorted(path.name for path in folder.parent.iterdir()) == ["set"]

    refused = call("synthetic", "--output", folder, "--identities", 9, "--images", 8)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "identities 8 instead of 9" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["synthetic", "--identities", "two"], "invalid int value: 'two'"),
        (["synthetic", "--identities", "0"], "identities: expected a whole number >= 8, got 0"),
        (["sinthetic"], "invalid choice: 'sinthetic'"),
        ([], "COMMAND"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    stderr = capsys.readouterr().err
    assert message in stderr
    assert stderr.count("\n") == 1
    assert not any(tmp_path.iterdir())
