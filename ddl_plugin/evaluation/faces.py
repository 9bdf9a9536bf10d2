"""Aligned faces that a search is made in: the images of a .rec, or image files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from ddl_plugin.data.records import Records
from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.bins import SIDE


class Faces(Protocol):
    """name: of the set; labels: int (N,), the identity of each image."""

    name: str
    labels: np.ndarray

    def image(self, i: int) -> np.ndarray:
        """uint8 (112, 112, 3) RGB. UserError for an image that cannot be read or is of another size."""

    def describe(self, i: int) -> str:
        """How messages call image i."""


class RecordFaces:
    """The images of a .rec."""

    def __init__(self, records: Records):
        self._records = records
        self.name = records.path.stem
        self.labels = records.labels

    def image(self, i: int) -> np.ndarray:
        return _checked(self._records.image(i), self.describe(i))

    def describe(self, i: int) -> str:
        return f"record {self._records.keys[i]} of {self._records.path.name}"


class FileFaces:
    """Image files below a folder. identities: the name of each image's person, str (N,)."""

    def __init__(self, name: str, root: str | os.PathLike, files: Sequence[str], identities: np.ndarray):
        self.name = name
        self._root = Path(root)
        self._files = files
        self.labels = np.unique(identities, return_inverse=True)[1]

    def image(self, i: int) -> np.ndarray:
        path = self._root / self._files[i]
        try:
            data = np.fromfile(path, np.uint8)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if data.size else None
        if pixels is None:
            raise UserError(f"{path}: expected an image, got {data.size} bytes that cannot be decoded")
        return _checked(pixels, self.describe(i))

    def describe(self, i: int) -> str:
        return self._files[i]


def _checked(pixels: np.ndarray, name: str) -> np.ndarray:
    if pixels.shape != (SIDE, SIDE, 3):
        raise UserError(
            f"{name}: expected {SIDE}x{SIDE} pixels, got {pixels.shape[1]}x{pixels.shape[0]}; align the faces first"
        )
    return pixels
