"""The images of a verification set (.bin) as `estimate_pose` takes the records of a .rec: numbered from 0."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ddl_plugin.data.records import DamagedRecordError
from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.bins import fingerprint, load_bin


class BinImages:
    """keys: int64, 0 .. 2 pairs - 1, the image's number in the .bin and the `record` of its row in a table;
    damaged: none that opening leaves out.

    Raises UserError as `load_bin` does.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._set = load_bin(path)
        self.keys = np.arange(2 * len(self._set))
        self.damaged = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self.keys)

    def image(self, i: int) -> np.ndarray:
        """Image i, uint8 (112, 112, 3) RGB. DamagedRecordError where it cannot be read or has another size."""
        try:
            return self._set.images(i, i + 1)[0]
        except UserError as error:
            raise DamagedRecordError(str(error), i) from error

    def fingerprint(self) -> str:
        return fingerprint(self.path)
