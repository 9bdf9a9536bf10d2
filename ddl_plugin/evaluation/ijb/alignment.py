"""A face cut out by five landmarks as insightface.utils.face_align.norm_crop does it, without insightface."""

from __future__ import annotations

import cv2
import numpy as np

SIDE = 112

#: Where the eyes, the nose and the corners of the mouth come to lie, x and y in pixels.
_PLACES = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
    np.float32,
)

_SMALLEST = 1.0  # pixels: landmarks that all lie closer together are no face
_FARTHEST = 1e6  # pixels: no picture is so large


def usable(landmarks: np.ndarray) -> np.ndarray:
    """Which landmarks (n, 5, 2) can be aligned: places in a picture, and not all the same one. bool (n,)."""
    with np.errstate(invalid="ignore"):
        spread = (landmarks.max(axis=1) - landmarks.min(axis=1)).max(axis=1)
        return (np.abs(landmarks) <= _FARTHEST).all(axis=(1, 2)) & (spread >= _SMALLEST)


def similarity(landmarks: np.ndarray) -> np.ndarray:
    """The rotation, scale and shift, float64 (2, 3), that bring (5, 2) landmarks nearest to their places.

    Least squares, Umeyama 1991, in single precision where insightface has it: OpenCV places pixels to 1/32, so that
    the last bits show in some.
    """
    points = np.asarray(landmarks, np.float32)
    centre, aim = points.mean(axis=0), _PLACES.mean(axis=0)
    source, target = points - centre, _PLACES - aim
    covariance = target.T @ source / len(points)
    u, sizes, v = np.linalg.svd(covariance)
    signs = np.array([1.0, -1.0 if np.linalg.det(covariance) < 0 else 1.0])  # no mirror image
    turn = u @ np.diag(signs) @ v
    scale = 1.0 / source.var(axis=0).sum() * (sizes @ signs)
    return np.column_stack((scale * turn, aim - scale * (turn @ centre)))


def aligned(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """The face in an image uint8 (H, W, 3) by its usable landmarks (5, 2): uint8 (112, 112, 3), black outside."""
    return cv2.warpAffine(image, similarity(landmarks), (SIDE, SIDE), borderValue=0.0)
