import json

import cv2
import numpy as np
import pytest

from ddl_plugin.data.attributes import AttributeTable
from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.bins import BinSet, load_bin
from ddl_plugin.evaluation.evidence import ACCEPTED, REJECTED
from ddl_plugin.evaluation.features import extract
from ddl_plugin.evaluation.metrics import tenfold, tenfold_accuracy, val_at_far
from ddl_plugin.evaluation.subsets import Rules, Subset, image_subsets, pair_subsets, rules_of
from ddl_plugin.evaluation.verification import (
    evidence,
    pair_scores,
    pair_similarities,
    score,
    score_subsets,
    summarise,
    verify,
)


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
    assert result["val"] == val_at_far(similarity, bin_set.issame)._asdict()
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


def labelled_set(pairs=40, seed=1):
    """Similarities of pairs without images."""
    rng = np.random.default_rng(seed)
    issame = np.arange(pairs) % 2 == 0
    similarity = np.clip(rng.normal(np.where(issame, 0.4, 0.1), 0.2), -1, 1)
    return BinSet("drawn", [b""] * (2 * pairs), issame), similarity


def test_a_pair_is_hard_with_either_image_and_easy_with_both():
    bin_set = BinSet("four", [b""] * 16, np.array([True, False] * 4))
    yaw = np.array([0, 0, 5, 5, 0, 50, 5, 50, 50, 50, 60, -50, 0, 20, 20, 20.0])
    table = AttributeTable(np.arange(16)[::-1], {"yaw": yaw[::-1]})
    easy, hard = pair_subsets(Rules("abs(yaw) < 10", ("abs(yaw) > 45",)), table, bin_set)
    assert easy.chosen.tolist() == [True, True, False, False, False, False, False, False]
    assert hard.chosen.tolist() == [False, False, True, True, True, True, False, False]
    assert (easy.name, easy.rule) == ("easy", "both of the images: abs(yaw) < 10")
    assert (hard.name, hard.rule) == ("hard", "either of the images: abs(yaw) > 45")
    rest, one, two = pair_subsets(Rules(None, ("yaw > 55 or yaw == 20", "abs(yaw) == 50")), table, bin_set)
    assert (rest.name, one.name, two.name) == ("easy", "hard 1", "hard 2")
    assert rest.chosen.tolist() == [True, True, False, False, False, False, False, False]
    assert one.chosen.tolist() == [False, False, False, False, False, True, True, True]


def test_a_subset_of_one_kind_and_an_incomplete_table_are_refused():
    bin_set = BinSet("four", [b""] * 8, np.array([True, False] * 2))
    table = AttributeTable(np.arange(8), {"yaw": np.array([0, 0, 0, 0, 50, 0, 0, 0.0])})
    message = r"four, hard \(either of the images: yaw > 45\): expected pairs of different persons, got none among 1 pairs"
    with pytest.raises(UserError, match=message):
        pair_subsets(Rules(None, ("yaw > 45",)), table, bin_set)
    short = AttributeTable(np.arange(7), {"yaw": np.zeros(7)})
    with pytest.raises(
        UserError, match=r"expected a value for each of 8 records, got no row for 1 of them \(record 7\)"
    ):
        pair_subsets(Rules(None, ("yaw > 45",)), short, bin_set)


def test_easy_and_hard_need_each_other():
    assert rules_of(None, None, None) is None
    assert rules_of("a < 1", ["a > 2", "a > 3"], "t.csv") == Rules("a < 1", ("a > 2", "a > 3"))
    for easy, hard, table, message in (
        (None, ["a > 1"], None, "--easy, --hard: expected --attributes TABLE"),
        ("a < 1", None, "t.csv", "--easy: expected --hard RULE"),
        (None, None, "t.csv", "--attributes: expected --hard RULE"),
    ):
        with pytest.raises(UserError, match=message):
            rules_of(easy, hard, table)


def test_images_are_chosen_by_their_record_numbers():
    table = AttributeTable(np.array([3, 1, 2]), {"blur": np.array([30.0, 10, 20])})
    easy, hard = image_subsets(Rules(None, ("blur < 15",)), table, np.array([1, 3, 2, 1]))
    assert hard.chosen.tolist() == [True, False, False, True]
    assert easy.chosen.tolist() == [False, True, True, False]


