"""1:N: rank-k and TPIR at FPIR of probe templates in the galleries, in three conventions.

A probe *has a mate* in a gallery when its subject is there. FPIR is a rate of false alarms, TPIR the share of
probes with a mate that are found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.ijb.lists import Members
from ddl_plugin.evaluation.ijb.templates import Templates
from ddl_plugin.evaluation.ijb.verification import DECIMALS, NO_SCORE
from ddl_plugin.evaluation.metrics import tar_at_far

FPIRS = (0.01, 0.1)
RANKS = (1, 5, 10)
LONGEST = 50  # ranks of a curve

_BLOCK_VALUES = 1 << 18  # float64 values of one block: 2 MiB stay in the caches
_NEVER = -3.0  # below NO_SCORE


@dataclass(frozen=True)
class Search:
    """All probes searched in one gallery, or in both at once. Scores are float64, rounded to 12 decimals."""

    mated: np.ndarray  # bool (P,): the subject is in the gallery
    mate: np.ndarray  # float64 (P,), score of the subject's own template; -2 where there is none
    other: np.ndarray  # float64 (P,), highest score of another subject's template
    above: np.ndarray  # int32 (P,), templates of others that score higher than the mate
    before: np.ndarray  # int32 (P,), those that score the same and have a lower number
    after: np.ndarray  # int32 (P,), those that score the same and have a higher number
    alarms: np.ndarray  # float64, the highest scores with templates of others, descending

    def rank(self, ties: np.ndarray | int) -> np.ndarray:
        """int32 (P,) with `ties` counted as before the mate; 0: no mate, or one that cannot be compared."""
        comparable = self.mated & (self.mate > NO_SCORE)
        return np.where(comparable, 1 + self.above + ties, 0)


def search(templates: Templates, probes: Members, galleries: Sequence[Members]) -> list[Search]:
    """The probes searched in all galleries at once, then in each of them: one Search each.

    Raises UserError where a subject has several templates: which one is to be found is not said.
    """
    numbers, first = np.unique(np.concatenate([g.templates for g in galleries]), return_index=True)
    subjects = np.concatenate([g.subjects for g in galleries])[first]
    rows = np.concatenate([g.rows for g in galleries])[first]
    _require_one_each(subjects, numbers)
    chosen = [np.isin(numbers, gallery.templates) for gallery in galleries]

    order = np.argsort(subjects)
    at = np.minimum(np.searchsorted(subjects, probes.subjects, sorter=order), len(subjects) - 1)
    column = np.where(subjects[order[at]] == probes.subjects, order[at], -1)

    known = np.append(templates.known, False)
    gallery_features = templates.features[rows]
    unknown = ~known[rows]
    most = max(math.ceil(len(probes) * fpir) for fpir in FPIRS)
    parts = [_Part(np.ones(len(numbers), bool), column, most)]
    parts += [_Part(some, column, 0) for some in chosen]
    step = max(1, _BLOCK_VALUES // len(numbers))
    for start in range(0, len(probes), step):
        part = slice(start, start + step)
        scores = templates.features[probes.rows[part]] @ gallery_features.T
        np.round(scores, DECIMALS, out=scores)
        scores[:, unknown] = NO_SCORE
        scores[~known[probes.rows[part]]] = NO_SCORE
        for one in parts:
            one.add(scores, part)
    return [one.result() for one in parts]


def _require_one_each(subjects: np.ndarray, numbers: np.ndarray) -> None:
    unique, counts = np.unique(subjects, return_counts=True)
    if (counts > 1).any():
        several = unique[counts > 1]
        raise UserError(
            f"galleries: expected one template for each subject, got several for {len(several):,} of "
            f"{len(unique):,}, the first is subject {several[0]} with the templates "
            f"{', '.join(map(str, numbers[subjects == several[0]][:5]))}"
        )


class _Part:
    """What is gathered of the scores with some of the gallery's templates, block by block."""

    def __init__(self, chosen: np.ndarray, column: np.ndarray, most: int):
        self._all = bool(chosen.all())
        self._chosen = np.flatnonzero(chosen)
        place = np.append(np.cumsum(chosen) - 1, -1)
        place[:-1][~chosen] = -1
        self._column = place[column]  # of the mate among the chosen ones, -1: none
        count = len(column)
        self._mate, self._other = np.full(count, NO_SCORE), np.full(count, _NEVER)
        self._above, self._before, self._after = (np.zeros(count, np.int32) for _ in range(3))
        self._most, self._alarms = most, np.empty(0)

    def add(self, scores: np.ndarray, part: slice) -> None:
        scores = scores.copy() if self._all else scores[:, self._chosen]
        column = self._column[part]
        probe = np.flatnonzero(column >= 0)
        mate = np.full((len(column), 1), np.inf)
        mate[probe, 0] = scores[probe, column[probe]]
        self._mate[part][probe] = mate[probe, 0]
        scores[probe, column[probe]] = _NEVER
        self._above[part] = np.count_nonzero(scores > mate, axis=1)
        tied = scores == mate
        for one in np.flatnonzero(tied.any(axis=1)):
            self._before[part][one] = np.count_nonzero(tied[one, : column[one]])
            self._after[part][one] = np.count_nonzero(tied[one, column[one] :])
        self._other[part] = scores.max(axis=1)
        if self._most:
            self._note_alarms(scores)

    def _note_alarms(self, scores: np.ndarray) -> None:
        full = len(self._alarms) >= self._most
        lowest = self._alarms.min() if full else NO_SCORE
        self._alarms = np.concatenate((self._alarms, scores[scores > lowest]))
        if len(self._alarms) > self._most:
            self._alarms = np.partition(self._alarms, -self._most)[-self._most :]

    def result(self) -> Search:
        alarms = np.sort(self._alarms)[::-1]
        return Search(
            self._column >= 0, self._mate, self._other, self._above, self._before, self._after, alarms
        )


