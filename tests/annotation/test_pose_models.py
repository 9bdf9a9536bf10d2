"""Head-pose models: recognised by their shapes, run as they were trained, of one mind about signs."""

import cv2
import numpy as np
import pytest
from pose_networks import (
    WEIGHTS,
    expected_angles,
    save_batch_mean,
    save_fsanet,
    save_landmarks,
    save_other,
)

from ddl_plugin.annotation import pose_models
from ddl_plugin.annotation.pose_models import open_models
from ddl_plugin.data.records import Records
from ddl_plugin.errors import UserError
from ddl_plugin.files import sha256

DEGREE = np.pi / 180


def pictures(count, side=112, seed=0):
    """uint8 RGB, smooth enough that resizing means something."""
    rng = np.random.default_rng(seed)
    return [cv2.resize(rng.integers(0, 256, (9, 9, 3), np.uint8), (side, side)) for _ in range(count)]


def bgr(images):
    return [np.ascontiguousarray(image[:, :, ::-1]) for image in images]


@pytest.mark.parametrize("batch", [1, 4, "n"])
def test_fsanet_gets_the_face_as_it_was_trained(tmp_path, batch):
    images = [*pictures(10), *pictures(1, side=40)]
    [model] = open_models([save_fsanet(tmp_path / "a.onnx", batch=batch)])
    angles = model(bgr(images))
    assert angles.shape == (11, 3) and angles.dtype == np.float32
    np.testing.assert_allclose(angles, expected_angles(images), atol=2e-3)
    assert model.source == {
        "file": "a.onnx",
        "sha256": sha256(tmp_path / "a.onnx"),
        "kind": "fsanet",
    }


@pytest.mark.parametrize("reshape", [(0, -1), (1, -1)], ids=["batch can be freed", "batch in the graph"])
def test_a_fixed_batch_is_freed_where_the_answers_stay_the_same(tmp_path, reshape):
    images = pictures(9)
    [model] = open_models([save_fsanet(tmp_path / "a.onnx", batch=1, reshape=reshape)])
    np.testing.assert_allclose(model(bgr(images)), expected_angles(images), atol=2e-3)
    assert model._fixed == (reshape == (1, -1))  # what is measured as speed
    assert model._batch == (1 if model._fixed else pose_models._BATCH["CPUExecutionProvider"])


def test_a_model_that_mixes_its_batch_is_run_one_image_at_a_time(tmp_path):
    images = pictures(5)
    [model] = open_models([save_batch_mean(tmp_path / "a.onnx")])
    np.testing.assert_allclose(model(bgr(images)), expected_angles(images), atol=2e-3)


def turned(axis, degrees):
    """insightface's mean face turned about an axis of the picture (x right, y down, z to the viewer), (68, 3)."""
    insightface = pytest.importorskip("insightface")
    assert insightface
    from insightface.data import get_object

    c, s = np.cos(degrees * DEGREE), np.sin(degrees * DEGREE)
    rotation = {
        "x": [[1, 0, 0], [0, c, -s], [0, s, c]],
        "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
        "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]],
    }[axis]
    return get_object("meanshape_68.pkl") @ np.array(rotation).T * 0.5


def nose_from_eyes(points):
    """Where the tip of the nose (30) is from the middle of the outer corners of the eyes (36, 45): (x, y)."""
    return (points[30] - (points[36] + points[45]) / 2)[:2]


def test_insightfaces_model_answers_with_our_signs(tmp_path):
    image = bgr(pictures(1))
    straight = nose_from_eyes(turned("y", 0))

    left = turned("y", -25)
    assert nose_from_eyes(left)[0] < straight[0] - 0.05  # to the left of the picture
    up = turned("x", 15)
    assert nose_from_eyes(up)[1] < straight[1] - 0.03  # towards the top
    clockwise = turned("z", 20)
    assert clockwise[45][1] > clockwise[36][1] + 0.05  # the eye on the right sinks

    for points, expected in ((left, [25, 0, 0]), (up, [0, 15, 0]), (clockwise, [0, 0, 20])):
        [model] = open_models([save_landmarks(tmp_path / "a.onnx", points)])
        np.testing.assert_allclose(model(image), [expected], atol=0.05)
    assert model.source["kind"] == "insightface 1k3d68"
    assert model([]).shape == (0, 3)


def test_insightfaces_model_sees_the_whole_picture_in_its_colours(tmp_path, monkeypatch):
    [model] = open_models([save_landmarks(tmp_path / "a.onnx", turned("y", 0))])
    given = []

    def get(image, face):
        given.append((image, face.bbox))
        face["pose"] = np.array([1, 2, 3], np.float32)

    monkeypatch.setattr(model._model, "get", get)
    image = pictures(1, side=80)[0]
    assert model(bgr([image])).tolist() == [[-2, 1, 3]]  # pitch, yaw, roll in, yaw, pitch, roll out
    np.testing.assert_array_equal(given[0][0], image[:, :, ::-1])
    assert given[0][1].tolist() == [0, 0, 80, 80]


