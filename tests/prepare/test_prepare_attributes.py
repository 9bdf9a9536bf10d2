"""`prepare attributes`: tables of lists, file names and the user's own."""

import json

import numpy as np
import pytest

from ddl_plugin.data.attributes import AttributeTable
from ddl_plugin.prepare.__main__ import main

SCFACE = ("001_cam1_1.jpg", "001_cam1_2.jpg", "001_cam1_3.jpg", "002_cam1_3.jpg", "001_frontal.jpg")


def call(folder, *arguments):
    return main(["attributes", *(str(argument).replace("@", f"{folder}/") for argument in arguments)])


@pytest.fixture
def data(tmp_path):
    (tmp_path / "names.txt").write_text("".join(f"{i}\t0\t{name}\n" for i, name in enumerate(SCFACE, 1)))
    return tmp_path


def test_scface_and_its_summary(data, capsys):
    assert call(data, "scface", "--names", "@names.txt", "--output", "@a.npz", "--json", "@a.json") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{data}/a.npz: 5 records\n")
    assert "  distance: 0 1, 1 1, 2 1, 3 2\n" in out
    assert "  kind: frontal 1, surveillance 4\n" in out
    assert "  infrared: False 5\n" in out
    assert "  turn: 0 1, no value 4\n" in out
    result = json.loads((data / "a.json").read_text())
    assert result["records"] == result["listed"] == 5 and result["missing"] == 0
    assert result["columns"]["kind"] == {"holes": 0, "counts": {"frontal": 1, "surveillance": 4}}
    assert result["provenance"]["command"] == "prepare attributes scface"
    table = AttributeTable.load(data / "a.npz")
    assert table.column("distance", np.arange(1, 6)).tolist() == [1, 2, 3, 3, 0]


def test_vggface2(data, capsys):
    images = [f"n000001/{i:04d}_01.jpg" for i in range(1, 31)]
    (data / "list.txt").write_text("\n".join(images) + "\n")
    (data / "names.txt").write_text("".join(f"{i}\t0\t{name}\n" for i, name in enumerate(images[:25], 1)))
    assert call(data, "vggface2", "@list.txt", "--names", "@names.txt", "--output", "@a.npz") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"5 of 30 rows are of no record of {data}/names.txt: left out\n")
    assert "  pose: frontal 10, profile 5, three-quarter 10\n" in out


def test_cox(data, capsys):
    (data / "names.txt").write_text("1\t0\tvideo/cam2/20110926/1.jpg\n2\t0\tstill/20110926.jpg\n")
    assert call(data, "cox", "--names", "@names.txt", "--output", "@a.npz") == 0
    assert "  source: still 1, video 1\n  camera: 0 1, 2 1\n" in capsys.readouterr().out


def test_tables_joined_and_shown(data, capsys):
    (data / "yaw.csv").write_text("record,yaw\n" + "".join(f"{i},{i * 10}\n" for i in range(1, 12)))
    (data / "race.csv").write_text("name,race\n001_cam1_2,b\n")
    arguments = ["table", "@yaw.csv", "@race.csv", "--names", "@names.txt", "--output", "@a.npz"]
    assert call(data, *arguments) == 0
    assert "  yaw: 10 to 110, median 60\n  race: b 1, no value 10\n" in capsys.readouterr().out
    assert call(data, "show", "@a.npz") == 0
    out = capsys.readouterr().out
    assert out.startswith("a.npz: 11 records\n  yaw: 10 to 110, median 60\n")
    about = json.loads(out.split("made by:", 1)[1])
    assert [entry["file"] for entry in about["sources"]] == ["yaw.csv", "race.csv", "names.txt"]
    assert call(data, "show", "@yaw.csv") == 0
    assert capsys.readouterr().out.endswith("made by: not said\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("scface --output @a.npz", "the following arguments are required: --names"),
        ("scface --names @names.txt --output @a.csv", "--output: expected a file named .npz or .parquet"),
        ("scface --names @none.txt --output @a.npz", "none.txt: cannot be read"),
        ("cox --names @names.txt --output @a.npz", "names.txt: record 1: expected a name such as video/cam1/"),
        ("table @none.csv --output @a.npz", "none.csv: expected an attribute table, got nothing there"),
        ("table @names.txt --output @a.npz", "expected an attribute table named .npz, .parquet or .csv, got '.txt'"),
        ("scface --names @names.txt --output @names.txt", "--output: expected a file of its own"),
        ("vggface3 --names @names.txt --output @a.npz", "invalid choice: 'vggface3'"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_leave_nothing_behind(data, capsys, arguments, message):
    before = sorted(data.iterdir())
    assert call(data, *arguments.split()) == 2
    stderr = capsys.readouterr().err
    assert message in stderr and stderr.count("\n") == 1
    assert sorted(data.iterdir()) == before
