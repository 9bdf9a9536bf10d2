"""Makes an image hard: random degradations in the order in which a camera applies them."""

from __future__ import annotations

import cv2
import numpy as np

from ddl_plugin.settings import Degradation

_GREY = 127


def degrade(image: np.ndarray, degradation: Degradation, rng: np.random.Generator) -> np.ndarray:
    """`image` darkened, blurred, shrunk and enlarged, occluded and JPEG-compressed, where asked for.

    image: uint8 (H, W, 3) RGB, left as it is. Returns the same shape and type; the image itself when nothing
    is asked for. Takes a number of draws from `rng` that depends on the settings only (and on which of `one_of` is
    drawn), so that images drawn one after the other do not influence each other.
    """
    if degradation.one_of is not None:
        degradation = degradation.one_of[int(rng.random() * len(degradation.one_of))]
    # random(), not integers() or uniform pixels: those may draw again, depending on what they drew.
    if degradation.darken is not None:
        image = _darken(image, _between(degradation.darken, rng.random()))
    if degradation.blur is not None:
        image = cv2.GaussianBlur(image, (0, 0), _between(degradation.blur, rng.random()))
    if degradation.size is not None:
        image = _shrink(image, _whole_between(degradation.size, rng.random()))
    if degradation.occlude is not None:
        side, row, column = rng.random(3)
        image = _occlude(image, _between(degradation.occlude, side), row, column)
    if degradation.jpeg is not None:
        image = _compress(image, _whole_between(degradation.jpeg, rng.random()))
    return image


def _between(bounds: tuple[float, float], u: float) -> float:
    """Uniform in [low, high) for u in [0, 1)."""
    low, high = bounds
    return low + u * (high - low)


def _whole_between(bounds: tuple[int, int], u: float) -> int:
    """Uniform among low, low + 1, ... high for u in [0, 1)."""
    low, high = bounds
    return int(low + u * (int(high) - low + 1))


def _darken(image: np.ndarray, factor: float) -> np.ndarray:
    return (image * np.float32(factor) + np.float32(0.5)).astype(np.uint8)


def _shrink(image: np.ndarray, side: int) -> np.ndarray:
    """Down to side x side by area averages, up again by cubic interpolation."""
    height, width = image.shape[:2]
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def _occlude(image: np.ndarray, fraction: float, row: float, column: float) -> np.ndarray:
    """A grey square with `fraction` of the shorter side, wholly inside the image; row, column in [0, 1)."""
    height, width = image.shape[:2]
    side = max(round(fraction * min(height, width)), 1)
    top, left = int(row * (height - side + 1)), int(column * (width - side + 1))
    image = image.copy()
    image[top : top + side, left : left + side] = _GREY
    return image


def _compress(image: np.ndarray, quality: int) -> np.ndarray:
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
