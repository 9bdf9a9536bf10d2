import json
import subprocess
import sys

import numpy as np
import onnx
import pytest

from ddl_plugin.export import __main__ as command
from ddl_plugin.export import latency
from ddl_plugin.export.graph import find_checkpoint
from ddl_plugin.export.params import load_params, save_params


def in_process(*arguments):
    """The exit code of the command."""
    return command.main([str(argument) for argument in arguments])


@pytest.mark.usefixtures("needs_mxnet")
def test_exports_checks_and_reports(checkpoint, tmp_path):
    output, report = tmp_path / "out" / "m.onnx", tmp_path / "report.json"
    done = subprocess.run(
        [
            sys.executable, "-m", "ddl_plugin.export", checkpoint,
            "--output", output, "--base", checkpoint, "--json", report,
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "m.onnx: 11 nodes, opset 13, embedding of 16" in done.stdout
    assert "agree: largest difference" in done.stdout
    assert f"same graph as {checkpoint}: 11 nodes, only weights differ\n" in done.stdout
    assert "names differ" not in done.stdout
    assert "parameters" in done.stdout
    assert "latency at batch 32" in done.stdout
    assert [path.name for path in output.parent.iterdir()] == ["m.onnx"]
    result = json.loads(report.read_text())
    assert result["parity"]["max_difference"] < 1e-4
    assert result["same_graph"]["identical"]
    assert result["bytes"] == output.stat().st_size
    assert result["cost"]["model"] == result["cost"]["base"]
    assert [row["batch"] for row in result["latency"]["batches"]] == [1, 32]


def test_folder_exports_its_newest_epoch(checkpoint, tmp_path, capsys):
    arg, aux = load_params(find_checkpoint(checkpoint).params)
    arg["fc1_beta"] = arg["fc1_beta"] + 7
    save_params(tmp_path / "model-0020.params", arg, aux)
    assert in_process(tmp_path, "--output", tmp_path / "m.onnx") == 0
    beta = next(t for t in onnx.load(tmp_path / "m.onnx").graph.initializer if t.name == "fc1_beta")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(beta), arg["fc1_beta"])


def test_base_as_onnx_file(checkpoint, tmp_path, capsys):
    assert in_process(checkpoint, "--output", tmp_path / "a.onnx") == 0
    assert in_process(checkpoint, "--output", tmp_path / "b.onnx", "--base", tmp_path / "a.onnx") == 0
    assert "only weights differ" in capsys.readouterr().out


def test_failed_base_check_exits_1_and_leaves_no_file(checkpoint, tmp_path, capsys):
    assert in_process(checkpoint, "--output", tmp_path / "a.onnx") == 0
    model = onnx.load(tmp_path / "a.onnx")
    model.graph.node[3].attribute[0].f = 0.5
    onnx.save(model, tmp_path / "a.onnx")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert in_process(checkpoint, "--output", tmp_path / "b.onnx", "--base", tmp_path / "a.onnx") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("check failed: the graph is not that of")
    assert "epsilon" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.usefixtures("needs_mxnet")
def test_failed_parity_exits_1_and_keeps_the_old_file(checkpoint, tmp_path, capsys):
    (tmp_path / "m.onnx").write_text("old")
    assert in_process(checkpoint, "--output", tmp_path / "m.onnx", "--tolerance", "1e-12") == 1
    assert "tolerance 1e-12" in capsys.readouterr().err
    assert (tmp_path / "m.onnx").read_text() == "old"


def test_a_bad_checkpoint_exits_2_with_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "ddl_plugin.export", tmp_path / "none,3", "--output", tmp_path / "m.onnx"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "none-symbol.json: no such symbol file" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected --output MODEL.onnx"),
        (("--output", "m.onnx", "--int8"), "--int8: expected --calibrate REC"),
        (("--output", "m.onnx", "--calibrate", "x.rec"), "--calibrate: expected --int8"),
        (("--output", "m.onnx", "--verify", "none.bin"), "none.bin: cannot be read"),
        (("--output", "m.onnx", "--fp16", "--json", "m.fp16.onnx"), "which is what --json writes"),
        (("--output", "m.onnx", "--fp16", "--base", "m.fp16.onnx"), "which is the input m.fp16.onnx"),
        (("--output", "m.onnx", "--verify", "x.bin", "--json", "x.bin"), "which is the input"),
        (("--output", "m.onnx", "--tolerance", "0"), "--tolerance: expected a number > 0, got 0"),
        (("--output", "m.onnx", "--base", "none.onnx"), "none.onnx: no such ONNX file"),
        (("--output", "m.onnx", "--images", "none.rec"), "none.rec"),
        (("--output", "folder.onnx"), "expected the name of a file to write, got the folder folder.onnx"),
        (("--output", "m.bin"), "--output: expected a name that ends in .onnx, got 'm.bin'"),
        (("--output", "folder.onnx", "--base", "folder.onnx"), "--output: expected a file of its own"),
        (("--output", "m.onnx", "--json", "m.onnx"), "--json: expected a file of its own, got m.onnx"),
        (("--output", "m.onnx", "--json", "model-0000.params"), "which is the input"),
        (("--output", "m.onnx", "--json", "model-symbol.json"), "which is the input"),
        (("--output", "m.onnx", "--images", "x.rec", "--json", "x.idx"), "which is the input"),
    ],
)
def test_usage_errors_exit_2(arguments, message, checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.onnx").mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())
    assert in_process(checkpoint, *arguments) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_base_that_is_no_onnx_file(checkpoint, tmp_path, capsys):
    (tmp_path / "base.onnx").write_text("not a model")
    assert in_process(checkpoint, "--output", tmp_path / "m.onnx", "--base", tmp_path / "base.onnx") == 2
    assert "base.onnx: expected an ONNX model" in capsys.readouterr().err


def test_a_base_of_another_input_size(checkpoint, tmp_path, capsys):
    assert in_process(checkpoint, "--output", tmp_path / "a.onnx") == 0
    model = onnx.load(tmp_path / "a.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 96
    onnx.save(model, tmp_path / "a.onnx")
    assert in_process(checkpoint, "--output", tmp_path / "b.onnx", "--base", tmp_path / "a.onnx") == 1
    assert "inputs: data FLOAT[N, 3, 112, 112] against data FLOAT[N, 3, 96, 112]" in capsys.readouterr().err


def test_the_base_of_another_trainer_may_have_other_names(checkpoint, tmp_path, capsys):
    assert in_process(checkpoint, "--output", tmp_path / "a.onnx") == 0
    model = onnx.load(tmp_path / "a.onnx")
    for names in (model.graph.node[9].input,):
        names[:] = [name.replace("pre_fc1_weight", "fc1_weight") for name in names]
    next(t for t in model.graph.initializer if t.name == "pre_fc1_weight").name = "fc1_weight"
    onnx.save(model, tmp_path / "a.onnx")
    assert in_process(checkpoint, "--output", tmp_path / "b.onnx", "--base", tmp_path / "a.onnx") == 0
    assert "names differ: fc1_weight -> pre_fc1_weight; nothing else" in capsys.readouterr().out


def test_half_precision_beside_the_model(checkpoint, tmp_path, capsys):
    report = tmp_path / "r.json"
    assert in_process(checkpoint, "--output", tmp_path / "out" / "m.onnx", "--fp16", "--json", report) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["m.fp16.onnx", "m.onnx"]
    assert "accuracy not measured" in capsys.readouterr().out
    found = json.loads(report.read_text())["fp16"]
    assert found["cosine"]["random"]["min_cosine"] > 0.999
    assert found["bytes"] == (tmp_path / "out" / "m.fp16.onnx").stat().st_size


def test_a_reduced_model_that_fails_leaves_no_file_at_all(checkpoint, tmp_path, capsys, monkeypatch):
    from ddl_plugin.export import reduced

    monkeypatch.setattr(reduced, "HALF_COSINE", 1.1)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert in_process(checkpoint, "--output", tmp_path / "m.onnx", "--fp16") == 1
    assert "fp16 model: least cosine" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_int8_beside_the_model(checkpoint, tmp_path, capsys):
    from ddl_plugin.data.records import RecordWriter
    from ddl_plugin.export.images import smooth_images

    with RecordWriter(tmp_path / "faces") as writer:
        for label, image in enumerate(smooth_images(12, 112)):
            writer.add(image, label)
    out, report = tmp_path / "out", tmp_path / "r.json"
    arguments = ("--output", out / "m.onnx", "--int8", "--calibrate", tmp_path / "faces", "--json", report)
    assert in_process(checkpoint, *arguments) == 0
    assert sorted(path.name for path in out.iterdir()) == ["m.int8.onnx", "m.onnx"]
    assert "m.int8.onnx: int8, " in capsys.readouterr().out
    found = json.loads(report.read_text())["int8"]
    assert found["calibration_images"] == 12
    assert found["cosine"]["real"]["mean_cosine"] > 0.98  # the images that calibrate are the real ones
    single, quantised = (onnx.load(out / name) for name in ("m.onnx", "m.int8.onnx"))
    assert any(tensor.data_type == onnx.TensorProto.INT8 for tensor in quantised.graph.initializer)
    assert quantised.metadata_props == single.metadata_props
    written = (out / "m.int8.onnx").read_bytes()
    assert in_process(checkpoint, *arguments) == 0
    assert (out / "m.int8.onnx").read_bytes() == written


def test_int8_without_what_it_needs_tells_the_remedy(checkpoint, tmp_path, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("onnxruntime.quantization")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    arguments = (checkpoint, "--output", tmp_path / "m.onnx", "--int8", "--calibrate", "x.rec")
    assert in_process(*arguments) == 2
    assert "pip install ml_dtypes" in capsys.readouterr().err


def test_verification_of_every_model(checkpoint, tmp_path, capsys):
    from ddl_plugin.data.records import Records, RecordWriter
    from ddl_plugin.evaluation.bins import write_bin
    from ddl_plugin.export.images import random_images

    with RecordWriter(tmp_path) as writer:
        for label, image in enumerate(random_images(40, 112)):
            writer.add(image, label)
    faces = [Records(tmp_path).payload(i) for i in range(40)]
    pairs = [
        face for i in range(20) for face in ((faces[i], faces[i]) if i % 2 else (faces[i], faces[i + 20]))
    ]
    write_bin(tmp_path / "pairs.bin", pairs, [bool(i % 2) for i in range(20)])
    arguments = (checkpoint, "--output", tmp_path / "m.onnx", "--fp16", "--verify", tmp_path / "pairs.bin")
    assert in_process(*arguments, "--json", tmp_path / "r.json") == 0
    assert "accuracy, 10 folds" in capsys.readouterr().out
    found = json.loads((tmp_path / "r.json").read_text())["verification"]
    assert list(found) == ["fp32", "fp16"]
    assert found["fp32"]["pairs"]["accuracy"] == found["fp16"]["pairs"]["accuracy"] == 1.0


def test_list_ops_needs_no_checkpoint(capsys):
    assert in_process("--list-ops") == 0
    assert "Convolution" in capsys.readouterr().out


def test_importing_the_package_is_light():
    program = "import sys, ddl_plugin.export; print([m for m in ('onnx', 'mxnet', 'onnxruntime') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.usefixtures("needs_mxnet")
def test_y1_with_real_faces(shared_data, tmp_path, capsys, monkeypatch):
    # How long it takes is no part of this test.
    monkeypatch.setattr(latency, "_FEWEST", 1)
    monkeypatch.setattr(latency, "_SECONDS", 0)
    report = tmp_path / "report.json"
    y1, faces = shared_data / "y1_ms1m", shared_data / "lfw112_dev" / "val.rec"
    arguments = (
        y1,
        "--output",
        tmp_path / "y1.onnx",
        "--base",
        f"{y1}/model,0",
        "--images",
        faces,
        "--json",
        report,
    )
    assert in_process(*arguments) == 0
    parity = json.loads(report.read_text())["parity"]
    assert parity["max_difference"] < 1e-5
    assert {row["images"] for row in parity["rows"]} == {"random", "smooth", "real"}
