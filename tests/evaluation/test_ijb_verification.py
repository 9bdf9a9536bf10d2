import itertools

import numpy as np
import pytest
from ijb_sets import slow_at_most, slow_cosine, slow_nearest, slow_points, slow_templates

from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.ijb import templates as templates_module
from ddl_plugin.evaluation.ijb import verification
from ddl_plugin.evaluation.ijb.lists import Images, Pairs
from ddl_plugin.evaluation.ijb.protocol import Lists, verify
from ddl_plugin.evaluation.ijb.templates import PRESETS, Templates, Weighting, build_templates

FARS = (1e-6, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.5)


def random_case(seed):
    """(images, embeddings, mirrored ones): templates of one image and of several, media shared by images."""
    rng = np.random.default_rng(seed)
    count, size = int(rng.integers(5, 30)), int(rng.choice([4, 16]))
    templates = (
        np.sort(np.concatenate([np.arange(count), rng.integers(0, count, rng.integers(0, 60))])) * 3 + 2
    )
    media = rng.integers(0, rng.choice([1, 3, 40]), len(templates))
    order = np.lexsort((media, templates))
    embeddings = [
        rng.standard_normal((len(templates), size)).astype(np.float32) * rng.uniform(0.5, 20) for _ in "ab"
    ]
    if seed % 3 == 0:  # equal images: equal templates, tied scores
        chosen = rng.integers(0, 3, len(templates))
        embeddings = [array[chosen] for array in embeddings]
    images = Images(
        np.array([b"%06d" % i for i in range(len(templates))]), templates[order], media[order],
        np.zeros((len(templates), 5, 2), np.float32), rng.uniform(0.1, 1, len(templates)).astype(np.float32),
    )  # fmt: skip
    return images, *embeddings


def built(images, plain, mirrored, weighting, usable=None):
    def read(start, stop):
        return plain[start:stop], mirrored[start:stop] if weighting.flip else None

    usable = np.ones(len(images), bool) if usable is None else usable
    return build_templates(images, read, usable, weighting)


def random_pairs(count, seed):
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, count, (2, int(rng.integers(20, 200)))).astype(np.int32)
    same = rng.random(len(first)) < rng.uniform(0.05, 0.5)
    same[:2] = True, False
    return Pairs(first, second, same)


# -- templates -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=3)))
def test_templates_are_those_of_the_definition(flags):
    for seed in range(6):
        images, plain, mirrored = random_case(seed)
        found = built(images, plain, mirrored, Weighting(*flags))
        rows = list(zip(images.templates.tolist(), images.media.tolist(), strict=True))
        expected = slow_templates(rows, plain, mirrored, images.scores, *flags)
        assert found.numbers.tolist() == sorted(expected)
        np.testing.assert_allclose(found.features, [expected[t] for t in sorted(expected)], atol=1e-12)
        assert found.known.all()


def test_the_size_of_the_parts_that_are_read_changes_nothing(monkeypatch):
    images, plain, mirrored = random_case(7)
    whole = built(images, plain, mirrored, Weighting())
    for values in (1, 40, 130):
        monkeypatch.setattr(templates_module, "_CHUNK_VALUES", values)
        np.testing.assert_allclose(
            built(images, plain, mirrored, Weighting()).features, whole.features, atol=1e-14
        )


@pytest.mark.parametrize("seed", range(8))
def test_images_that_are_left_out_count_in_no_mean(seed):
    images, plain, mirrored = random_case(seed)
    usable = np.random.default_rng(seed).random(len(images)) < 0.6
    plain[~usable] = mirrored[~usable] = np.nan
    found = built(images, plain, mirrored, Weighting(), usable)
    kept = [i for i in range(len(images)) if usable[i]]
    rows = [(int(images.templates[i]), int(images.media[i])) for i in kept]
    expected = slow_templates(rows, plain[kept], mirrored[kept], images.scores[kept], True, True, True)
    for number, feature, known in zip(found.numbers.tolist(), found.features, found.known, strict=True):
        assert known == (number in expected)
        np.testing.assert_allclose(feature, expected.get(number, np.zeros(len(feature))), atol=1e-12)


def test_the_presets():
    assert PRESETS["insightface"] == Weighting(flip=True, norm_score=True, detector_score=True)
    assert PRESETS["paper"] == Weighting(flip=False, norm_score=False, detector_score=False)


# -- scores ----------------------------------------------------------------------------------------------


def unit(features):
    features = np.asarray(features, np.float64)
    return Templates(
        np.arange(len(features)),
        features / np.linalg.norm(features, axis=1, keepdims=True),
        np.ones(len(features), bool),
    )


