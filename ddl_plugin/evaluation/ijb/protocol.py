"""The two protocols of a benchmark carried out: lists and template features in, figures out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddl_plugin.analysis.distributions import describe
from ddl_plugin.evaluation.evidence import ACCEPTED, FAILURES, REJECTED, Evidence, Failure, Genuine
from ddl_plugin.evaluation.ijb import identification, verification
from ddl_plugin.evaluation.ijb.layout import IDENTIFICATION, VERIFICATION, Layout
from ddl_plugin.evaluation.ijb.lists import Images, Members, Pairs, read_images, read_members, read_pairs
from ddl_plugin.evaluation.ijb.problems import Problems
from ddl_plugin.evaluation.ijb.templates import Templates
from ddl_plugin.evaluation.metrics import tar_at_far
from ddl_plugin.evaluation.tally import Tally

_SHOWN_FAR = 1e-4  # where failures are looked for
_CURVE = 2000  # points
_LOWEST_FAR = 1e-7  # of a curve

#: face(row of the images) -> uint8 (112, 112, 3) RGB, or None where there is none.
Face = Callable[[int], "np.ndarray | None"]


@dataclass(frozen=True)
class Lists:
    """All that is read of a benchmark; what a protocol that is left out needs is None."""

    images: Images
    numbers: np.ndarray  # int64 (T,), of the templates that have images, ascending
    pairs: Pairs | None
    galleries: tuple[Members, Members] | None
    probes: Members | None


@dataclass(frozen=True)
class Curves:
    """For figures, of one model. cmc, det: in the benchmark's own convention; None where they are undefined."""

    verification: Evidence | None = None
    cmc: tuple[np.ndarray, np.ndarray] | None = None  # rank, rate
    det: tuple[np.ndarray, np.ndarray] | None = None  # FPIR, FNIR


def read_lists(layout: Layout, protocols: Collection[str], problems: Problems) -> Lists:
    """The lists that the protocols need. Raises UserError for lists that are none or too full of problems."""
    images = read_images(layout, problems)
    numbers = np.unique(images.templates)
    pairs = galleries = probes = None
    if VERIFICATION in protocols:
        pairs = read_pairs(layout.pairs, numbers, problems)
    if IDENTIFICATION in protocols:
        galleries = tuple(
            read_members(path, path.stem.rsplit("_", 1)[1], numbers, problems) for path in layout.galleries
        )
        probes = read_members(layout.probes, "mixed", numbers, problems)
        shared = np.intersect1d(*(gallery.templates for gallery in galleries))
        problems.add(
            "templates in both galleries", len(shared), sum(map(len, galleries)), shared,
            "searched in each, once where both are one",
        )  # fmt: skip
        everyone = np.concatenate([gallery.subjects for gallery in galleries])
        strangers = np.flatnonzero(~np.isin(probes.subjects, everyone))
        problems.add(
            "probes whose subject is in no gallery", len(strangers), len(probes),
            (f"template {probes.templates[i]} of subject {probes.subjects[i]}" for i in strangers),
            "kept in the totals of the conventions over both galleries, never found there",
        )  # fmt: skip
    return Lists(images, numbers, pairs, galleries, probes)


def note_featureless(templates: Templates, problems: Problems) -> None:
    """Note templates whose images are all left out, or whose features cancel out."""
    lacking = np.flatnonzero(~templates.known)
    problems.add(
        "templates without a feature", len(lacking), len(templates.numbers), templates.numbers[lacking],
        "kept in the totals, rejected at every threshold",
    )  # fmt: skip


def measure(templates: Templates, lists: Lists, face: Face | None = None) -> tuple[dict[str, Any], Curves]:
    """The figures of both protocols for JSON, rates 0..1, and the curves."""
    results: dict[str, Any] = {}
    evidence = cmc = det = None
    if lists.pairs is not None:
        results["verification"], evidence = verify(templates, lists, face)
    if lists.probes is not None:
        both, *each = identification.search(templates, lists.probes, lists.galleries)
        results["identification"] = {
            "probes": len(lists.probes),
            "galleries": [
                {"name": gallery.name, "templates": len(gallery), "probes_with_a_mate": int(one.mated.sum())}
                for gallery, one in zip(lists.galleries, each, strict=True)
            ],
            "conventions": {
                "insightface": identification.insightface(both),
                "insightface-evals": identification.insightface_evals(each),
                "benchmark": identification.benchmark(each),
            },
        }
        cmc, det = identification.rank_curve(each), identification.error_curve(each)
    return results, Curves(evidence, cmc, det)