# -- conventions -----------------------------------------------------------------------------------------


def insightface(both: Search) -> dict[str, Any]:
    """Both galleries as one: the convention of InsightFace's ijb_1n.py, and so of the paper's Table 6.

    The threshold is the k-th highest of all scores of a probe with another subject's template, k = FPIR times the
    number of probes, rounded up; found are the probes whose mate scores higher, at whatever rank. Of equal
    scores the template with the lower number comes first.
    """
    count = len(both.mate)
    points = []
    for fpir in FPIRS:
        at = math.ceil(count * fpir) - 1
        # Fewer scores than that: all of them are accepted.
        threshold = float(both.alarms[at]) if at < len(both.alarms) else NO_SCORE
        found = int(np.count_nonzero(both.mate > threshold))
        points.append({"fpir": fpir, "tpir": found / count, "threshold": threshold})
    rank = both.rank(both.before)
    return {**{f"rank{k}": _within(rank, k) / count for k in RANKS}, "tpir_at_fpir": points}


def insightface_evals(each: Sequence[Search]) -> dict[str, Any]:
    """The galleries one by one: the convention of InsightFace's ijb_evals.py.

    The threshold is the k-th highest of the best scores of the probes without a mate, k = FPIR times their number,
    rounded down, at least 1; found are those whose mate scores higher than it and than all others. TPIR is
    averaged over the galleries; rank-k is over all probes. Of equal scores the higher number comes first.
    """
    count = len(each[0].mate)
    points = []
    for fpir in FPIRS:
        rates = [_evals_rate(one, fpir) for one in each]
        thresholds = [threshold for _, threshold in rates]
        points.append({"fpir": fpir, "tpir": _mean([rate for rate, _ in rates]), "thresholds": thresholds})
    within = {f"rank{k}": sum(_within(one.rank(one.after), k) for one in each) / count for k in RANKS}
    return {**within, "tpir_at_fpir": points}


def _evals_rate(one: Search, fpir: float) -> tuple[float | None, float | None]:
    alarms = np.sort(one.other[~one.mated])[::-1]
    mate, other = one.mate[one.mated], one.other[one.mated]
    if not len(alarms) or not len(mate):
        return None, None
    threshold = alarms[max(int(len(alarms) * fpir) - 1, 0)]
    found = np.count_nonzero((mate > other) & (mate > threshold))
    return found / len(mate), float(threshold)


def benchmark(each: Sequence[Search]) -> dict[str, Any]:
    """The benchmark's own: open set, gallery by gallery, averaged over the galleries.

    FPIR: the share of the probes without a mate whose best score reaches the threshold. TPIR: the share of those
    with a mate whose mate scores higher than all others and reaches it. The threshold is the lowest whose real
    FPIR does not exceed the one asked for. Rank-k is over the probes with a mate; a tie counts as wrong.
    """
    points = []
    for fpir in FPIRS:
        obtained = [_open_set(one, fpir) for one in each]
        points.append(
            {
                "fpir": fpir,
                "tpir": _mean([tpir for tpir, _, _ in obtained]),
                "obtained_fpirs": [rate for _, rate, _ in obtained],
                "thresholds": [threshold for _, _, threshold in obtained],
            }
        )
    ranks = {f"rank{k}": _mean([_closed_set(one, k) for one in each]) for k in RANKS}
    return {**ranks, "tpir_at_fpir": points}


def _open_set(one: Search, fpir: float | np.ndarray) -> tuple[Any, Any, Any]:
    """(TPIR, FPIR obtained, threshold), None where the gallery has everyone or no one."""
    if one.mated.all() or not one.mated.any():
        return None, None, None
    first = one.mated & (one.mate > one.other)
    return tar_at_far(one.other[~one.mated], np.where(first, one.mate, _NEVER)[one.mated], fpir)


def _closed_set(one: Search, k: int) -> float | None:
    mated = np.count_nonzero(one.mated)
    return _within(one.rank(one.before + one.after), k) / mated if mated else None


def _within(rank: np.ndarray, k: int) -> int:
    return int(np.count_nonzero((rank > 0) & (rank <= k)))


def _mean(values: Sequence[float | None]) -> float | None:
    """None where any is: an average over fewer galleries is another figure."""
    return None if None in values else float(np.mean(values))


def rank_curve(each: Sequence[Search], longest: int = LONGEST) -> tuple[np.ndarray, np.ndarray] | None:
    """(rank 1.., share found within it) in the benchmark's convention, for a CMC figure; None without mates."""
    ranks = np.arange(1, longest + 1)
    rates = [_mean([_closed_set(one, int(k)) for one in each]) for k in ranks]
    return None if None in rates else (ranks, np.array(rates))


def error_curve(each: Sequence[Search], count: int = 200) -> tuple[np.ndarray, np.ndarray] | None:
    """(FPIR, FNIR) in the benchmark's convention, for a DET figure; None without open-set searches."""
    fpir = np.geomspace(1e-3, 1, count, endpoint=False)  # at 1 everything is accepted
    tpir = [_open_set(one, fpir)[0] for one in each]
    return None if any(rates is None for rates in tpir) else (fpir, 1 - np.mean(tpir, axis=0))
