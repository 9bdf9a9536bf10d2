"""The images that exported models are compared on: noise, smooth waves, real faces."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np

from ddl_plugin.errors import UserError

#: One image, a few, and more than the batch a runtime is likely to have planned for.
BATCHES = (1, 4, 33)


def random_images(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Uniform noise, uint8 (count, size, size, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def smooth_images(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Sums of a few slow waves, as smooth as faces are, uint8 (count, size, size, 3)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:size, 0:size] / size
    frequency = rng.uniform(-3, 3, (2, count, 1, 1, 3, 4))
    phase = rng.uniform(0, 2 * np.pi, (count, 1, 1, 3, 4))
    angle = (
        2 * np.pi * (frequency[0] * rows[..., None, None] + frequency[1] * columns[..., None, None]) + phase
    )
    return np.clip(127.5 + 40 * np.sin(angle).sum(axis=-1), 0, 255).astype(np.uint8)


def image_sets(size: int, real: np.ndarray | None) -> dict[str, np.ndarray]:
    """The sets of images by name, uint8 (n, size, size, 3): 'random', 'smooth' and, where given, 'real'."""
    sets = {"random": random_images(max(BATCHES), size), "smooth": smooth_images(max(BATCHES), size)}
    if real is not None:
        sets["real"] = real
    return sets


def real_images(records: str | os.PathLike, size: int = 112, count: int = max(BATCHES)) -> np.ndarray:
    """Up to `count` images spread evenly over a .rec file, uint8 (n, size, size, 3) RGB; damaged ones left out."""
    opened = _opened(records)
    return _read(opened, np.linspace(0, len(opened) - 1, count).astype(np.int64), size)


def images_of_identities(records: str | os.PathLike, size: int, count: int) -> np.ndarray:
    """One image each of up to `count` identities spread evenly over a .rec file, as `real_images` gives them."""
    opened = _opened(records)
    _, first = np.unique(opened.labels, return_index=True)
    return _read(opened, first[np.linspace(0, len(first) - 1, count).astype(np.int64)], size)


def as_input(images: np.ndarray) -> np.ndarray:
    """uint8 (n, S, S, 3) as the network takes it: float32 (n, 3, S, S)."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32)


def _opened(records: str | os.PathLike):
    from ddl_plugin.data.records import Records

    return Records(Path(records), max_damaged=1.0)  # how many may be is for whoever trains on them


def _read(opened, positions: np.ndarray, size: int) -> np.ndarray:
    from ddl_plugin.data.records import DamagedRecordError

    images = []
    for position in np.unique(positions):
        with contextlib.suppress(DamagedRecordError):
            image = opened.image(int(position))
            if image.shape != (size, size, 3):
                raise UserError(
                    f"{opened.path}: image {position}: expected {size}x{size} RGB, got shape {image.shape}"
                )
            images.append(image)
    if not images:
        raise UserError(f"{opened.path}: expected images to compare with, got none that can be read")
    return np.stack(images)
