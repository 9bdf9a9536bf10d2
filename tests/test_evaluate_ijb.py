import csv
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from ijb_sets import slow_at_most, slow_cosine, slow_nearest, slow_templates, small_set

from ddl_plugin.evaluate.__main__ import main

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def model(tmp_path, save_pooling_model):
    path = tmp_path / "pooling.onnx"
    save_pooling_model(path, 127.5)
    return path


@pytest.fixture
def root(tmp_path):
    return small_set(20).write(tmp_path / "IJBC")


def run(tmp_path, root, *models, options=(), code=0, target="IJBC"):
    """(what is in the JSON, or None)."""
    out = tmp_path / "out.json"
    out.unlink(missing_ok=True)
    arguments = ["ijb", "--root", str(root), "--target", target, "--json", str(out)]
    if "--features" not in options:
        arguments += ["--features", str(tmp_path / "features")]
    for one in models:
        arguments += ["--model", str(one)]
    assert main([*arguments, *map(str, options)]) == code
    return json.loads(out.read_text()) if out.exists() else None


def only(found):
    (result,) = found["results"].values()
    return result


def figures(found):
    """All figures of one model, without what is said of the data."""
    result = only(found)
    return {name: result[name] for name in ("verification", "identification") if name in result}


def test_the_figures_are_those_of_the_definition(tmp_path, root, model, capsys):
    """From the files that the command has written: the embeddings, and the lists in the layout of the data set."""
    result = only(run(tmp_path, root, model))
    (folder,) = (tmp_path / "features").iterdir()
    plain, mirrored = np.load(folder / "images.npy"), np.load(folder / "mirrored.npy")
    meta = root / "meta"
    lines = [line.split() for line in (meta / "ijbc_face_tid_mid.txt").read_text().splitlines()]
    lines = sorted((int(template), int(medium), name) for name, template, medium in lines)
    score = {
        line.split()[0]: np.float32(line.split()[-1])
        for line in (meta / "ijbc_name_5pts_score.txt").read_text().splitlines()
    }
    rows = [(template, medium) for template, medium, _ in lines]
    features = slow_templates(rows, plain, mirrored, [score[name] for *_, name in lines], True, True, True)
    scores, same = [], []
    for line in (meta / "ijbc_template_pair_label.txt").read_text().splitlines():
        first, second, label = map(int, line.split())
        scores.append(slow_cosine(features[first], features[second]))
        same.append(label == 1)
    conventions = result["verification"]["conventions"]
    for point in conventions["insightface"]["tar_at_far"]:
        tar, far = slow_nearest(scores, same, point["far"])
        assert (point["tar"], point["obtained_far"]) == pytest.approx((tar, far), abs=1e-6)
    for point in conventions["at-most"]["tar_at_far"]:
        assert point["tar"] == pytest.approx(slow_at_most(scores, same, point["far"]), abs=1e-6)
    shown = capsys.readouterr().out
    assert f"IJBC: {len(lines):,} images of {len(features):,} templates, F1 N1 D1" in shown
    assert f"{100 * conventions['insightface']['tar_at_far'][2]['tar']:.2f}" in shown


