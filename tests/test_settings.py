"""Settings: the paper's values, what is normalised, and the message of every mistake."""

import re

import pytest

from ddl_plugin.errors import UserError
from ddl_plugin.settings import (
    IDENTITY_LOSSES,
    DDLSettings,
    Degradation,
    HardSettings,
    IdentificationSettings,
    RunSettings,
)

POSE = "abs(yaw) > 45"


def ddl(**changes):
    return DDLSettings(**{"b": 4, "hard": (POSE,), **changes})


def settings(**changes):
    return RunSettings(**{"dataset_path": "faces", "pretrained": "model,0", "ddl": ddl(), **changes})


def refuses(make, message, **changes):
    with pytest.raises(UserError, match=re.escape(message)):
        make(**changes)


def test_the_defaults_are_the_papers():
    loss = DDLSettings(hard=POSE)
    assert (loss.b, loss.bins, loss.gamma) == (32, 100, 50.0)
    assert (loss.lambda_pos, loss.lambda_neg, loss.lambda_order) == (0.1, 0.02, 0.5)
    assert (loss.distance, loss.neg_mining, loss.identity, loss.identity_rows) == (
        "kl",
        "hardest",
        "arcface",
        "all",
    )
    assert loss.detach_teacher is False
    run = settings()
    assert (run.loss, run.sampler, run.max_steps, run.lr, run.mom, run.wd) == (
        "ddl",
        "pairs",
        1000,
        1e-3,
        0.9,
        5e-4,
    )


def test_rows_and_names_of_one_and_of_several_hard_distributions():
    assert (ddl().distributions, ddl().rows, ddl().names) == (2, 24, ("easy", "hard"))
    three = ddl(b=16, hard=["yaw > 1", {"size": 14}, {"blur": (1, 2), "rule": "race == 2"}])
    assert (three.distributions, three.rows) == (4, 3 * 16 * 4)
    assert three.names == ("easy", "hard1", "hard2", "hard3")
    assert [h.label for h in three.hard] == ["yaw > 1", "size 14", "race == 2, blur 1-2"]


