import re
import subprocess
import sys

import cv2
import numpy as np
import pytest

from ddl_plugin.analysis import curves
from ddl_plugin.analysis.curves import cmc_figure, det_figure, roc_figure
from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.metrics import roc, tar_at_far

RNG = np.random.default_rng(0)
NEGATIVES, POSITIVES = RNG.normal(0.0, 0.1, 3000), RNG.normal(0.3, 0.1, 300)
ROC = roc(NEGATIVES, POSITIVES)
MODELS = {"base": (ROC.far, ROC.tar), "DDL": (np.array([0.0, 1e-3, 1.0]), np.array([0.2, 0.9, 1.0]))}
RANKS = np.arange(1, 11)
CMC = {"base": (RANKS, 1 - 0.5 / RANKS), "DDL": (RANKS, 1 - 0.2 / RANKS)}
DRAWN = [
    (roc_figure, MODELS),
    (cmc_figure, CMC),
    (det_figure, {n: (x, 1 - y) for n, (x, y) in MODELS.items()}),
]


@pytest.fixture
def drawn(monkeypatch):
    """drawn(function, curves) -> the Matplotlib figure instead of a file."""

    def draw(function, lines, **options):
        kept = []
        with monkeypatch.context() as patch:
            patch.setattr(curves, "save", lambda figure, path: kept.append(figure))
            function(lines, "figure.svg", **options)
        return kept[0]

    return draw


def stairs(ax):
    return [line for line in ax.lines if line.get_drawstyle() == "steps-post"]


@pytest.mark.parametrize("far", [0.1, 0.01, 0.001])
def test_a_marker_is_the_tar_at_a_far_at_most_that_large(drawn, far):
    ax = drawn(roc_figure, {"base": MODELS["base"]}).axes[0]
    marks = next(line for line in ax.lines if line.get_marker() == "o")
    at = {round(float(np.log10(x))): y for x, y in zip(*marks.get_data(), strict=True)}
    assert at[round(np.log10(far))] == pytest.approx(100 * tar_at_far(NEGATIVES, POSITIVES, far).tar)


def test_the_line_of_a_model_is_its_points_above_far_0_and_pale_before(drawn):
    ax = drawn(roc_figure, {"DDL": MODELS["DDL"]}).axes[0]
    (line,) = stairs(ax)
    x, y = line.get_data()
    assert list(zip(x, y, strict=True))[:2] == [(1e-3, 90.0), (1.0, 100.0)]
    (pale,) = [line for line in ax.lines if line.get_alpha()]
    assert list(pale.get_ydata()) == [20.0, 20.0, 90.0]
    assert list(pale.get_xdata()[1:]) == [1e-3, 1e-3]
    assert ax.get_xscale() == "log"
    low, high = ax.get_ylim()
    assert low <= 20 <= 100 <= high


def test_lines_are_told_apart_without_colour(drawn):
    many = {f"model {i}": MODELS["base"] for i in range(12)}
    for function in (roc_figure, det_figure):
        figure = drawn(function, many)
        styles = {
            (h.get_linestyle(), str(h._dash_pattern), h.get_marker()) for h in figure.legends[0].get_lines()
        }
        assert len(styles) == 12
        assert [t.get_text() for t in figure.legends[0].get_texts()] == list(many)


def test_a_cmc_has_a_marker_at_every_rank_or_a_logarithmic_axis(drawn):
    ax = drawn(cmc_figure, CMC).axes[0]
    assert ax.get_xscale() == "linear"
    assert [line.get_markevery() for line in ax.lines] == [list(range(10))] * 2
    np.testing.assert_allclose(ax.lines[0].get_ydata(), 100 * CMC["base"][1])
    ranks = np.arange(1, 101)
    ax = drawn(cmc_figure, {"base": (ranks, 1 - 0.5 / ranks)}).axes[0]
    assert ax.get_xscale() == "log"
    assert [int(ranks[i]) for i in ax.lines[0].get_markevery()] == [1, 2, 5, 10, 20, 50, 100]


def test_a_det_leaves_out_rates_of_0(drawn):
    ax = drawn(det_figure, {"base": (np.array([1e-3, 1e-2, 1.0]), np.array([0.5, 0.0, 0.0]))}).axes[0]
    (line,) = stairs(ax)
    assert line.get_ydata()[0] == 50
    assert np.isnan(line.get_ydata()[1:]).all()
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    drawn(det_figure, {"perfect": (np.array([0.0, 0.5, 1.0]), np.zeros(3))})


@pytest.mark.parametrize(
    "function, lines, labels",
    [
        (*DRAWN[0], {"false accept rate (FAR)", "true accept rate (TAR), %"}),
        (*DRAWN[1], {"rank", "identification rate, %"}),
        (*DRAWN[2], {"false positive identification rate (FPIR)", "identification rate (FNIR), %"}),
    ],
)  # fmt: skip
def test_figures_name_models_and_units(tmp_path, function, lines, labels):
    path = tmp_path / "new" / "figure.svg"
    function(lines, path, title="a $et & more")
    texts = set(re.findall(r"<text[^>]*>([^<]+)</text>", path.read_text()))
    assert labels | {"base", "DDL"} <= texts
    assert any(text.endswith("et &amp; more") for text in texts)


@pytest.mark.parametrize("function, lines", DRAWN)
@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_the_same_curves_give_the_same_bytes(tmp_path, function, lines, suffix):
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    function(lines, first)
    function(lines, second)
    assert first.read_bytes() == second.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [first.name, second.name]


def test_nothing_is_cut_off_at_the_edges(tmp_path):
    long = {
        "/a/path/of/a/model/that/has/a/name/too/long/for/any/legend/of/a/column/model.onnx": MODELS["base"]
    }
    for function, lines in (*DRAWN, (roc_figure, long)):
        path = tmp_path / "figure.png"
        function(lines, path, title="a title that is so long that it has to be broken into two lines of text")
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        for edge in (image[0], image[-1], image[:, 0], image[:, -1]):
            assert (edge == 255).all()


@pytest.mark.parametrize(
    "function, curve, message",
    [
        (roc_figure, ([0, 1], [1]), r"curve of 'm': expected as many FAR as TAR, .* got \(2,\) and \(1,\)"),
        (roc_figure, ([], []), "one or more"),
        (roc_figure, ([0, 1], [0, 1.1]), "expected rates in 0..1"),
        (roc_figure, ([0, float("nan")], [0, 1]), "expected rates in 0..1"),
        (roc_figure, ([0.5, 0.1], [0, 1]), "expected FAR to rise"),
        (roc_figure, ([0, 0], [0, 1]), "expected a FAR above 0, got 2 of 0"),
        (det_figure, ([0, 2], [0, 1]), "expected rates in 0..1"),
        (cmc_figure, ([0, 1], [0, 1]), "expected ranks from 1 on, got 0..1"),
        (cmc_figure, ([1, 1.5], [0, 1]), "expected ranks from 1 on"),
    ],
)
def test_wrong_curves_are_refused(tmp_path, function, curve, message):
    with pytest.raises(UserError, match=message):
        function({"m": curve}, tmp_path / "figure.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("function, lines", DRAWN)
def test_no_curve_and_other_suffixes_are_refused(tmp_path, function, lines):
    with pytest.raises(UserError, match="expected the curve of one model or more, got none"):
        function({}, tmp_path / "figure.png")
    with pytest.raises(UserError, match=r"expected a figure's suffix"):
        function(lines, tmp_path / "figure.gif")


def test_matplotlib_is_imported_only_when_a_curve_is_drawn():
    code = "import sys, ddl_plugin.analysis.curves; print('matplotlib' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
