"""Study files: what they may say, and what is said of mistakes."""

import pytest

from ddl_plugin.errors import UserError
from ddl_plugin.experiment.study import load_study, shipped_studies


def test_rows_become_runs_of_the_recipe(write_study):
    study = load_study(
        str(write_study("study['common'] = {'ddl.b': 2, 'max_steps': 7}\nstudy['seeds'] = [3, 4]"))
    )
    arcface, ddl = study.rows
    assert [row.slug for row in study.rows] == ["arcface", "ddl"]
    settings = study.settings(ddl, 4)
    assert (settings.loss, settings.seed, settings.max_steps) == ("ddl", 4, 7)
    assert (settings.ddl.b, settings.ddl.lambda_order, settings.ddl.easy) == (2, 0.25, "abs(yaw) < 20")
    assert study.settings(arcface, 3).loss == "arcface"
    assert study.settings(ddl, 3, pretrained="x").pretrained == "x"


def test_a_row_holds_over_what_is_common(write_study):
    path = write_study("study['common'] = {'max_steps': 7}\nstudy['rows'][0]['set']['max_steps'] = 9")
    study = load_study(str(path))
    assert [study.settings(row, 0).max_steps for row in study.rows] == [9, 7]


def test_values_are_passed_on_as_they_are(write_study):
    path = write_study(
        "study['rows'][1]['set'] = {'ddl.hard': [{'size': (22, 26)}, 'abs(yaw) > 30'], 'ddl.mixture': False}"
    )
    hard = load_study(str(path)).settings(load_study(str(path)).rows[1], 0).ddl.hard
    assert (hard[0].degradation.size, hard[1].rule) == ((22, 26), "abs(yaw) > 30")


@pytest.mark.parametrize(
    "text, message",
    [
        ("study['sedes'] = [1]", r"mine\.py: study: unknown key 'sedes'; did you mean 'seeds'"),
        ("del study['rows']", r"study\.rows: expected it to be set"),
        ("study['rows'] = []", r"study\.rows: expected at least one row"),
        (
            "study['rows'][0]['name'] = 'dDl!'",
            r"study\.rows: names: expected names whose letters .* got \['dDl!', 'DDL'\]",
        ),
        ("study['rows'][0]['sett'] = {}", r"study\.rows: unknown key 'sett'; did you mean 'set'"),
        (
            "study['rows'][0]['set'] = {'seed': 3}",
            r"ArcFace: set: expected no key 'seed', got 3; it is set by study\.seeds",
        ),
        (
            "study['rows'][0]['set'] = {'los': 'ddl'}",
            r"mine\.py: row 'ArcFace': .*unknown key 'los'; did you mean 'loss'",
        ),
        (
            "study['rows'][1]['set'] = {'ddl.b': 1}",
            r"row 'DDL': .*ddl\.b: expected a whole number >= 2, got 1",
        ),
        ("study['rows'][1]['paper'] = {'x': 'high'}", r"rows: DDL: paper: expected \{column: number\}"),
        (
            "study['columns'] = ['hard: accurasy']",
            r"rows: DDL: paper: unknown key 'hard: accuracy'; did you mean 'hard: accurasy'",
        ),
        (
            "study['columns'] = ['hard: accuracy', 'hard: acuracy']",
            r"mine\.py: study\.columns: expected what the runs measure, got 'hard: acuracy'; "
            r"did you mean 'hard: accuracy'\?; measured: hard: accuracy, hard: TAR@FAR=0\.1,",
        ),
        (
            "study['rows'][0]['name'] = 'base model'",
            r"rows: name: expected another name than the base model's",
        ),
        ("study['seeds'] = [1, 1]", r"study\.seeds: expected different whole numbers >= 0, got \(1, 1\)"),
        ("study['seeds'] = 3", r"study\.seeds: expected a list, got 3"),
        ("study['seeds'] = []", r"study\.seeds: expected different whole numbers"),
        (
            "study['axis'] = 'ddl.b'",
            r"rows: ArcFace: ddl\.b: expected a number, because it is study\.axis, got None",
        ),
        ("study['recipe'] = 'smal.py'", r"no file 'smal\.py'"),
        ("study = 5", r"mine\.py: study: expected a dict or EasyDict named `study`, got 'int'"),
    ],
)
def test_mistakes_name_the_study_and_the_row(write_study, text, message):
    with pytest.raises(UserError, match=message):
        load_study(str(write_study(text)))


def test_an_unknown_study_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"study: no file 'ablation_dem', .*did you mean 'ablation_demo'"):
        load_study("ablation_dem")


def test_rows_are_chosen_by_part_of_their_name(write_study):
    study = load_study(str(write_study()))
    assert [row.name for row in study.chosen(["arc"])] == ["ArcFace"]
    assert study.chosen([]) == study.rows
    with pytest.raises(
        UserError,
        match=r"--only: expected part of a row's name, got 'Arcfase'; did you mean 'ArcFace'.*rows: ArcFace, DDL",
    ):
        study.chosen(["Arcfase"])


@pytest.mark.parametrize("name", shipped_studies())
def test_every_shipped_study_is_right(name):
    study = load_study(name)
    assert study.title
    columns = set(study.columns)
    for row in study.rows:
        assert set(row.paper) <= columns
