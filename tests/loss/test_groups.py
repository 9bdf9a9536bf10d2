"""Several teachers with their students, and mixed students: against what each group gives by itself."""

import dataclasses

import numpy as np
import pytest

from ddl_plugin.errors import UserError
from ddl_plugin.loss import reference
from ddl_plugin.loss.scope import together
from ddl_plugin.loss.terms import ddl_terms, singles, term_names
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.settings import DDLSettings, Degradation

POSE = {"name": "pose", "easy": "abs(yaw) < 10", "hard": ["abs(yaw) > 45"]}
SIZE = {"name": "resolution", "hard": [{"size": 24}, {"size": 14}], "lambda_pos": 0.7, "lambda_order": 0.2}
BOTH = DDLSettings(b=4, groups=[POSE, SIZE], bins=30)
ALONE = (
    DDLSettings(b=4, easy=POSE["easy"], hard=POSE["hard"], bins=30),
    DDLSettings(b=4, hard=SIZE["hard"], bins=30, lambda_pos=0.7, lambda_order=0.2),
)


def embeddings(rows, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, 6)) + rng.normal(size=6) * 0.6


def in_graph(x, settings):
    x = mx.nd.array(x)
    x.attach_grad()
    with mx.autograd.record():
        loss, terms = ddl_terms(mx.nd, x, settings)
    loss.backward()
    named = dict(zip(term_names(settings), terms.asnumpy()[0].tolist(), strict=True))
    return loss.asscalar(), named, x.grad.asnumpy()


@pytest.mark.parametrize("changes", [{}, {"distance": "emd"}, {"neg_mining": "top", "detach_teacher": True}])
def test_groups_give_the_sum_of_what_each_gives_by_itself(changes):
    both = dataclasses.replace(BOTH, **changes)
    alone = [dataclasses.replace(one, **changes) for one in ALONE]
    assert [one.rows for one in alone] == [24, 36]
    assert both.rows == 60
    x = embeddings(60)
    loss, terms, gradient = in_graph(x, both)
    (first, terms_1, gradient_1), (second, terms_2, gradient_2) = (
        in_graph(part, one) for part, one in zip((x[:24], x[24:]), alone, strict=True)
    )
    assert loss == pytest.approx(first + second, rel=1e-5)
    np.testing.assert_allclose(gradient, np.concatenate([gradient_1, gradient_2]), atol=1e-6)
    distance = both.distance
    assert terms[f"{distance}_pos_pose"] == pytest.approx(terms_1[f"{distance}_pos"], rel=1e-5)
    assert terms["order_resolution"] == pytest.approx(terms_2["order"], rel=1e-5)
    assert terms["margin_resolution_hard2"] == pytest.approx(terms_2["margin_hard2"], rel=1e-5)


@pytest.mark.parametrize("settings", [BOTH, dataclasses.replace(BOTH, distance="js", neg_mining="random")])
def test_groups_agree_with_the_reference(settings):
    x = embeddings(settings.rows, 1)
    _, terms, gradient = in_graph(x, settings)
    expected = reference.ddl(x, settings)
    assert list(expected) == list(term_names(settings))
    assert terms == pytest.approx(expected, abs=1e-5)
    np.testing.assert_allclose(gradient, reference.ddl_gradient(x, settings), atol=1e-5)


def test_names_begin_with_the_groups():
    assert BOTH.names == ("pose_easy", "pose_hard", "resolution_easy", "resolution_hard1", "resolution_hard2")
    assert BOTH.labels == ("abs(yaw) < 10", "abs(yaw) > 45", "all", "size 24", "size 14")
    assert BOTH.distributions == 5
    assert term_names(BOTH)[:7] == (
        "ddl", "kl_pos_pose", "kl_neg_pose", "order_pose",
        "kl_pos_resolution", "kl_neg_resolution", "order_resolution",
    )  # fmt: skip


