"""Verification metrics on similarity scores, in NumPy alone.

Conventions of every function here:

* scores are similarities: higher means "same person"; arguments come in the order (negatives, positives);
* a pair is accepted when `score >= threshold`, so a score equal to the threshold is accepted;
* FAR is the share of negatives accepted, TAR the share of positives accepted, FRR = 1 - TAR;
* no score, or a score that is not finite, raises `UserError`: a rate over nothing is not a number.
"""

from __future__ import annotations

import bisect
from typing import NamedTuple

import numpy as np

from ddl_plugin.errors import UserError

#: Squared Euclidean distances of unit vectors that InsightFace's verification tries as thresholds.
_DISTANCE_THRESHOLDS = np.arange(0, 4, 0.01)
_VAL_THRESHOLDS = np.arange(0, 4, 0.001)
CURVE_POINTS = 2000  # of a ROC that is kept for a figure


class TarAtFar(NamedTuple):
    """TAR at a requested FAR, the FAR really obtained, and the threshold that gives both."""

    tar: np.ndarray | float
    far: np.ndarray | float
    threshold: np.ndarray | float


class Folds(NamedTuple):
    """A cross-validated accuracy, pair by pair."""

    correct: np.ndarray  # bool (n,): the pair is called right at its own fold's threshold
    accuracy: np.ndarray  # float64 (folds,)
    threshold: np.ndarray  # float64 (n,): each pair's threshold, as a cosine: "same" above it


class Val(NamedTuple):
    """InsightFace's validation rate: the share of positives accepted where about `far` of the negatives are."""

    val: float
    std: float  # over the folds, the population's
    far: float  # the one obtained, mean of the folds


class Roc(NamedTuple):
    """Operating points of one threshold each, from "accept nothing" to "accept everything"."""

    far: np.ndarray
    tar: np.ndarray
    threshold: np.ndarray


def as_scores(values: object, name: str) -> np.ndarray:
    """`values` as a flat, finite, non-empty floating-point array; float32 is kept as it is.

    Raises:
        UserError: naming `name`, when there is no score or one that is not finite.
    """
    scores = np.asarray(values)
    if scores.dtype not in (np.float32, np.float64):
        scores = scores.astype(np.float64)
    scores = scores.ravel()
    if scores.size == 0:
        raise UserError(f"{name}: expected at least one score, got none")
    bad = scores.size - np.count_nonzero(np.isfinite(scores))
    if bad:
        raise UserError(f"{name}: expected finite scores, got {bad} of {scores.size} that are not")
    return scores


def _both(negatives: object, positives: object) -> tuple[np.ndarray, np.ndarray]:
    """Both sets of scores in one precision, so that the score next above another is the same in both."""
    negatives, positives = as_scores(negatives, "negatives"), as_scores(positives, "positives")
    dtype = np.result_type(negatives.dtype, positives.dtype)
    return negatives.astype(dtype, copy=False), positives.astype(dtype, copy=False)


def _accepted(ascending: np.ndarray, thresholds: np.ndarray | float) -> np.ndarray:
    """The share of the sorted scores that each threshold accepts, a quotient of whole numbers."""
    return (ascending.size - np.searchsorted(ascending, thresholds, side="left")) / ascending.size


def allowed(far: float, count: int) -> int:
    """The largest k with k / count <= far, safe from the rounding of far * count."""
    k = int(far * count)
    if (k + 1) / count <= far:
        k += 1
    return k - 1 if k / count > far else k


