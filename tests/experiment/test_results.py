"""From results to a table: against numbers by hand."""

import csv
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ddl_plugin.errors import UserError
from ddl_plugin.experiment.figure import study_figure
from ddl_plugin.experiment.results import Cell, as_csv, collect, markdown, measures, shown, tabulated
from ddl_plugin.experiment.study import Row, Study

SCORES = {"tar_at_far": [{"far": 0.01, "tar": 0.5}], "eer": 0.125, "margin": 0.4, "intersection": 0.2}
FOUND = {
    ("base model", 0): {"rank-1": 70.0, "margin": 0.3},
    ("base model", 1): {"rank-1": 70.0, "margin": 0.3},
    ("ArcFace", 0): {"rank-1": 80.0, "margin": 0.4},
    ("ArcFace", 1): {"rank-1": 81.0, "margin": 0.6},
    ("DDL", 0): {"rank-1": 82.5, "margin": 0.5},
}
ROWS = (Row("ArcFace"), Row("DDL", {"ddl.b": 4}, {"rank-1": 86.3}), Row("Later"))


def study(rows=ROWS, **changes):
    return Study(Path("x.py"), "demo", rows, title="Title", **changes)


def test_measures_have_names_and_rates_are_percent():
    result = {
        "verification": {"lfw": {"accuracy": 0.985, **SCORES}},
        "identification": {
            "results": [
                {"size": "full", "condition": "all", "rank1": 0.75, **SCORES},
                {"size": 14, "gallery_size": "full", "condition": "hard", "rank1": 0.5, **SCORES},
                {"size": 14, "gallery_size": 14, "condition": "all", "rank1": 0.25, **SCORES},
            ]
        },
    }
    found = measures(result)
    assert found["lfw: accuracy"] == 98.5
    assert found["lfw: TAR@FAR=0.01"] == 50
    assert found["full size: rank-1"] == 75
    assert found["14 px, hard: rank-1"] == 50
    assert found["14 px, gallery too: rank-1"] == 25
    assert (found["14 px, hard: EER"], found["lfw: margin"], found["lfw: intersection"]) == (12.5, 0.4, 0.2)
    assert len(found) == 20


def test_cells_are_means_and_sample_deviations():
    values = (80.0, 81.5, 79.25)
    cell = Cell(values)
    assert cell.mean == pytest.approx(np.mean(values))
    assert cell.spread == pytest.approx(np.std(values, ddof=1))
    assert str(cell) == "80.25 ± 1.15"
    assert str(Cell((80.0,), 86.3)) == "80.00 (paper 86.3)"
    assert str(Cell(())) == "-"


def test_the_table_has_the_base_once_and_the_rows_in_order():
    table = tabulated(study(), FOUND)
    assert list(table) == ["base model", "ArcFace", "DDL", "Later"]
    assert table["base model"]["rank-1"].values == (70.0,)
    assert table["ArcFace"]["rank-1"].values == (80.0, 81.0)
    assert str(table["DDL"]["rank-1"]) == "82.50 (paper 86.3)"
    assert table["Later"]["margin"].values == ()
    lines = shown(table).splitlines()
    assert lines[3].split() == ["ArcFace", "80.50", "±", "0.71", "0.500", "±", "0.141"]
    text = markdown(study(), table, ["a note"])
    assert text.startswith("# Title\n\n|")
    assert text.endswith("- a note\n")


def test_columns_are_those_of_the_study_and_must_be_measured():
    rows = (Row("ArcFace"), Row("DDL"))
    assert list(tabulated(study(rows, columns=("margin",)), FOUND)["DDL"]) == ["margin"]
    with pytest.raises(
        UserError,
        match=r"x\.py: study\.columns: expected what the runs measure, got 'rank1'; did you mean 'rank-1'",
    ):
        tabulated(study(rows, columns=("rank1",)), FOUND)


def test_a_row_may_measure_less_than_another():
    found = {**FOUND, ("DDL", 0): {**FOUND["DDL", 0], "images/s": 40.0}}
    table = tabulated(study(), found)
    assert table["DDL"]["images/s"].values == (40.0,)
    assert table["base model"]["images/s"].values == table["ArcFace"]["images/s"].values == ()
    assert (table["ArcFace"]["margin"].values, str(table["base model"]["images/s"])) == ((0.4, 0.6), "-")


def test_the_base_model_has_the_measures_of_all_rows():
    def finished(name, *sets):
        scores = {one: {"accuracy": 0.5, **SCORES} for one in sets}
        models = {"base": {"verification": scores}, "ddl": {"verification": scores}}
        result = {"models": models, "runs": {"ddl": {"images_per_second": 9.0}}}
        return SimpleNamespace(
            row=Row(name), seed=0, settings=SimpleNamespace(loss="ddl"), result=lambda: result
        )

    found = collect([finished("A", "lfw"), finished("B", "cfp")])
    assert {"lfw: accuracy", "cfp: accuracy"} <= set(found["base model", 0])
    assert "cfp: accuracy" not in found["A", 0]
    assert "images/s" not in found["base model", 0]


def test_a_bar_in_a_name_does_not_end_a_cell_of_the_markdown():
    table = {"a | b": {"margin": Cell((0.5,))}}
    assert r"a \| b" in markdown(study(), table, [])
    assert "a | b" in shown(table)


def test_csv_has_the_summary_and_every_value():
    summary, everything = (
        list(csv.DictReader(io.StringIO(text))) for text in as_csv(tabulated(study(), FOUND), FOUND)
    )
    arcface = next(row for row in summary if (row["row"], row["measure"]) == ("ArcFace", "rank-1"))
    assert (float(arcface["mean"]), float(arcface["standard_deviation"]), arcface["runs"]) == (
        80.5,
        pytest.approx(0.5**0.5),
        "2",
    )
    ddl = next(row for row in summary if (row["row"], row["measure"]) == ("DDL", "rank-1"))
    assert (ddl["standard_deviation"], ddl["paper"]) == ("", "86.3")
    assert {"row": "ArcFace", "seed": "1", "measure": "margin", "value": "0.6"} in everything
    assert len(everything) == 10


@pytest.mark.parametrize("axis", [None, "ddl.b"])
def test_the_figure_is_drawn_and_the_same_again(tmp_path, axis):
    rows = tuple(Row(name, {"ddl.b": b}) for name, b in (("ArcFace", 8), ("DDL", 4)))
    found = {key: value for key, value in FOUND.items() if key[0] != "Later"}
    given = Study(Path("x.py"), "demo", rows, title="Title", axis=axis)
    table = tabulated(given, found)
    for name in ("a.svg", "b.svg"):
        study_figure(given, table, tmp_path / name)
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    study_figure(given, table, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000
