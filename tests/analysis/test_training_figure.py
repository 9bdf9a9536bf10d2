"""Curves of a run's log."""

import json

import numpy as np
import pytest

from ddl_plugin.analysis.training_figure import read_log, smoothed, training_figure
from ddl_plugin.analyze.__main__ import main
from ddl_plugin.errors import UserError


def write_log(folder, steps=30, cut=False):
    folder.mkdir(parents=True)
    lines = [
        json.dumps({"kind": "train", "step": step, "ce_loss": 5 - step / 10, "lr": 0.1, "outliers_easy": 1.0})
        for step in range(steps)
    ]
    lines.insert(3, json.dumps({"kind": "validation", "step": 2, "accuracy_lfw": 0.9}))
    text = "\n".join(lines) + "\n" + ('{"kind": "train", "st' if cut else "")
    (folder / "log.jsonl").write_text(text)
    return folder / "log.jsonl"


def test_a_log_is_read_by_column_without_validation_and_a_cut_line(tmp_path):
    log = read_log(write_log(tmp_path / "run", cut=True))
    np.testing.assert_array_equal(log["step"], np.arange(30))
    np.testing.assert_allclose(log["ce_loss"], 5 - np.arange(30) / 10)
    assert "accuracy_lfw" not in log


def test_smoothing_is_the_mean_of_what_is_there():
    values = np.random.default_rng(0).normal(size=20)
    expected = [np.mean(values[max(0, i - 2) : i + 3]) for i in range(20)]
    np.testing.assert_allclose(smoothed(values, 5), expected)
    np.testing.assert_array_equal(smoothed(values, 1), values)


def test_two_runs_give_one_figure_and_the_same_again(tmp_path, capsys):
    for name in ("arcface", "ddl"):
        write_log(tmp_path / "job" / name)
    for name in ("a.svg", "b.svg"):
        assert main(["training", str(tmp_path / "job"), "--output", str(tmp_path / name)]) == 0
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    for word in ("arcface", "ddl", "ce_loss", "step"):
        assert f">{word}<" in text
    assert ">lr<" not in text
    assert ">outliers_easy<" not in text
    assert f"figure: {tmp_path / 'b.svg'}" in capsys.readouterr().out


def test_terms_can_be_chosen(tmp_path):
    log = read_log(write_log(tmp_path / "run"))
    training_figure({"run": log}, tmp_path / "a.svg", ["lr"])
    assert ">lr<" in (tmp_path / "a.svg").read_text()
    with pytest.raises(
        UserError,
        match=r"--term: expected one of ce_loss, lr, outliers_easy, got 'ce_los'; did you mean 'ce_loss'",
    ):
        training_figure({"run": log}, tmp_path / "a.svg", ["ce_los"])


def test_mistakes_are_one_line(tmp_path, capsys):
    assert main(["training", str(tmp_path), "--output", "a.png"]) == 2
    assert (
        "expected log.jsonl, which a run writes, there or in its folders, found none"
        in capsys.readouterr().err
    )
    (tmp_path / "log.jsonl").write_text("nothing\n")
    assert main(["training", str(tmp_path), "--output", str(tmp_path / "a.png")]) == 2
    assert "with lines of kind 'train', got none" in capsys.readouterr().err
    log = write_log(tmp_path / "run")
    before = log.read_text()
    assert main(["training", str(log.parent), str(log.parent), "--output", str(tmp_path / "a.png")]) == 2
    assert "expected different runs, got one twice" in capsys.readouterr().err
    assert log.read_text() == before
