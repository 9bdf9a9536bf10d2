"""`prepare partition`: what it writes and says, and mistakes as one line."""

import json

import cv2
import numpy as np
import pytest

from ddl_plugin.data.attributes import AttributeTable
from ddl_plugin.data.records import Records, RecordWriter
from ddl_plugin.prepare.__main__ import main

RECIPE = """
from easydict import EasyDict

config = EasyDict()
config.loss = "ddl"
config.dataset_path = "data"
config.attributes = "pose.npz"
config.pretrained = "model.onnx"
config.ddl = EasyDict(b=4, easy="abs(yaw) < 10", hard=["abs(yaw) > 45"])
config.seed = 3
"""


def write_data(folder):
    """20 identities with 4 images each: yaw 0, 5, 30, 60."""
    rng = np.random.default_rng(0)
    with RecordWriter(folder) as writer:
        for label in range(20):
            for _ in range(4):
                writer.add(rng.integers(0, 255, (112, 112, 3), np.uint8), label)
    yaw = np.tile([0.0, 5.0, -30.0, 60.0], 20)
    AttributeTable(np.arange(1, 81), {"yaw": yaw}).save(folder / "pose.npz")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "data")
    (tmp_path / "recipe.py").write_text(RECIPE)
    return tmp_path


RULES = ["--easy", "abs(yaw) < 10", "--hard", "yaw < 0 or yaw > 50", "{'size': (12, 16)}"]