def test_options_change_the_weighting_and_need_no_second_extraction(tmp_path, root, model, capsys):
    default = only(run(tmp_path, root, model))
    (folder,) = (tmp_path / "features").iterdir()
    made = {path: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    paper = only(run(tmp_path, root, model, options=["--preset", "paper"]))
    assert "F0 N0 D0" in capsys.readouterr().out
    flipped = only(run(tmp_path, root, model, options=["--preset", "paper", "--flip"]))
    partly = only(run(tmp_path, root, model, options=["--no-detector-score", "--no-norm-score"]))
    assert default["weighting"] == {"flip": True, "norm_score": True, "detector_score": True}
    assert paper["weighting"] == {"flip": False, "norm_score": False, "detector_score": False}
    assert (
        flipped["weighting"]
        == partly["weighting"]
        == {"flip": True, "norm_score": False, "detector_score": False}
    )
    assert flipped["verification"] == partly["verification"]
    margins = [one["verification"]["distributions"]["margin"] for one in (default, paper, flipped)]
    assert len(set(margins)) == 3
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.npy")} == made


def test_batches_workers_and_the_order_of_the_lines_change_no_figure(tmp_path, model):
    made = small_set(20)
    wanted = figures(run(tmp_path, made.write(tmp_path / "a"), model))
    rng = np.random.default_rng(0)
    for i, (batch, workers) in enumerate([(1, 1), (7, 3), (256, 2)]):
        for name in ("media", "landmarks", "pairs", "probes"):
            lines = getattr(made, name)
            setattr(made, name, [lines[k] for k in rng.permutation(len(lines))])
        made.galleries = tuple([g[k] for k in rng.permutation(len(g))] for g in made.galleries)
        options = ["--batch", batch, "--workers", workers, "--features", tmp_path / f"features{i}"]
        assert figures(run(tmp_path, made.write(tmp_path / f"b{i}"), model, options=options)) == wanted


def test_models_side_by_side_in_tables_and_files(tmp_path, root, model, save_pooling_model, capsys):
    pytest.importorskip("matplotlib")
    other = tmp_path / "other.onnx"
    save_pooling_model(other, 0.0)
    table = tmp_path / "out.csv"
    found = run(tmp_path, root, model, other, options=["--csv", table, "--figures", tmp_path / "figures"])
    assert found["kind"] == "ijb"
    assert found["models"] == {"pooling.onnx": str(model), "other.onnx": str(other)}
    assert "pooling.onnx" in capsys.readouterr().out
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (2 * 6 + 3 * 5)
    for row in rows:
        entry = found["results"][row["model"]][row["protocol"]]["conventions"][row["convention"]]
        if row["measure"] == "TAR at FAR":
            point = next(p for p in entry["tar_at_far"] if p["far"] == float(row["at"]))
            assert (float(row["value"]), float(row["obtained"])) == (point["tar"], point["obtained_far"])
        elif row["measure"] == "rank":
            assert float(row["value"]) == entry[f"rank{row['at']}"]
        else:
            assert (
                float(row["value"])
                == next(p for p in entry["tpir_at_fpir"] if p["fpir"] == float(row["at"]))["tpir"]
            )
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "ijbc_cmc.png",
        "ijbc_det.png",
        "ijbc_roc.png",
    ]


def test_one_protocol_needs_its_own_lists_alone(tmp_path, root, model):
    (root / "meta" / "ijbc_template_pair_label.txt").unlink()
    assert set(figures(run(tmp_path, root, model, options=["--protocol", "1n"]))) == {"identification"}
    assert run(tmp_path, root, model, code=2) is None


def test_the_other_benchmark_and_the_folder_above(tmp_path, model):
    small_set(12, target="IJBB").write(tmp_path / "data" / "IJBB")
    result = only(run(tmp_path, tmp_path / "data", model, target="IJBB"))
    assert [gallery["name"] for gallery in result["identification"]["galleries"]] == ["S1", "S2"]


