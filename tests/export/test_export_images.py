import numpy as np
import pytest

from ddl_plugin.errors import UserError
from ddl_plugin.export import images as comparison
from ddl_plugin.export.images import images_of_identities, real_images


def test_images_for_comparison_are_reproducible_and_different():
    for make in (comparison.random_images, comparison.smooth_images):
        images = make(3, 112)
        assert images.shape == (3, 112, 112, 3)
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(images, make(3, 112))
        assert (images[0] != images[1]).mean() > 0.5
    rough = np.abs(np.diff(comparison.random_images(3, 112).astype(int), axis=1)).mean()
    assert np.abs(np.diff(comparison.smooth_images(3, 112).astype(int), axis=1)).mean() < rough / 10


def test_real_images_come_from_all_of_a_record_file(tmp_path):
    from ddl_plugin.data.records import RecordWriter

    images = comparison.smooth_images(6, 112)
    with RecordWriter(tmp_path) as writer:
        for label, image in enumerate(images):
            writer.add(image, label)
    found = real_images(tmp_path / "train.rec", count=3)
    assert found.shape == (3, 112, 112, 3)
    for position, image in zip((0, 2, 5), found, strict=True):
        assert np.abs(image.astype(int) - images[position]).mean() < 10
    with pytest.raises(UserError, match=r"image 0: expected 64x64 RGB, got shape \(112, 112, 3\)"):
        real_images(tmp_path / "train.rec", size=64)


def test_one_image_each_of_identities_spread_over_the_file(tmp_path):
    from ddl_plugin.data.records import RecordWriter

    pixels = comparison.smooth_images(9, 112)
    with RecordWriter(tmp_path) as writer:
        for i, label in enumerate([0, 0, 0, 0, 1, 1, 2, 3, 3]):
            writer.add(pixels[i], label)
    found = images_of_identities(tmp_path, 112, 3)
    for position, image in zip((0, 4, 7), found, strict=True):  # of identities 0, 1 and 3
        assert np.abs(image.astype(int) - pixels[position]).mean() < 10
    assert len(images_of_identities(tmp_path, 112, 50)) == 4
