"""Faces aligned to 112x112 as InsightFace does it, by five landmarks that are given or found by its detectors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import numpy as np

from ddl_plugin.errors import UserError

SIDE = 112


class Detector(Protocol):
    """Finds faces: boxes (n, 4) x1, y1, x2, y2 and landmarks (n, 5, 2) x, y of a uint8 (H, W, 3) BGR image."""

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


def require_insightface() -> None:
    """UserError where insightface, an optional dependency, is not installed."""
    try:
        import insightface.utils.face_align  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--align: needs insightface, which cannot be imported ({error}); pip install insightface==2.1"
        ) from error


def crop(image: np.ndarray, landmarks: np.ndarray) -> tuple[np.ndarray, float] | None:
    """The face with these landmarks (5, 2), and the side of the crop in pixels of `image`.

    uint8 (112, 112, 3), through insightface.utils.face_align. None for landmarks that are no face's.
    """
    from insightface.utils.face_align import norm_crop2

    # Five times the same point has no scale; insightface would warp by NaN.
    if not np.isfinite(landmarks).all() or np.ptp(landmarks, axis=0).max() < 1e-3:
        return None
    face, matrix = norm_crop2(image, landmarks.astype(np.float32), SIDE)
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if not np.isfinite(matrix).all() or scale == 0:
        return None
    return face, SIDE / scale


def main_face(boxes: np.ndarray, shape: tuple[int, ...]) -> int:
    """The face that an image is of: large and central, by InsightFace's rule, area - 2 distance^2 (pixels)."""
    height, width = shape[:2]
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    dx = (boxes[:, 0] + boxes[:, 2]) / 2 - width / 2
    dy = (boxes[:, 1] + boxes[:, 3]) / 2 - height / 2
    return int(np.argmax(area - 2 * (dx**2 + dy**2)))


def open_detector(path: str | os.PathLike) -> Detector:
    """An SCRFD or RetinaFace .onnx through insightface.model_zoo. UserError for a file that is none."""
    require_insightface()
    return _InsightFaceDetector(Path(path))


class _InsightFaceDetector:
    def __init__(self, path: Path):
        if path.suffix != ".onnx" or not path.is_file():
            raise UserError(
                f"--detector: expected the .onnx of an SCRFD or RetinaFace detector, got {path}; InsightFace's "
                "packages hold one, such as det_10g.onnx"
            )
        import onnxruntime
        from insightface.model_zoo import get_model

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # a worker process is one of many
        options.log_severity_level = 3
        try:
            self._model = get_model(str(path), sess_options=options)
        except Exception as error:  # ONNX Runtime has many
            raise UserError(
                f"--detector: {path} cannot be opened ({str(error).splitlines()[0]}); copy it again"
            ) from error
        if getattr(self._model, "taskname", None) != "detection" or not getattr(
            self._model, "use_kps", False
        ):
            raise UserError(
                f"--detector: expected a detector that gives five landmarks, got {path}, which is none; "
                "InsightFace's packages hold one, such as det_10g.onnx"
            )
        self._model.prepare(0)

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        boxes, landmarks = self._model.detect(image)
        return boxes[:, :4], landmarks
