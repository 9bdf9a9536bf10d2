"""The figure and the report of positive pairs."""

import re

import cv2
import numpy as np
import pytest

from ddl_plugin.analysis.pair_figure import pair_figure
from ddl_plugin.analysis.pair_report import pair_counts, quantiles
from ddl_plugin.data.pairs import BINS, Pairs
from ddl_plugin.errors import UserError


def histogram(cosines):
    return np.histogram(cosines, 2 * BINS, (-1, 1))[0]


RNG = np.random.default_rng(0)
COSINES = RNG.normal(0.4, 0.25, 5000).clip(-0.999, 0.999)
SETS = {
    "easy: abs(yaw) < 10": histogram(COSINES),
    "hard: abs(yaw) > 45": histogram(np.array([0.1, 0.5, -0.2])),
}


def test_the_figure_says_what_was_kept_and_dropped(tmp_path):
    path = tmp_path / "pairs.svg"
    pair_figure(SETS, path)
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", path.read_text())
    dropped = int(SETS["easy: abs(yaw) < 10"][:BINS].sum())
    share = f"{100 * dropped / 5000:.2g} %"
    assert any(f"{5000 - dropped:,} kept" in t and f"{dropped:,} dropped ({share})" in t for t in texts)
    assert any("hard" in t and "2 kept" in t and "1 dropped (33 %)" in t for t in texts)
    assert {"pairs", "kept", "dropped (below 0)", "cosine similarity of the two images"} <= set(texts)


def test_the_same_counts_give_the_same_bytes_and_nothing_is_cut_off(tmp_path):
    for name in ("a.png", "b.png"):
        pair_figure(
            {**SETS, "none: " + "a rule that is too long for one line, " * 4: np.zeros(2 * BINS)},
            tmp_path / name,
        )
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    image = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_GRAYSCALE)
    for edge in (image[0], image[-1], image[:, 0], image[:, -1]):
        assert (edge == 255).all()


def test_red_stands_left_of_zero_and_blue_right_of_it(tmp_path):
    pair_figure({"easy": SETS["easy: abs(yaw) < 10"]}, tmp_path / "a.png")
    image = cv2.imread(str(tmp_path / "a.png"))[:280].astype(int)  # above the legend
    red = np.flatnonzero((image[..., 2] - image[..., 0] > 80).any(axis=0))
    blue = np.flatnonzero((image[..., 0] - image[..., 2] > 60).any(axis=0))
    assert red.size
    assert blue.size
    assert red.max() < blue.min() + 3


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"expected a figure's suffix"):
        pair_figure(SETS, tmp_path / "pairs.gif")


def test_quantiles_are_those_of_the_kept_pairs_to_a_step():
    kept = COSINES[COSINES >= 0]
    for got, expected in zip(
        quantiles(histogram(COSINES)), np.quantile(kept, [0.05, 0.5, 0.95]), strict=True
    ):
        assert abs(got - expected) <= 0.01 + 1e-9
    assert quantiles(histogram([-0.5])) == [None] * 3
    assert quantiles(histogram([0.505])) == [0.5] * 3


def test_the_report_counts_identities_without_a_pair():
    pairs = Pairs(
        np.arange(3, dtype=np.int32), np.arange(3, 6, dtype=np.int32), 5, 2, unreadable=1, paired=4, emptied=2,
        histogram=histogram([0.105, 0.205, 0.305, -0.105, -0.905]),
    )  # fmt: skip
    about = [{"name": "easy", "label": "all", "images": 40, "identities": 15}]
    (row,) = pair_counts([pairs], about)
    assert row["identities_without_a_pair"] == {"one_image": 9, "all_dropped": 2}
    assert (row["candidates"], row["kept"], row["dropped"], row["unreadable"]) == (5, 3, 2, 1)
    assert row["quantiles"] == {"0.05": 0.1, "0.5": 0.2, "0.95": 0.3}
    assert sum(row["histogram"]["counts"]) == 5
