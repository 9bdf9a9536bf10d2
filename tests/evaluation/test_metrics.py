import numpy as np
import pytest
from scipy.interpolate import interp1d
from sklearn.model_selection import KFold

from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.metrics import (
    CURVE_POINTS,
    eer,
    roc,
    tar_at_far,
    tenfold,
    tenfold_accuracy,
    thin,
    val_at_far,
)


def slow_tar_at_far(negatives, positives, far):
    """Largest TAR over every conceivable threshold whose FAR does not exceed `far`, and the FAR there."""
    scores = sorted({*negatives, *positives})
    best = (0.0, 0.0)
    for threshold in [*scores, scores[-1] + 1.0]:
        false = sum(s >= threshold for s in negatives) / len(negatives)
        true = sum(s >= threshold for s in positives) / len(positives)
        if false <= far:
            best = max(best, (true, false))
    return best


def slow_tenfold(distance, issame, folds):
    """The published procedure, threshold by threshold and pair by pair."""
    accuracies = []
    thresholds = np.arange(0, 4, 0.01)
    for train, test in KFold(n_splits=folds, shuffle=False).split(np.arange(len(distance))):
        best, best_correct = None, -1
        for threshold in thresholds:
            correct = sum((distance[i] < threshold) == issame[i] for i in train)
            if correct > best_correct:
                best, best_correct = threshold, correct
        accuracies.append(sum((distance[i] < best) == issame[i] for i in test) / len(test))
    return np.mean(accuracies), np.std(accuracies)


def slow_val(distance, issame, target, folds):
    """The published procedure (linear interpolation), threshold by threshold and pair by pair."""
    thresholds = np.arange(0, 4, 0.001)
    values, fars = [], []
    for train, test in KFold(n_splits=folds, shuffle=False).split(np.arange(len(distance))):
        different = [distance[i] for i in train if not issame[i]]
        rates = [sum(d < t for d in different) / len(different) for t in thresholds]
        threshold = 0.0
        if max(rates) >= target:
            threshold = float(interp1d(rates, thresholds, kind="linear")(target))
        same = [distance[i] for i in test if issame[i]]
        other = [distance[i] for i in test if not issame[i]]
        values.append(sum(d < threshold for d in same) / len(same))
        fars.append(sum(d < threshold for d in other) / len(other))
    return np.mean(values), np.std(values), np.mean(fars)


def draw(seed, ties):
    rng = np.random.default_rng(seed)
    negatives = rng.normal(0.1, 0.2, rng.integers(3, 40))
    positives = rng.normal(0.5, 0.2, rng.integers(3, 40))
    return (np.round(negatives, 1), np.round(positives, 1)) if ties else (negatives, positives)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_tar_at_far_equals_the_search_over_all_thresholds(seed, ties):
    negatives, positives = draw(seed, ties)
    fars = np.array([0.0, 0.001, 0.1, 0.25, 1 / 3, 0.5, 0.9])
    tar, obtained, threshold = tar_at_far(negatives, positives, fars)
    for i, far in enumerate(fars):
        assert (tar[i], obtained[i]) == pytest.approx(slow_tar_at_far(negatives, positives, far))
        assert obtained[i] <= far
        assert np.mean(negatives >= threshold[i]) == obtained[i]
        assert np.mean(positives >= threshold[i]) == pytest.approx(tar[i])


def test_a_far_that_is_a_multiple_of_one_over_n_is_obtained_exactly():
    negatives = np.arange(100) / 100
    for k in range(1, 100):
        far = k / 100  # 0.29 * 100 is 28.999999999999996
        assert tar_at_far(negatives, [0.5], far).far == far


def test_an_unattainable_far_gives_the_threshold_just_above_the_largest_negative():
    negatives, positives = np.array([0.1, 0.4, 0.4]), np.array([0.4, 0.5])
    tar, obtained, threshold = tar_at_far(negatives, positives, 0.1)
    assert (tar, obtained) == (0.5, 0.0)
    assert threshold == np.nextafter(0.4, 1)