def test_insightfaces_model_without_an_answer(tmp_path):
    [model] = open_models([save_landmarks(tmp_path / "a.onnx", np.full((68, 3), np.nan))])
    assert np.isnan(model(bgr(pictures(2)))).all()


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        (["n", 3, 64, 64], ["n", 4]),
        (["n", 3, 112, 112], ["n", 3]),
        (["n", 3, 192, 192], ["n", 212]),
        (["n", 3, 112, 112], ["n", 512]),
    ],
)
def test_other_networks_are_refused(tmp_path, inputs, outputs):
    path = save_other(tmp_path / "a.onnx", inputs, outputs)
    sizes = ", ".join("x".join(map(str, shape)) for shape in (inputs, outputs))
    with pytest.raises(UserError, match=rf"a\.onnx: expected a head-pose model, FSA-Net .* got .* {sizes}$"):
        open_models([path])


def test_files_that_are_no_models(tmp_path):
    with pytest.raises(UserError, match=r"--model: .*none\.onnx: no such ONNX file"):
        open_models([tmp_path / "none.onnx"])
    (tmp_path / "a.onnx").write_bytes(b"no model at all" * 9)
    with pytest.raises(UserError, match=r"--model: .*a\.onnx: expected an ONNX model"):
        open_models([tmp_path / "a.onnx"])
    good = save_fsanet(tmp_path / "good.onnx")
    (tmp_path / "same.onnx").write_bytes(good.read_bytes())
    with pytest.raises(UserError, match=r"expected each model once, got .*same\.onnx again"):
        open_models([good, save_fsanet(tmp_path / "b.onnx", weights=WEIGHTS * 2), tmp_path / "same.onnx"])


# -- real models on real faces -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fsanets(shared_data):
    return open_models(sorted((shared_data / "pose_fsanet").glob("*.onnx")))


@pytest.fixture(scope="module")
def faces(shared_data):
    return Records(shared_data / "lfw112_dev")


def mean_angles(models, images):
    return np.mean([model(bgr(images)) for model in models], axis=0)


def test_fsanets_batch_is_freed_and_changes_nothing(fsanets, faces):
    images = [faces.image(i) for i in range(40)]
    assert len(fsanets) == 2
    for model in fsanets:
        assert not model._fixed
        one_by_one = np.concatenate([model(bgr([image])) for image in images])
        np.testing.assert_allclose(model(bgr(images)), one_by_one, atol=1e-3)


def test_signs_on_real_faces(fsanets, faces):
    """By eye: Franklin Damann and Hernan Diaz look to the left of the picture, Bill Simon and Mercedes Amor to the
    right; Jason Kidd and Tatiana Gratcheva up, Elijah Wood and Mary Frances Seiter down."""
    at = np.searchsorted(faces.keys, [1857, 2906, 672, 4696, 3257, 6141, 1685, 4627])
    images = [faces.image(i) for i in at]
    yaw, pitch, _ = mean_angles(fsanets, images).T
    assert (yaw[:2] > 40).all() and (yaw[2:4] < -40).all()
    assert (pitch[4:6] > 20).all() and (pitch[6:] < -20).all()
    mirrored = mean_angles(fsanets, [image[:, ::-1] for image in images])[:, 0]
    assert (mirrored[:2] < -30).all() and (mirrored[2:4] > 30).all()


def test_mirrors_on_real_faces(fsanets, faces):
    images = [faces.image(i) for i in range(0, 6000, 40)]
    angles = mean_angles(fsanets, images)
    mirrored = mean_angles(fsanets, [image[:, ::-1] for image in images])
    assert np.corrcoef(angles[:, 0], mirrored[:, 0])[0, 1] < -0.95
    assert np.corrcoef(angles[:, 1], mirrored[:, 1])[0, 1] > 0.9
    assert np.abs(angles[:, 0] + mirrored[:, 0]).mean() < 3
    turned = np.abs(angles[:, 0]) > 10
    assert turned.sum() > 30 and (np.sign(angles[turned, 0]) == -np.sign(mirrored[turned, 0])).all()


def test_roll_grows_clockwise(fsanets, faces):
    """An upright face turned in the picture leans as much."""
    images = [faces.image(i) for i in range(0, 600, 20)]
    clockwise = cv2.getRotationMatrix2D((56, 56), -20, 1)
    leaning = [cv2.warpAffine(image, clockwise, (112, 112)) for image in images]
    assert 15 < np.mean(mean_angles(fsanets, leaning)[:, 2] - mean_angles(fsanets, images)[:, 2]) < 25