def test_hard_takes_a_rule_a_dict_or_a_list_of_them():
    one = HardSettings(rule=POSE)
    for given in (POSE, {"rule": POSE}, one, [POSE], (one,)):
        assert ddl(hard=given).hard == (one,)
    (small,) = ddl(hard={"size": 14}).hard
    assert (small.rule, small.degradation.size, small.degradation.active) == (None, (14, 14), True)
    assert not Degradation().active


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"b": 1}, "ddl.b: expected a whole number >= 2, got 1"),
        ({"b": 4.0}, "ddl.b: expected a whole number >= 2, got 4.0"),
        ({"b": True}, "ddl.b: expected a whole number >= 2, got True"),
        ({"hard": ()}, "ddl.hard: expected K >= 1 hard distributions, e.g. ['abs(yaw) > 45']"),
        ({"hard": None}, "ddl.hard: expected a list of rules or degradations, got None"),
        ({"hard": [5]}, "ddl.hard: expected a rule or a dict like {'size': (12, 16)}, got 5"),
        ({"hard": [{}]}, "ddl.hard: expected a rule or a dict like {'size': (12, 16)}, got {}"),
        ({"hard": [HardSettings()]}, "ddl.hard: expected a rule or a degradation, got HardSettings"),
        ({"hard": [" "]}, "ddl.hard: rule: expected a rule such as 'abs(yaw) > 45', got ' '"),
        ({"hard": {"rule": 3}}, "ddl.hard: rule: expected a rule such as 'abs(yaw) > 45', got 3"),
        ({"hard": {"sise": 3}}, "ddl.hard: unknown key 'sise'; did you mean 'size'?"),
        ({"easy": 10}, "ddl.easy: expected a rule such as 'abs(yaw) < 10', or None for every record, got 10"),
        ({"easy": ""}, "ddl.easy: expected a rule"),
        ({"lambda_pos": -0.1}, "ddl.lambda_pos: expected a number >= 0, got -0.1"),
        ({"lambda_neg": "0.1"}, "ddl.lambda_neg: expected a number >= 0, got '0.1'"),
        ({"lambda_order": float("nan")}, "ddl.lambda_order: expected a number >= 0, got nan"),
        ({"lambda_order": float("inf")}, "ddl.lambda_order: expected a number >= 0, got inf"),
        ({"lambda_order": 10**400}, "ddl.lambda_order: expected a number >= 0, got 1000"),
        ({"bins": 1}, "ddl.bins: expected a whole number >= 2, got 1"),
        ({"gamma": 0}, "ddl.gamma: expected a number > 0 and <= 100000, got 0"),
        ({"gamma": 2e5}, "ddl.gamma: expected a number > 0 and <= 100000, got 200000.0"),
        ({"distance": "kll"}, "ddl.distance: expected one of kl, js, emd, got 'kll'; did you mean 'kl'?"),
        ({"neg_mining": "hard"}, "ddl.neg_mining: expected one of hardest, top, random, got 'hard'"),
        ({"neg_mining": "top", "b": 2}, "ddl.b: expected b >= 3 with neg_mining 'top'"),
        ({"detach_teacher": 1}, "ddl.detach_teacher: expected True or False, got 1"),
        ({"identity": "arcfase"}, "got 'arcfase'; did you mean 'arcface'?"),
        ({"identity_rows": "some"}, "ddl.identity_rows: expected one of all, singles, got 'some'"),
    ],
)
def test_mistakes_in_ddl(changes, message):
    refuses(ddl, message, **changes)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("size", (3, 16), "a whole number or a pair (low, high) of them within 4..112"),
        ("size", (16, 12), "within 4..112"),
        ("size", (12, 113), "within 4..112"),
        ("size", (12.5, 16), "a whole number"),
        ("size", (12, 14, 16), "a pair"),
        ("size", "12-16", "a pair"),
        ("jpeg", 0, "a whole number or a pair (low, high) of them within 1..100"),
        ("jpeg", 20.0, "a whole number"),
        ("darken", True, "a number or a pair (low, high) of them within 0..1"),
        ("darken", (0.5, 1.1), "within 0..1"),
        ("blur", float("nan"), "a number or a pair (low, high) of them within 0.1..20"),
        ("occlude", (0, 0.5), "within 0.01..1"),
    ],
)
def test_mistakes_in_a_degradation(name, value, expected):
    with pytest.raises(UserError) as error:
        ddl(hard={name: value})
    assert str(error.value).startswith(f"ddl.hard: {name}: expected ")
    assert expected in str(error.value)
    assert str(error.value).endswith(f"got {value!r}")


