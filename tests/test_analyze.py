import json
import subprocess
import sys

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ddl_plugin.analyze import main
from ddl_plugin.evaluation.bins import write_bin


def save_model(path, bias):
    """A network without weights: (pixels - bias) / 128, 8x8 means, flattened."""
    nodes = [
        helper.make_node("Sub", ["data", "mean"], ["centred"], name="Sub0"),
        helper.make_node("Mul", ["centred", "scale"], ["scaled"], name="Mul0"),
        helper.make_node("AveragePool", ["scaled"], ["pooled"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Flatten", ["pooled"], ["fc1"]),
    ]
    constants = [helper.make_tensor("mean", TensorProto.FLOAT, [1], [bias]),
                 helper.make_tensor("scale", TensorProto.FLOAT, [1], [1 / 128])]  # fmt: skip
    data = helper.make_tensor_value_info("data", TensorProto.FLOAT, ["N", 3, 112, 112])
    output = helper.make_tensor_value_info("fc1", TensorProto.FLOAT, ["N", 588])
    graph = helper.make_graph(nodes, "fake", [data], [output], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))


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
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("analyze")
    save_model(folder / "base.onnx", 127.5)
    save_model(folder / "ddl.onnx", 100.0)
    save_set(folder / "easy.bin", 30)
    save_set(folder / "hard.bin", 250)
    return folder


def test_two_models_on_two_sets(folder):
    line = [sys.executable, "-m", "ddl_plugin.analyze", "--model", "base.onnx", "--model", "ddl.onnx"]
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
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert message in captured.err
    assert not (folder / arguments[-1]).exists()