def test_the_layout_of_several_devices_and_of_singles_counts_all_groups():
    rows = mx.nd.arange(2 * BOTH.rows)
    gathered = together(mx.nd, rows, BOTH, 2).asnumpy().reshape(5, 3, 8)
    for k in range(5):
        for part in range(3):
            start = (3 * k + part) * 4
            expected = [*range(start, start + 4), *range(60 + start, 60 + start + 4)]
            np.testing.assert_array_equal(gathered[k, part], expected)
    alone = singles(mx.nd, mx.nd.arange(BOTH.rows), BOTH).asnumpy().reshape(5, 4)
    np.testing.assert_array_equal(alone[:, 0], [8, 20, 32, 44, 56])


@pytest.mark.parametrize(
    "groups, message",
    [
        ([POSE, POSE], r"ddl\.groups: names: expected names that differ, got \['pose', 'pose'\]"),
        ([{"easy": "yaw < 3"}], r"ddl\.groups: expected a dict such as \{'name': 'pose'"),
        ([{"name": "a", "hard": []}], r"ddl\.groups: a: hard: expected a list of one rule or degradation"),
        ([{"name": "a-b", "hard": "yaw > 4"}], r"ddl\.groups: name: expected letters"),
        (
            [{"name": "a", "hard": "yaw > 4", "lamda_pos": 1}],
            r"unknown key 'lamda_pos'; did you mean 'lambda_pos'",
        ),
        (
            [{"name": "a", "hard": "yaw > 4", "lambda_pos": -1}],
            r"ddl\.groups: a: lambda_pos: expected a number >= 0",
        ),
    ],
)
def test_groups_that_cannot_be_are_refused(groups, message):
    with pytest.raises(UserError, match=message):
        DDLSettings(b=4, groups=groups)


def test_groups_stand_in_the_place_of_easy_and_hard():
    with pytest.raises(UserError, match=r"ddl: expected one of hard, groups and online"):
        DDLSettings(hard="yaw > 4", groups=[POSE])
    with pytest.raises(UserError, match=r"ddl\.easy: expected the easy rules in ddl\.groups, got 'yaw < 1'"):
        DDLSettings(easy="yaw < 1", groups=[POSE])


# -- mixture -----------------------------------------------------------------------------------------


def test_mixing_is_merging_the_sets_by_hand():
    by_rules = DDLSettings(easy="abs(yaw) < 10", hard=["yaw > 45", "yaw < -45"], mixture=True)
    by_hand = DDLSettings(easy="abs(yaw) < 10", hard=["(yaw > 45) or (yaw < -45)"])
    assert by_rules.hard == by_hand.hard
    assert by_rules.rows == by_hand.rows == 6 * by_rules.b

    degraded = DDLSettings(hard=[{"size": (22, 26)}, {"size": (12, 16)}], mixture=True)
    assert degraded.hard == DDLSettings(hard=[{"one_of": [{"size": (22, 26)}, {"size": (12, 16)}]}]).hard
    assert degraded.hard[0].degradation == Degradation(one_of=[{"size": (22, 26)}, {"size": (12, 16)}])
    assert degraded.labels == ("all", "size 22-26 or size 12-16")

    one_rule = DDLSettings(
        hard=[{"rule": "yaw > 4", "size": 24}, {"rule": "yaw > 4", "size": 14}], mixture=True
    )
    assert (one_rule.hard[0].rule, one_rule.labels[1]) == ("yaw > 4", "yaw > 4, size 24 or size 14")


def test_mixing_what_is_mixed_changes_nothing():
    mixture = DDLSettings(hard=[{"size": 24}, {"size": 14}], mixture=True)
    assert dataclasses.replace(mixture, b=8).hard == mixture.hard
    single = DDLSettings(hard=["yaw > 4"], mixture=True)
    assert single.hard == DDLSettings(hard=["yaw > 4"]).hard


@pytest.mark.parametrize(
    "hard", [["yaw > 4", {"size": 14}], [{"rule": "yaw > 4", "size": 14}, {"rule": "yaw > 9", "size": 24}]]
)
def test_what_has_no_one_degradation_cannot_be_mixed(hard):
    with pytest.raises(
        UserError, match=r"ddl\.mixture: expected hard distributions by rules alone, or by degrad"
    ):
        DDLSettings(hard=hard, mixture=True)