def test_subsets_are_scored_on_their_own_pairs_at_the_thresholds_of_the_set():
    bin_set, similarity = labelled_set()
    chosen = np.arange(40) % 3 == 0
    subsets = [Subset("easy", "r", ~chosen), Subset("hard", "s", chosen)]
    easy, hard = score_subsets(similarity, bin_set, subsets)
    whole = score(similarity, bin_set)
    correct = tenfold(similarity, bin_set.issame).correct
    assert hard["accuracy"] == np.mean([correct[i] for i in range(40) if i % 3 == 0])
    share = (easy["accuracy"] * easy["pairs"] + hard["accuracy"] * hard["pairs"]) / 40
    assert share == pytest.approx(whole["accuracy"])
    assert (hard["subset"], hard["rule"], hard["pairs"]) == ("hard", "s", int(chosen.sum()))
    expected = summarise(similarity[chosen & ~bin_set.issame], similarity[chosen & bin_set.issame])
    assert {key: hard[key] for key in expected} == expected


def test_evidence_holds_the_pairs_called_wrong_worst_first():
    bin_set, similarity = labelled_set()
    half = np.arange(40) < 20
    whole, part = evidence(similarity, bin_set, [Subset("hard", "r", half)])
    assert (whole.title, part.title) == ("drawn", "drawn, hard")
    assert (whole.negatives.size, part.positives.size) == (20, 10)
    folds = tenfold(similarity, bin_set.issame)
    wrong = np.flatnonzero(~folds.correct)
    assert len(wrong) >= 4
    expected = {f"image {2 * i} of drawn (pair {i}, first)" for i in wrong}
    assert {failure.names[0] for failure in whole.failures} == expected
    assert {f.names[0] for f in part.failures} == {n for n in expected if int(n.split()[1]) < 40}
    for kind, below in ((REJECTED, True), (ACCEPTED, False)):
        away = [abs(f.similarity - f.threshold) for f in whole.failures if f.kind == kind]
        assert away == sorted(away, reverse=True)
        assert all((f.similarity <= f.threshold) == below for f in whole.failures if f.kind == kind)
    assert whole.cmc is None
    for line, chosen in ((whole, np.ones(40, bool)), (part, half)):
        same = [i for i in range(40) if chosen[i] and bin_set.issame[i]]
        assert line.genuine.score.tolist() == [similarity[i] for i in same]
        assert line.genuine.bar.tolist() == [folds.threshold[i] for i in same]
        assert line.genuine.right.tolist() == [similarity[i] > folds.threshold[i] for i in same]
        assert line.genuine.names(1)[1] == f"image {2 * same[1] + 1} of drawn (pair {same[1]}, second)"
    far, tar = whole.curve
    assert (far[0], tar[0], far[-1], tar[-1]) == (0, 0, 1, 1)


def test_failures_give_their_pictures():
    bin_set = noise_set(pairs=20)
    similarity = np.where(bin_set.issame, 0.5, 0.1)
    similarity[[4, 7]] = 0.1, 0.5  # one of each kind is wrong
    (whole,) = evidence(similarity, bin_set)
    assert [failure.kind for failure in whole.failures] == [REJECTED, ACCEPTED]
    first, second = whole.failures[1].images()
    np.testing.assert_array_equal(first, bin_set.images(14, 15)[0])
    np.testing.assert_array_equal(second, bin_set.images(15, 16)[0])


def test_batch_size_changes_no_figure():
    def batch_free(images):
        return np.stack([embed(image[None])[0] for image in images])

    bin_set = noise_set(pairs=12)
    expected = verify(batch_free, bin_set, batch=1)
    assert all(verify(batch_free, bin_set, batch=batch) == expected for batch in (5, 64))


def test_real_set_of_lfw_pairs_is_read(shared_data):
    bin_set = load_bin(shared_data / "lfw112_dev" / "lfw_val.bin")
    assert len(bin_set) == 1200
    assert bin_set.issame.sum() == 600
    assert bin_set.images(0, 8).shape == (8, 112, 112, 3)
