import dataclasses

import numpy as np
import pytest

from ddl_plugin.data.records import Records
from ddl_plugin.errors import UserError
from ddl_plugin.training.classifier import IMAGES_PER_IDENTITY, initial_fc7, mean_embeddings, some_of_each


def embed(images):
    """16 numbers an image: means of its horizontal stripes, of either sign."""
    return (images.reshape(len(images), 16, -1).mean(axis=2) - 120).astype(np.float32)


@pytest.fixture(scope="module")
def records(small_synthetic):
    return Records(small_synthetic)


def test_mean_rows_equal_a_naive_loop(settings_of, backbone, records):
    weight = initial_fc7(settings_of(), backbone, records, embed, progress=False)
    assert weight.shape == (10, 16)
    assert weight.dtype == np.float32
    for identity in range(10):
        total = np.zeros(16)
        for position in np.flatnonzero(records.labels == identity):
            vector = embed(records.image(position)[None])[0].astype(np.float64)
            total += vector / np.linalg.norm(vector)
        np.testing.assert_allclose(weight[identity], total / np.linalg.norm(total), atol=1e-6)


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_the_batch_size_does_not_matter(records, batch):
    positions = np.arange(30)
    whole, there = mean_embeddings(records, positions, embed, (10, 16), False)
    part, _ = mean_embeddings(records, positions, embed, (10, 16), False, batch=batch)
    np.testing.assert_allclose(part, whole, atol=1e-6)
    np.testing.assert_array_equal(there, np.arange(10) < 4)  # 8 images an identity
    assert not whole[~there].any()


def test_identities_without_images_start_at_random(settings_of, backbone, records, monkeypatch):
    monkeypatch.setattr(Records, "num_classes", 12)
    weight = initial_fc7(settings_of(), backbone, records, embed, progress=False)
    np.testing.assert_allclose(np.linalg.norm(weight[:10], axis=1), 1, atol=1e-5)
    assert weight.shape == (12, 16)
    assert 0 < np.abs(weight[10:]).max() < 0.1


def test_random_rows_depend_on_the_seed_alone(settings_of, backbone, records):
    def rows(seed):
        settings = settings_of(fc7_init="random", seed=seed)
        return initial_fc7(settings, backbone, records, None, progress=False)

    np.testing.assert_array_equal(rows(3), rows(3))
    assert not np.array_equal(rows(3), rows(4))
    assert rows(3).std() == pytest.approx(0.01, rel=0.3)


def test_rows_of_the_checkpoint_are_taken_as_they_are(settings_of, backbone, records):
    given = np.random.default_rng(0).normal(size=(10, 16)).astype(np.float32)
    own = dataclasses.replace(backbone, fc7=given)
    weight = initial_fc7(settings_of(fc7_init="checkpoint"), own, records, None, progress=False)
    np.testing.assert_array_equal(weight, given)


@pytest.mark.parametrize(
    ("fc7", "message"),
    [
        (None, r"fc7_init: 'checkpoint', but .* holds no fc7_weight .*; use fc7_init = 'mean'"),
        (
            np.ones((11, 16)),
            r"expected fc7_weight of shape \(10, 16\) .*, got \(11, 16\); .* fc7_init = 'mean'",
        ),
        (np.full((10, 16), np.nan), "'fc7_weight' holds 160 NaN or infinite values of 160"),
    ],
)
def test_a_checkpoint_whose_classifier_cannot_be_taken(settings_of, backbone, records, fc7, message):
    with pytest.raises(UserError, match=message):
        initial_fc7(
            settings_of(fc7_init="checkpoint"), dataclasses.replace(backbone, fc7=fc7), records, None, False
        )


def test_some_of_each_takes_all_of_the_small_and_some_of_the_large():
    labels = np.array([2] * 40 + [0] * 3 + [7] + [2] * 5)
    chosen = some_of_each(labels, np.random.default_rng(0))
    assert np.bincount(labels[chosen]).tolist() == [3, 0, IMAGES_PER_IDENTITY, 0, 0, 0, 0, 1]
    assert (np.diff(chosen) > 0).all()
    assert chosen.max() > 40  # not just the first ones