def tar_at_far(negatives: np.ndarray, positives: np.ndarray, far: float | np.ndarray) -> TarAtFar:
    """TAR at a FAR, "at most": the lowest threshold whose real FAR does not exceed the requested one.

    Tied negatives are accepted together or not at all, so the obtained FAR can be well below the
    requested one: report it. A FAR below 1 / len(negatives) cannot be attained: the threshold is then
    just above the largest negative and the obtained FAR is 0.

    Args:
        negatives, positives: scores, any shape.
        far: requested FARs, each in 0..1; a scalar or an array.

    Returns:
        TarAtFar of float64 arrays in the shape of `far`; plain floats for a scalar.

    Cost: one partial sort of the negatives, one sort of the positives.
    """
    negatives, positives = _both(negatives, positives)
    positives = np.sort(positives)
    wanted = np.asarray(far, dtype=np.float64)
    if not np.all((wanted >= 0) & (wanted <= 1)):
        raise UserError(f"far: expected rates in 0..1, got {far!r}")
    count = negatives.size
    # ranks[i]: position in ascending order of the largest negative that must be rejected.
    ranks = np.array([count - 1 - allowed(f, count) for f in wanted.ravel()], dtype=np.int64)
    inside = np.unique(ranks[ranks >= 0])
    part = np.partition(negatives, inside) if inside.size else negatives
    # Threshold that accepts every score, for FAR 1.
    all_accepted = min(negatives.min(), positives[0])
    infinity = np.array(np.inf, dtype=negatives.dtype)

    thresholds = np.empty(ranks.size)
    obtained = np.empty(ranks.size)
    for i, rank in enumerate(ranks):
        thresholds[i] = np.nextafter(part[rank], infinity) if rank >= 0 else all_accepted
        obtained[i] = np.count_nonzero(negatives >= thresholds[i]) / count
    tar = _accepted(positives, thresholds)
    if wanted.ndim == 0:
        return TarAtFar(float(tar[0]), float(obtained[0]), float(thresholds[0]))
    return TarAtFar(*(a.reshape(wanted.shape) for a in (tar, obtained, thresholds)))


def roc(negatives: np.ndarray, positives: np.ndarray) -> Roc:
    """The whole ROC: one point for every distinct score, after one that accepts nothing.

    Returns:
        Roc of float64 (m + 1,), m distinct scores: thresholds fall, FAR and TAR rise from 0 to 1.
    """
    negatives, positives = (np.sort(scores) for scores in _both(negatives, positives))
    distinct = np.unique(np.concatenate((negatives, positives)).astype(np.float64))[::-1]
    threshold = np.concatenate(([np.nextafter(distinct[0], np.inf)], distinct))
    return Roc(_accepted(negatives, threshold), _accepted(positives, threshold), threshold)


def eer(negatives: np.ndarray, positives: np.ndarray) -> float:
    """Equal error rate: (FAR + FRR) / 2 at the threshold where |FAR - FRR| is smallest.

    Where several thresholds tie, the smallest mean of the two rates is taken. 0 for separable scores,
    0.5 when all scores are equal.

    Cost: two sorts.
    """
    negatives, positives = (np.sort(scores) for scores in _both(negatives, positives))

    def rates(threshold: float) -> tuple[float, float]:
        return float(_accepted(negatives, threshold)), 1.0 - float(_accepted(positives, threshold))

    def crossed(threshold: float) -> bool:
        far, frr = rates(threshold)
        return far < frr

    # FAR - FRR falls from each distinct score to the next: the optimum is beside its change of sign.
    highest = max(negatives[-1], positives[-1])
    candidates = [np.nextafter(highest, np.array(np.inf, highest.dtype))]
    for scores in (negatives, positives):
        at = bisect.bisect_left(scores, True, key=crossed)
        candidates += [*scores[max(at - 1, 0) : at + 1]]
    # Rates are multiples of 1/n: differences below 1e-12 are rounding.
    _, both = min((round(abs(far - frr), 12), far + frr) for far, frr in map(rates, candidates))
    return both / 2


