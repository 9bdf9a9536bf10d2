import re
import subprocess
import sys

import cv2
import numpy as np
import pytest

from ddl_plugin.analysis.failures import (
    Example,
    Face,
    failures_figure,
    turned,
)
from ddl_plugin.errors import UserError


def face(value, role="first image", name="a.jpg"):
    return Face(np.full((112, 112, 3), value, np.uint8), role, name)


EXAMPLE = Example("pair 3", (face(200), face(40, "second image", "b.jpg")), ("base: 0.12 < 0.31, rejected",))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("most", [0, 1, 7, 1000])
def test_turned_comparisons_are_those_that_a_loop_finds(seed, most):
    rng = np.random.default_rng(seed)
    before, after = rng.integers(-5, 5, (2, 300)) / 8  # with many ties
    wanted = []
    for i in range(300):
        if before[i] < 0 and after[i] >= 0:
            wanted.append((-(after[i] - before[i]), i))
    assert len(wanted) > 7
    found = turned(before, after, before >= 0, after >= 0, most)
    assert found.tolist() == [i for _, i in sorted(wanted)][:most]


@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf"])
def test_the_same_examples_give_the_same_bytes(tmp_path, suffix):
    paths = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    for path in paths:
        failures_figure([EXAMPLE] * 4, path, title="false rejections")
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_the_picture_says_who_and_how_much(tmp_path):
    path = tmp_path / "a.svg"
    odd = Example("pair <4> $x$", (face(9, "probe", "c & d.jpg"), Face(None, "mate", "gone.jpg")), ("none",))
    failures_figure([EXAMPLE, odd], path, title="false rejections")
    texts = set(re.findall(r"<text[^>]*>([^<]+)</text>", path.read_text()))
    wanted = {"pair 3", "first image", "a.jpg", "b.jpg", "base: 0.12 &lt; 0.31, rejected", "pair &lt;4&gt; $x$",
              "no image", "c &amp; d.jpg", "gone.jpg", "false rejections"}  # fmt: skip
    assert wanted <= texts


def test_the_faces_are_in_the_picture(tmp_path):
    path = tmp_path / "a.png"
    failures_figure([EXAMPLE], path)
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    side = 0.9 * 0.95 * 200  # of a face, in pixels
    bright, dark = np.argwhere(image == 200), np.argwhere(image == 40)
    assert min(len(bright), len(dark)) > side**2
    assert np.median(bright[:, 1]) + side < np.median(dark[:, 1]) + 1  # the first on the left


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("faces", [1, 2, 3, 8])
def test_no_text_is_cut_off(tmp_path, count, faces):
    long = "a name with words that goes on and on and on " * 2
    example = Example(long, tuple(face(7, "first image", long) for _ in range(faces)), (long, long))
    path = tmp_path / "a.png"
    failures_figure([example] * count, path, title=long * 2)
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    for edge in (image[0], image[-1], image[:, 0], image[:, -1]):
        assert (edge == 255).all()


@pytest.mark.parametrize(
    "examples, message",
    [
        ([], "expected one example or more, got none"),
        ([Example("pair 3", (), ())], "pair 3: expected one face or more"),
        ([Example("pair 3", (Face(np.zeros((4, 4)), "probe", "a.jpg"),), ())],
         r"pair 3, a.jpg: expected an image uint8 \(112, 112, 3\), got float64 \(4, 4\)"),
    ],
)  # fmt: skip
def test_wrong_examples_are_refused(tmp_path, examples, message):
    with pytest.raises(UserError, match=message):
        failures_figure(examples, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_matplotlib_is_imported_only_when_examples_are_drawn():
    code = "import sys, ddl_plugin.analysis.failures; print('matplotlib' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
