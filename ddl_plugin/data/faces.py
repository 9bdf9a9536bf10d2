"""One image as the network is to see it: decoded, and of the right size."""

from __future__ import annotations

import numpy as np

from ddl_plugin.data.records import Records
from ddl_plugin.errors import UserError

#: (H, W, C) of every image: InsightFace's alignment.
SHAPE = (112, 112, 3)


def load_face(records: Records, position: int) -> np.ndarray:
    """The image at `position`: uint8 (112, 112, 3) RGB. `UserError` for an image of another size."""
    image = records.image(position)
    if image.shape != SHAPE:
        height, width = image.shape[:2]
        raise UserError(
            f"{records.path}: record {records.keys[position]}: expected an image of 112x112, got "
            f"{width}x{height}; align and crop the faces to 112x112 before writing the records"
        )
    return image
