"""`prepare records` and `prepare check` as a user meets them."""

import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from ddl_plugin.data.records import Records
from ddl_plugin.prepare.__main__ import main


def call(*arguments, **options):
    command = [sys.executable, "-m", "ddl_plugin.prepare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


@pytest.fixture
def people(tmp_path):
    """Two people in a folder with a space in its name; one picture is of another size, one is no picture."""
    folder = tmp_path / "my people"
    for seed, name in enumerate(("Ann Lee/1.jpg", "Ann Lee/2.jpg", "Bob/1.jpg", "Bob/large.jpg")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / name), cv2.resize(pixels, (200, 200) if "large" in name else (112, 112)))
    (folder / "Bob" / "broken.jpg").write_bytes(b"broken")
    return folder


def test_a_folder_becomes_a_data_set_that_the_check_finds_nothing_in(people, tmp_path):
    output, result = tmp_path / "out", tmp_path / "result.json"
    done = call("records", people, "--output", output, "--workers", 1, "--json", result)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[2].split() == ["stored", "as", "they", "are", "3"]
    assert lines[3].split() == ["left", "out", "cannot", "be", "decoded", "1", "Bob/broken.jpg"]
    assert lines[4].split() == ["left", "out", "not", "112x112", "1", "Bob/large.jpg"]
    assert lines[-1] == f"{output}/train.rec: 3 images of 2 identities, 1 to 2 images each (median 1.5)"
    assert json.loads(result.read_text()) == json.loads((output / "report.json").read_text())

    again = call("records", people, "--output", output)
    assert again.returncode == 0
    assert again.stdout.startswith(
        f"{output}/train.rec is there already, made from the same: nothing to do\n"
    )

    checked = call("check", output, "--workers", 1, "--json", result)
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout == (
        f"{output}/train.rec: 3 images of 2 identities, 1 to 2 images each (median 1.5)\n  nothing is wrong with it\n"
    )
    assert json.loads(result.read_text()) == {
        "rec": f"{output}/train.rec", "images": 3, "identities": 2,
        "images_per_identity": {"min": 1, "median": 1.5, "max": 2}, "decoded": True, "findings": [],
    }  # fmt: skip


def test_a_damaged_set_is_one_line_a_fault_and_exit_code_1(people, tmp_path):
    output, result = tmp_path / "out", tmp_path / "result.json"
    assert main(["records", str(people), "--output", str(output), "--workers", "1"]) == 0
    (output / "property").unlink()
    os.truncate(output / "train.rec", (output / "train.rec").stat().st_size - 10)
    done = call("check", output / "train.rec", "--quick", "--json", result)
    assert done.returncode == 1
    assert done.stderr == f"check failed: {output}/train.rec: 4 things are wrong, as listed\n"
    lines = done.stdout.splitlines()
    assert lines[0].endswith("(median 1.5); the images were not decoded")
    assert len(lines) == 5 and all(line.startswith("  ") for line in lines[1:])
    findings = json.loads(result.read_text())["findings"]
    assert [finding["text"] for finding in findings] == [line[2:] for line in lines[1:]]
    assert findings[0]["kind"] == "truncated tail" and findings[0]["records"] == [5]
    assert "no file 'property'" in done.stdout


def test_options_reach_the_work(people, tmp_path):
    (tmp_path / "keep.txt").write_text("Bob\n")
    (tmp_path / "list.txt").write_text("Bob/large.jpg Bob\nBob/1.jpg Bob\nAnn Lee/1.jpg\tAnn\n")
    output = tmp_path / "out"
    arguments = ["records", tmp_path / "list.txt", "--root", people, "--output", output, "--resize"]
    arguments += ["--keep-identities", tmp_path / "keep.txt", "--workers", 1, "--min-images", 2]
    arguments += ["--min-face", 250]
    assert main(list(map(str, arguments))) == 2  # the only picture left is one of an identity with two
    assert main(list(map(str, arguments[:-2]))) == 0
    assert Records(output).labels.tolist() == [0, 0]
    assert (output / "train_names.txt").read_text().splitlines()[0] == "1\t0\tBob\tBob/large.jpg"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["records", "in"], "the following arguments are required: --output"),
        (["records", "none", "--output", "out"], "none: expected a folder of identity folders"),
        (["records", "in", "--output", "out", "--workers", "0"], "--workers: expected a whole number >= 1"),
        (["records", "in", "--output", "out", "--min-images", "few"], "invalid int value: 'few'"),
        (
            ["records", "in/l.txt", "--output", "out", "--json", "in/l.txt"],
            "--json: expected a file of its own",
        ),
        (["check", "none.rec"], "none.rec: expected a .rec file"),
        (["check", "in/x.rec", "--json", "in/x.idx"], "--json: expected a file of its own"),
        (
            ["records", "in", "--output", "out", "--min-face", "40"],
            "--min-face: expected --align or --resize",
        ),
        (["check", "in", "--json", "in/train.idx"], "--json: expected a file of its own"),
        (["check", "in", "--json", "in/property"], "--json: expected a file of its own"),
        (
            ["records", "in", "--output", "out", "--json", "in/train.rec"],
            "--json: expected a file of its own",
        ),
        (["records", "in", "--output", "out", "--json", "in/a/1.jpg"], "--json: expected a file outside"),
        (["records", "in", "--output", "out", "--json", "out/train.rec"], "which --output writes"),
        (["records", "in", "--output", "out", "--json", "out/report.json"], "which --output writes"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    assert main(arguments) == 2
    stderr = capsys.readouterr().err
    assert message in stderr and stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_one_is_singular(people, tmp_path, capsys):
    (tmp_path / "keep.txt").write_text("Bob\n")
    arguments = ["records", people, "--output", tmp_path / "one", "--keep-identities", tmp_path / "keep.txt"]
    assert main(list(map(str, [*arguments, "--workers", 1]))) == 0
    said = capsys.readouterr().out
    assert main(["check", str(tmp_path / "one"), "--workers", "1"]) == 0
    for text in (said, capsys.readouterr().out):
        assert "train.rec: 1 image of 1 identity, 1 image each (median 1)" in text


def test_a_file_where_the_folder_should_be(people, tmp_path, capsys):
    (tmp_path / "there").write_text("mine")
    assert main(["records", str(people), "--output", str(tmp_path / "there")]) == 2
    assert capsys.readouterr().err == (
        f"error: --output: expected a folder, got the file {tmp_path / 'there'}; "
        "name a folder, which is made if need be\n"
    )
    assert (tmp_path / "there").read_text() == "mine"


@pytest.mark.parametrize("name", ["train.idx", "names.txt"])
def test_check_is_for_a_rec(tmp_path, capsys, name):
    (tmp_path / name).write_text("0\t0\n")
    assert main(["check", str(tmp_path / name)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(
        f"error: {tmp_path / name}: expected a .rec file, or a folder with train.rec, got a"
    )
    assert said.err.count("\n") == 1
