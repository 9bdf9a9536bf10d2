"""One image as the network is to see it: decoded, and of the right size."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

from ddl_plugin.data.records import DamagedRecordError, Records

#: (H, W, C) of every image: InsightFace's alignment.
SHAPE = (112, 112, 3)


def load_face(records: Records, position: int) -> np.ndarray:
    """The image at `position`: uint8 (112, 112, 3) RGB. `DamagedRecordError` for an image of another size too."""
    image = records.image(position)
    require_face(image, records.path, int(records.keys[position]))
    return image


def require_face(image: np.ndarray, path: Path, key: int) -> None:
    """`DamagedRecordError` unless the `image` of record `key` is of the right size."""
    if image.shape != SHAPE:
        height, width = image.shape[:2]
        raise DamagedRecordError(
            f"{path}: record {key}: expected an image of 112x112, got {width}x{height}; "
            "align and crop the faces to 112x112 before writing the records",
            key,
        )


def readable_faces(records: Records, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Those of `positions` whose images can be read, and the images: uint8 (n, 112, 112, 3) RGB."""
    good, images = [], []
    for position in positions.tolist():
        with contextlib.suppress(DamagedRecordError):
            images.append(load_face(records, position))
            good.append(position)
    return np.array(good, np.int64), np.array(images, np.uint8).reshape(-1, *SHAPE)
