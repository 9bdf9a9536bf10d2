"""Our keys in arcface_torch's config: what they mean, and which mistakes are told."""

import re

import pytest
from easydict import EasyDict

from ddl_plugin.errors import UserError
from ddl_plugin.host.arcface_torch.entry import joins, keys_of_recipe, parse

DARK = [{"darken": (0.2, 0.5)}]


def config(**keys):
    """What get_config returns for a config with these keys over a usual one."""
    usual = {
        "margin_list": (1.0, 0.5, 0.0), "network": "r50", "resume": False, "output": "work_dirs/x", "embedding_size": 512,
        "sample_rate": 1.0, "interclass_filtering_threshold": 0, "fp16": True, "batch_size": 126, "optimizer": "sgd", "lr": 0.1, "momentum": 0.9,
        "weight_decay": 5e-4, "verbose": 2000, "frequent": 10, "dali": False, "dali_aug": False, "gradient_acc": 1, "seed": 2048,
        "num_workers": 2, "rec": "/data/ms1mv3", "num_classes": 93431, "num_image": 5179510, "num_epoch": 20, "warmup_epoch": 0, "val_targets": [], "loss": "ddl",
    }  # fmt: skip
    return EasyDict({**usual, **keys})


def test_one_line_is_enough():
    entry = parse(config())
    ddl = entry.settings.ddl
    assert [hard.degradation.size for hard in ddl.hard] == [(22, 26), (12, 16)]
    assert (ddl.b, ddl.rows) == (14, 126)
    assert entry.settings.seed == 2048
    assert (entry.settings.pretrained, entry.settings.fc7_init) == ("", "random")
    assert any("no config.ddl: hard" in note for note in entry.notes)
    assert any("b = 14" in note for note in entry.notes)


def test_only_a_loss_of_ours_joins():
    assert joins(config())
    assert joins(config(loss="histogram"))
    assert not joins(config(loss="arcface"))
    assert not joins({key: value for key, value in config().items() if key != "loss"})
    with pytest.raises(UserError, match=r"config.loss: expected one of .*got 'dll'; did you mean 'ddl'"):
        joins(config(loss="dll"))
    with pytest.raises(UserError, match=r"config.loss: expected a name such as 'ddl', got 3"):
        joins(config(loss=3))


def test_settings_are_the_configs():
    keys = {
        "ddl": EasyDict(hard=["abs(yaw) > 45"], b=21, lambda_order=0.4, scope="global"), "attributes": "yaw.npz",
        "positive_pairs": "pairs.npz", "max_pairs_per_identity": 7, "data_rand_mirror": False, "pretrained": "model.pt",
    }  # fmt: skip
    settings = parse(config(**keys)).settings
    assert (settings.ddl.hard[0].rule, settings.ddl.lambda_order, settings.ddl.scope) == (
        "abs(yaw) > 45",
        0.4,
        "global",
    )
    assert (settings.attributes, settings.positive_pairs, settings.max_pairs_per_identity) == (
        "yaw.npz",
        "pairs.npz",
        7,
    )
    assert (settings.data_rand_mirror, settings.pretrained, settings.fc7_init) == (False, "model.pt", "mean")