def test_what_is_wrong_is_counted_named_and_kept_in_the_totals(tmp_path, model, capsys):
    made = small_set(30)
    gone = next(iter(made.pictures))
    template = made.media[0].split()[1]
    alone = [line for line in made.media if line.split()[1] == template]
    for line in alone:  # a template loses all its images
        del made.pictures[line.split()[0]]
    made.pairs.append("77777 88888 1")
    made.probes.append("66666,5")
    stranger = made.probes[3].split(",")[0]
    made.probes[3] = f"{stranger},4242"
    root = made.write(tmp_path / "IJBC")
    result = only(run(tmp_path, root, model, options=["--max-problems", "0.5"]))
    counted = {problem["kind"]: problem["count"] for problem in result["problems"]}
    assert counted == {
        "pairs of templates without images": 1,
        "templates of ijbc_1N_probe_mixed.csv without images": 1,
        "probes whose subject is in no gallery": 1,
        "images without a file": len(alone),
        "templates without a feature": 1,
    }
    assert result["verification"]["pairs"] == len(made.pairs)
    assert result["verification"]["positives"] == sum(line.endswith(" 1") for line in made.pairs)
    assert result["identification"]["probes"] == len(made.probes)
    shown = capsys.readouterr().out
    assert f"note: pooling.onnx: {len(alone)} of {len(made.media):,} images without a file ({gone}" in shown
    assert f"(template {stranger} of subject 4242)" in shown

    assert run(tmp_path, root, model, options=["--max-problems", "0"], code=2) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: expected at most 0.00% pairs of templates without images, got 1 of")


def test_the_usual_limit_is_a_thousandth(tmp_path, root, model, capsys):
    next((root / "loose_crop").iterdir()).unlink()
    assert run(tmp_path, root, model, code=2) is None
    assert "at most 0.10% images without a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocol", "1m"], "--protocol: expected 11, 1n or 11,1n, got '1m'"),
        (["--batch", "0"], "--batch: expected a whole number above 0, got '0'"),
        (["--workers", "x"], "--workers: expected a whole number above 0, got 'x'"),
        (["--max-problems", "2"], "--max-problems: expected a share within 0..1 such as 0.001, got '2'"),
        (["--preset", "best"], "--preset"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, root, model, capsys, options, message):
    assert run(tmp_path, root, model, options=options, code=2) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_outputs_that_cannot_be_are_told_before_the_work(tmp_path, root, model, capsys):
    file = root / "meta" / "ijbc_face_tid_mid.txt"
    figure = f"expected a file in a folder, got {file / 'ijbc_roc.png'}, but {file} is no folder"
    for option, path, message in (
        ("--csv", root, f"--csv: expected the name of a file to write, got the folder {root}"),
        ("--figures", file, f"--figures (ijbc_roc.png): {figure}"),
    ):
        assert run(tmp_path, root, model, options=[option, path], code=2) is None
        captured = capsys.readouterr()
        assert captured.err == f"error: {message}\n"
        assert captured.out == ""
    assert not (tmp_path / "features").exists()


def test_outputs_do_not_destroy_inputs(tmp_path, root, model, capsys):
    path = root / "meta" / "ijbc_face_tid_mid.txt"
    before = path.read_bytes()
    assert run(tmp_path, root, model, options=["--csv", path], code=2) is None
    assert path.read_bytes() == before
    assert "--csv: expected a file of its own" in capsys.readouterr().err


@pytest.mark.usefixtures("backend")
def test_real_faces_from_end_to_end(tmp_path, shared_data, capsys):
    """Fifty images of LFW, InsightFace's MobileFaceNet and its ONNX file: the same figures, and good ones."""
    from ddl_plugin.export.__main__ import main as export

    root = runpy.run_path(str(BENCHMARKS / "ijb_faces.py"))["build"](
        shared_data / "lfw112_dev", tmp_path, images=80
    )
    checkpoint = f"{shared_data / 'y1_ms1m' / 'model'},0"
    assert export([checkpoint, "--output", str(tmp_path / "y1.onnx")]) == 0
    found = run(tmp_path, root, checkpoint, tmp_path / "y1.onnx", options=["--max-problems", "0"])
    one, other = found["results"].values()
    for protocol in ("verification", "identification"):
        for convention, entry in one[protocol]["conventions"].items():
            there = other[protocol]["conventions"][convention]
            for name in entry:
                if name.startswith("rank"):
                    assert entry[name] == there[name] >= 0.9
            for point, same in zip(entry.get("tar_at_far", ()), there.get("tar_at_far", ()), strict=True):
                assert point["tar"] == same["tar"] >= 0.9
    assert one["verification"]["distributions"]["margin"] > 0.5
