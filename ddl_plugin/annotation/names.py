"""The names file of a data set: which record is which image file, so that tables by file name can be joined.

One line per record, tab-separated: record, label, name; or record, label, identity, name.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddl_plugin.data.delimited import read_table
from ddl_plugin.errors import UserError
from ddl_plugin.files import reading

_AT_A_TIME = 1 << 16  # names that are Python objects
_SUFFIXES = (b".jpg", b".jpeg", b".png", b".bmp", b".webp", b".ppm", b".pgm", b".tif", b".tiff")


@dataclass(frozen=True)
class Names:
    """keys, labels: int64 (N,); names: bytes (N,), paths as the file has them; identities: bytes (N,), each
    record's identity, from the file or else the folder in its name; None where some record has neither."""

    path: Path
    keys: np.ndarray
    labels: np.ndarray
    names: np.ndarray
    identities: np.ndarray | None

    @classmethod
    def load(cls, path: str | os.PathLike) -> Names:
        path = Path(path)
        with reading(path), path.open("rb") as file:
            cells = file.readline(1 << 16).count(b"\t") + 1
        columns = ("record", "label", "identity", "name") if cells == 4 else ("record", "label", "name")
        table = read_table(
            path, names=columns, delimiter="\t", quotes=False,
            whole=("record", "label"), texts=("identity", "name"),
        )  # fmt: skip
        if not len(table["record"]):
            raise UserError(f"{path}: expected a line for each record, got an empty file")
        identities = table.get("identity")
        if identities is None and (np.char.count(table["name"], b"/") > 0).all():
            identities = _by_name(lambda name: name.rsplit(b"/", 2)[-2], table["name"])
        return cls(path, table["record"], table["label"], table["name"], identities)

    def find(self, names: np.ndarray, listed_in: str | os.PathLike) -> np.ndarray:
        """Row of each of `names`, bytes (n,): int64 (n,), -1 where there is none.

        Names are compared without the suffix of an image, by as many folders as all of them have on both sides:
        'n000001/0001_01' is 'train/n000001/0001_01.jpg'.

        Raises:
            UserError: where no name is found, and where one stands for several records.
        """
        if not len(names):
            return np.empty(0, np.int64)
        depth = int(min(np.char.count(self.names, b"/").min(), np.char.count(names, b"/").min())) + 1
        own = _by_name(lambda name: _tail(name, depth), self.names)
        order = np.argsort(own, kind="stable")
        own = own[order]
        asked = _by_name(lambda name: _tail(name, depth), names)
        at = np.searchsorted(own, asked)
        there = own[np.minimum(at, len(own) - 1)] == asked
        if not there.any():
            raise UserError(
                f"{listed_in}: expected names of images in {self.path}, such as {_shown(self.names[0])}, got "
                f"none of them but {_shown(names[0])}; give the names file of this data set"
            )
        several = np.flatnonzero(there & (np.searchsorted(own, asked, "right") > at + 1))
        if several.size:
            first = at[several[0]]
            raise UserError(
                f"{listed_in}: {_shown(names[several[0]])} stands for more than one record of {self.path} "
                f"({self.keys[order[first]]} and {self.keys[order[first + 1]]}); name the images with their folders"
            )
        return np.where(there, order[np.minimum(at, len(own) - 1)], -1)


def _tail(name: bytes, depth: int) -> bytes:
    stem, dot, suffix = name.rpartition(b".")
    if (dot + suffix).lower() in _SUFFIXES:
        name = stem
    return name if not depth else b"/".join(name.split(b"/")[-depth:])


def _by_name(change, names: np.ndarray) -> np.ndarray:
    parts = [
        np.array([change(name) for name in names[start : start + _AT_A_TIME].tolist()], "S")
        for start in range(0, len(names), _AT_A_TIME)
    ]
    return np.concatenate(parts)


def _shown(name: bytes) -> str:
    return repr(name.decode("utf-8", "replace"))