@pytest.mark.parametrize("dense", [0, 10**9])
@pytest.mark.parametrize("block", [1, 50, 1 << 20])
def test_scores_of_either_way_are_the_cosines(monkeypatch, dense, block):
    monkeypatch.setattr(verification, "_DENSE", dense)
    monkeypatch.setattr(verification, "_BLOCK_VALUES", block)
    for seed in range(4):
        templates = unit(np.random.default_rng(seed).standard_normal((15, 8)))
        pairs = random_pairs(15, seed)
        if seed % 2:  # some templates are never first, some never second
            pairs = Pairs(pairs.first // 2 * 2, np.maximum(pairs.second, 6), pairs.same)
        scores = verification.pair_scores(templates, pairs)
        expected = [
            slow_cosine(templates.features[a], templates.features[b])
            for a, b in zip(pairs.first, pairs.second, strict=True)
        ]
        np.testing.assert_allclose(scores, expected, atol=2e-12)


def test_pairs_that_cannot_be_compared_score_below_all(monkeypatch):
    for dense in (0, 10**9):
        monkeypatch.setattr(verification, "_DENSE", dense)
        templates = unit(np.eye(4))
        templates.known[2] = False
        templates.features[2] = 0
        pairs = Pairs(
            np.array([0, -1, 3, 2, 1, 0], np.int32), np.array([0, 0, -1, 1, 2, 1], np.int32), np.ones(6, bool)
        )
        assert verification.pair_scores(templates, pairs).tolist() == [1, -2, -2, -2, -2, 0]


def test_equal_templates_tie_however_they_are_compared():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((40, 512))[rng.integers(0, 3, 40)]
    pairs = random_pairs(40, 1)
    assert len(np.unique(verification.pair_scores(unit(features), pairs))) <= 6


# -- TAR at FAR ------------------------------------------------------------------------------------------


def score_sets():
    for seed in range(80):
        rng = np.random.default_rng(seed)
        count = int(rng.integers(3, 120))
        same = rng.random(count) < rng.uniform(0.05, 0.9)
        same[:2] = True, False
        scores = rng.normal(0, 0.2, count) + 0.3 * same
        if seed % 2:
            scores = np.round(scores, int(rng.integers(0, 3)))  # ties within and between the kinds
        yield scores, same
    yield np.zeros(9), np.arange(9) < 4  # one point
    yield np.arange(9.0), np.arange(9) >= 4  # apart
    yield -np.arange(9.0), np.arange(9) >= 4  # the wrong way round


def curve_of(scores, same):
    return verification.corners(np.sort(scores[~same]), np.sort(scores[same]))


def test_nearest_is_the_point_of_the_published_tables():
    for scores, same in score_sets():
        found = verification.nearest(curve_of(scores, same), FARS)
        for point in found:
            tar, far = slow_nearest(scores.tolist(), same.tolist(), point["far"])
            assert (point["tar"], point["obtained_far"]) == pytest.approx((tar, far), abs=1e-12)


def test_the_corners_are_those_of_scikit_learn():
    roc_curve = pytest.importorskip("sklearn.metrics").roc_curve
    for scores, same in score_sets():
        far, tar, _ = roc_curve(same, scores)
        found = curve_of(scores, same)
        np.testing.assert_array_equal(found.negatives / found.negatives[-1], far)
        np.testing.assert_array_equal(found.positives / found.positives[-1], tar)


def test_pairs_of_one_kind_have_no_roc():
    for same in (True, False):
        with pytest.raises(UserError, match="some of the same and some of different"):
            curve_of(np.arange(4.0), np.full(4, same))


def test_a_curve_for_figures_is_at_most_the_roc():
    for scores, same in score_sets():
        far, tar = verification.thinned(curve_of(scores, same), 1e-4, 50)
        assert len(far) <= 50
        assert far[-1] == tar[-1] == 1
        points = slow_points(scores.tolist(), same.tolist())
        assert {(0, 0), *points} >= {
            (round(f * points[-1][0]), round(t * points[-1][1])) for f, t in zip(far, tar, strict=True)
        }


def test_the_whole_protocol_from_images_to_figures():
    for seed in range(12):
        images, plain, mirrored = random_case(seed)
        weighting = Weighting(*np.random.default_rng(seed).random(3) < 0.5)
        templates = built(images, plain, mirrored, weighting)
        pairs = random_pairs(len(templates.numbers), seed)
        rows = list(zip(images.templates.tolist(), images.media.tolist(), strict=True))
        slow = slow_templates(
            rows,
            plain,
            mirrored,
            images.scores,
            weighting.flip,
            weighting.norm_score,
            weighting.detector_score,
        )
        features = [slow[t] for t in sorted(slow)]
        scores = [
            slow_cosine(features[a], features[b]) for a, b in zip(pairs.first, pairs.second, strict=True)
        ]
        same = pairs.same.tolist()
        result, evidence = verify(templates, Lists(images, templates.numbers, pairs, None, None))
        assert (result["pairs"], result["positives"]) == (len(same), same.count(True))
        for point in result["conventions"]["insightface"]["tar_at_far"]:
            assert point["tar"] == pytest.approx(slow_nearest(scores, same, point["far"])[0], abs=1e-6), seed
        for point in result["conventions"]["at-most"]["tar_at_far"]:
            assert point["tar"] == pytest.approx(slow_at_most(scores, same, point["far"]), abs=1e-6), seed
        negatives = verification.pair_scores(templates, pairs)[~pairs.same]
        for point in result["conventions"]["at-most"]["tar_at_far"]:
            assert point["obtained_far"] <= point["far"]
            assert point["obtained_far"] == np.mean(negatives >= point["threshold"])
        assert evidence.positives.size == same.count(True)


def test_failures_are_the_worst_and_show_faces_of_their_templates():
    images, plain, mirrored = random_case(1)
    templates = built(images, plain, mirrored, Weighting())
    pairs = random_pairs(len(templates.numbers), 3)
    scores = verification.pair_scores(templates, pairs)
    faces = {row: np.full((112, 112, 3), row, np.uint8) for row in range(len(images))}
    lists = Lists(images, templates.numbers, pairs, None, None)
    _, evidence = verify(templates, lists, faces.get)
    rejected = [one for one in evidence.failures if one.kind == "false rejection"]
    threshold = scores[~pairs.same].max()
    expected = sorted(scores[pairs.same & (scores <= threshold)])[: len(rejected)]
    assert rejected
    assert [one.similarity for one in rejected] == expected
    pair = int(np.flatnonzero(pairs.same & (scores == expected[0]))[0])
    first, second = rejected[0].images()
    for image, row in ((first, pairs.first[pair]), (second, pairs.second[pair])):
        assert images.templates[int(image[0, 0, 0])] == templates.numbers[row]
