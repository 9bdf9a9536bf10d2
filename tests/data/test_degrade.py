"""Degradations: what each does to an image, and that nothing but the settings decides how much chance is used."""

import cv2
import numpy as np
import pytest

from ddl_plugin.data.degrade import degrade
from ddl_plugin.settings import Degradation


@pytest.fixture
def image():
    """Smooth and textured parts, 112x112 RGB."""
    y, x = np.mgrid[:112, :112]
    pixels = np.stack([x * 2, y * 2, 128 + 100 * np.sin(x / 2) * np.cos(y / 2)], axis=2)
    return pixels.astype(np.uint8)


ALL = {"darken": (0.4, 0.6), "blur": (1, 2), "size": (12, 16), "occlude": (0.2, 0.4), "jpeg": (20, 40)}


def rng(seed=0):
    return np.random.default_rng(seed)


def test_nothing_asked_for(image):
    generator = rng()
    assert degrade(image, Degradation(), generator) is image
    assert generator.random() == rng().random()


@pytest.mark.parametrize("names", [[name] for name in ALL] + [list(ALL)])
def test_deterministic_and_the_input_is_left_alone(image, names):
    degradation = Degradation(**{name: ALL[name] for name in names})
    before = image.copy()
    first = degrade(image, degradation, rng(1))
    assert first.shape == image.shape and first.dtype == np.uint8
    assert np.array_equal(first, degrade(image, degradation, rng(1)))
    assert not np.array_equal(first, degrade(image, degradation, rng(2)))
    assert np.array_equal(image, before) and not np.array_equal(first, image)


@pytest.mark.parametrize(
    ("names", "draws"),
    [(["darken"], 1), (["blur"], 1), (["size"], 1), (["occlude"], 3), (["jpeg"], 1), (list(ALL), 7)],
)
def test_draws_depend_on_the_settings_only(image, names, draws):
    degradation = Degradation(**{name: ALL[name] for name in names})
    for seed in range(20):
        for pixels in (image, np.zeros((50, 60, 3), np.uint8)):
            used, expected = rng(seed), rng(seed)
            degrade(pixels, degradation, used)
            expected.random(draws)
            assert used.random() == expected.random()


def test_darken(image):
    out = degrade(image, Degradation(darken=0.5), rng())
    assert np.array_equal(out, np.floor(image * 0.5 + 0.5))
    assert np.array_equal(degrade(image, Degradation(darken=1.0), rng()), image)
    assert not degrade(image, Degradation(darken=0.0), rng()).any()


def test_blur(image):
    out = degrade(image, Degradation(blur=2.0), rng())
    assert np.array_equal(out, cv2.GaussianBlur(image, (0, 0), 2.0))
    assert out[..., 2].std() < 0.5 * image[..., 2].std()


def test_size_is_area_down_and_cubic_up(image):
    out = degrade(image, Degradation(size=14), rng())
    blocks = image.reshape(14, 8, 14, 8, 3).astype(float).mean((1, 3))  # 112 = 14 * 8: the area average
    small = cv2.resize(image, (14, 14), interpolation=cv2.INTER_AREA)
    assert np.abs(small - blocks).max() <= 0.5 + 1e-6
    assert np.array_equal(out, cv2.resize(small, (112, 112), interpolation=cv2.INTER_CUBIC))


def test_size_112_changes_nothing(image):
    assert np.array_equal(degrade(image, Degradation(size=112), rng()), image)


def test_size_reaches_both_ends_and_every_size_between(image):
    expected = {degrade(image, Degradation(size=side), rng()).tobytes() for side in (12, 13, 14)}
    drawn = [degrade(image, Degradation(size=(12, 14)), rng(seed)).tobytes() for seed in range(60)]
    assert set(drawn) == expected
    assert min(drawn.count(one) for one in expected) > 8


def test_occlude_is_one_grey_square_inside(image):
    white = np.full((112, 100, 3), 255, np.uint8)
    corners = set()
    for seed in range(200):
        covered = (degrade(white, Degradation(occlude=0.3), rng(seed)) == 127).all(axis=2)
        rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
        assert len(rows) == len(columns) == 30 and covered.sum() == 900
        corners.add((rows[0], columns[0]))
    tops, lefts = np.array(sorted(corners)).T
    assert tops.min() < 10 and tops.max() > 72 and lefts.min() < 10 and lefts.max() > 60


def test_occlude_everything(image):
    assert (degrade(image, Degradation(occlude=1.0), rng()) == 127).all()


def test_jpeg_keeps_the_colours_in_order():
    red = np.zeros((112, 112, 3), np.uint8)
    red[..., 0] = 200
    out = degrade(red, Degradation(jpeg=30), rng())
    assert np.abs(out.astype(int) - red).max() < 12


def test_jpeg_of_lower_quality_is_further_off(image):
    errors = [
        np.abs(degrade(image, Degradation(jpeg=q), rng()).astype(int) - image).mean() for q in (5, 30, 95)
    ]
    assert errors[0] > 1.5 * errors[1] > 3 * errors[2]


def test_order_is_a_cameras(image):
    degradation = Degradation(darken=0.5, blur=1.5, size=20, occlude=0.25, jpeg=50)
    step = image
    for name in ("darken", "blur", "size"):
        step = degrade(step, Degradation(**{name: getattr(degradation, name)}), rng())
    # Its three draws come after those of darken, blur and size.
    generator = rng(5)
    generator.random(3)
    step = degrade(step, Degradation(occlude=0.25), generator)
    step = degrade(step, Degradation(jpeg=50), rng())
    assert np.array_equal(degrade(image, degradation, rng(5)), step)


def test_one_of_several_degradations_is_drawn_equally_often():
    image = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    sizes = [Degradation(size=24), Degradation(size=14)]
    expected = [degrade(image, one, np.random.default_rng(0)) for one in sizes]
    mixed, rng = Degradation(one_of=sizes), np.random.default_rng(1)
    drawn = [degrade(image, mixed, rng) for _ in range(200)]
    chosen = [[bool((one == other).all()) for other in expected].index(True) for one in drawn]
    assert 70 < sum(chosen) < 130