@pytest.mark.parametrize(("name", "low", "high"), [(n, *bounds) for n, bounds in Degradation._BOUNDS.items()])
def test_the_bounds_of_a_degradation_belong_to_it(name, low, high):
    assert getattr(Degradation(**{name: [low, high]}), name) == (low, high)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset_path": ""}, "dataset_path: expected the folder of train.rec, or 'synthetic', got ''"),
        ({"dataset_path": 5}, "dataset_path: expected the folder of train.rec, or 'synthetic', got 5"),
        ({"attributes": 5}, "attributes: expected a .npz, .parquet or .csv table, got 5"),
        ({"data_rand_mirror": "yes"}, "data_rand_mirror: expected True or False, got 'yes'"),
        ({"bn_frozen": 1}, "bn_frozen: expected True or False, got 1"),
        ({"baseline": None}, "baseline: expected True or False, got None"),
        ({"max_pairs_per_identity": 0}, "max_pairs_per_identity: expected a whole number >= 1, got 0"),
        ({"num_threads": 0}, "num_threads: expected a whole number >= 1, got 0"),
        ({"max_damaged": -0.1}, "max_damaged: expected a number >= 0 and <= 1, got -0.1"),
        ({"max_damaged": 1.5}, "max_damaged: expected a number >= 0 and <= 1, got 1.5"),
        ({"max_steps": True}, "max_steps: expected a whole number >= 1, got True"),
        ({"max_steps": 0}, "max_steps: expected a whole number >= 1, got 0"),
        ({"seed": -1}, "seed: expected a whole number >= 0, got -1"),
        ({"verbose": None}, "verbose: expected a whole number >= 0, got None"),
        ({"emb_size": 0, "network": "y1"}, "emb_size: expected a whole number >= 1, got 0"),
        ({"per_batch_size": "24"}, "per_batch_size: expected a whole number >= 1, got '24'"),
        ({"lr": "fast"}, "lr: expected a number >= 0, got 'fast'"),
        ({"wd": -1}, "wd: expected a number >= 0, got -1"),
        ({"mom": 1}, "mom: expected a number below 1, got 1"),
        ({"fc7_lr_mult": -1}, "fc7_lr_mult: expected a number >= 0, got -1"),
        ({"loss_m2": "0.5"}, "loss_m2: expected a number >= 0, got '0.5'"),
        ({"loss_s": 0}, "loss_s: expected a number > 0, got 0"),
        ({"fc7_init": "men"}, "fc7_init: expected one of mean, checkpoint, random, got 'men'; did you mean"),
        ({"rename": ["a"]}, "rename: expected a dict {name in checkpoint: name in graph}, got ['a']"),
        ({"rename": {"a": 5}}, "rename: expected a dict {name in checkpoint: name in graph}, got {'a': 5}"),
        ({"val_targets": 5}, "val_targets: expected names of .bin sets, e.g. ['lfw', 'cfp_fp'], got 5"),
        ({"val_targets": ["lfw", 5]}, "val_targets: expected names of .bin sets"),
        ({"val_targets": None}, "val_targets: expected names of .bin sets"),
        ({"network": 5}, "network: expected the name of a graph such as 'y1', got 5"),
        ({"pretrained": 5}, "pretrained: expected text such as 'PREFIX,EPOCH', got 5"),
        ({"pretrained": ""}, "pretrained: expected a checkpoint 'PREFIX,EPOCH', or else `network`"),
        (
            {"pretrained": "", "network": "tiny"},
            "fc7_init: expected 'random' when there is no `pretrained` model",
        ),
        ({"ddl": None}, "ddl: expected a dict with b and hard, e.g. {'b': 16, 'hard': ['abs(yaw) > 45']}"),
    ],
)
def test_mistakes_in_a_run(changes, message):
    refuses(settings, message, **changes)


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ("100000,160000", (100000, 160000)),
        (" 100, 200 ", (100, 200)),
        ("", ()),
        ([3, 8], (3, 8)),
        (500, (500,)),
        ([], ()),
    ],
)
def test_lr_steps_may_be_written_as_insightface_does(given, steps):
    assert settings(lr_steps=given).lr_steps == steps


@pytest.mark.parametrize("given", ["100,a", "-5", [8, 3], [3, 3], [0], [True], [2.5], 2.5, ["3"], {"a": 1}])
def test_lr_steps_that_are_none(given):
    message = f"lr_steps: expected increasing steps, e.g. [500, 800], got {given!r}"
    refuses(settings, message, lr_steps=given)


@pytest.mark.parametrize(("max_steps", "steps"), [(1000, (500,)), (3, (1,)), (1, ())])
def test_the_rate_falls_at_half_of_the_run_unless_said_otherwise(max_steps, steps):
    assert settings(max_steps=max_steps).lr_steps == steps


