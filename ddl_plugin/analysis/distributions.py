"""Similarity distributions of positive and negative pairs and the paper's two statistics of them (4.3)."""

from __future__ import annotations

import numpy as np

from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.metrics import as_scores

BINS = 100  # R of the paper
GAMMA = 50.0  # gamma of Eq. 4; the paper gives none, the authors' code uses sigma 0.1 = gamma 50

# Scores are first shared out linearly between the two nearest nodes of this fine grid; the Gaussian is
# then summed over the grid. The error on exp(-gamma d^2) is at most gamma * step^2 / 4 = 1.2e-8.
_FINE = 65536
_CHUNK = 1 << 20  # scores at a time: bounds the memory at some 50 MB
_ROUNDING = 1e-3  # how far beyond [-1, 1] a cosine of low-precision embeddings may lie


def nodes(bins: int = BINS) -> np.ndarray:
    """t_1 = -1 .. t_R = 1, float64 (bins,), with the step 2 / (R - 1)."""
    return np.linspace(-1.0, 1.0, bins)


def _fine_counts(scores: np.ndarray) -> np.ndarray:
    counts = np.zeros(_FINE + 2)
    for start in range(0, scores.size, _CHUNK):
        chunk = scores[start : start + _CHUNK].astype(np.float64)
        place = (np.clip(chunk, -1.0, 1.0) + 1.0) * (_FINE / 2)
        left = place.astype(np.int64)
        share = place - left
        counts += np.bincount(left, 1.0 - share, _FINE + 2) + np.bincount(left + 1, share, _FINE + 2)
    return counts[: _FINE + 1]


def soft_histogram(scores: np.ndarray, bins: int = BINS, gamma: float = GAMMA) -> np.ndarray:
    """The paper's histogram of similarities, Eq. 3-4, as a distribution.

    h_r = mean over s of exp(-gamma (s - t_r)^2), then divided by the sum over r.

    Args:
        scores: cosines, any shape; up to 1e-3 beyond [-1, 1] is taken for rounding.
        bins: R, number of nodes on [-1, 1].
        gamma: spread of the Gaussian, per squared cosine.

    Returns:
        float64 (bins,), sum 1.

    Cost: O(scores + 65,537 x bins); about 60 MB however many scores.
    """
    scores = as_scores(scores, "scores")
    low, high = float(scores.min()), float(scores.max())
    if low < -1 - _ROUNDING or high > 1 + _ROUNDING:
        raise UserError(
            f"scores: expected cosines in [-1, 1], got {low:g}..{high:g}; normalise the embeddings"
        )
    counts = _fine_counts(scores)
    filled = np.flatnonzero(counts)
    at = filled * (2.0 / _FINE) - 1.0
    weights = counts[filled]
    histogram = np.array([np.dot(weights, np.exp(-gamma * (at - t) ** 2)) for t in nodes(bins)])
    total = histogram.sum()
    if total == 0:
        raise UserError(
            f"gamma: {gamma:g} is so large that no score reaches a node; expected about {GAMMA:g}"
        )
    return histogram / total


def histogram_intersection(
    negatives: np.ndarray, positives: np.ndarray, bins: int = BINS, gamma: float = GAMMA
) -> float:
    """sum_r min(h_r^+, h_r^-) of the two soft histograms (paper 4.3): 0 apart, 1 when they are the same."""
    return float(
        np.minimum(soft_histogram(negatives, bins, gamma), soft_histogram(positives, bins, gamma)).sum()
    )


def expectation_margin(negatives: np.ndarray, positives: np.ndarray) -> float:
    """mean(positives) - mean(negatives), in cosine (paper 4.3); larger is better."""
    negatives, positives = as_scores(negatives, "negatives"), as_scores(positives, "positives")
    return float(positives.mean(dtype=np.float64) - negatives.mean(dtype=np.float64))
