"""1:1: scores of template pairs, and TAR at FAR in the convention of published tables and in the strict one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.ijb.lists import Pairs
from ddl_plugin.evaluation.ijb.templates import Templates

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)

#: The score of a comparison that cannot be made: below every cosine.
NO_SCORE = -2.0

#: Scores are rounded so that equal templates tie however the sums were ordered.
DECIMALS = 12

_BLOCK_VALUES = 1 << 21  # float64 values of one block: 16 MiB
_DENSE = 32  # products of a whole block that cost as much as one pair gathered by itself


class Curve(NamedTuple):
    """Corners of a ROC, from the highest threshold to the lowest: counts accepted, int64 (n,)."""

    negatives: np.ndarray
    positives: np.ndarray


def pair_scores(templates: Templates, pairs: Pairs) -> np.ndarray:
    """Cosine of every pair, float64 (M,) rounded to 12 decimals; -2 where a template has no feature."""
    scores = np.empty(len(pairs))
    rows, row_of = _used(pairs.first, len(templates.numbers))
    columns, column_of = _used(pairs.second, len(templates.numbers))
    if len(rows) * len(columns) <= _DENSE * len(pairs):
        _from_blocks(scores, templates.features, pairs, (rows, row_of), (columns, column_of))
    else:
        _one_by_one(scores, templates.features, pairs)
    np.round(scores, DECIMALS, out=scores)
    known = np.append(templates.known, False)  # the last one: row -1
    scores[~(known[pairs.first] & known[pairs.second])] = NO_SCORE
    return scores


def _used(side: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(the rows that occur, ascending; where each row is among them), rows of -1 as row 0."""
    occurs = np.zeros(count, bool)
    occurs[np.maximum(side, 0)] = True
    rows = np.flatnonzero(occurs)
    place = np.zeros(count, np.int32)
    place[rows] = np.arange(len(rows), dtype=np.int32)
    return rows, place


def _from_blocks(scores, features, pairs, rows, columns) -> None:
    """All products of some rows with all columns at a time, of which the pairs are picked."""
    (rows, row_of), (columns, column_of) = rows, columns
    row = row_of[np.maximum(pairs.first, 0)]
    sorted_already = bool((row[1:] >= row[:-1]).all())
    order = None if sorted_already else np.argsort(row, kind="stable").astype(np.int32)
    starts = np.concatenate(([0], np.cumsum(np.bincount(row, minlength=len(rows)))))
    others = features[columns]
    step = max(1, _BLOCK_VALUES // len(columns))
    for start in range(0, len(rows), step):
        block = features[rows[start : start + step]] @ others.T
        low, high = starts[start], starts[min(start + step, len(rows))]
        for first in range(low, high, _BLOCK_VALUES):
            last = min(first + _BLOCK_VALUES, high)
            chosen = slice(first, last) if order is None else order[first:last]
            at = column_of[np.maximum(pairs.second[chosen], 0)]
            scores[chosen] = block[row[chosen] - start, at]


def _one_by_one(scores, features, pairs) -> None:
    step = max(1, _BLOCK_VALUES // features.shape[1] // 2)
    for start in range(0, len(pairs), step):
        part = slice(start, start + step)
        first, second = features[pairs.first[part]], features[pairs.second[part]]
        scores[part] = np.einsum("nd,nd->n", first, second)


def corners(negatives: np.ndarray, positives: np.ndarray) -> Curve:
    """The ROC of scores, both kinds ascending, as scikit-learn's roc_curve gives it: points between equal steps are
    left out.

    One point for each distinct score, which accepts all scores as high or higher, after one that accepts none.
    The first, the last, and those where the step to the next point (pairs of either kind) differs from the step
    before it are kept.
    """
    if not (len(positives) and len(negatives)):
        raise UserError(
            f"pairs: expected some of the same and some of different subjects, got {len(positives):,} of the "
            f"same among {len(negatives) + len(positives):,}"
        )
    ordered = np.concatenate((negatives, positives))
    ordered.sort(kind="stable")  # merges the two
    # Where a run of equal scores begins, seen from above: the number of scores as high or higher.
    runs = np.flatnonzero(ordered[1:] != ordered[:-1])
    distinct = np.append(ordered[:1], ordered[runs + 1])  # ascending
    accepted = (len(ordered) - np.append(0, runs + 1))[::-1]
    del ordered, runs
    # Positives accepted by each distinct score, from the highest on: a running sum of few steps.
    values, counts = np.unique(positives, return_counts=True)
    steps = np.zeros(len(distinct), np.int64)
    steps[len(distinct) - 1 - np.searchsorted(distinct, values)] = counts
    del distinct
    true = np.cumsum(steps)
    false = accepted - true
    kept = np.ones(len(true), bool)
    kept[1:-1] = (steps[1:-1] != steps[2:]) | (np.diff(false[:-1]) != np.diff(false[1:]))
    return Curve(np.append(0, false[kept]), np.append(0, true[kept]))


def nearest(curve: Curve, fars: Sequence[float] = FARS) -> list[dict[str, float]]:
    """TAR at the point whose FAR is nearest to each FAR asked for: the convention of InsightFace's tables.

    Of points equally near, the one with the highest FAR and TAR. Its FAR can lie above the one asked for.
    """
    far = curve.negatives[::-1] / curve.negatives[-1]
    tar = curve.positives[::-1] / curve.positives[-1]
    points = []
    for wanted in fars:
        at = int(np.argmin(np.abs(far - wanted)))
        points.append({"far": float(wanted), "obtained_far": float(far[at]), "tar": float(tar[at])})
    return points


def thinned(curve: Curve, lowest: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(FAR, TAR) of at most `count` points for a figure with a logarithmic axis from `lowest` to 1."""
    far = curve.negatives / curve.negatives[-1]
    tar = curve.positives / curve.positives[-1]
    grid = np.geomspace(lowest, 1, count)
    # The highest TAR of a FAR that does not exceed the one of the grid.
    at = np.unique(np.searchsorted(far, grid, side="right") - 1)
    return far[at], tar[at]
