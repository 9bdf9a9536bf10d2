"""The random numbers with which rows are augmented: pure functions of (seed, step, row)."""

from __future__ import annotations

import threading

import numpy as np

_AUGMENTATION = 0x6175676D  # keeps these random numbers apart from the sampler's of the same seed
_PIXELS, _SPARES = range(2)  # what a stream is for; of spares there is one a try


class RowRandom(threading.local):
    """Generators for the rows of a batch. May be shared by threads, each of which has a generator of its
    own, and pickled.

    first_row, whole_rows: where the rows stand in the batch of all machines, and how many rows that has; a
    row's numbers are those of its place in the whole.
    """

    def __init__(self, seed: int, first_row: int, whole_rows: int):
        self._made_of = seed, first_row, whole_rows
        key = np.random.SeedSequence([seed, _AUGMENTATION]).generate_state(2, np.uint64)
        self._first_row = first_row
        self._whole_rows = whole_rows
        self._bits = np.random.Philox(key=key)
        self._generator = np.random.Generator(self._bits)
        self._fresh = self._bits.state

    def __reduce__(self):
        return RowRandom, self._made_of

    def pixels(self, step: int, row: int) -> np.random.Generator:
        """The generator that degrades `row`; it holds until this thread's next call."""
        return self._at(step, self._first_row + row, _PIXELS)

    def spare(self, step: int, row: int, attempt: int) -> np.random.Generator:
        """The generator that chooses another image for `row`, the `attempt`th time, from 0."""
        return self._at(step, self._first_row + row, _SPARES + attempt)

    def mirrored(self, step: int, rows: int) -> np.ndarray:
        """Which rows are mirrored, each with probability 1/2: bool (rows,)."""
        draws = self._at(step, self._whole_rows, _PIXELS).random(self._first_row + rows)
        return draws[self._first_row :] < 0.5

    def _at(self, step: int, row: int, stream: int) -> np.random.Generator:
        # Setting the state takes a tenth of the time of making a generator.
        self._fresh["state"]["counter"][:] = (0, stream, row, step)
        self._bits.state = self._fresh
        return self._generator
