"""`loss.ddl` in config.py: what the trainer is given of it, what a batch size means, what a run is."""

import pytest
from easydict import EasyDict

from ddl_plugin import registry
from ddl_plugin.errors import UserError
from ddl_plugin.host.entry import Entry
from ddl_plugin.settings import Degradation

HARD = [{"size": (12, 16)}]


def entry(**values):
    return Entry.parse("ddl", EasyDict(hard=HARD, **values), ("lr", "per_batch_size", "seed"))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, {"loss_name": "margin_softmax", "loss_m1": 1.0, "loss_m2": 0.5, "loss_m3": 0.0, "loss_s": 64.0}),
        (
            {"identity": "cosface", "loss_s": 30},
            {"loss_name": "margin_softmax", "loss_m1": 1.0, "loss_m2": 0.0, "loss_m3": 0.35, "loss_s": 30.0},
        ),
        (
            {"identity": "combined", "loss_m1": 0.9},
            {"loss_name": "margin_softmax", "loss_m1": 0.9, "loss_m2": 0.3, "loss_m3": 0.2, "loss_s": 64.0},
        ),
        ({"identity": "softmax"}, {"loss_name": "softmax"}),
    ],
)
def test_the_trainer_gets_the_identity_loss_and_the_batch(values, expected):
    assert entry(b=5, **values).for_trainer() == {**expected, "per_batch_size": 30}


def test_b_follows_the_batch_where_none_is_written():
    assert entry().settings.ddl.b == 32  # the paper's, and what the trainer's default becomes
    assert entry().settings_for(126).b == 21
    assert entry(b=21).settings_for(126).b == 21
    with pytest.raises(UserError) as error:
        entry(b=20).settings_for(128)
    assert str(error.value) == (
        "--per-batch-size: expected 3b(K+1) = 120 for b = 20, K = 1, got 128; give --per-batch-size 120, or set "
        "loss.ddl.b: 126 (b = 21) or 132 (b = 22)"
    )
    with pytest.raises(UserError, match=r"got 126; .* or set loss.ddl.b: 126 \(b = 21\)$"):
        entry(b=20).settings_for(126)


@pytest.mark.parametrize(
    ("size", "advice"),
    [
        (128, r"give 126 \(b = 21\) or 132 \(b = 22\)$"),
        (13, r"give 12 \(b = 2\) or 18 \(b = 3\)$"),
        (0, r"give 12 \(b = 2\)$"),
    ],
)
def test_the_nearest_sizes_are_named(size, advice):
    with pytest.raises(UserError, match=advice):
        entry().settings_for(size)


def test_a_run_has_what_the_entry_and_the_config_say():
    config = EasyDict(dataset_path="faces", data_rand_mirror=False)
    given = entry(
        b=3,
        attributes="pose.npz",
        seed=9,
        num_threads=4,
        fc7_init="checkpoint",
        rename={"a": "b"},
        loss_m2=0.4,
        max_damaged=0.01,
    )
    settings = given.run_settings(config, "prefix,7", given.settings_for(18))
    assert (settings.loss, settings.pretrained, settings.dataset_path) == ("ddl", "prefix,7", "faces")
    assert (settings.attributes, settings.seed, settings.num_threads) == ("pose.npz", 9, 4)
    assert (settings.fc7_init, settings.rename, settings.loss_m2) == ("checkpoint", {"a": "b"}, 0.4)
    assert settings.max_damaged == 0.01
    assert settings.data_rand_mirror is False
    assert settings.ddl.b == 3
    assert settings.ddl.hard[0].degradation == Degradation(size=(12, 16))


def test_the_trainers_own_keys_reach_the_trainer():
    given = entry(lr=0.05, per_batch_size=24, seed=3)
    table = given.for_trainer()
    assert (table["lr"], table["per_batch_size"], table["loss_name"]) == (0.05, 24, "margin_softmax")
    assert "seed" not in table  # ours before the trainer's
    assert given.settings.seed == 3


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"^config.py: loss.ddl: expected a table such as .*, got None$"),
        ("arcface", r"^config.py: loss.ddl: expected a table such as .*, got 'arcface'$"),
        (
            {"hard": None},
            r"^config.py: loss.ddl: ddl.hard: expected a list of rules or degradations, got None$",
        ),
        ({"hard": HARD, "b": None}, r"^config.py: loss.ddl: ddl.b: expected a whole number >= 2, got None$"),
        ({"hard": HARD, "loss_s": "64"}, r"^config.py: loss.ddl: loss_s: expected a number > 0, got '64'$"),
        (
            {"hard": HARD, "seed": [1]},
            r"^config.py: loss.ddl: seed: expected a whole number >= 0, got \(1,\)$",
        ),
        ({"hard": HARD, "rename": "fc1_weight"}, r"^config.py: loss.ddl: rename: expected a dict"),
        (
            {"hard": HARD, "lamda_pos": 1},
            r"^config.py: loss.ddl: unknown key 'lamda_pos'; did you mean 'lambda_pos'",
        ),
        # An entry copied from that of ArcFace.
        (
            {"loss_name": "margin_softmax", "loss_s": 64.0, "loss_m1": 1.0, "loss_m2": 0.5, "loss_m3": 0.0},
            r"^config.py: loss.ddl.loss_name: .*: write loss.ddl.identity = 'arcface' instead$",
        ),
    ],
)
def test_what_cannot_be_is_one_line_with_its_key(value, message):
    with pytest.raises(UserError, match=message) as error:
        Entry.parse("ddl", EasyDict(value) if isinstance(value, dict) else value)
    assert "\n" not in str(error.value)


def test_options_of_a_registered_loss_stand_in_its_entry(monkeypatch):
    own = registry.LossEntry("mine", lambda *_: None, "for this test", {"weight": 1.0})
    monkeypatch.setitem(registry.LOSSES, "mine", own)
    given = Entry.parse("mine", {"hard": HARD, "b": 4, "weight": 3.0})
    settings = given.run_settings({"dataset_path": "faces"}, "p,0", given.settings.ddl)
    assert settings.loss == "mine"
    assert settings.loss_options == {"weight": 3.0}
    with pytest.raises(UserError, match=r"loss.ddl: unknown key 'weight'"):
        Entry.parse("ddl", {"hard": HARD, "weight": 3.0})


@pytest.mark.parametrize("name", ["histogram", "semihard_triplet", "ohem", "focal", "online_ddl"])
def test_a_loss_that_needs_more_than_the_embeddings_is_refused(name):
    with pytest.raises(
        UserError, match=rf"--loss {name}: .* needs (label|losses) of each row, .*ddl_plugin\.train$"
    ):
        Entry.parse(name, EasyDict(hard=HARD))


def test_groups_and_mixtures_go_with_the_trainer():
    groups = [{"name": "pose", "hard": HARD}, {"name": "size", "hard": [{"size": 24}, {"size": 14}]}]
    found = Entry.parse("ddl", EasyDict(groups=groups, b=2))
    assert found.for_trainer()["per_batch_size"] == 3 * 2 * 5
    with pytest.raises(UserError, match=r"expected 3b x 5 distributions = 30 for b = 2, K = 3, got 32"):
        found.settings_for(32)
    mixed = Entry.parse("ddl", EasyDict(hard=[{"size": 24}, {"size": 14}], mixture=True))
    assert mixed.settings_for(60).b == 10
