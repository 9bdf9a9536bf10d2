import numpy as np
import pytest

from ddl_plugin.evaluation.ijb.alignment import aligned, similarity, usable


def cases(count, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        image = rng.integers(0, 256, (int(rng.integers(60, 400)), int(rng.integers(60, 400)), 3), np.uint8)
        centre = rng.uniform(0, 1, 2) * image.shape[1::-1]
        yield image, (centre + rng.normal(0, rng.uniform(2, 60), (5, 2))).astype(np.float32)


def test_the_same_pixels_as_insightface():
    face_align = pytest.importorskip("insightface.utils.face_align")
    different = 0
    for image, landmarks in cases(60):
        expected = face_align.norm_crop(image, landmarks, 112)
        np.testing.assert_allclose(
            similarity(landmarks), face_align.estimate_norm(landmarks), rtol=1e-6, atol=1e-5
        )
        different += (aligned(image, landmarks) != expected).any()
    assert different == 0


def test_landmarks_in_their_places_leave_a_face_as_it_is():
    places = [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
    np.testing.assert_allclose(similarity(np.array(places)), [[1, 0, 0], [0, 1, 0]], atol=1e-4)


def test_turned_and_scaled_landmarks_are_turned_back():
    rng = np.random.default_rng(1)
    places = np.array(
        [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
    )
    for _ in range(20):
        scale, angle = rng.uniform(0.2, 5), rng.uniform(-np.pi, np.pi)
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        shift = rng.uniform(-300, 300, 2)
        matrix = similarity(places @ turn.T + shift)
        np.testing.assert_allclose(matrix[:, :2] @ turn, np.eye(2), atol=1e-6)
        np.testing.assert_allclose(matrix[:, :2] @ shift + matrix[:, 2], 0, atol=1e-3)


def test_landmarks_that_are_no_faces_are_told():
    good = np.array([[30, 50], [70, 50], [50, 70], [35, 90], [65, 90]], np.float32)
    nan, point, tiny = good.copy(), np.full((5, 2), 7, np.float32), good / 100
    nan[2, 1] = np.nan
    huge = good.copy()
    huge[4, 0] = -1e30
    assert usable(np.stack([good, nan, point, tiny, huge])).tolist() == [True, False, False, False, False]