def test_tied_negatives_are_rejected_together():
    tar, obtained, _ = tar_at_far([0.2, 0.4, 0.4, 0.4], [0.4, 0.6], 0.5)
    assert (tar, obtained) == (0.5, 0.0)


def test_separable_scores_are_perfect():
    negatives, positives = np.linspace(-0.5, 0.2, 50), np.linspace(0.3, 0.9, 50)
    assert tar_at_far(negatives, positives, 0.0)[:2] == (1.0, 0.0)
    assert eer(negatives, positives) == 0.0
    assert tenfold_accuracy(np.tile([0.1, 0.8], 50), np.tile([False, True], 50)) == (1.0, 0.0)


def test_far_one_accepts_everything():
    assert tar_at_far([0.1, 0.9], [-0.5, 0.5], 1.0) == (1.0, 1.0, -0.5)


def test_single_and_mixed_precision_count_alike():
    negatives = np.float32([0.1, 0.2, 0.3])
    above = np.nextafter(np.float64(np.float32(0.3)), 1.0)
    tar, obtained, _ = tar_at_far(negatives, np.array([above]), 0.0)
    assert (tar, obtained) == (1.0, 0.0)
    assert tar_at_far(negatives, np.float32([0.3]), 0.0)[:2] == (0.0, 0.0)


@pytest.mark.parametrize("seed", range(5))
def test_roc_counts_and_rises_from_zero_to_one(seed):
    negatives, positives = draw(seed, ties=True)
    points = roc(negatives, positives)
    assert (points.far[0], points.tar[0], points.far[-1], points.tar[-1]) == (0, 0, 1, 1)
    for far, tar, threshold in zip(*points, strict=True):
        assert far == np.mean(negatives >= threshold)
        assert tar == np.mean(positives >= threshold)
    assert (np.diff(points.threshold) < 0).all()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_eer_equals_the_search_over_all_thresholds(seed, ties):
    negatives, positives = draw(seed, ties)
    candidates = []
    for threshold in [*negatives, *positives, 9.0]:
        far, frr = np.mean(negatives >= threshold), np.mean(positives < threshold)
        candidates.append((round(abs(far - frr), 9), (far + frr) / 2))
    assert eer(negatives, positives) == pytest.approx(min(candidates)[1])


def test_eer_of_equal_scores_is_one_half():
    assert eer([0.5, 0.5], [0.5]) == 0.5


@pytest.mark.parametrize(("pairs", "folds"), [(40, 10), (37, 10), (23, 4), (10, 10)])
def test_tenfold_accuracy_equals_the_published_procedure(pairs, folds):
    rng = np.random.default_rng(pairs)
    issame = rng.random(pairs) < 0.5
    similarity = np.clip(rng.normal(np.where(issame, 0.4, 0.1), 0.2), -1, 1)
    expected = slow_tenfold(2 - 2 * similarity, issame, folds)
    assert tenfold_accuracy(similarity, issame, folds) == pytest.approx(expected, abs=1e-12)


def test_thresholds_of_the_accuracy_are_a_hundredth_apart():
    distance = np.tile([1.005, 1.015, 2.993, 2.997], 10)  # 1.01 tells the first two apart, nothing the others
    issame = np.tile([True, False, False, False], 10)
    assert tenfold_accuracy(1 - distance / 2, issame, 10) == (1.0, 0.0)
    issame = np.tile([True, True, True, False], 10)  # 2.99 < 2.993 < 2.997 < 3: one of the two is wrong
    assert tenfold_accuracy(1 - distance / 2, issame, 10)[0] == 0.75


def test_tenfold_accuracy_keeps_the_file_order():
    """Contiguous folds: a set whose second half has other scores is worse than the same set mixed."""
    issame = np.tile([True, False], 50)
    similarity = np.where(issame, 0.5, 0.4)
    similarity[50:] += 0.3
    mixed = np.random.default_rng(0).permutation(100)
    assert tenfold_accuracy(similarity, issame, 2) != tenfold_accuracy(similarity[mixed], issame[mixed], 2)


