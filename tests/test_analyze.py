import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from ddl_plugin.analyze.__main__ import main
from ddl_plugin.evaluation.bins import write_bin


def save_set(path, noise):
    """12 pairs of block patterns; the second image of a 'same' pair has noise of this strength."""
    rng = np.random.default_rng(0)
    images, issame = [], []
    for pair in range(12):
        first = rng.integers(0, 256, (14, 14, 3))
        same = pair % 2 == 0
        second = (
            first + rng.integers(-noise, noise + 1, first.shape)
            if same
            else rng.integers(0, 256, first.shape)
        )
        for blocks in (first, second):
            image = np.kron(blocks.clip(0, 255).astype(np.uint8), np.ones((8, 8, 1), np.uint8))
            images.append(cv2.imencode(".png", image)[1].tobytes())
        issame.append(same)
    write_bin(path, images, issame)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, save_pooling_model):
    folder = tmp_path_factory.mktemp("analyze")
    save_pooling_model(folder / "base.onnx", 127.5)
    save_pooling_model(folder / "ddl.onnx", 100.0)
    save_set(folder / "easy.bin", 30)
    save_set(folder / "hard.bin", 250)
    return folder


def test_two_models_on_two_sets(folder):
    line = [
        sys.executable,
        "-m",
        "ddl_plugin.analyze",
        "distributions",
        "--model",
        "base.onnx",
        "--model",
        "ddl.onnx",
    ]
    line += ["--bin", "easy.bin", "hard.bin", "--output", "figures/fig.svg", "--json", "fig.json"]
    result = subprocess.run(line, cwd=folder, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    rows = [row.split()[:2] for row in result.stdout.splitlines() if ".onnx" in row]
    assert rows == [["easy", "base.onnx"], ["easy", "ddl.onnx"], ["hard", "base.onnx"], ["hard", "ddl.onnx"]]
    assert "figure: figures/fig.svg" in result.stdout
    written = json.loads((folder / "fig.json").read_text())
    base = written["results"]["base.onnx"]
    assert base["easy"]["margin"] > base["hard"]["margin"] > 0
    assert base["easy"]["intersection"] < base["hard"]["intersection"]
    svg = (folder / "figures" / "fig.svg").read_text()
    assert f"margin {base['hard']['margin']:.3f}" in svg


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--bin", "easy.bin", "--output", "a.png"], "required: --model"),
        (["--model", "base.onnx", "--bin", "easy.bin", "--output", "a.gif"],
         "a.gif: expected a figure's suffix, one of .pdf, .png, .svg, got '.gif'"),
        (["--model", "base.onnx", "--bin", "easy.bin", "./easy.bin", "--output", "a.png"],
         "--bin: expected files with different names"),
        (["--model", "base.onnx", "--bin", "base.onnx", "--output", "a.png"], "got a damaged or other file"),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line(folder, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    assert main(["distributions", *arguments]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert message in captured.err
    assert not (folder / arguments[-1]).exists()


@pytest.mark.parametrize(
    "output, json_file", [("a.png", "base.onnx"), ("a.png", "easy.bin"), ("a.png", "a.png")]
)
def test_results_do_not_replace_an_input_or_each_other(folder, capsys, monkeypatch, output, json_file):
    monkeypatch.chdir(folder)
    line = [
        "distributions",
        "--model",
        "base.onnx",
        "--bin",
        "easy.bin",
        "--output",
        output,
        "--json",
        json_file,
    ]
    assert main(line) == 2
    assert f"--json: expected a file of its own, got {json_file}" in capsys.readouterr().err
    assert not (folder / "a.png").exists()