@pytest.mark.parametrize(
    ("given", "near", "images"), [(25, 4, 24), (28, 5, 30), (96, 16, 96), (23, 4, 24), (1, 2, 12)]
)
def test_a_batch_that_is_no_distribution_batch_is_answered_with_the_nearest_b(given, near, images):
    message = (
        f"per_batch_size: expected 3b(K+1) = 24 for b = 4, K = 1, got {given}; "
        f"leave it out, or set ddl.b={near} for {images} images"
    )
    refuses(settings, message, per_batch_size=given)
    assert settings(ddl=ddl(b=near)).batch_rows == images


def test_the_nearest_b_counts_the_distributions():
    refuses(
        settings, "set ddl.b=11 for 99 images", per_batch_size=100, ddl=ddl(b=16, hard=["yaw > 1", "yaw > 2"])
    )


def test_batch_rows_of_each_sampler():
    assert settings().batch_rows == settings(per_batch_size=24).batch_rows == 24
    alone = {"loss": "arcface", "ddl": None}
    assert settings(**alone, sampler="images", per_batch_size=7).batch_rows == 7
    assert settings(**alone, sampler="mine", per_batch_size=7).batch_rows == 7
    # A sampler of the user's own that serves a loss of distributions, and its baseline run.
    run = settings(sampler="mine", baseline=True)
    assert run.batch_rows == run.without_distributions_loss().batch_rows == 24


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "arcface"}, "per_batch_size: expected images per device for this sampler, got None"),
        (
            {"loss": "ddl", "per_batch_size": 24},
            "sampler: expected batches of distributions such as 'pairs' for loss 'ddl', got 'images'",
        ),
        (
            {"loss": "arcface", "per_batch_size": 24, "ddl": ddl(identity_rows="singles")},
            "ddl.identity_rows: expected 'all' for sampler 'images', got 'singles'",
        ),
    ],
)
def test_plain_images_serve_the_identity_loss_alone(changes, message):
    refuses(settings, message, sampler="images", **changes)


def test_a_loss_of_distributions_needs_them_with_any_sampler():
    refuses(settings, "ddl: expected a dict with b and hard", loss="mine", sampler="mine", ddl=None)
    refuses(settings, "per_batch_size: expected 3b(K+1) = 24", loss="mine", sampler="mine", per_batch_size=25)


def test_the_identity_loss_of_a_run():
    assert settings(ddl=ddl(identity="cosface")).identity == "cosface"
    assert settings(loss="mine").identity == "arcface"
    for name in IDENTITY_LOSSES:
        assert settings(loss=name, ddl=ddl(identity="arcface")).identity == name


def test_the_baseline_differs_in_the_loss_alone():
    run = settings(loss="mine", loss_options={"weight": 1}, ddl=ddl(identity="cosface"), lr_steps="3,8")
    base = run.without_distributions_loss()
    assert (base.loss, base.loss_options) == ("cosface", {})
    assert (base.ddl, base.lr_steps, base.batch_rows) == (run.ddl, (3, 8), run.batch_rows)


def test_one_verification_set_may_be_given_by_its_name():
    assert settings(val_targets="lfw").val_targets == ("lfw",)


def test_sizes_of_identification():
    assert IdentificationSettings().sizes == ("full",)
    assert IdentificationSettings(sizes=14).sizes == (14,)
    assert IdentificationSettings(sizes=["full", 4, 112]).sizes == ("full", 4, 112)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": [3]}, "identification.sizes: expected 'full' or pixels within 4..112, got 3"),
        ({"sizes": ["half"]}, "identification.sizes: expected 'full' or pixels within 4..112, got 'half'"),
        ({"sizes": [24.0]}, "identification.sizes: expected 'full' or pixels within 4..112, got 24.0"),
        ({"sizes": None}, "identification.sizes: expected a list such as ['full', 24], got None"),
        ({"rec": 5}, "identification.rec: expected a .rec file, by path or by its name in dataset_path"),
        ({"protocol": 5}, "identification.protocol: expected a CSV file of record, role[, condition], got 5"),
    ],
)
def test_mistakes_in_identification(changes, message):
    refuses(IdentificationSettings, message, **changes)
