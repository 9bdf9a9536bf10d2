import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
from pose_networks import save_fsanet

from ddl_plugin.data.attributes import AttributeTable
from ddl_plugin.data.records import Records, RecordWriter
from ddl_plugin.errors import UserError
from ddl_plugin.evaluate.__main__ import main
from ddl_plugin.evaluate.models import model_names
from ddl_plugin.evaluation.bins import write_bin
from ddl_plugin.prepare.__main__ import main as prepare


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


def test_identification_of_probes_and_gallery_of_one_size(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    options = ["identification", "--model", "base.onnx", "--rec", "val.rec", "--size", "8", "--both-size", "8"]  # fmt: skip
    assert main([*options, "--json", "id.json"]) == 0
    shown = capsys.readouterr().out
    assert "8 x 8 pixels: 6 probes" in shown
    assert "8 x 8 pixels, gallery too: 6 probes" in shown
    entries = json.loads((folder / "id.json").read_text())["results"]["base.onnx"]["results"]
    assert [entry["gallery_size"] for entry in entries] == ["full", 8]
    assert main([*options[:-1], "full"]) == 2
    message = "--both-size: expected a whole number of pixels within 4..112, got 'full'"
    assert message in capsys.readouterr().err


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
    assert "full size, far: 2 probes, 1 of identities outside" in output
    assert "full size, near: 1 probes" in output


@pytest.fixture
def blurred(folder):
    """easy.bin's images with a `blur` each: pairs 0-4 and one image of pairs 5 and 6 are hard."""
    hard = [*range(10), 11, 12]
    rows = "".join(f"{i},{int(i in hard)}\n" for i in range(40))
    (folder / "blur.csv").write_text("record,blur\n" + rows)
    return folder


def test_easy_and_hard_pairs_and_figures(blurred, capsys, monkeypatch):
    monkeypatch.chdir(blurred)
    arguments = ["verification", "--model", "base.onnx", "--model", "shifted.onnx", "--bin", "easy.bin"]
    arguments += [
        "--attributes",
        "blur.csv",
        "--hard",
        "blur > 0",
        "--figures",
        "figures",
        "--json",
        "hard.json",
    ]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "easy, easy: 13 pairs (both of the images: not hard)" in output
    assert "easy, hard: 7 pairs (either of the images: blur > 0)" in output
    assert "accuracy, thresholds of the set" in output
    assert "figure: figures/easy.png" in output
    assert cv2.imread("figures/easy.png").shape[0] > 300
    entry = json.loads((blurred / "hard.json").read_text())["results"]["base.onnx"][0]
    assert [(part["subset"], part["pairs"]) for part in entry["subsets"]] == [("easy", 13), ("hard", 7)]
    assert entry["in_no_subset"] == 0
    share = sum(part["pairs"] * part["accuracy"] for part in entry["subsets"]) / 20
    assert share == pytest.approx(entry["accuracy"])
    assert entry["val"]["val"] <= 1.0
    assert set(entry) >= {"d_prime", "positive_std", "negative_std", "margin", "intersection"}


def test_a_table_of_other_images_is_noticed(scface, capsys, monkeypatch):
    monkeypatch.chdir(scface)
    table = AttributeTable.load("scface.npz")
    table.provenance = {"records": "train.rec:0123456789abcdef"}
    table.save("others.npz")
    arguments = ["--model", "base.onnx", "--attributes", "others.npz", "--hard", "camera > 2"]
    assert main(["verification", "--bin", "easy.bin", *arguments]) == 2
    assert "others.npz: expected a table of easy.bin as it is now" in capsys.readouterr().err
    rows = "".join(f"{16 * s + k},{'gallery' if k == 1 else 'probe'}\n" for s in range(5) for k in (1, 2, 9))
    (scface / "few.csv").write_text("record,role\n" + rows)
    search = ["identification", "--rec", "scface.rec", "--protocol", "few.csv", "--size", "full", *arguments]
    assert main(search) == 2
    assert "others.npz: expected a table of scface.rec as it is now" in capsys.readouterr().err
    table.provenance = {"records": "renamed.rec:" + Records("scface.rec").fingerprint().split(":")[1]}
    table.save("others.npz")
    assert main(search) == 0


def test_the_pose_of_a_set_says_which_of_its_pairs_are_hard(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    save_fsanet("pose.onnx")
    assert prepare(["pose", "easy.bin", "--model", "pose.onnx", "--output", "easy_pose.npz"]) == 0
    assert "yaw, pitch and roll of 40 images" in capsys.readouterr().out
    table = AttributeTable.load("easy_pose.npz")
    assert table.keys.tolist() == list(range(40))
    yaw = table.columns["yaw"]
    limit = float(np.round(np.median(yaw), 3))
    arguments = [
        "verification",
        "--model",
        "base.onnx",
        "--attributes",
        "easy_pose.npz",
        "--hard",
        f"yaw > {limit}",
    ]
    hard = sum(bool(yaw[2 * i] > limit or yaw[2 * i + 1] > limit) for i in range(20))
    assert main([*arguments, "--bin", "easy.bin"]) == 0
    assert f"easy, hard: {hard} pairs (either of the images: yaw > {limit})" in capsys.readouterr().out
    (folder / "renamed.bin").write_bytes((folder / "easy.bin").read_bytes())
    assert main([*arguments, "--bin", "renamed.bin"]) == 0
    (folder / "turned.bin").write_bytes((folder / "easy.bin").read_bytes() + b" ")  # still the same pickle
    assert main([*arguments, "--bin", "turned.bin"]) == 2
    assert "easy_pose.npz: expected a table of turned.bin as it is now" in capsys.readouterr().err


def test_two_sets_of_one_name_have_figures_of_their_own(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "other").mkdir(exist_ok=True)
    (folder / "other" / "easy.bin").write_bytes((folder / "easy.bin").read_bytes())
    arguments = ["verification", "--model", "base.onnx", "--bin", "easy.bin", "other/easy.bin"]
    assert main([*arguments, "--figures", "twice"]) == 0
    assert {path.name for path in (folder / "twice").iterdir()} >= {"easy.png", "easy_2.png"}


def test_image_files_are_searched_without_records(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "pictures").mkdir(exist_ok=True)
    rows = ["file,identity,role"]
    for label in range(3):
        for k, role in enumerate(("gallery", "probe")):
            (folder / "pictures" / f"{label}_{k}.png").write_bytes(encoded(label, k))
            rows.append(f"{label}_{k}.png,person {label},{role}")
    (folder / "files.csv").write_text("\n".join(rows))
    arguments = ["identification", "--model", "base.onnx", "--protocol", "files.csv", "--size", "full"]
    assert main([*arguments, "--root", "pictures"]) == 0
    assert "files: 3 gallery images of 3 identities" in capsys.readouterr().out
    assert main(arguments) == 2
    assert (
        "files.csv: expected every gallery image, got 3 (0_0.png, 1_0.png, 2_0.png) missing"
        in capsys.readouterr().err
    )
    (folder / "pictures" / "2_1.png").unlink()
    assert main([*arguments, "--root", "pictures", "--max-missing", "1"]) == 0
    output = capsys.readouterr().out
    assert "full size: 2 probes and 1 missing, counted as not found" in output
    assert next(line for line in output.splitlines() if line.startswith("rank-1")).split()[1] == "66.67%"


@pytest.fixture(scope="module")
def scface(folder):
    """Five subjects in SCface's names, with the attribute table of `prepare attributes scface`."""
    from ddl_plugin.prepare.__main__ import main as prepare

    names = []
    with RecordWriter(folder, "scface") as writer:
        for subject in range(5):
            files = ["frontal", *(f"cam{camera}_{d}" for camera in range(1, 6) for d in (1, 2, 3))]
            for k, file in enumerate(files):
                writer.add(encoded(subject, k), subject)
                names.append(f"{len(names) + 1}\t{subject}\t{subject + 1:03d}_{file}.jpg")
    (folder / "scface_names.txt").write_text("\n".join(names) + "\n")
    arguments = ["attributes", "scface", "--names", str(folder / "scface_names.txt")]
    assert prepare([*arguments, "--output", str(folder / "scface.npz")]) == 0
    return folder


def test_scface_by_its_name(scface, capsys, monkeypatch):
    monkeypatch.chdir(scface)
    arguments = ["identification", "--model", "base.onnx", "--rec", "scface.rec", "--protocol", "scface"]
    arguments += ["--attributes", "scface.npz", "--train-subjects", "2"]
    assert main([*arguments, "--save-protocol", "saved", "--figures", "figures", "--json", "a.json"]) == 0
    output = capsys.readouterr().out
    assert "subjects: 3 to test, 2 for training (seed 0)" in output
    assert "full size: 45 probes" in output
    assert "full size, d1: 15 probes" in output
    assert "full size, average of d1, d2, d3" in output
    assert "24 x 24" not in output
    saved = scface / "saved"
    assert len((saved / "train_subjects.txt").read_text().split()) == 2
    again = [
        "identification",
        "--model",
        "base.onnx",
        "--rec",
        "scface.rec",
        "--size",
        "full",
        "--json",
        "b.json",
    ]
    assert main([*again, "--protocol", "saved/protocol.csv"]) == 0
    first, second = (json.loads((scface / name).read_text())["results"] for name in ("a.json", "b.json"))
    assert first == second
    assert main([*arguments[:-2], "--test-subjects", "saved/test_subjects.txt", "--json", "c.json"]) == 0
    assert json.loads((scface / "c.json").read_text())["results"] == first


def test_easy_and_hard_probes_within_groups(scface, capsys, monkeypatch):
    monkeypatch.chdir(scface)
    arguments = [
        "identification",
        "--model",
        "base.onnx",
        "--rec",
        "scface.rec",
        "--attributes",
        "scface.npz",
    ]
    assert main([*arguments, "--easy", "camera == 0", "--hard", "camera == 1", "--size", "full"]) == 2
    assert "expected one probe or more, got none" in capsys.readouterr().err
    rows = "".join(
        f"{16 * s + k},{'gallery' if k == 1 else 'probe'}\n" for s in range(5) for k in (1, 2, 3, 4)
    )
    (scface / "some.csv").write_text("record,role\n" + rows)
    arguments += ["--protocol", "some.csv", "--size", "full"]
    assert main([*arguments, "--hard", "distance < 2"]) == 0
    output = capsys.readouterr().out
    assert "full size, easy (not hard): 10 probes" in output
    assert "full size, hard (distance < 2): 5 probes" in output
    (scface / "race.csv").write_text(
        "record,race\n" + "".join(f"{i + 1},{'xy'[i // 16 % 2]}\n" for i in range(80))
    )
    arguments[arguments.index("scface.npz")] = "race.csv"
    assert main([*arguments, "--group", "race"]) == 0
    output = capsys.readouterr().out
    assert "full size, x: 9 probes" in output
    assert "full size, y: 6 probes" in output


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--rec: expected a .rec file, or --protocol CSV with a column `file`, got neither"),
        (["--protocol", "scface"], "--rec: expected a .rec file"),
        (["--rec", "scface.rec", "--protocol", "scface"], "--protocol scface: expected --attributes TABLE from"),
        (["--rec", "scface.rec", "--protocol", "scface", "--attributes", "scface.npz"],
         "expected SCface's 130 subjects, of which 50 are for training, got 5"),
        (["--rec", "scface.rec", "--protocol", "cox", "--attributes", "scface.npz"], "got no 'source'"),
        (["--rec", "scface.rec", "--test-subjects", "a"], "--test-subjects: expected --protocol scface or cox"),
        (["--rec", "scface.rec", "--save-protocol", "a"], "--save-protocol: expected --protocol scface or cox"),
        (["--rec", "scface.rec", "--protocol", "scface", "--attributes", "scface.npz", "--train-subjects", "1.5"],
         "--train-subjects: expected a number of subjects, or a share below 1, got 1.5"),
        (["--rec", "scface.rec", "--group", "race"], "--group: expected --attributes TABLE with the column 'race'"),
        (["--rec", "scface.rec", "--hard", "yaw > 1"], "--easy, --hard: expected --attributes TABLE"),
        (["--rec", "scface.rec", "--attributes", "scface.npz", "--easy", "camera > 1"], "--easy: expected --hard RULE"),
        (["--rec", "scface.rec", "--attributes", "scface.npz", "--hard", "cam > 1"], "did you mean 'camera'"),
        (["--rec", "scface.rec", "--root", "x"], "--root: expected image files of a CSV, without --rec"),
        (["--protocol", "x.csv", "--names", "x"], "--names: expected --rec with it, got none"),
        (["--protocol", "x.csv"], "x.csv: cannot be read as a protocol"),
        (["--rec", "scface.rec", "--protocol", "scfac"], "expected a .csv file, scface or cox, got 'scfac'; did you mean"),
        (["--rec", "scface.rec", "--figures", "val.rec"], "--figures (scface.png): expected a file in a folder, got val.rec/scface.png, but "),
        (["--rec", "scface.rec", "--max-missing", "-1"], "--max-missing: expected a whole number >= 0, got -1"),
    ],
)  # fmt: skip
def test_mistakes_about_who_is_searched_for(scface, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(scface)
    assert main(["identification", "--model", "base.onnx", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_a_damaged_record_is_never_left_out(scface, capsys, monkeypatch):
    monkeypatch.chdir(scface)
    data = bytearray((scface / "val.rec").read_bytes())
    index = dict(line.split() for line in (scface / "val.idx").read_text().splitlines())
    at = int(index["5"])
    data[at : at + 4] = b"bad!"
    (scface / "bad.rec").write_bytes(data)
    (scface / "bad.idx").write_bytes((scface / "val.idx").read_bytes())
    assert main(["identification", "--model", "base.onnx", "--rec", "bad.rec"]) == 2
    assert "record" in capsys.readouterr().err


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
        (["verification", "--model", "m", "--bin", "easy.bin", "--attributes", "a", "b", "--hard", "x > 1"],
         "--attributes: expected a table for each of 1 sets of --bin, in their order, got 2"),
        (["verification", "--model", "m", "--bin", "easy.bin", "--hard", "x > 1"],
         "--easy, --hard: expected --attributes TABLE"),
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
        [
            "verification",
            "--model",
            "base.onnx",
            "--bin",
            "easy.bin",
            "--hard",
            "x > 1",
            "--attributes",
            "t.csv",
            "--json",
            "t.csv",
        ],
    ],
)
def test_results_do_not_replace_an_input(folder, capsys, monkeypatch, arguments):
    monkeypatch.chdir(folder)
    (folder / "t.csv").write_text("record,x\n0,1\n")
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
