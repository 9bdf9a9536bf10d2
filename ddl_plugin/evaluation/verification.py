"""1:1 verification on InsightFace's .bin sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ddl_plugin.analysis.distributions import expectation_margin, histogram_intersection
from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.bins import BinSet
from ddl_plugin.evaluation.features import Embed, Progress, extract, no_progress
from ddl_plugin.evaluation.metrics import eer, tar_at_far, tenfold_accuracy

FARS = (1e-1, 1e-2, 1e-3)
FOLDS = 10


def pair_similarities(
    embed: Embed, bin_set: BinSet, flip: bool = True, batch: int = 64, progress: Progress = no_progress
) -> np.ndarray:
    """Cosine of every pair in file order, float64 (pairs,).

    With `flip`, the embeddings of an image and of its mirror image are added first.
    """
    features = extract(
        embed,
        bin_set.images,
        2 * len(bin_set),
        flip=flip,
        describe=bin_set.describe,
        batch=batch,
        progress=progress,
    )
    return np.einsum("ij,ij->i", features[0::2], features[1::2])


def split(similarity: np.ndarray, bin_set: BinSet) -> tuple[np.ndarray, np.ndarray]:
    """(negatives, positives) of the similarities of a set's pairs; both must be there."""
    negatives, positives = similarity[~bin_set.issame], similarity[bin_set.issame]
    for scores, kind in ((negatives, "different persons"), (positives, "the same person")):
        if scores.size == 0:
            raise UserError(f"{bin_set.name}: expected pairs of {kind}, got none among {len(bin_set)}")
    return negatives, positives


def pair_scores(
    embed: Embed, bin_set: BinSet, flip: bool = True, batch: int = 64, progress: Progress = no_progress
) -> tuple[np.ndarray, np.ndarray]:
    """(negatives, positives): the cosines of a set's pairs of different persons and of the same person."""
    return split(pair_similarities(embed, bin_set, flip, batch, progress), bin_set)


def summarise(negatives: np.ndarray, positives: np.ndarray, fars: Sequence[float] = FARS) -> dict[str, Any]:
    """All that is said of two sets of scores, as plain numbers ready for JSON.

    `tar_at_far` has one entry for each FAR: the requested one, the one obtained ("at most"), the TAR and
    the threshold in cosine. Rates are 0..1.
    """
    tar, obtained, threshold = tar_at_far(negatives, positives, np.asarray(fars, dtype=np.float64))
    return {
        "negatives": int(np.size(negatives)),
        "positives": int(np.size(positives)),
        "tar_at_far": [
            {"far": float(f), "obtained_far": float(o), "tar": float(t), "threshold": float(c)}
            for f, o, t, c in zip(fars, obtained, tar, threshold, strict=True)
        ],
        "eer": eer(negatives, positives),
        "negative_mean": float(np.mean(negatives, dtype=np.float64)),
        "positive_mean": float(np.mean(positives, dtype=np.float64)),
        "margin": expectation_margin(negatives, positives),
        "intersection": histogram_intersection(negatives, positives),
    }


def score(similarity: np.ndarray, bin_set: BinSet, fars: Sequence[float] = FARS) -> dict[str, Any]:
    """The result of `verify` from similarities that are already there."""
    _require_folds(bin_set)
    negatives, positives = split(similarity, bin_set)
    accuracy, deviation = tenfold_accuracy(similarity, bin_set.issame, FOLDS)
    return {
        "set": bin_set.name,
        "pairs": len(bin_set),
        "accuracy": accuracy,
        "accuracy_std": deviation,
        **summarise(negatives, positives, fars),
    }


def _require_folds(bin_set: BinSet) -> None:
    if len(bin_set) < FOLDS:
        raise UserError(
            f"{bin_set.name}: expected at least {FOLDS} pairs for {FOLDS}-fold accuracy, got {len(bin_set)}"
        )


def verify(
    embed: Embed,
    bin_set: BinSet,
    flip: bool = True,
    batch: int = 64,
    *,
    fars: Sequence[float] = FARS,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """10-fold accuracy as InsightFace computes it, TAR at FAR, EER, margin and intersection of one set.

    Returns:
        dict with set, pairs, accuracy, accuracy_std and the keys of `summarise`; rates are 0..1.

    Raises:
        UserError: naming the image whose embedding is not finite; a set of fewer than 10 pairs or of one kind.
    """
    _require_folds(bin_set)  # before the images are embedded
    return score(pair_similarities(embed, bin_set, flip, batch, progress), bin_set, fars)
