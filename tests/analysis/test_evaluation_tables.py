from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest

from ddl_plugin.analysis.evaluation_tables import (
    averages_table,
    headline,
    highlighted,
    measures_table,
    percent,
    rates_table,
    resolution,
    searches_table,
    standard_error,
    unattainable,
    unattained,
)
from ddl_plugin.analysis.page import strong
from ddl_plugin.evaluation.verification import summarise


class Cells(HTMLParser):
    """Rows of a table, each cell's text with its parts apart."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.bold, self._tag = [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self._tag.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append([])

    def handle_endtag(self, tag):
        self._tag.pop()

    def handle_data(self, data):
        if "th" in self._tag or "td" in self._tag:
            self.rows[-1][-1].append(data)
            if self._tag[-1] == "strong":
                self.bold.add((len(self.rows) - 1, len(self.rows[-1]) - 1))


def entry(positive=0.4, negatives=500, seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 0.1, negatives), rng.normal(positive, 0.1, 200).clip(-1, 1)
    return {"accuracy": 0.9, "accuracy_std": 0.01, **summarise(*scores, fars=(0.1, 0.01, 0.001, 1e-6))}


def test_rates_stand_beside_what_was_obtained():
    entries = {"a": entry(0.3), "b": entry(0.5)}
    cells = Cells(rates_table(entries))
    assert cells.rows[0] == [["requested"], ["a"], ["b"]]
    assert [row[0][0] for row in cells.rows[1:]] == ["FAR 0.1", "FAR 0.01", "FAR 0.001", "FAR 1e-06"]
    for row, i in zip(cells.rows[1:], range(4), strict=True):
        for cell, own in zip(row[1:], entries.values(), strict=True):
            point = own["tar_at_far"][i]
            accepted = round(point["obtained_far"] * 500)
            assert cell == [
                f"{100 * point['tar']:.2f}%",
                f"FAR obtained {point['obtained_far']:.2g}: {accepted} of 500",
                f"cosine from {point['threshold']:.4f}",
            ]


def test_a_far_below_one_in_n_is_marked_and_has_no_best():
    cells = Cells(rates_table({"a": entry(0.2), "b": entry(0.4)}))
    marks = [row[0][1:] for row in cells.rows[1:]]
    below = ["below one in 500: cannot be measured here"]
    assert marks == [[], ["rests on 5 of 500 negatives"], below, below]
    # Model b is better everywhere: bold where that can be measured, in columns counted from 0.
    assert cells.bold == {(1, 2), (2, 2)}


@pytest.mark.parametrize(
    "far, negatives, words",
    [
        (0.1, 100, ""),
        (0.099, 100, "rests on 9 of 100 negatives"),
        (0.01, 100, "rests on 1 of 100 negatives"),
        (0.0099, 100, "below one in 100: cannot be measured here"),
        (1e-6, 6000, "below one in 6,000: cannot be measured here"),
        (1e-3, 3000, "rests on 3 of 3,000 negatives"),
        (1 / 3, 3, "rests on 1 of 3 negatives"),
    ],
)
def test_what_a_far_rests_on(far, negatives, words):
    assert resolution(far, negatives) == words
    assert unattainable(far, negatives) == words.startswith("below")


def test_the_fars_that_cannot_be_measured_are_named():
    (text,) = unattained({"a": entry()})
    assert text.startswith("FAR 0.001, 1e-06 cannot be measured with 500 comparisons of different persons")
    assert unattained({"a": entry(negatives=2_000_000)}) == []


def test_other_measures_are_those_that_are_there():
    cells = Cells(measures_table({"a": entry(), "b": {**entry(), "d_prime": None}}))
    rows = {row[0][0]: row[1:] for row in cells.rows[1:]}
    assert list(rows) == [
        "accuracy, 10 folds", "equal error rate", "same person, cosine", "different persons, cosine",
        "expectation margin", "histogram intersection", "d'",
    ]  # fmt: skip
    own = entry()
    assert rows["accuracy, 10 folds"][0] == ["90.00% ± 1.00"]
    assert rows["same person, cosine"][0] == [f"{own['positive_mean']:.3f} ± {own['positive_std']:.3f}"]
    assert rows["d'"] == [[f"{own['d_prime']:.2f}"], ["none"]]
    subset = {name: value for name, value in entry().items() if name != "accuracy_std"}
    rows = [row[0][0] for row in Cells(measures_table({"a": subset})).rows]
    assert rows[1] == "accuracy, thresholds of the whole set"
    searched = {**entry(), "rank1": 0.5, "rank5": 1.0}
    rows = {row[0][0]: row[1:] for row in Cells(measures_table({"a": searched})).rows[1:]}
    assert (rows["rank-1"], rows["rank-5"]) == ([["50.00%"]], [["100.00%"]])


@pytest.mark.parametrize(
    "name, values, best",
    [
        ("rank-1", ["90.00%", "91.00%", "89.00%"], [1]),
        ("rank-1", ["90.00%", "90.00%"], []),
        ("rank-1", ["9.00%", "10.00%", "10.00%"], [1, 2]),
        ("equal error rate", ["9.00%", "10.00%"], [0]),
        ("histogram intersection", ["0.1", "0.05"], [1]),
        ("accuracy, 10 folds", ["90.00% ± 2.00", "89.00% ± 9.00"], [0]),
        ("same person, cosine", ["0.5 ± 0.1", "0.6 ± 0.1"], []),
        ("d'", ["none", "1.00"], []),
        ("rank-1", ["90.00%"], []),
    ],
)
def test_the_best_value_is_bold(name, values, best):
    expected = [strong(value) if i in best else value for i, value in enumerate(values)]
    assert highlighted(name, values) == expected


def test_the_headline_has_the_lowest_far_that_rests_on_ten_negatives():
    own = entry()
    tar = {point["far"]: percent(point["tar"]) for point in own["tar_at_far"]}
    found = headline({"a": own, "b": own})
    assert list(found) == ["accuracy, 10 folds", "TAR at FAR 0.1", "histogram intersection"]
    assert found["TAR at FAR 0.1"] == [tar[0.1], tar[0.1]]
    many = entry(negatives=10_000)
    assert "TAR at FAR 0.001" in headline({"a": many})
    few = entry(negatives=20)
    assert list(headline({"a": {**few, "rank1": 0.5, "rank10": 0.6}})) == [
        "accuracy, 10 folds", "rank-1", "histogram intersection",
    ]  # fmt: skip


def test_the_standard_error_is_that_of_the_headline():
    own = entry(0.25)
    point = own["tar_at_far"][0]
    error = 100 * (point["tar"] * (1 - point["tar"]) / 200) ** 0.5
    text = standard_error({"a": own})
    assert f"a TAR of {percent(point['tar'])} has a standard error of {error:.2f} points" in text
    assert standard_error({"a": entry(negatives=20)}) == ""
    perfect = standard_error({"a": entry(0.9)})
    assert "has a standard error of 0.35 points" in perfect  # not 0: sqrt(0.0025 * 0.9975 / 200)


def test_searches_say_the_fpir_obtained_and_where_there_is_none():
    one = {"rank1": 0.5, "rank5": 0.75, "rank10": None,
           "tpir_at_fpir": [{"fpir": 0.01, "tpir": 0.25, "obtained_fpirs": [0.008, None]},
                            {"fpir": 0.1, "tpir": None}]}  # fmt: skip
    cells = Cells(searches_table({"a": one}, "1:N"))
    assert cells.rows[1:] == [
        [["rank-1"], ["50.00%"]],
        [["rank-5"], ["75.00%"]],
        [["rank-10"], ["none"]],
        [["TPIR at FPIR 0.01"], ["25.00%", "FPIR obtained 0.008"]],
        [["TPIR at FPIR 0.1"], ["none"]],
    ]


def test_averages_name_what_they_are_over():
    means = [{"size": "full", "gallery_size": "full", "over": ["d1", "d2"], "rank1": 0.5, "rank5": 0.75},
             {"size": 14, "gallery_size": 14, "over": ["d1", "d2"], "rank1": 0.25, "rank5": 0.3}]  # fmt: skip
    text = averages_table({"a": means})
    cells = Cells(text)
    assert [row[1] for row in cells.rows[1:]] == [["50.00%"], ["75.00%"], ["25.00%"], ["30.00%"]]
    assert "rank-1, full size, over d1, d2" in unescape(text)
    assert "rank-5, 14 x 14 pixels, gallery too, over d1, d2" in text