def verify(templates: Templates, lists: Lists, face: Face | None = None) -> tuple[dict[str, Any], Evidence]:
    """1:1: TAR at FAR in both conventions and the distributions of the scores."""
    pairs = lists.pairs
    scores = verification.pair_scores(templates, pairs)
    # Sorted, so that sums over them do not depend on the order of the list.
    positives, negatives = np.sort(scores[pairs.same]), np.sort(scores[~pairs.same])
    curve = verification.corners(negatives, positives)
    nearest = verification.nearest(curve)
    tar, obtained, threshold = tar_at_far(negatives, positives, np.array([*verification.FARS, _SHOWN_FAR]))
    at_most = [
        {"far": far, "obtained_far": float(o), "tar": float(t), "threshold": float(c)}
        for far, t, o, c in zip(verification.FARS, tar, obtained, threshold, strict=False)
    ]
    # Pairs that cannot be compared have no cosine.
    compared = [Tally(some[some > verification.NO_SCORE], name) for some, name in (
        (negatives, "scores of different subjects"), (positives, "scores of the same subject"))]  # fmt: skip
    results = {
        "pairs": len(pairs),
        "positives": len(positives),
        "negatives": len(negatives),
        "conventions": {"insightface": {"tar_at_far": nearest}, "at-most": {"tar_at_far": at_most}},
        "distributions": describe(*compared),
    }
    far, rate = verification.thinned(curve, _LOWEST_FAR, _CURVE)
    line = Evidence("1:1 verification", *compared, (far, rate))
    if face is not None:
        shown = _Shown(lists, face)
        line = dataclasses.replace(
            line,
            failures=_failures(scores, lists.pairs.same, float(threshold[-1]), shown),
            genuine=_genuine(scores, lists.pairs.same, float(threshold[-1]), shown),
        )
    return results, line


class _Shown:
    """What is shown of a pair: the first image of each template."""

    def __init__(self, lists: Lists, face: Face):
        self._lists, self._face = lists, face
        self._first = np.searchsorted(lists.images.templates, lists.numbers)

    def _rows(self, pair: int) -> list[int]:
        return [int(side[pair]) for side in (self._lists.pairs.first, self._lists.pairs.second)]

    def names(self, pair: int) -> tuple[str, ...]:
        return tuple(
            f"template {self._lists.numbers[row]} ({self._lists.images.name(int(self._first[row]))})"
            for row in self._rows(pair)
        )

    def images(self, pair: int) -> tuple[np.ndarray, ...]:
        return tuple(_shown(self._face, int(self._first[row])) for row in self._rows(pair))


def _genuine(scores: np.ndarray, same: np.ndarray, threshold: float, shown: _Shown) -> Genuine:
    """The pairs of the same subject at FAR 1e-4."""
    pairs = np.flatnonzero(same)
    return Genuine(
        scores[pairs],
        np.full(len(pairs), threshold),
        scores[pairs] >= threshold,
        ("first", "second"),
        lambda i: shown.names(int(pairs[i])),
        lambda i: shown.images(int(pairs[i])),
    )


def _failures(scores: np.ndarray, same: np.ndarray, threshold: float, shown: _Shown) -> tuple[Failure, ...]:
    """The worst false rejections and acceptances at FAR 1e-4, with a face of each template."""
    rejected = np.flatnonzero(same & (scores < threshold) & (scores > verification.NO_SCORE))
    accepted = np.flatnonzero(~same & (scores >= threshold))
    rejected = rejected[np.argsort(scores[rejected], kind="stable")][:FAILURES]
    accepted = accepted[np.argsort(-scores[accepted], kind="stable")][:FAILURES]

    def failure(kind: str, pair: int) -> Failure:
        load = functools.partial(shown.images, pair)
        return Failure(kind, float(scores[pair]), threshold, shown.names(pair), load)

    return (
        *(failure(REJECTED, pair) for pair in rejected.tolist()),
        *(failure(ACCEPTED, pair) for pair in accepted.tolist()),
    )


def _shown(face: Face, image: int) -> np.ndarray:
    found = face(image)
    return np.zeros((112, 112, 3), np.uint8) if found is None else found
