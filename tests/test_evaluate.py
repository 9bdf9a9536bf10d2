import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from ddl_plugin.data.records import RecordWriter
from ddl_plugin.errors import UserError
from ddl_plugin.evaluate.__main__ import main
from ddl_plugin.evaluate.models import model_names
from ddl_plugin.evaluation.bins import write_bin


def face(label, k=0):
    """Image k of an identity: a block pattern of its own with noise of its own."""
    pattern = np.random.default_rng(label).integers(0, 256, (14, 14, 3)).astype(np.int16)
    noise = np.random.default_rng([label, k]).integers(-60, 61, pattern.shape)
    blocks = (pattern + noise).clip(0, 255).astype(np.uint8)
    return np.kron(blocks, np.ones((8, 8, 1), np.uint8))


def encoded(label, k):
    return cv2.imencode(".png", face(label, k)[..., ::-1])[1].tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, save_pooling_model):
    folder = tmp_path_factory.mktemp("evaluate")
    save_pooling_model(folder / "base.onnx", 127.5)
    save_pooling_model(folder / "shifted.onnx", 20.0)
    images, issame = [], []
    for pair in range(20):
        same = pair % 2 == 0
        images += [encoded(pair, 0), encoded(pair if same else 100 + pair, 1)]
        issame.append(same)
    write_bin(folder / "easy.bin", images, issame)
    with RecordWriter(folder, "val") as writer:
        for label in range(6):
            for k in range(2):
                writer.add(encoded(label, k), label)
    return folder


def command(folder, *arguments):
    line = [sys.executable, "-m", "ddl_plugin.evaluate", *arguments]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True)


def test_verification_of_two_models_side_by_side(folder):
    result = command(
        folder, "verification", "--model", "base.onnx", "--model", "shifted.onnx", "--bin", "easy.bin",
        "--json", "out.json",
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    header = next(line for line in result.stdout.splitlines() if "base.onnx" in line)
    assert header.split() == ["base.onnx", "shifted.onnx"]
    assert "easy: 20 pairs" in result.stdout
    line = next(line for line in result.stdout.splitlines() if line.startswith("TAR at FAR 0.01 (obtained)"))
    assert line.split()[5:7] == ["100.00%", "(0)"]
    written = json.loads((folder / "out.json").read_text())
    assert written["kind"] == "verification"
    assert written["models"] == {"base.onnx": "base.onnx", "shifted.onnx": "shifted.onnx"}
    (base,), (shifted,) = written["results"].values()
    assert (base["eer"], base["tar_at_far"][0]["tar"]) == (0.0, 1.0)
    assert base["margin"] > shifted["margin"] > 0


def test_identification_at_several_sizes(folder):
    result = command(
        folder, "identification", "--model", "base.onnx", "--rec", "val.rec", "--size", "full", "8",
        "--json", "id.json",
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    assert "6 gallery images of 6 identities" in result.stdout
    assert "full size: 6 probes" in result.stdout
    assert "8 x 8 pixels: 6 probes" in result.stdout
    full, small = json.loads((folder / "id.json").read_text())["results"]["base.onnx"]["results"]
    assert (full["size"], full["rank1"], small["size"]) == ("full", 1.0, 8)


def test_a_protocol_with_conditions_and_unknown_probes(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    rows = "record,role,condition\n1,gallery,\n3,gallery,\n2,probe,near\n4,probe,far\n6,probe,far\n"
    (folder / "protocol.csv").write_text(rows)
    assert main(["identification", "--model", "base.onnx", "--rec", ".", "--protocol", "protocol.csv"]) == 2
    assert "the folder with val.rec: name the file" in capsys.readouterr().err
    assert main(["identification", "--model", "base.onnx", "--rec", "val.rec", "--protocol", "protocol.csv",
                 "--size", "full"]) == 0  # fmt: skip
    output = capsys.readouterr().out
    assert "full size: 3 probes, 1 of identities outside the gallery, not in rank-k" in output
    assert "full size: 2 probes (far), 1 of identities outside" in output
    assert "full size: 1 probes (near)" in output


def test_an_input_error_is_one_line_and_exit_code_2(folder):
    result = command(folder, "verification", "--model", "base.onnx", "--bin", "none.bin")
    assert result.returncode == 2
    assert result.stdout == ""
    line = "error: none.bin: cannot be read as a verification set: No such file or directory"
    assert result.stderr.splitlines() == [line]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "the following arguments are required: KIND (see 'python -m ddl_plugin.evaluate --help')"),
        (["verify"], "invalid choice: 'verify'"),
        (["verification", "--bin", "easy.bin"], "required: --model"),
        (["verification", "--model", "base.onnx"], "required: --bin"),
        (["identification", "--model", "m", "--rec", "val.rec", "--size", "3"],
         "--size: expected 'full' or a whole number of pixels within 4..112, got '3'"),
        (["identification", "--model", "m", "--rec", "none.rec"], "expected a .rec file"),
        (["verification", "--model", "m", "--model", "m", "--bin", "easy.bin"], "expected different models"),
        (["verification", "--model", "none.onnx", "--bin", "easy.bin"], "none.onnx: no such ONNX file"),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line(folder, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["verification", "--model", "base.onnx", "--bin", "easy.bin", "--json", "easy.bin"],
        ["verification", "--model", "base.onnx", "--bin", "easy.bin", "--json", "./base.onnx"],
        ["identification", "--model", "base.onnx", "--rec", "val.rec", "--json", "val.rec"],
        ["identification", "--model", "base.onnx", "--rec", "val.rec", "--json", "val.idx"],
    ],
)
def test_results_do_not_replace_an_input(folder, capsys, monkeypatch, arguments):
    monkeypatch.chdir(folder)
    before = (folder / arguments[-1]).read_bytes()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"--json: expected a file of its own, got {arguments[-1]}, which is the input" in captured.err
    assert (folder / arguments[-1]).read_bytes() == before


def test_models_are_called_by_as_much_of_their_path_as_tells_them_apart():
    assert model_names(["a/base.onnx", "b/ddl.onnx"]) == ["base.onnx", "ddl.onnx"]
    assert model_names(["runs/a/best,3", "runs/b/best,3"]) == ["a/best,3", "b/best,3"]
    assert model_names(["model.onnx", "run/model.onnx"]) == ["model.onnx", "run/model.onnx"]
    assert model_names(["/x/m.onnx"]) == ["m.onnx"]
    with pytest.raises(UserError, match="got one twice: a, a"):
        model_names(["a", "a"])


def test_an_onnx_file_is_measured_without_mxnet(folder):
    code = (
        "import sys; sys.modules['mxnet'] = None\n"
        "from ddl_plugin.evaluate.__main__ import main\n"
        "sys.exit(main(['verification', '--model', 'base.onnx', '--bin', 'easy.bin']))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
