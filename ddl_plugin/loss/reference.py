"""The loss and its gradient in NumPy float64, from the equations, one loop a sum.

This is what the graph in `terms.py` is checked against; it shares no code with it. It is slow: for
tests and for looking at small batches, not for training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ddl_plugin.settings import DDLSettings, GroupSettings


@dataclass(frozen=True)
class _Similarity:
    """One cosine and the two rows of the batch it comes from."""

    value: float
    row: int
    other: int


@dataclass(frozen=True)
class _Distribution:
    """Positive and negative similarities of one distribution; positive ones below 0 left out."""

    positive: list[_Similarity]
    negative: list[_Similarity]
    outliers: int


def ddl(embedding: np.ndarray, settings: DDLSettings) -> dict[str, float]:
    """All terms of the loss by the names of `ddl_plugin.loss.terms.term_names`.

    Input: (3b(K+1), D), rows as in `ddl_plugin.loss.terms.ddl_terms`.
    """
    distributions = _distributions(_directions(embedding), settings)
    terms = {"ddl": 0.0}
    for team, members in _by_team(distributions, settings):
        distance_pos, distance_neg, order = 0.0, 0.0, 0.0
        teacher = members[0]
        for student in members[1:]:
            if teacher.positive and student.positive:
                distance_pos += _distance(teacher.positive, student.positive, settings)
            distance_neg += _distance(teacher.negative, student.negative, settings)
        for i in members:
            for j in members:
                order -= _mean(i.positive) - _mean(j.negative)
        suffix = f"_{team.name}" if settings.groups else ""
        terms[f"{settings.distance}_pos{suffix}"] = distance_pos
        terms[f"{settings.distance}_neg{suffix}"] = distance_neg
        terms[f"order{suffix}"] = order
        terms["ddl"] += (
            team.lambda_pos * distance_pos + team.lambda_neg * distance_neg + team.lambda_order * order
        )
    for name, distribution in zip(settings.names, distributions, strict=True):
        terms.update(_statistics(name, distribution, settings))
    return terms


def _by_team(
    distributions: list[_Distribution], settings: DDLSettings
) -> Iterator[tuple[GroupSettings, list[_Distribution]]]:
    """Each group with its teacher and students."""
    left = list(distributions)
    for team in settings.teams:
        size = 1 + len(team.hard)
        yield team, left[:size]
        left = left[size:]


def ddl_gradient(embedding: np.ndarray, settings: DDLSettings) -> np.ndarray:
    """d ddl / d embedding, derived by hand: (3b(K+1), D) float64.

    With `settings.detach_teacher` it is not the gradient of the value `ddl`: the teacher's histograms
    count as constants in it.
    """
    embedding = np.asarray(embedding, np.float64)
    unit = _directions(embedding)
    by_unit = np.zeros_like(unit)

    def pull(similarities: list[_Similarity], slopes: list[float]) -> None:
        """s = <u, v>: ds/du = v, ds/dv = u."""
        for s, slope in zip(similarities, slopes, strict=True):
            by_unit[s.row] += slope * unit[s.other]
            by_unit[s.other] += slope * unit[s.row]

    for team, members in _by_team(_distributions(unit, settings), settings):
        teacher = members[0]
        for student in members[1:]:
            for weight, p, q in (
                (team.lambda_pos, teacher.positive, student.positive),
                (team.lambda_neg, teacher.negative, student.negative),
            ):
                if p and q:
                    by_p, by_q = _distance_slopes(p, q, settings)
                    if not settings.detach_teacher:
                        pull(p, [weight * slope for slope in by_p])
                    pull(q, [weight * slope for slope in by_q])
        for i in members:
            for j in members:
                for sign, found in ((-1, i.positive), (1, j.negative)):
                    pull(found, [sign * team.lambda_order / len(found) for _ in found])
    return _through_length(embedding, unit, by_unit)


def _directions(embedding: np.ndarray) -> np.ndarray:
    """x / |x| row by row; a zero row stays zero."""
    unit = np.zeros(np.shape(embedding), np.float64)
    for row, x in enumerate(np.asarray(embedding, np.float64)):
        length = math.hypot(*x)
        if length > 0:
            unit[row] = x / length
    return unit


def _through_length(embedding: np.ndarray, unit: np.ndarray, by_unit: np.ndarray) -> np.ndarray:
    """u = x / |x|: du/dx = (I - u u^T) / |x|."""
    gradient = np.zeros_like(unit)
    for row, x in enumerate(embedding):
        length = math.hypot(*x)
        if length > 0:
            gradient[row] = (by_unit[row] - unit[row] * (unit[row] @ by_unit[row])) / length
    return gradient


def _distributions(unit: np.ndarray, settings: DDLSettings) -> list[_Distribution]:
    b = settings.b
    found = []
    for k in range(settings.distributions):
        start = 3 * b * k
        pairs = [_similarity(unit, start + i, start + b + i) for i in range(b)]
        positive = [s for s in pairs if s.value >= 0]
        singles = list(range(start + 2 * b, start + 3 * b))
        negative = _negatives(unit, singles, settings.neg_mining)
        found.append(_Distribution(positive, negative, b - len(positive)))
    return found


def _similarity(unit: np.ndarray, row: int, other: int) -> _Similarity:
    return _Similarity(float(unit[row] @ unit[other]), row, other)


def _negatives(unit: np.ndarray, singles: list[int], mining: str) -> list[_Similarity]:
    if mining == "random":
        return [_similarity(unit, i, j) for i, j in zip(singles, singles[1:] + singles[:1], strict=True)]
    if mining == "top":
        pairs = [_similarity(unit, i, j) for i in singles for j in singles if i < j]
        return sorted(pairs, key=lambda s: -s.value)[: len(singles)]
    return [max((_similarity(unit, i, j) for j in singles if j != i), key=lambda s: s.value) for i in singles]


def _mean(similarities: list[_Similarity]) -> float:
    return sum(s.value for s in similarities) / len(similarities) if similarities else 0.0


def _statistics(name: str, distribution: _Distribution, settings: DDLSettings) -> dict[str, float]:
    positive, negative = _mean(distribution.positive), _mean(distribution.negative)
    overlap = 0.0
    if distribution.positive:
        log_p = _log_distribution(distribution.positive, settings)
        log_q = _log_distribution(distribution.negative, settings)
        overlap = sum(min(math.exp(p), math.exp(q)) for p, q in zip(log_p, log_q, strict=True))
    return {
        f"mean_pos_{name}": positive,
        f"mean_neg_{name}": negative,
        f"margin_{name}": positive - negative if distribution.positive else 0.0,
        f"intersection_{name}": overlap,
        f"outliers_{name}": float(distribution.outliers),
    }


def _nodes(settings: DDLSettings) -> list[float]:
    return [-1 + 2 * r / (settings.bins - 1) for r in range(settings.bins)]


def _log_sum(exponents: list[float]) -> float:
    """log sum exp, so that no gamma is too large."""
    top = max(exponents)
    return top + math.log(sum(math.exp(e - top) for e in exponents))


def _log_histogram(similarities: list[_Similarity], settings: DDLSettings) -> list[float]:
    """log h_r of Eq. 3-4."""
    n = len(similarities)
    return [
        _log_sum([-settings.gamma * (s.value - t) ** 2 for s in similarities]) - math.log(n)
        for t in _nodes(settings)
    ]


def _log_distribution(similarities: list[_Similarity], settings: DDLSettings) -> list[float]:
    """log p_r, p_r = h_r / sum h."""
    log_h = _log_histogram(similarities, settings)
    log_sum = _log_sum(log_h)
    return [h - log_sum for h in log_h]


def _distance(first: list[_Similarity], second: list[_Similarity], settings: DDLSettings) -> float:
    log_p, log_q = _log_distribution(first, settings), _log_distribution(second, settings)
    if settings.distance == "kl":
        return sum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))
    if settings.distance == "js":
        total = 0.0
        for p, q in zip(log_p, log_q, strict=True):
            m = _log_sum([p, q]) - math.log(2)
            total += (math.exp(p) * (p - m) + math.exp(q) * (q - m)) / 2
        return total
    step = 2 / (settings.bins - 1)
    return sum(abs(gap) * step for gap in _cumulative_gaps(log_p, log_q))


def _cumulative_gaps(log_p: list[float], log_q: list[float]) -> list[float]:
    """CDF_P - CDF_Q at each node."""
    gaps, gap = [], 0.0
    for p, q in zip(log_p, log_q, strict=True):
        gap += math.exp(p) - math.exp(q)
        gaps.append(gap)
    return gaps


def _distance_slopes(
    first: list[_Similarity], second: list[_Similarity], settings: DDLSettings
) -> tuple[list[float], list[float]]:
    """dD(P, Q)/ds of each similarity of P and of Q."""
    log_p, log_q = _log_distribution(first, settings), _log_distribution(second, settings)
    by_log_p, by_log_q = _distance_by_logs(log_p, log_q, settings)
    return (
        _through_histogram(first, log_p, by_log_p, settings),
        _through_histogram(second, log_q, by_log_q, settings),
    )


def _distance_by_logs(
    log_p: list[float], log_q: list[float], settings: DDLSettings
) -> tuple[list[float], list[float]]:
    """dD/dlog p_r and dD/dlog q_r."""
    bins = range(settings.bins)
    p, q = [math.exp(v) for v in log_p], [math.exp(v) for v in log_q]
    if settings.distance == "kl":
        return [p[r] * (log_p[r] - log_q[r] + 1) for r in bins], [-p[r] for r in bins]
    if settings.distance == "js":
        log_m = [_log_sum([log_p[r], log_q[r]]) - math.log(2) for r in bins]
        return (
            [p[r] * (log_p[r] - log_m[r]) / 2 for r in bins],
            [q[r] * (log_q[r] - log_m[r]) / 2 for r in bins],
        )
    step = 2 / (settings.bins - 1)
    gaps = _cumulative_gaps(log_p, log_q)
    # p_r counts in the cumulative sums from r on; the last one is 0 for every P and Q.
    slope = [sum(step * math.copysign(1, gaps[later]) for later in range(r, settings.bins - 1)) for r in bins]
    return [p[r] * slope[r] for r in bins], [-q[r] * slope[r] for r in bins]


def _through_histogram(
    similarities: list[_Similarity], log_p: list[float], by_log_p: list[float], settings: DDLSettings
) -> list[float]:
    """dD/ds_i from dD/dlog p_r.

    log p_r = log h_r - log sum h: dD/dlog h_r = dD/dlog p_r - p_r sum_r' dD/dlog p_r'. And
    dh_r/ds_i = -2 gamma delta_ir (s_i - t_r) / n (supplement, Eq. 3), which h_r divides here.
    """
    total = sum(by_log_p)
    by_log_h = [slope - math.exp(log) * total for slope, log in zip(by_log_p, log_p, strict=True)]
    log_h, gamma, n = _log_histogram(similarities, settings), settings.gamma, len(similarities)
    slopes = []
    for s in similarities:
        slope = 0.0
        for r, t in enumerate(_nodes(settings)):
            delta_over_h = math.exp(-gamma * (s.value - t) ** 2 - log_h[r])
            slope += by_log_h[r] * -2 * gamma * delta_over_h * (s.value - t) / n
        slopes.append(slope)
    return slopes
