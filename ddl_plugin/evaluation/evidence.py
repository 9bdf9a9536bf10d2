"""What stands behind a line of results, for figures and reports: distributions, curves, and where a model errs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ddl_plugin.evaluation.tally import Tally

FAILURES = 12  # of each kind that are kept
REJECTED, ACCEPTED = "false rejection", "false acceptance"


@dataclass(frozen=True)
class Failure:
    """One comparison that a model got wrong.

    kind: REJECTED (the same person, not recognised) or ACCEPTED (another person, taken for this one).
    threshold: the cosine from which it would have been called the same person; in a search the best score that
    won against it, or that it won against.
    images: () -> the two images, uint8 (112, 112, 3) RGB, as the model saw them (a probe degraded).
    """

    kind: str
    similarity: float
    threshold: float
    names: tuple[str, str]
    images: Callable[[], tuple[np.ndarray, np.ndarray]] = field(repr=False)


@dataclass(frozen=True)
class Genuine:
    """The comparisons of the same person, one by one, the same and in the same order for every model.

    score: float (n,), cosines. bar: float (n,), what each has to reach: the threshold, or in a search the best score
    of another person. right: bool (n,), whether it does. roles: what its faces are, such as ('probe', 'mate', ..).
    names: i -> the names of its faces. images: i -> the faces, uint8 (112, 112, 3) RGB, as the model saw them.
    """

    score: np.ndarray
    bar: np.ndarray
    right: np.ndarray
    roles: tuple[str, ...]
    names: Callable[[int], tuple[str, ...]] = field(repr=False)
    images: Callable[[int], tuple[np.ndarray, ...]] = field(repr=False)


@dataclass(frozen=True)
class Evidence:
    """title: of the line of results, the same for every model. curve: FAR, TAR of the ROC, rising, at most 2,000
    points. cmc: rank, share of the probes found by then, of a search alone. failures: worst first, of either kind.
    genuine: what models are compared by, one comparison at a time.
    """

    title: str
    negatives: Tally
    positives: Tally
    curve: tuple[np.ndarray, np.ndarray]
    cmc: tuple[np.ndarray, np.ndarray] | None = None
    failures: tuple[Failure, ...] = ()
    genuine: Genuine | None = None
