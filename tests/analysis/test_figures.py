import re
import subprocess
import sys

import cv2
import numpy as np
import pytest

from ddl_plugin.analysis.distributions import expectation_margin, histogram_intersection
from ddl_plugin.analysis.drawing import check_output
from ddl_plugin.analysis.figures import distribution_figure
from ddl_plugin.errors import UserError

RNG = np.random.default_rng(0)


def scores(positive):
    return RNG.normal(0.0, 0.1, 200).clip(-1, 1), RNG.normal(positive, 0.1, 200).clip(-1, 1)


MODELS = {
    "base": {"easy": scores(0.7), "hard": scores(0.2)},
    "DDL": {"easy": scores(0.7), "hard": scores(0.4)},
}


def test_the_figure_names_models_distributions_units_and_statistics(tmp_path):
    path = tmp_path / "new" / "figure.svg"
    distribution_figure(MODELS, path)
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", path.read_text())
    assert {"base", "DDL", "easy", "hard", "cosine similarity", "density", "same person"} <= set(texts)
    for sets in MODELS.values():
        for negatives, positives in sets.values():
            margin = expectation_margin(negatives, positives)
            overlap = histogram_intersection(negatives, positives)
            # Runs of blanks are written as &#160; or as they are.
            assert any(f"margin {margin:.3f}" in t and f"intersection {overlap:.3f}" in t for t in texts)
    assert [p.name for p in path.parent.iterdir()] == ["figure.svg"]


@pytest.mark.parametrize("suffix, start", [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".SVG", b"<?xml")])
def test_the_suffix_chooses_the_format_and_the_bytes_are_reproducible(tmp_path, suffix, start):
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    distribution_figure(MODELS, first)
    distribution_figure(MODELS, second)
    assert first.read_bytes().startswith(start)
    assert first.read_bytes() == second.read_bytes()


def test_nothing_is_cut_off_at_the_edges(tmp_path):
    """A border of background colour all around, also with one panel and with long names."""
    for i, models in enumerate((MODELS, {"a model with a name too long for its column": MODELS["base"]},
                                {"y1": {"abs(yaw) > 45, size 12-16, jpeg 20-60": MODELS["base"]["hard"]}})):  # fmt: skip
        path = tmp_path / f"{i}.png"
        distribution_figure(models, path)
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        for edge in (image[0], image[-1], image[:, 0], image[:, -1]):
            assert (edge == 255).all()


def test_a_figure_needs_the_same_distributions_of_every_model(tmp_path):
    with pytest.raises(
        UserError, match=r"expected the distributions \['easy', 'hard'\] .* \['easy'\] of 'b'"
    ):
        distribution_figure({"a": MODELS["base"], "b": {"easy": scores(0.5)}}, tmp_path / "a.png")
    with pytest.raises(UserError, match="expected the scores of one model"):
        distribution_figure({}, tmp_path / "a.png")
    with pytest.raises(UserError, match="expected the distributions"):
        distribution_figure({"a": {}}, tmp_path / "a.png")


def test_other_suffixes_are_refused():
    with pytest.raises(
        UserError, match=r"expected a figure's suffix, one of \.pdf, \.png, \.svg, got '\.jpg'"
    ):
        check_output("figure.jpg")


def test_without_matplotlib_the_message_is_the_pip_line():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from ddl_plugin.analysis.drawing import check_output\n"
        "from ddl_plugin.errors import UserError\n"
        "try: check_output('a.png')\n"
        "except UserError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'ddl_plugin[plot]'" in result.stdout


def test_matplotlib_is_imported_only_when_a_figure_is_drawn():
    code = (
        "import sys, ddl_plugin.analysis.figures; print('matplotlib' in sys.modules, 'mxnet' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