def test_identical_images_and_distances_on_a_threshold():
    """A distance equal to a threshold is not below it: 0.5 is 'different' at threshold 0.5."""
    similarity = np.array([1.0, 0.75] * 10)
    issame = np.array([True, False] * 10)
    assert tenfold_accuracy(similarity, issame) == (1.0, 0.0)
    assert tenfold_accuracy(similarity, issame) == slow_tenfold(2 - 2 * similarity, issame, 10)


@pytest.mark.parametrize("metric", [eer, roc, lambda n, p: tar_at_far(n, p, 0.1)])
def test_empty_and_nan_scores_are_refused_by_name(metric):
    with pytest.raises(UserError, match="negatives: expected at least one score"):
        metric([], [0.5])
    with pytest.raises(UserError, match="positives: expected at least one score"):
        metric([0.5], [])
    with pytest.raises(UserError, match="positives: expected finite scores, got 1 of 2"):
        metric([0.5], [0.5, np.nan])


def test_bad_arguments_are_refused():
    with pytest.raises(UserError, match=r"far: expected rates in 0\.\.1"):
        tar_at_far([0.1], [0.5], [0.1, 1.5])
    with pytest.raises(UserError, match="issame: expected 3 labels"):
        tenfold_accuracy([0.1, 0.2, 0.3], [True], 2)
    with pytest.raises(UserError, match=r"folds: expected 2\.\.3 for 3 pairs, got 10"):
        tenfold_accuracy([0.1, 0.2, 0.3], [True, False, True])


@pytest.mark.parametrize("target", [0.001, 0.1, 0.25])
@pytest.mark.parametrize("pairs", [40, 57])
def test_val_equals_the_published_procedure(pairs, target):
    rng = np.random.default_rng(pairs)
    issame = np.arange(pairs) % 2 == 0
    similarity = np.clip(rng.normal(np.where(issame, 0.45, 0.1), 0.2), -1, 1)
    expected = slow_val(2 - 2 * similarity, issame, target, 10)
    assert val_at_far(similarity, issame, target) == pytest.approx(expected, abs=1e-12)


def test_val_accepts_nothing_where_the_far_is_never_reached():
    """Distances of different persons of 4 and more are above the last threshold, 3.999."""
    similarity, issame = np.array([0.9, -1.0] * 10), np.array([True, False] * 10)
    assert val_at_far(similarity, issame, 0.001) == (0.0, 0.0, 0.0)


def test_there_is_no_val_where_a_block_has_pairs_of_one_kind():
    similarity = np.linspace(0, 1, 20)
    assert val_at_far(similarity, np.arange(20) >= 10) is None


def test_tenfold_says_which_pairs_are_wrong_and_at_which_threshold():
    rng = np.random.default_rng(5)
    issame = rng.random(60) < 0.5
    similarity = np.clip(rng.normal(np.where(issame, 0.4, 0.1), 0.2), -1, 1)
    found = tenfold(similarity, issame)
    assert found.accuracy.tolist() == pytest.approx(
        [found.correct[6 * k : 6 * k + 6].mean() for k in range(10)]
    )
    assert (len({*found.threshold[:6]}), len({*found.threshold}) > 1) == (1, True)
    for score, same, threshold, correct in zip(
        similarity, issame, found.threshold, found.correct, strict=True
    ):
        assert correct == ((score > threshold) == same)


def test_a_long_roc_is_thinned_to_what_a_figure_shows():
    rng = np.random.default_rng(6)
    points = roc(rng.normal(0, 0.1, 20_000), rng.normal(0.3, 0.1, 20_000))
    far, tar = thin(points.far, points.tar)
    assert 1000 < far.size <= CURVE_POINTS
    assert (far[0], tar[0], far[-1], tar[-1]) == (0, 0, 1, 1)
    assert (np.diff(far) >= 0).all() and (np.diff(tar) >= 0).all()
    wanted = np.geomspace(1e-4, 1, 400)
    step = lambda f, t: t[np.searchsorted(f, wanted, side="right") - 1]  # noqa: E731
    assert np.abs(step(far, tar) - step(points.far, points.tar)).max() < 3e-3
    short = thin(points.far[:50], points.tar[:50])
    assert short[0].size <= 50
