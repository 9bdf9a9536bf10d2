"""TAR at FAR, EER and ROC of scores that are never all in memory, exactly.

Scores come in blocks, and can be made again. The first pass counts them (`tally`), which says in which cell of the
grid each threshold lies; the second collects the scores of these few cells alone. Every figure is the one that
`metrics` gives for the whole arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.metrics import TarAtFar, allowed, thin
from ddl_plugin.evaluation.tally import CELLS, Tally, cells_of

#: blocks() -> (negatives, positives), float arrays of one precision; the same scores each time it is called.
Blocks = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]


class _Side:
    """The scores of one kind: counted all, and known one by one in the wanted cells."""

    def __init__(self, tally: Tally, wanted: np.ndarray):
        self._above = np.append(tally.accepted(), 0)
        self._wanted = wanted
        self._parts: list[np.ndarray] = []
        self.size = tally.size
        self.scores = np.empty(0)

    def collect(self, scores: np.ndarray) -> None:
        self._parts.append(scores[self._wanted[cells_of(scores)[0]]])

    def close(self, dtype: np.dtype) -> None:
        self.scores = np.sort(np.concatenate([np.empty(0, dtype), *self._parts]))
        self._parts = []
        self._cells = cells_of(self.scores)[0]

    def in_cell(self, cell: int) -> np.ndarray:
        """The scores of a wanted cell, ascending."""
        begin, end = np.searchsorted(self._cells, [cell, cell + 1])
        return self.scores[begin:end]

    def accepted(self, threshold: np.ndarray | float, cell: int) -> np.ndarray:
        """The share that is >= threshold, which lies in this wanted cell or just above its last score."""
        inside = self.in_cell(cell)
        return (self._above[cell + 1] + inside.size - np.searchsorted(inside, threshold)) / self.size


class Rates:
    """What the two passes gave; see the module.

    negatives, positives: their tallies.
    """

    def __init__(self, negatives: Tally, positives: Tally, blocks: Blocks, fars: Sequence[float]):
        """negatives, positives: made of the scores of `blocks`. fars: requested FARs, each in 0..1."""
        self.negatives, self.positives = negatives, positives
        negatives.check()
        positives.check()
        self._fars = [float(far) for far in fars]
        if not all(0 <= far <= 1 for far in self._fars):
            raise UserError(f"far: expected rates in 0..1, got {fars!r}")
        self._below = np.cumsum(negatives.counts)
        # Place in ascending order of the largest negative that each FAR must reject; -1: it accepts all.
        self._ranks = [negatives.size - 1 - allowed(far, negatives.size) for far in self._fars]
        self._cells = [self._cell(rank) for rank in self._ranks]
        self._beside = self._cells_of_eer()
        wanted = np.zeros(CELLS + 1, bool)
        wanted[[cell for cell in self._cells if cell >= 0] + self._beside] = True
        self._negative, self._positive = _Side(negatives, wanted), _Side(positives, wanted)
        self._dtype = np.dtype(np.float32)
        for some_negatives, some_positives in blocks():
            self._dtype = np.result_type(some_negatives, some_positives)
            self._negative.collect(some_negatives)
            self._positive.collect(some_positives)
        self._negative.close(self._dtype)
        self._positive.close(self._dtype)

    def _cell(self, rank: int) -> int:
        return -1 if rank < 0 else int(np.searchsorted(self._below, rank, side="right"))

    def tar_at_far(self) -> TarAtFar:
        """`metrics.tar_at_far` of the requested FARs."""
        points = [self._point(rank, cell) for rank, cell in zip(self._ranks, self._cells, strict=True)]
        return TarAtFar(*(np.array(values, np.float64) for values in zip(*points, strict=True)))

    def _point(self, rank: int, cell: int) -> tuple[float, float, float]:
        if rank < 0:
            return 1.0, 1.0, min(self.negatives.low, self.positives.low)
        before = int(self._below[cell - 1]) if cell else 0
        largest_rejected = self._negative.in_cell(cell)[rank - before]
        threshold = np.nextafter(largest_rejected, np.array(np.inf, self._dtype))
        tar, far = (side.accepted(threshold, cell) for side in (self._positive, self._negative))
        return float(tar), float(far), float(threshold)

    def _cells_of_eer(self) -> list[int]:
        """Cells that hold the scores next to where FAR and FRR cross: of either kind, below, there and above."""
        far = self.negatives.accepted() / self.negatives.size
        frr = 1.0 - self.positives.accepted() / self.positives.size
        crossed = int(np.argmax(far < frr)) if (far < frr).any() else CELLS + 1  # the first such node
        cells = set()
        for counts in (self.negatives.counts, self.positives.counts):
            filled = np.flatnonzero(counts)
            at = int(np.searchsorted(filled, crossed))
            # The lowest score of a cell has the rates of its node: the last cell below `crossed`, which is the one
            # in which they cross where it is filled, has a score before they cross, and the next one after.
            cells.update(filled[max(at - 1, 0) : at + 1].tolist())
        return sorted(cells)

    def eer(self) -> float:
        """`metrics.eer`."""
        best = (1.0, 1.0)  # above the highest score: FAR 0, FRR 1
        for cell in self._beside:
            for side in (self._negative, self._positive):
                thresholds = np.unique(side.in_cell(cell))
                far = self._negative.accepted(thresholds, cell)
                frr = 1.0 - self._positive.accepted(thresholds, cell)
                # Rates are multiples of 1/n: differences below 1e-12 are rounding.
                apart = np.round(np.abs(far - frr), 12)
                best = min([best, *zip(apart.tolist(), (far + frr).tolist(), strict=True)])
        return best[1] / 2

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Points (FAR, TAR) of the ROC, rising, at most 2,000: float64 (m,) each."""
        return tally_curve(self.negatives, self.positives)


def tally_curve(negatives: Tally, positives: Tally) -> tuple[np.ndarray, np.ndarray]:
    """(FAR, TAR) at the nodes of the grid, from nothing accepted to everything; at most 2,000 points."""
    far = np.append(negatives.accepted(), 0)[::-1] / negatives.size
    tar = np.append(positives.accepted(), 0)[::-1] / positives.size
    return thin(far, tar)


def tallied(blocks: Blocks) -> tuple[Tally, Tally]:
    """The first pass, where nothing else is to be made of the scores: tallies of negatives and positives."""
    negatives, positives = Tally(name="negatives"), Tally(name="positives")
    for some_negatives, some_positives in blocks():
        negatives.add(some_negatives)
        positives.add(some_positives)
    return negatives, positives
