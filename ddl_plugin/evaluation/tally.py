"""Cosines in any number, kept as what can be said of them all: their moments, and how many lie in each cell of a grid.

A search of 20,000 probes in a gallery of 5,000 has 10^8 scores. Their tally takes 1 MB, and from it follow the mean,
the standard deviation, the histograms of the paper and every point of the ROC at a node of the grid. What lies
between two nodes (the exact threshold of a FAR) is found by looking at the scores of that one cell again; see
`streams`.
"""

from __future__ import annotations

import numpy as np

from ddl_plugin.errors import UserError

CELLS = 65536  # of [-1, 1]; a cell has its lower node, not the upper one; 1 has a cell of its own
ROUNDING = 1e-3  # how far beyond [-1, 1] a cosine of low-precision embeddings may lie
_CHUNK = 1 << 18  # scores at a time: temporary arrays stay within the processor's caches


def cells_of(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cell of each score, int64 0..CELLS, and how far towards the next node it lies, float64 0 <= share < 1.

    A score has a higher cell only where it is higher. Scores beyond [-1, 1] are taken for its ends.
    """
    place = scores.astype(np.float64)
    np.clip(place, -1.0, 1.0, out=place)
    place += 1.0
    place *= CELLS / 2
    cell = place.astype(np.int64)
    place -= cell
    return cell, place


def node(cell: int | np.ndarray) -> float | np.ndarray:
    """The lowest cosine of a cell."""
    return cell * (2.0 / CELLS) - 1.0


class Tally:
    """size: how many scores; counts: int64 (CELLS + 1,) of each cell; low, high: the extremes.

    Raises UserError for scores that are not finite, and for those that are no cosines (`check`).
    """

    def __init__(self, scores: np.ndarray | None = None, name: str = "scores"):
        self.name = name
        self.size = 0
        self.low, self.high = np.inf, -np.inf
        self.counts = np.zeros(CELLS + 1, np.int64)
        self._shares = np.zeros(CELLS + 1)
        self._mean = self._squares = 0.0  # sum of squared differences from the mean
        if scores is not None:
            self.add(scores)

    def __len__(self) -> int:
        return self.size

    def add(self, scores: np.ndarray) -> None:
        """Count these too; any shape, float32 or float64."""
        scores = np.asarray(scores).ravel()
        for start in range(0, scores.size, _CHUNK):
            self._add(scores[start : start + _CHUNK])

    def _add(self, chunk: np.ndarray) -> None:
        low, high = float(chunk.min()), float(chunk.max())
        if not (np.isfinite(low) and np.isfinite(high)):  # NaN is passed on by min
            bad = chunk.size - int(np.count_nonzero(np.isfinite(chunk)))
            raise UserError(f"{self.name}: expected finite scores, got {bad} of {chunk.size} that are not")
        self.low, self.high = min(self.low, low), max(self.high, high)
        cell, share = cells_of(chunk)
        self.counts += np.bincount(cell, minlength=CELLS + 1)
        self._shares += np.bincount(cell, share, CELLS + 1)
        # Means and sums of squares of two parts joined (Chan et al.): no cancellation, whatever the order.
        mean = float(chunk.mean(dtype=np.float64))
        squares = float(np.square(chunk - mean, dtype=np.float64).sum())
        total, away = self.size + chunk.size, mean - self._mean
        self._squares += squares + away**2 * self.size * chunk.size / total
        self._mean += away * chunk.size / total
        self.size = total

    def mean(self, axis: None = None, dtype: None = None, out: None = None) -> float:
        """Their mean. The arguments are those that numpy.mean passes on: a figure may ask for either."""
        self.check()
        return self._mean

    def std(self) -> float:
        """The population's standard deviation."""
        self.check()
        return float(np.sqrt(self._squares / self.size))

    def on_nodes(self) -> np.ndarray:
        """The scores shared out linearly between the two nodes around each: float64 (CELLS + 1,), sum `size`."""
        self.check()
        weights = self.counts - self._shares
        weights[1:] += self._shares[:-1]
        return weights

    def accepted(self) -> np.ndarray:
        """How many scores are as high as the lower node of each cell: int64 (CELLS + 1,), falling."""
        return np.cumsum(self.counts[::-1])[::-1]

    def check(self) -> None:
        """UserError where there is no score, or one that is no cosine."""
        if not self.size:
            raise UserError(f"{self.name}: expected at least one score, got none")
        if self.low < -1 - ROUNDING or self.high > 1 + ROUNDING:
            raise UserError(
                f"{self.name}: expected cosines in [-1, 1], got {self.low:g}..{self.high:g}; normalise the embeddings"
            )
