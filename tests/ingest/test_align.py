"""Alignment against insightface itself, and its detector code around a network that finds bright spots."""

import cv2
import face_detector
import numpy as np
import pytest
from insightface.utils.face_align import arcface_dst, norm_crop

from ddl_plugin.errors import UserError
from ddl_plugin.ingest.align import crop, main_face, open_detector


def photo(seed=0, side=256):
    noise = np.random.default_rng(seed).integers(0, 120, (side, side, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


def moved(scale, degrees, shift):
    """InsightFace's landmarks of an aligned face, in a photo where it lies turned, scaled and elsewhere."""
    turn = np.radians(degrees)
    matrix = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return (arcface_dst @ matrix.T + shift).astype(np.float32), np.c_[matrix, shift]


@pytest.mark.parametrize(("scale", "degrees"), [(1.0, 0), (1.6, 20), (0.5, -35)])
def test_a_face_comes_back_from_a_photo(scale, degrees):
    face = cv2.resize(photo(1, 28), (112, 112), interpolation=cv2.INTER_CUBIC)
    landmarks, matrix = moved(scale, degrees, np.array([90.0, 60.0]))
    image = cv2.warpAffine(face, matrix, (320, 320), flags=cv2.INTER_AREA)
    found, side = crop(image, landmarks)
    assert found.shape == (112, 112, 3) and found.dtype == np.uint8
    assert np.array_equal(found, norm_crop(image, landmarks))
    assert side == pytest.approx(112 * scale, rel=1e-4)
    inside = np.s_[25:87, 25:87]
    assert np.abs(found[inside].astype(int) - face[inside]).mean() < 3


@pytest.mark.parametrize(
    "landmarks", [np.zeros((5, 2)), np.full((5, 2), 50.0), np.full((5, 2), np.nan), np.full((5, 2), np.inf)]
)
def test_landmarks_of_no_face(landmarks):
    assert crop(photo(), landmarks.astype(np.float32)) is None


def test_the_main_face_is_large_and_central():
    shape = (200, 300, 3)
    corner = [0, 0, 100, 100]
    centre = [110, 60, 190, 140]
    small = [145, 95, 155, 105]
    assert main_face(np.array([corner, centre, small], np.float32), shape) == 1
    assert main_face(np.array([centre, corner], np.float32), shape) == 0
    # Larger wins where it is not too far away: 150^2 - 2 (75^2 + 25^2) > 80^2 > 130^2 - 2 (85^2 + 35^2).
    assert main_face(np.array([centre, [0, 0, 150, 150]], np.float32), shape) == 1
    assert main_face(np.array([centre, [0, 0, 130, 130]], np.float32), shape) == 0


def test_insightface_detects_through_its_own_code(tmp_path):
    detector = open_detector(face_detector.save(tmp_path / "spots.onnx"))
    image = photo()
    boxes, landmarks = detector(image)
    assert boxes.shape == (0, 4) and landmarks.shape == (0, 5, 2)
    image[64:96, 128:160] = 255  # cell (2, 4) of 8x8 cells of 32 pixels
    boxes, landmarks = detector(image)
    scale = 256 / face_detector.SIDE
    assert boxes == pytest.approx(np.array([[128 - 64, 64 - 64, 128 + 64, 64 + 64]]), abs=1e-3)
    assert landmarks == pytest.approx(np.array([128, 64]) + face_detector.TEMPLATE[None] * scale, abs=1e-3)


def test_files_that_are_no_detector(tmp_path, save_pooling_model):
    with pytest.raises(UserError, match=r"--detector: expected the \.onnx of an SCRFD.*none\.onnx"):
        open_detector(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(UserError, match=r"--detector: .*text\.onnx cannot be opened \(.*\); copy it again"):
        open_detector(tmp_path / "text.onnx")
    save_pooling_model(tmp_path / "embedder.onnx", 127.5)
    with pytest.raises(UserError, match=r"expected a detector that gives five landmarks, got .*embedder"):
        open_detector(tmp_path / "embedder.onnx")
    face_detector.save(tmp_path / "boxes.onnx", landmarks=False)
    with pytest.raises(UserError, match=r"expected a detector that gives five landmarks, got .*boxes"):
        open_detector(tmp_path / "boxes.onnx")
