import numpy as np
import pytest

from ddl_plugin.data.records import Records
from ddl_plugin.errors import UserError
from ddl_plugin.settings import IdentificationSettings
from ddl_plugin.training import report


def pooled(images):
    n = len(images)
    return images.reshape(n, 14, 8, 14, 8, 3).mean(axis=(2, 4)).reshape(n, -1).astype(np.float32) - 100


@pytest.fixture
def settings(settings_of):
    return settings_of(
        val_targets=("easy", "hard.bin"),
        identification=IdentificationSettings(
            protocol="identification.csv", sizes=("full", 14), both_sizes=14
        ),
    )


@pytest.fixture
def measured(settings, small_synthetic, tmp_path, monkeypatch):
    """Two models, of which the second sees nothing in an image."""
    models = {"base": tmp_path / "base.onnx", "blind": tmp_path / "blind.onnx"}
    noise = np.random.default_rng(0).normal(size=(5000, 32)).astype(np.float32)
    embedders = {
        models["base"]: pooled,
        models["blind"]: lambda images: noise[images.reshape(len(images), -1).sum(axis=1) % 5000],
    }
    monkeypatch.setattr(report, "OnnxEmbedder", embedders.__getitem__)
    both = {
        name: report.measure(settings, small_synthetic, name, path, False) for name, path in models.items()
    }
    return {name: one for name, (one, _) in both.items()}, {name: one for name, (_, one) in both.items()}


def test_every_model_is_measured_on_every_set(measured):
    results, similarities = measured
    assert list(results) == list(similarities) == ["base", "blind"]
    for result in results.values():
        assert list(result["verification"]) == ["easy", "hard"]
        shown = [
            (row["size"], row["gallery_size"], row["condition"])
            for row in result["identification"]["results"]
        ]
        assert set(shown) == {
            (*sizes, condition)
            for sizes in (("full", "full"), (14, "full"), (14, 14))
            for condition in ("easy", "hard", "all")
        }
    easy = {name: result["verification"]["easy"]["accuracy"] for name, result in results.items()}
    assert easy["base"] > easy["blind"]
    assert results["blind"]["verification"]["easy"]["margin"] == pytest.approx(0, abs=0.1)


def test_the_table_has_a_column_a_model_and_percents(measured):
    results, _ = measured
    lines = report.table(results).splitlines()
    assert lines[0].split() == ["set", "measure", "base", "blind"]
    (accuracy,) = [line for line in lines if line.startswith("easy") and "accuracy, 10-fold" in line]
    assert accuracy.split()[-2] == f"{100 * results['base']['verification']['easy']['accuracy']:.2f}"
    for text in (
        "probes at full size, easy",
        "probes at 14 px, hard",
        "probes at 14 px, gallery too, hard",
        "rank-1",
        "margin",
        "histogram intersection",
    ):
        assert any(text in line for line in lines), text


def test_tar_is_at_the_smallest_rate_that_the_scores_resolve():
    entries = [{"far": far, "tar": 1 - far} for far in (0.1, 0.01, 0.001)]
    assert report._tar("x", {"negatives": 10_000, "tar_at_far": entries}) == {("x", "TAR@FAR=0.001"): "99.90"}
    assert report._tar("x", {"negatives": 1_000, "tar_at_far": entries}) == {("x", "TAR@FAR=0.01"): "99.00"}
    assert report._tar("x", {"negatives": 10, "tar_at_far": entries}) == {("x", "TAR@FAR=0.1"): "90.00"}
    assert report._tar("x", {"negatives": 5, "tar_at_far": entries}) == {}


def test_markdown_and_figure(measured, tmp_path):
    results, similarities = measured
    report.write_markdown(tmp_path / "report.md", "small.py", results, ["seed 0"])
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# small.py\n\n| set")
    assert text.endswith("\n- seed 0\n")
    (path,) = report.write_figure(similarities, [tmp_path / "figure.png"])
    assert path.stat().st_size > 10_000
    assert report.write_figure({"base": {}}, [tmp_path / "none.png"]) == []
    assert not (tmp_path / "none.png").exists()


def test_a_set_that_is_not_there_is_named(settings_of, small_synthetic):
    with pytest.raises(UserError, match=r"val_targets: no lfw\.bin in .*; \.bin sets there: easy, hard"):
        report.open_bins(settings_of(val_targets=("easy", "lfw")), small_synthetic)


def test_identification_without_a_protocol_takes_first_and_second(
    settings_of, small_synthetic, tmp_path, monkeypatch
):
    monkeypatch.setattr(report, "OnnxEmbedder", lambda path: pooled)
    settings = settings_of(identification=IdentificationSettings(rec="val.rec"))
    result, similarities = report.measure(settings, small_synthetic, "base", tmp_path / "x.onnx", False)
    (row,) = result["identification"]["results"]
    people = Records(small_synthetic / "val.rec").num_classes
    assert 0 <= row["rank1"] <= 1
    assert row["rank1"] * people == pytest.approx(round(row["rank1"] * people))
    assert similarities == {}
