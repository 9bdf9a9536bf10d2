"""Every probe against every gallery image, in blocks: ranks, rates and distributions without holding all scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ddl_plugin.evaluation.streams import Rates
from ddl_plugin.evaluation.tally import Tally

_BLOCK = 1 << 20  # scores of one matrix product: 4 MiB


@dataclass(frozen=True)
class Search:
    """What was found.

    ranks: int64 (P,), 1 is best; 0: the probe's identity is not in the gallery.
    own, other: int64 (P,), the gallery image most like the probe, of its own identity (-1: there is none) and of all
    others; own_score, other_score: float32 (P,), -inf where there is none.
    rates: of all pairs, probe and gallery image; positives are those of one identity.
    """

    ranks: np.ndarray
    own: np.ndarray
    own_score: np.ndarray
    other: np.ndarray
    other_score: np.ndarray
    rates: Rates


def search(
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    probes: np.ndarray,
    probe_labels: np.ndarray,
    fars: Sequence[float],
) -> Search:
    """Compare every probe with every gallery image.

    A probe's score for an identity is its best over that identity's gallery images. Its rank is 1 + the number
    of other identities whose score is as high or higher: a tie counts as wrong.

    Args:
        gallery, probes: (G, D) and (P, D) float32, unit length.
        gallery_labels, probe_labels: (G,) and (P,) identities.
        fars: for `rates`.

    Memory: some blocks of 4 MiB, beside what is given and returned; 1 MB for each kind of scores. The scores are
    computed twice.

    Raises:
        UserError: where there are no positives or no negatives.
    """
    order = np.argsort(gallery_labels, kind="stable")
    blocks = _Blocks(gallery[order], gallery_labels[order], probes, probe_labels)
    identities, starts = np.unique(gallery_labels[order], return_index=True)
    column = np.minimum(np.searchsorted(identities, probe_labels), len(identities) - 1)
    known = identities[column] == probe_labels

    negatives, positives = Tally(name="negatives"), Tally(name="positives")
    ranks = np.zeros(len(probes), np.int64)
    own, other = (np.full(len(probes), -1, np.int64) for _ in range(2))
    own_score, other_score = (np.full(len(probes), -np.inf, np.float32) for _ in range(2))
    for part, scores, same in blocks.compared():
        positives.add(scores[same])
        negatives.add(scores[~same])
        best = np.maximum.reduceat(scores, starts, axis=1)
        right = np.take_along_axis(best, column[part, None], axis=1)
        # The right identity itself is counted by >=, and stands for the 1 of "1 +".
        ranks[part] = np.where(known[part], np.count_nonzero(best >= right, axis=1), 0)
        for kind, place, value in ((same, own, own_score), (~same, other, other_score)):
            masked = np.where(kind, scores, np.float32(-np.inf))
            at = masked.argmax(axis=1)
            value[part] = np.take_along_axis(masked, at[:, None], axis=1)[:, 0]
            place[part] = np.where(np.isfinite(value[part]), order[at], -1)
    rates = Rates(negatives, positives, blocks, fars)
    return Search(ranks, own, own_score, other, other_score, rates)


@dataclass(frozen=True)
class _Blocks:
    """Scores of some probes at a time; gallery: sorted by label."""

    gallery: np.ndarray
    gallery_labels: np.ndarray
    probes: np.ndarray
    probe_labels: np.ndarray

    def compared(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """(which probes, float32 scores (n, G), bool (n, G): the same identity)."""
        rows = max(1, _BLOCK // len(self.gallery))
        for start in range(0, len(self.probes), rows):
            part = slice(start, start + rows)
            same = self.probe_labels[part, None] == self.gallery_labels
            yield part, self.probes[part] @ self.gallery.T, same

    def __call__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(negatives, positives) of each block, the same ones each time."""
        for _, scores, same in self.compared():
            yield scores[~same], scores[same]
