"""Tables of an evaluation's figures for its page, from what the commands write as JSON, a column a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ddl_plugin.analysis.page import Html, small, strong, table, together
from ddl_plugin.evaluation.identification import title_of

NONE = "none"  # where there is nothing to measure
ENOUGH = 10  # negatives that a FAR should rest on

Entry = Mapping[str, Any]  # what the JSON has of one model and one set


AT_MOST = "TAR at FAR, at most: the lowest threshold whose real FAR does not exceed the requested one"


def rates_table(entries: Mapping[str, Entry], caption: str = AT_MOST) -> Html:
    """TAR at the requested FARs with what was really obtained, and what cannot be attained marked so.

    entries: model -> dict with negatives, positives and tar_at_far, as of `verification.summarise`; a point without
    a threshold is shown without.
    """
    some = next(iter(entries.values()))
    rows = []
    for i, point in enumerate(some["tar_at_far"]):
        points = [entry["tar_at_far"][i] for entry in entries.values()]
        values = [percent(own["tar"]) for own in points]
        if not unattainable(point["far"], some["negatives"]):
            values = highlighted("TAR", values)
        cells = []
        for value, own, entry in zip(values, points, entries.values(), strict=True):
            accepted = round(own["obtained_far"] * entry["negatives"])
            with_what = [
                small(f"FAR obtained {own['obtained_far']:.2g}: {accepted:,} of {entry['negatives']:,}")
            ]
            if "threshold" in own:
                with_what.append(small(f"cosine from {own['threshold']:.4f}"))
            cells.append(together(value, *with_what))
        mark = resolution(point["far"], some["negatives"])
        rows.append([together(f"FAR {point['far']:g}", *([small(mark)] if mark else [])), *cells])
    return table(caption, ["requested", *entries], rows)


def searches_table(entries: Mapping[str, Entry], caption: str) -> Html:
    """Rank-k and TPIR at FPIR of one convention.

    entries: model -> dict with rank1, .. and tpir_at_fpir; None is a rate over nothing.
    """
    some = next(iter(entries.values()))
    rows = []
    for name in (f"rank{k}" for k in (1, 5, 10)):
        if name in some:
            values = [percent(entry[name]) for entry in entries.values()]
            rows.append([name.replace("rank", "rank-"), *highlighted("rank", values)])
    for i, point in enumerate(some["tpir_at_fpir"]):
        points = [entry["tpir_at_fpir"][i] for entry in entries.values()]
        values = highlighted("TPIR", [percent(own["tpir"]) for own in points])
        cells = []
        for value, own in zip(values, points, strict=True):
            obtained = [f"{rate:.2g}" for rate in own.get("obtained_fpirs", ()) if rate is not None]
            said = [small(f"FPIR obtained {', '.join(obtained)}")] if obtained else []
            cells.append(together(value, *said))
        rows.append([f"TPIR at FPIR {point['fpir']:g}", *cells])
    return table(caption, ["measure", *entries], rows)


def averages_table(averages: Mapping[str, Sequence[Entry]]) -> Html:
    """Means of rank-k over conditions. averages: model -> dicts with size, gallery_size, over (names of
    conditions), rank1, rank5."""
    rows = []
    for i, some in enumerate(next(iter(averages.values()))):
        for k in (1, 5):
            values = [percent(own[i][f"rank{k}"]) for own in averages.values()]
            rows.append(
                [f"rank-{k}, {title_of(some)}, over {', '.join(some['over'])}", *highlighted("rank", values)]
            )
    return table("Averages over conditions", ["measure", *averages], rows)


def unattainable(far: float, negatives: int) -> bool:
    """Whether `far` lies below one of this many."""
    return far * negatives < 1 - 1e-9


def resolution(far: float, negatives: int) -> str:
    """What a reader must know of a FAR among so many negatives; '' where it rests on enough of them."""
    if unattainable(far, negatives):
        return f"below one in {negatives:,}: cannot be measured here"
    count = int(far * negatives + 1e-9)
    return f"rests on {count} of {negatives:,} negatives" if count < ENOUGH else ""


def unattained(entries: Mapping[str, Entry]) -> list[str]:
    """A sentence on the FARs that this many negatives cannot show; none where they can show all."""
    some = next(iter(entries.values()))
    fars = [p["far"] for p in some["tar_at_far"] if unattainable(p["far"], some["negatives"])]
    if not fars:
        return []
    named = ", ".join(f"{far:g}" for far in fars)
    return [
        f"FAR {named} cannot be measured with {some['negatives']:,} comparisons of different persons: "
        f"below one in {some['negatives']:,}. What stands there is the TAR at the FAR obtained."
    ]


def measures_table(entries: Mapping[str, Entry]) -> Html:
    """Accuracy, ranks, error rate and distributions: what of them the entries have."""
    columns = [_measures(entry) for entry in entries.values()]
    rows = []
    for name in columns[0]:
        rows.append([name, *highlighted(name, [column[name] for column in columns])])
    return table("Other measures", ["measure", *entries], rows)


def _measures(entry: Entry) -> dict[str, str]:
    values = {}
    if "accuracy" in entry:
        spread = f" ± {100 * entry['accuracy_std']:.2f}" if "accuracy_std" in entry else ""
        name = "accuracy, 10 folds" if spread else "accuracy, thresholds of the whole set"
        values[name] = percent(entry["accuracy"]) + spread
    if entry.get("val"):
        val = entry["val"]
        value = f"{percent(val['val'])} ± {100 * val['std']:.2f}, FAR obtained {val['far']:.2g}"
        values["VAL at FAR 0.001, 10 folds"] = value
    values |= {f"rank-{k}": percent(entry[f"rank{k}"]) for k in (1, 5, 10) if f"rank{k}" in entry}
    if "eer" in entry:
        values["equal error rate"] = percent(entry["eer"])
    for kind, words in (("positive", "same person, cosine"), ("negative", "different persons, cosine")):
        values[words] = f"{entry[f'{kind}_mean']:.3f} ± {entry[f'{kind}_std']:.3f}"
    values["expectation margin"] = f"{entry['margin']:.3f}"
    values["histogram intersection"] = f"{entry['intersection']:.3f}"
    values["d'"] = NONE if entry["d_prime"] is None else f"{entry['d_prime']:.2f}"
    return values


def headline(entries: Mapping[str, Entry]) -> dict[str, list[str]]:
    """The few figures of a part that the summary has: accuracy or rank-1, and the TAR at the lowest FAR that rests on
    ten negatives or more."""
    columns = []
    for entry in entries.values():
        measures = _measures(entry)
        own = {name: measures[name] for name in measures if name.startswith("accuracy") or name == "rank-1"}
        point = _lowest_resolved(entry)
        if point is not None:
            own[f"TAR at FAR {point['far']:g}"] = percent(point["tar"])
        own["histogram intersection"] = measures["histogram intersection"]
        columns.append(own)
    return {name: [column[name] for column in columns] for name in columns[0]}


def _lowest_resolved(entry: Entry) -> Mapping[str, float] | None:
    resolved = [point for point in entry["tar_at_far"] if not resolution(point["far"], entry["negatives"])]
    return min(resolved, key=lambda point: point["far"], default=None)


_SMALLER_IS_BETTER = ("equal error rate", "histogram intersection")
_NO_BEST = ("same person, cosine", "different persons, cosine")


def highlighted(name: str, values: Sequence[str]) -> list[str]:
    """The best of the values of a figure bold, as far as they can be told apart as they are written."""
    if name in _NO_BEST or len(set(values)) < 2 or NONE in values:
        return list(values)
    numbers = [float(value.split()[0].rstrip("%").replace(",", "")) for value in values]
    best = min(numbers) if name in _SMALLER_IS_BETTER else max(numbers)
    return [strong(value) if number == best else value for value, number in zip(values, numbers, strict=True)]


def percent(rate: float | None) -> str:
    """'98.50%'; NONE for a rate over nothing."""
    return NONE if rate is None else f"{rate:.2%}"


def standard_error(entries: Mapping[str, Entry]) -> str:
    """How far a TAR of this size may be off by the choice of the pairs alone; '' where no FAR is resolved."""
    some = next(iter(entries.values()))
    point, count = _lowest_resolved(some), some["positives"]
    if point is None:
        return ""
    # A rate of 0 or 1 is not known without error: as if half a comparison more were the other way.
    rate = min(max(point["tar"], 0.5 / count), 1 - 0.5 / count)
    return (
        f"With {count:,} comparisons of the same person, a TAR of {percent(point['tar'])} has a standard error of "
        f"{100 * np.sqrt(rate * (1 - rate) / count):.2f} points if they are independent, and more where the same "
        "images occur in several of them: smaller differences say nothing."
    )