def test_sets_by_rules_are_counted_shown_and_written(place, capsys):
    arguments = ["partition", "data", *RULES, "--attributes", "data/pose.npz", "--output", "out/new"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    lines = {line.split("  ")[0]: line.split() for line in said.splitlines()}
    assert lines["easy"][-6:] == ["40", "20", "0", "2,", "2", "20"]
    assert lines["hard1"][-6:] == ["40", "20", "0", "2,", "2", "20"]
    assert "size 12-16" in said
    assert lines["in no set"][-2:] == ["0", "0"]
    assert lines["easy and hard2"][-2:] == ["40", "20"]
    assert sorted(p.name for p in (place / "out/new").iterdir()) == [
        "partition.json",
        "partition.npz",
        "sheet.png",
    ]
    assert cv2.imread("out/new/sheet.png").shape[1] > 1000
    result = json.loads((place / "out/new/partition.json").read_text())
    assert [row["images"] for row in result["sets"]] == [40, 40, 40]
    assert [rule["rule"] for rule in result["rules"]] == ["abs(yaw) < 10", "yaw < 0 or yaw > 50", None]
    assert result["rules"][2]["degradation"]["size"] == [12, 16]
    assert result["records"] == Records(place / "data").fingerprint()
    assert result["attributes"]["file"] == "pose.npz"
    table = AttributeTable.load("out/new/partition.npz")
    easy = table.column("easy", np.arange(1, 81))
    assert np.flatnonzero(easy).tolist() == [i for i in range(80) if i % 4 < 2]
    assert {key: result[key] for key in table.provenance} == table.provenance
    written = {path.name: path.read_bytes() for path in (place / "out/new").iterdir()}
    assert main(arguments) == 0
    assert written == {path.name: path.read_bytes() for path in (place / "out/new").iterdir()}


def test_a_recipe_names_data_attributes_rules_and_seed(place, capsys):
    assert main(["partition", "--recipe", "recipe.py", "ddl.hard=['abs(yaw) > 20']", "--output", "out"]) == 0
    result = json.loads((place / "out/partition.json").read_text())
    assert [row["label"] for row in result["sets"]] == ["abs(yaw) < 10", "abs(yaw) > 20"]
    assert [row["images"] for row in result["sets"]] == [40, 40]
    assert (result["b"], result["seed"]) == (4, 3)
    # REC and --attributes come before the recipe's own.
    write_data(place / "other")
    AttributeTable(np.arange(1, 81), {"yaw": np.repeat([0.0, 50.0], 40)}).save("other.npz")
    arguments = [
        "partition",
        "other",
        "--recipe",
        "recipe.py",
        "--attributes",
        "other.npz",
        "--output",
        "out",
    ]
    assert main(arguments) == 0
    assert "other/train.rec: 80 images" in capsys.readouterr().out


def test_the_table_it_writes_serves_as_attributes(place):
    assert main(["partition", "data", *RULES, "--attributes", "data/pose.npz", "--output", "out"]) == 0
    arguments = ["partition", "data", "--easy", "easy", "--hard", "hard1", "--output", "again"]
    assert main([*arguments, "--attributes", "out/partition.npz"]) == 0
    old, new = (
        json.loads((place / name / "partition.json").read_text())["sets"] for name in ("out", "again")
    )
    assert [row["images"] for row in new] == [row["images"] for row in old[:2]]


POSE = ["--attributes", "data/pose.npz"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "--easy", "abs(yaw) < 10", *POSE], "--hard: expected it, or --recipe RECIPE.py, got neither"),
        (["--hard", "{'size': 14}"], "REC|DIR: expected it, or --recipe RECIPE.py, got neither"),
        (["data", "--hard", "yaw > 45"], "ddl: hard: rule 'yaw > 45' needs an attribute table, got none"),
        (["data", "--hard", "yaw > 80", *POSE], "expected some of the 80 records, got none: yaw is -30 to 60"),
        (["data", "--hard", "pitch > 80", *POSE], "no column 'pitch'; known: yaw"),
        (["data", "--hard", "{'size': 14", *POSE], "--hard: expected degradations such as {'size': (12, 16)}"),
        (["data", "--hard", "{'sice': 14}", *POSE], "unknown key 'sice'; did you mean 'size'?"),
        (["data", "--recipe", "recipe.py", "--easy", "yaw < 3"], "--easy: expected rules from --recipe alone"),
        (["data", "--recipe", "recipe.py", "ddl.b=21"], "at least b = 21 of them .* got 20"),
        (["data", "--recipe", "nowhere.py"], "recipe: no file 'nowhere.py'"),
        (["nowhere", "--hard", "{'size': 14}"], "nowhere"),
        (["--recipe", "recipe.py", "data"], "--recipe: expected KEY=VALUE after recipe.py"),
        (["data", "--recipe", "recipe.py", "loss=arcface", "ddl=None", "per_batch_size=8", "sampler=images"],
         "recipe.py: expected config.ddl with easy and hard sets, got none"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_write_nothing(place, arguments, message, capsys):
    assert main(["partition", *arguments, "--output", "out"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert_matches(message, said)
    assert not (place / "out").exists()


def assert_matches(message, said):
    assert all(part in said for part in message.split(" .* ")), said


def test_an_input_is_not_replaced(place, capsys):
    AttributeTable.load("data/pose.npz").save("data/partition.npz")
    arguments = [
        "partition", "data", "--hard", "abs(yaw) > 20", "--attributes", "data/partition.npz", "--output", "data",
    ]  # fmt: skip
    assert main(arguments) == 2
    assert "partition.npz: expected a file of its own" in capsys.readouterr().err
    assert not (place / "data/sheet.png").exists()


def test_small_sets_can_be_looked_at_without_a_recipe(place):
    """No batch is asked for: 2 identities are enough."""
    yaw = np.where(np.arange(80) < 8, 60.0, 0.0)
    AttributeTable(np.arange(1, 81), {"yaw": yaw}).save("few.npz")
    assert (
        main(["partition", "data", "--hard", "yaw > 50", "--attributes", "few.npz", "--output", "out"]) == 0
    )


def test_a_table_of_other_records_is_refused(place, capsys):
    table = AttributeTable.load("data/pose.npz")
    arguments = ["partition", "data", *RULES, "--attributes", "of.npz", "--output", "out"]
    own = Records("data").fingerprint().replace("train.rec:", "renamed.rec:")
    for made_from, code in ((own, 0), ("train.rec:0123", 2)):
        AttributeTable(table.keys, table.columns, provenance={"records": made_from}).save("of.npz")
        assert main(arguments) == code
        refused = (
            "of.npz: expected a table of train.rec as it is now, got one that was made from other records"
        )
        assert (refused in capsys.readouterr().err) == (code == 2)


def test_a_missing_table_is_told_with_what_names_it(place, capsys):
    assert main(["partition", "data", *RULES, "--attributes", "no.npz", "--output", "out"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: --attributes: no.npz: expected an attribute table, got nothing"
    )
    assert main(["partition", "data", "--recipe", "demo", "attributes=no.npz", "--output", "out"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: the recipe's 'attributes': no.npz: expected an attribute table"
    )


def test_a_recipe_of_the_drawn_faces_says_so(place, capsys, monkeypatch):
    from ddl_plugin.data import synthetic

    monkeypatch.setattr(
        synthetic, "ensure", lambda folder: synthetic.generate(folder, identities=16, images=8)
    )
    for said in ("being drawn", "drawn before"):
        main(["partition", "--recipe", "demo", "--output", "out"])
        assert capsys.readouterr().out.startswith(f"data/synthetic: the synthetic data set, {said}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "recipe.py", "data"], "got 'data'; REC|DIR goes before --recipe"),
        (["--hard", "yaw > 50", "data"], "it goes before --hard"),
    ],
)
def test_a_data_set_in_the_wrong_place_is_told_its_place(place, arguments, message, capsys):
    assert main(["partition", *arguments, "--output", "out"]) == 2
    assert message in capsys.readouterr().err
