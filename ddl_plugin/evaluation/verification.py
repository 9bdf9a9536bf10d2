"""1:1 verification on InsightFace's .bin sets."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ddl_plugin.analysis.distributions import describe
from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.bins import BinSet
from ddl_plugin.evaluation.evidence import ACCEPTED, FAILURES, REJECTED, Evidence, Failure, Genuine
from ddl_plugin.evaluation.features import Embed, Progress, extract, no_progress
from ddl_plugin.evaluation.metrics import (
    Folds,
    TarAtFar,
    as_scores,
    eer,
    roc,
    tar_at_far,
    tenfold,
    thin,
    val_at_far,
)
from ddl_plugin.evaluation.subsets import Subset
from ddl_plugin.evaluation.tally import Tally

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
    the threshold in cosine. Rates are 0..1. Then `distributions.describe`.
    """
    points = tar_at_far(negatives, positives, np.asarray(fars, dtype=np.float64))
    both = Tally(as_scores(negatives, "negatives")), Tally(as_scores(positives, "positives"))
    return in_words(*both, fars, points, eer(negatives, positives))


def in_words(
    negatives: Tally, positives: Tally, fars: Sequence[float], points: TarAtFar, equal_error: float
) -> dict[str, Any]:
    """The dict of `summarise`. points: at the FARs, (len(fars),) each."""
    return {
        "negatives": negatives.size,
        "positives": positives.size,
        "tar_at_far": [
            {"far": float(f), "obtained_far": float(o), "tar": float(t), "threshold": float(c)}
            for f, t, o, c in zip(fars, *points, strict=True)
        ],
        "eer": equal_error,
        **describe(negatives, positives),
    }


def score(similarity: np.ndarray, bin_set: BinSet, fars: Sequence[float] = FARS) -> dict[str, Any]:
    """The result of `verify` from similarities that are already there."""
    _require_folds(bin_set)
    negatives, positives = split(similarity, bin_set)
    accuracy = tenfold(similarity, bin_set.issame, FOLDS).accuracy
    val = val_at_far(similarity, bin_set.issame, folds=FOLDS)
    return {
        "set": bin_set.name,
        "pairs": len(bin_set),
        "accuracy": float(accuracy.mean()),
        "accuracy_std": float(accuracy.std()),
        "val": None if val is None else val._asdict(),
        **summarise(negatives, positives, fars),
    }


def score_subsets(
    similarity: np.ndarray, bin_set: BinSet, subsets: Sequence[Subset], fars: Sequence[float] = FARS
) -> list[dict[str, Any]]:
    """One entry for each subset: its pairs' accuracy at the thresholds of the whole set's folds, as a deployed model
    has one threshold for all, and `summarise` of its own negatives and positives."""
    correct = tenfold(similarity, bin_set.issame, FOLDS).correct
    return [
        {
            "subset": part.name,
            "rule": part.rule,
            "pairs": int(part.chosen.sum()),
            "accuracy": float(correct[part.chosen].mean()),
            **summarise(
                similarity[part.chosen & ~bin_set.issame], similarity[part.chosen & bin_set.issame], fars
            ),
        }
        for part in subsets
    ]


def evidence(similarity: np.ndarray, bin_set: BinSet, subsets: Sequence[Subset] = ()) -> list[Evidence]:
    """What stands behind `score` and `score_subsets`: of all pairs, then of each subset."""
    folds = tenfold(similarity, bin_set.issame, FOLDS)
    parts = [(bin_set.name, np.ones(len(bin_set), bool))]
    parts += [(f"{bin_set.name}, {part.name}", part.chosen) for part in subsets]
    result = []
    for title, chosen in parts:
        negatives, positives = similarity[chosen & ~bin_set.issame], similarity[chosen & bin_set.issame]
        points = roc(negatives, positives)
        failures = _failures(similarity, folds, bin_set, chosen)
        curve = thin(points.far, points.tar)
        genuine = _genuine(similarity, folds, bin_set, chosen)
        line = Evidence(title, Tally(negatives), Tally(positives), curve, failures=failures, genuine=genuine)
        result.append(line)
    return result


def _genuine(similarity: np.ndarray, folds: Folds, bin_set: BinSet, chosen: np.ndarray) -> Genuine:
    """The chosen pairs of the same person, each at the threshold of its fold."""
    pairs = np.flatnonzero(chosen & bin_set.issame)
    return Genuine(
        similarity[pairs],
        folds.threshold[pairs],
        folds.correct[pairs],
        ("first", "second"),
        lambda i: tuple(bin_set.describe(2 * int(pairs[i]) + place) for place in (0, 1)),
        lambda i: _pair(bin_set, int(pairs[i])),
    )


def _failures(
    similarity: np.ndarray, folds: Folds, bin_set: BinSet, chosen: np.ndarray
) -> tuple[Failure, ...]:
    """The pairs called wrong at the thresholds of their folds, of each kind those furthest from them."""
    away = np.abs(similarity - folds.threshold)
    failures = []
    for kind, of_kind in ((REJECTED, bin_set.issame), (ACCEPTED, ~bin_set.issame)):
        wrong = np.flatnonzero(chosen & of_kind & ~folds.correct)
        for i in wrong[np.argsort(-away[wrong], kind="stable")][:FAILURES].tolist():
            names = tuple(bin_set.describe(place) for place in (2 * i, 2 * i + 1))
            load = functools.partial(_pair, bin_set, i)
            failures.append(Failure(kind, float(similarity[i]), float(folds.threshold[i]), names, load))
    return tuple(failures)


def _pair(bin_set: BinSet, i: int) -> tuple[np.ndarray, np.ndarray]:
    first, second = bin_set.images(2 * i, 2 * i + 2)
    return first, second


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
    """10-fold accuracy and VAL as InsightFace computes them, TAR at FAR, EER and the distributions of one set.

    Returns:
        dict with set, pairs, accuracy, accuracy_std, val (val, std, far; None where a fold has pairs of one kind
        alone) and the keys of `summarise`; rates are 0..1.

    Raises:
        UserError: naming the image whose embedding is not finite; a set of fewer than 10 pairs or of one kind.
    """
    check(bin_set)  # before the images are embedded
    return score(pair_similarities(embed, bin_set, flip, batch, progress), bin_set, fars)


def check(bin_set: BinSet) -> None:
    """UserError for a set of fewer than 10 pairs, or of one kind alone."""
    _require_folds(bin_set)
    split(np.zeros(len(bin_set)), bin_set)