def thin(far: np.ndarray, tar: np.ndarray, most: int = CURVE_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """A ROC in at most `most` points, so that a figure of it looks the same, also with a logarithmic FAR.

    far, tar: (m,), both rising. Points at which neither changes are left out first; of the rest those are kept that
    are next to equal steps of the FAR, of its logarithm and of the TAR. The ends are always kept.
    """
    changes = np.flatnonzero((np.diff(far) > 0) | (np.diff(tar) > 0)) + 1
    kept = np.concatenate(([0], changes))
    if kept.size > most:
        x, y = far[kept], tar[kept]
        third = most // 3 - 1
        lowest = x[x > 0].min()
        near = [
            np.searchsorted(x, np.linspace(0, 1, third)),
            np.searchsorted(x, np.geomspace(lowest, 1, third)),
            np.searchsorted(y, np.linspace(0, y[-1], third)),
            [0, kept.size - 1],
        ]
        kept = kept[np.unique(np.minimum(np.concatenate(near), kept.size - 1).astype(np.int64))]
    return far[kept], tar[kept]


def _fold_of(pairs: int, folds: int) -> np.ndarray:
    """The block of each pair, int64 (pairs,): contiguous, the first ones a pair longer where they cannot be equal."""
    if not 2 <= folds <= pairs:
        raise UserError(f"folds: expected 2..{pairs} for {pairs} pairs, got {folds}")
    sizes = np.full(folds, pairs // folds)
    sizes[: pairs % folds] += 1
    return np.repeat(np.arange(folds), sizes)


def _pairs(similarity: np.ndarray, issame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances of unit vectors, float64 (n,), and the labels, bool (n,)."""
    similarity = as_scores(similarity, "similarity").astype(np.float64)
    issame = np.asarray(issame, dtype=bool).ravel()
    if issame.size != similarity.size:
        raise UserError(
            f"issame: expected {similarity.size} labels, one for each similarity, got {issame.size}"
        )
    return np.maximum(2.0 - 2.0 * similarity, 0.0), issame


def _below(distance: np.ndarray, fold: np.ndarray, folds: int, thresholds: np.ndarray) -> np.ndarray:
    """How many distances of each fold are below each threshold: int64 (folds, thresholds)."""
    count = thresholds.size
    first = np.searchsorted(thresholds, distance, side="right")  # from this threshold on it is below
    cells = np.bincount(fold * (count + 1) + first, minlength=folds * (count + 1))
    return cells.reshape(folds, count + 1).cumsum(axis=1)[:, :count]


def tenfold(similarity: np.ndarray, issame: np.ndarray, folds: int = 10) -> Folds:
    """Cross-validated accuracy as InsightFace's verification computes it, pair by pair.

    The pairs are cut into `folds` contiguous blocks, unshuffled. For each block the threshold with the
    best accuracy on the other blocks is taken (the first of equals) among the squared Euclidean distances
    0, 0.01, .. 3.99 of unit vectors, d = 2 - 2 cos; a pair is called "same" when d < threshold.
    InsightFace subtracts the vectors instead; the two can differ only for a distance within rounding (1e-15) of a
    threshold.

    Args:
        similarity: (n,) cosines in file order.
        issame: (n,) bool, True for pairs of the same person.

    Cost: O(n log 400), whatever the number of thresholds.
    """
    distance, issame = _pairs(similarity, issame)
    fold = _fold_of(distance.size, folds)
    same, different = (
        _below(distance[kind], fold[kind], folds, _DISTANCE_THRESHOLDS) for kind in (issame, ~issame)
    )
    right = same - different  # and the number of different pairs, the same for all thresholds
    best = np.argmax(right.sum(axis=0) - right, axis=1)
    threshold = _DISTANCE_THRESHOLDS[best][fold]
    correct = (distance < threshold) == issame
    accuracy = np.bincount(fold, correct, folds) / np.bincount(fold, minlength=folds)
    return Folds(correct, accuracy, 1.0 - threshold / 2.0)


def tenfold_accuracy(similarity: np.ndarray, issame: np.ndarray, folds: int = 10) -> tuple[float, float]:
    """Mean and standard deviation (the population's) of `tenfold`'s accuracy over the folds."""
    accuracy = tenfold(similarity, issame, folds).accuracy
    return float(accuracy.mean()), float(accuracy.std())


def val_at_far(similarity: np.ndarray, issame: np.ndarray, far: float = 1e-3, folds: int = 10) -> Val | None:
    """The validation rate VAL at a FAR as InsightFace's verification computes it.

    For each block of `tenfold` the FAR of the other blocks is computed at the squared distances 0, 0.001, .. 3.999;
    the threshold is interpolated linearly where it reaches `far` (0, which accepts nothing, where it never does; the
    highest threshold of those with exactly this FAR), and VAL and FAR of the block are measured there.
    A FAR is a multiple of 1 / negatives: with fewer than 1 / far negatives VAL says little.

    Returns:
        Val; None where a block has pairs of one kind alone, and InsightFace would divide by zero.
    """
    distance, issame = _pairs(similarity, issame)
    fold = _fold_of(distance.size, folds)
    same, different = (np.bincount(fold[kind], minlength=folds) for kind in (issame, ~issame))
    if not (same.all() and different.all()):
        return None
    accepted = _below(distance[~issame], fold[~issame], folds, _VAL_THRESHOLDS)
    values, obtained = np.zeros(folds), np.zeros(folds)
    for block in range(folds):
        rate = (accepted.sum(axis=0) - accepted[block]) / (different.sum() - different[block])
        threshold = np.interp(far, rate, _VAL_THRESHOLDS) if rate[-1] >= far else 0.0
        here = fold == block
        called = distance < threshold
        values[block] = called[here & issame].mean()
        obtained[block] = called[here & ~issame].mean()
    return Val(float(values.mean()), float(values.std()), float(obtained.mean()))