def test_options_of_a_registered_loss_stand_under_its_name():
    settings = parse(config(loss="histogram", histogram={"weight": 0.5}, ddl={"hard": DARK})).settings
    assert settings.loss_options == {"weight": 0.5, "bins": 100}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"batch_size": 128}, r"config.batch_size: expected 3b\(K\+1\), a multiple of 9 for K = 2, got 128; give 126 \(b = 14\) or 135 \(b = 15\)"),
        ({"ddl": {"hard": DARK, "b": 32}}, r"config.batch_size: expected 3b\(K\+1\) = 192 for b = 32, K = 1, got 126; give config.batch_size 192, or set config.ddl.b: 126 \(b = 21\)"),
        ({"batch_size": "128"}, r"config.batch_size: expected a whole number >= 1, got '128'"),
        ({"ddl": {"hard": DARK, "lamda_pos": 1.0}}, r"config.ddl: unknown key 'lamda_pos'; did you mean 'lambda_pos'"),
        ({"ddl": {"hard": []}}, r"config.ddl.hard: expected K >= 1 hard distributions"),
        ({"ddl": {"b": 21}}, r"config.ddl.hard: expected K >= 1 hard distributions"),
        ({"ddl": "pose"}, r"config.ddl: expected a dict"),
        ({"ddl": {"hard": DARK, "identity": "cosface"}}, r"config.ddl.identity: expected 'arcface', which config.margin_list \(1.0, 0.5, 0.0\) is, got 'cosface'"),
        ({"ddl": {"hard": DARK, "identity_rows": "singles"}}, r"config.ddl.identity_rows: expected 'all'"),
        ({"atributes": "yaw.npz"}, r"config: unknown key 'atributes'; did you mean 'attributes'"),
        ({"positive_pair": "pairs.npz"}, r"config: unknown key 'positive_pair'; did you mean 'positive_pairs'"),
        ({"dll": {"hard": DARK}}, r"config: unknown key 'dll'; did you mean 'ddl'"),
        ({"DDL": {"hard": DARK}}, r"config: unknown key 'DDL'; did you mean 'ddl'"),
        ({"loss": "focal"}, r"config.loss: expected a loss of embeddings and labels, got 'focal'"),
        ({"pretrained": "model.pt", "fc7_init": "checkpoint"}, r"config.fc7_init: expected 'mean'.*got 'checkpoint'"),
        ({"fc7_init": "mean"}, r"config.fc7_init: expected 'random' when there is no `pretrained`"),
        ({"attributes": 3}, r"config.attributes: expected a .npz"),
        ({"num_image": 0}, r"config.num_image: expected a whole number >= 1, got 0"),
        ({"seed": -1}, r"config.seed: expected a whole number >= 0"),
        ({"margin_list": 0.5}, r"config.margin_list: expected three margins"),
        ({"margin_list": (1.0, 0.5)}, r"config.margin_list: expected three margins"),
        ({"margin_list": (1.0, "0.5", 0.0)}, r"config.margin_list: expected three margins"),
        ({"rec": None}, r"config.rec: expected the folder of train.rec and train.idx, got None"),
    ],
)  # fmt: skip
def test_mistakes_name_the_key(keys, message):
    with pytest.raises(UserError, match=message):
        parse(config(**keys))


def test_a_key_that_the_trainer_needs_and_that_is_missing_is_named():
    usual = config()
    del usual["num_image"]
    with pytest.raises(UserError, match=r"config.num_image: expected what the trainer reads, got none"):
        parse(usual)


def test_keys_of_newer_trainers_are_not_ours_to_refuse():
    parse(config(warmup_lr=0.1, ema=True, loss_fn=None, dali_path=None))


def test_what_is_not_applied_is_said():
    notes = "\n".join(parse(config(max_steps=100, bn_frozen=True, dali_aug=True)).notes)
    assert re.search(r"left to the trainer, not applied: config.max_steps, config.bn_frozen", notes)
    assert "config.dali_aug: not applied" in notes
    assert "config.seed" not in notes


def test_a_recipe_gives_the_loss_and_its_samples(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(
        "from easydict import EasyDict\n"
        "config = EasyDict(dataset_path='x', pretrained='y,0', attributes='yaw.npz', lr=1.0,\n"
        "                  ddl=EasyDict(b=21, hard=['abs(yaw) > 45'], gamma=20.0, identity='cosface'))\n"
    )
    said = []
    usual = config()
    usual.update(keys_of_recipe(str(path), said.append))
    settings = parse(usual).settings
    assert (settings.ddl.gamma, settings.ddl.b, settings.attributes) == (20.0, 21, "yaw.npz")
    assert (settings.pretrained, settings.dataset_path) == ("", "/data/ms1mv3")
    assert "the rest is the trainer's config" in said[-1]
