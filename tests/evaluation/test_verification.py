import json

import cv2
import numpy as np
import pytest

from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.bins import BinSet, load_bin
from ddl_plugin.evaluation.features import extract
from ddl_plugin.evaluation.metrics import tenfold_accuracy
from ddl_plugin.evaluation.verification import pair_scores, pair_similarities, summarise, verify


def noise_set(pairs=20, seed=0):
    """Pairs of noise images; the second of a 'same' pair is the first one, a little changed."""
    rng = np.random.default_rng(seed)
    issame = np.arange(pairs) % 2 == 0
    encoded = []
    for same in issame:
        first = rng.integers(0, 256, (112, 112, 3)).astype(np.int16)
        second = first + rng.integers(-40, 41, first.shape) if same else rng.integers(0, 256, first.shape)
        for image in (first, second):
            encoded.append(cv2.imencode(".png", image.clip(0, 255).astype(np.uint8))[1].tobytes())
    return BinSet("noise", encoded, issame)


WEIGHTS = np.random.default_rng(9).normal(size=(28 * 28 * 3, 16)).astype(np.float32)


def embed(images):
    """A linear network on the image shrunk by 4; it does not see mirror images as equal."""
    assert images.dtype == np.uint8
    return (images[:, ::4, ::4].reshape(len(images), -1).astype(np.float32) - 127.5) @ WEIGHTS


@pytest.mark.parametrize("flip", [True, False])
def test_similarity_is_that_of_each_pair_with_the_mirror_images_added(flip):
    bin_set = noise_set(pairs=4)
    expected = []
    for i in range(len(bin_set)):
        units = []
        for image in bin_set.images(2 * i, 2 * i + 2):
            vector = embed(image[None])[0].astype(np.float64)
            if flip:
                vector = vector + embed(np.fliplr(image)[None])[0]
            units.append(vector / np.sqrt((vector**2).sum()))
        expected.append((units[0] * units[1]).sum())
    np.testing.assert_allclose(pair_similarities(embed, bin_set, flip=flip), expected, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batch_size_changes_nothing(batch):
    sizes = []

    def counted(images):
        sizes.append(len(images))
        return embed(images)

    bin_set = noise_set(pairs=10)
    similarity = pair_similarities(counted, bin_set, batch=batch)
    np.testing.assert_allclose(similarity, pair_similarities(embed, bin_set), atol=1e-6)
    assert max(sizes) == min(batch, 20)


def test_the_result_holds_every_figure_and_is_plain_json():
    bin_set = noise_set()
    result = verify(embed, bin_set)
    similarity = pair_similarities(embed, bin_set)
    assert (result["accuracy"], result["accuracy_std"]) == tenfold_accuracy(similarity, bin_set.issame)
    assert (result["set"], result["pairs"], result["negatives"], result["positives"]) == ("noise", 20, 10, 10)
    assert [point["far"] for point in result["tar_at_far"]] == [0.1, 0.01, 0.001]
    assert [point["obtained_far"] for point in result["tar_at_far"]] == [0.1, 0.0, 0.0]
    negatives, positives = pair_scores(embed, bin_set)
    assert result["margin"] == pytest.approx(positives.mean() - negatives.mean())
    assert json.loads(json.dumps(result)) == result
    assert {k: result[k] for k in summarise(negatives, positives)} == summarise(negatives, positives)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_an_embedding_that_is_not_finite_or_zero_is_named(value):
    def broken(images):
        rows = embed(images)
        rows[len(images) == 4 :] *= value  # of full batches all but the first row, else every row
        return rows

    bin_set = noise_set(pairs=10)
    message = r"image 1 of noise \(pair 0, second\): expected a finite, non-zero embedding.*check the model"
    with pytest.raises(UserError, match=message), np.errstate(invalid="ignore"):
        pair_similarities(broken, bin_set, batch=4)


def test_a_set_of_one_kind_or_too_few_pairs_is_refused():
    encoded = noise_set(pairs=10).encoded
    with pytest.raises(UserError, match="noise: expected pairs of different persons, got none among 10"):
        verify(embed, BinSet("noise", encoded, np.ones(10, bool)))
    with pytest.raises(UserError, match="expected pairs of the same person"):
        verify(embed, BinSet("noise", encoded, np.zeros(10, bool)))
    few = noise_set(pairs=4)
    with pytest.raises(UserError, match=r"^noise: expected at least 10 pairs for 10-fold accuracy, got 4$"):
        verify(None, few)  # nothing is embedded


def test_batches_are_decoded_one_at_a_time():
    """Memory does not grow with the set: a batch is asked for when its turn has come."""
    asked = []

    def load(start, stop):
        asked.append((start, stop))
        return np.zeros((stop - start, 112, 112, 3), np.uint8)

    seen = []

    def network(images):
        seen.append(asked[-1])
        return np.ones((len(images), 2), np.float32)

    features = extract(network, load, 10, flip=False, describe=str, batch=4)
    assert seen == [(0, 4), (4, 8), (8, 10)]
    np.testing.assert_allclose(features, np.full((10, 2), np.sqrt(0.5)))


def test_real_set_of_lfw_pairs_is_read(shared_data):
    bin_set = load_bin(shared_data / "lfw112_dev" / "lfw_val.bin")
    assert len(bin_set) == 1200
    assert bin_set.issame.sum() == 600
    assert bin_set.images(0, 8).shape == (8, 112, 112, 3)
