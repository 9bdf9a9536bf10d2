"""Similarity distributions of positive and negative pairs and the paper's two statistics of them (4.3)."""

from __future__ import annotations

import numpy as np

from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.metrics import as_scores
from ddl_plugin.evaluation.tally import Tally, node

#: Cosines, all of them or counted.
Scores = np.ndarray | Tally

BINS = 100  # R of the paper
GAMMA = 50.0  # gamma of Eq. 4; the paper gives none, the authors' code uses sigma 0.1 = gamma 50


def nodes(bins: int = BINS) -> np.ndarray:
    """t_1 = -1 .. t_R = 1, float64 (bins,), with the step 2 / (R - 1)."""
    return np.linspace(-1.0, 1.0, bins)


def as_tally(scores: Scores, name: str = "scores") -> Tally:
    """`scores` counted, where they are not yet. Raises UserError for no score, and for what is no cosine."""
    tally = scores if isinstance(scores, Tally) else Tally(as_scores(scores, name), name)
    tally.check()
    return tally


def soft_histogram(scores: Scores, bins: int = BINS, gamma: float = GAMMA) -> np.ndarray:
    """The paper's histogram of similarities, Eq. 3-4, as a distribution.

    h_r = mean over s of exp(-gamma (s - t_r)^2), then divided by the sum over r. Scores are first shared out
    linearly between the two nearest of 65,537 nodes, and the Gaussian is summed over these: an error of at most
    gamma * step^2 / 4 = 1.2e-8.

    Args:
        scores: cosines, any shape, or their tally; up to 1e-3 beyond [-1, 1] is taken for rounding.
        bins: R, number of nodes on [-1, 1].
        gamma: spread of the Gaussian, per squared cosine.

    Returns:
        float64 (bins,), sum 1.

    Cost: O(scores + 65,537 x bins); some MB however many scores.
    """
    weights = as_tally(scores).on_nodes()
    filled = np.flatnonzero(weights)
    at, weights = node(filled), weights[filled]
    histogram = np.array([np.dot(weights, np.exp(-gamma * (at - t) ** 2)) for t in nodes(bins)])
    total = histogram.sum()
    if total == 0:
        raise UserError(
            f"gamma: {gamma:g} is so large that no score reaches a node; expected about {GAMMA:g}"
        )
    return histogram / total


def histogram_intersection(
    negatives: Scores, positives: Scores, bins: int = BINS, gamma: float = GAMMA
) -> float:
    """sum_r min(h_r^+, h_r^-) of the two soft histograms (paper 4.3): 0 apart, 1 when they are the same."""
    return float(
        np.minimum(soft_histogram(negatives, bins, gamma), soft_histogram(positives, bins, gamma)).sum()
    )


def expectation_margin(negatives: Scores, positives: Scores) -> float:
    """mean(positives) - mean(negatives), in cosine (paper 4.3); larger is better."""
    return _mean(positives, "positives") - _mean(negatives, "negatives")


def _mean(scores: Scores, name: str) -> float:
    if not isinstance(scores, Tally):
        scores = as_scores(scores, name)
    return float(scores.mean(dtype=np.float64))


def decidability(negatives: Tally, positives: Tally) -> float | None:
    """d' = (mean+ - mean-) / sqrt((var+ + var-) / 2): the margin in standard deviations.

    None where neither kind varies, as with one score of each: there is no unit then.
    """
    spread = np.sqrt((negatives.std() ** 2 + positives.std() ** 2) / 2)
    return float((positives.mean() - negatives.mean()) / spread) if spread > 0 else None


def describe(negatives: Tally, positives: Tally) -> dict[str, float | None]:
    """What is said of the two distributions, for JSON: means, standard deviations (the population's), `margin`,
    `intersection`, `d_prime`."""
    return {
        "negative_mean": negatives.mean(),
        "negative_std": negatives.std(),
        "positive_mean": positives.mean(),
        "positive_std": positives.std(),
        "margin": expectation_margin(negatives, positives),
        "intersection": histogram_intersection(negatives, positives),
        "d_prime": decidability(negatives, positives),
    }
