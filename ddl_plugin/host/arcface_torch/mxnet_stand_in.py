"""What the trainer takes from MXNet, over our own readers: RecordIO, and the decoding of images.

Its dataset.py and verification.py import MXNet for nothing else.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import cv2
import numpy as np

from ddl_plugin.data.record_file import HEADER, RecordFile
from ddl_plugin.data.records import read_idx


def provide() -> None:
    """Put a module `mxnet` where there is none; an MXNet that is installed is left alone."""
    if "mxnet" not in sys.modules and importlib.util.find_spec("mxnet") is None:
        for module in _modules():
            sys.modules[module.__name__] = module


class Array(np.ndarray):
    """An array with the one method of MXNet's that is used."""

    def asnumpy(self) -> np.ndarray:
        return np.array(self, subok=False, order="C")


class Header(NamedTuple):
    flag: int
    label: float | np.ndarray  # one, or `flag` of them
    id: int
    id2: int


class MXIndexedRecordIO:
    """Records by their number in the .idx; read only."""

    def __init__(self, idx_path: str, uri: str, flag: str, key_type: type = int):
        if flag != "r":
            raise ValueError(f"the stand-in for MXNet reads records only, got flag {flag!r}")
        keys, offsets = read_idx(Path(idx_path))
        self._file = RecordFile(Path(uri))
        self.keys = keys.tolist()
        self._offsets = dict(zip(self.keys, offsets.tolist(), strict=True))

    def read_idx(self, idx: int) -> bytes:
        return self._file.record(int(idx), self._offsets[int(idx)])


def unpack(record: bytes) -> tuple[Header, bytes]:
    """(header, what follows it) of a record."""
    flag, label, one, other = HEADER.unpack_from(record)
    end = HEADER.size + 4 * flag
    if flag:
        label = np.frombuffer(record, "<f4", flag, HEADER.size)
    return Header(flag, label, one, other), record[end:]


def imdecode(data: Any, **_: Any) -> Array:
    """uint8 (H, W, 3) RGB of an encoded image."""
    encoded = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else np.asarray(data, np.uint8)
    image = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise ValueError(f"{encoded.size} bytes that are no image")
    return image.view(Array)


def resize_short(image: np.ndarray, size: int, **_: Any) -> Array:
    """The image with its shorter side `size` long."""
    height, width = image.shape[:2]
    factor = size / min(height, width)
    sides = (int(width * factor + 1e-6), int(height * factor + 1e-6))
    return cv2.resize(np.asarray(image), sides, interpolation=cv2.INTER_CUBIC).view(Array)


def array(values: Any, **_: Any) -> Array:
    return np.asarray(values, np.float32).view(Array)


def transpose(data: np.ndarray, axes: tuple[int, ...]) -> Array:
    return np.transpose(data, axes).view(Array)


def flip(data: np.ndarray, axis: int) -> Array:
    return np.flip(data, axis).view(Array)


def _modules() -> list[ModuleType]:
    contents = {
        "mxnet": {},
        "mxnet.recordio": {"MXIndexedRecordIO": MXIndexedRecordIO, "unpack": unpack, "IRHeader": Header},
        "mxnet.image": {"imdecode": imdecode, "resize_short": resize_short},
        "mxnet.ndarray": {"array": array, "transpose": transpose, "flip": flip, "NDArray": Array},
    }
    modules = []
    for name, names in contents.items():
        module = ModuleType(name, "A stand-in: what arcface_torch takes from MXNet, by ddl_plugin.")
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(module).update(names)
        modules.append(module)
    top, recordio, image, ndarray = modules
    top.recordio, top.image, top.ndarray, top.nd = recordio, image, ndarray, ndarray
    return modules
