"""The hosts' own config files as recipes: every mapping by value, every note, every mistake with its place."""

import ast
import dataclasses
import os
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

from ddl_plugin import registry
from ddl_plugin.backbone.networks import NETWORKS as BUILT
from ddl_plugin.data.synthetic import generate
from ddl_plugin.errors import UserError
from ddl_plugin.recipe import load_recipe
from ddl_plugin.recipe_styles import keys
from ddl_plugin.recipe_styles.translation import NETWORKS, identity_of
from ddl_plugin.registry import LOSSES, register_loss
from ddl_plugin.settings import (
    IDENTITY_LOSSES,
    DDLSettings,
    Degradation,
    IdentificationSettings,
    RunSettings,
)

DOCS = Path(__file__).parents[1] / "docs" / "RECIPES.md"
MXNET, TORCH = "arcface_mxnet's config.py", "arcface_torch's config"

#: Values that nothing has by default, so that no key can be taken for another one.
MXNET_CONFIG = """\
from easydict import EasyDict as edict

config = edict()
config.emb_size = 512
config.fc7_lr_mult = 3.0
config.data_rand_mirror = False
config.max_steps = 700
config.val_targets = ["lfw"]
config.net_output = "E"
config.num_layers = 18

network = edict()
network.big = edict(net_name="fresnet", num_layers=50, emb_size=320)
network.y1 = edict(net_name="fmobilefacenet", net_output="GDC", net_blocks=[1, 4, 6, 2], emb_size=96)

dataset = edict()
dataset.faces = edict(dataset="faces", dataset_path="data/faces", num_classes=777, image_shape=(112, 112, 3))
dataset.small = edict(
    dataset="small", dataset_path="data/small", image_shape=[112, 112, 3], val_targets=["agedb", "cfp"]
)

loss = edict()
loss.softmax = edict(loss_name="softmax")
loss.arcface = edict(loss_name="margin_softmax", loss_s=48.0, loss_m1=1.125, loss_m2=0.375, loss_m3=0.0625)
loss.mine = edict(loss_name="margin_softmax", loss_s=32.0, loss_m1=1.0, loss_m2=0.0, loss_m3=0.25)
loss.triplet = edict(loss_name="triplet", triplet_alpha=0.3)

default = edict()
default.network = "big"
default.dataset = "faces"
default.loss = "arcface"
default.pretrained = "models/big"
default.pretrained_epoch = 7
default.lr = 0.04
default.wd = 0.0007
default.mom = 0.85
default.lr_steps = "300,600"
default.per_batch_size = 50
default.verbose = 90
default.frequent = 20
default.kvstore = "device"


def generate_config(_network, _dataset, _loss):
    for chosen in (loss[_loss], network[_network], dataset[_dataset]):
        for key, value in chosen.items():
            config[key] = value
            if key in default:
                default[key] = value
    config.loss, config.network, config.dataset = _loss, _network, _dataset
"""

TORCH_CONFIG = """\
from easydict import EasyDict as edict

config = edict()
config.rec = "data/faces"
config.network = "r50"
config.embedding_size = 320
config.margin_list = (1.0, 0.375, 0.0)
config.batch_size = 50
config.lr = 0.04
config.momentum = 0.85
config.weight_decay = 0.0007
config.verbose = 90
config.val_targets = ["agedb", "cfp"]
config.seed = 11
config.num_workers = 5
"""

PRETRAINED = "pretrained=models/big,7"
HARD = "ddl.hard=['yaw > 3']"
REST_OF_MXNET = "no meaning here, left out: default.frequent, default.kvstore"


class Files:
    """Config files in one folder, and the notes of the last one loaded."""

    def __init__(self, folder):
        self.folder = folder
        self.notes = []

    def write(self, text, name):
        path = self.folder / name
        path.write_text(text)
        return path

    def load(self, text, *overrides, name="config.py"):
        path = self.write(text, name)
        self.notes = []
        settings = load_recipe(str(path), overrides, self.notes.append)
        assert all(note.startswith(f"{path}: ") and "\n" not in note for note in self.notes)
        self.notes = [note.removeprefix(f"{path}: ") for note in self.notes]
        return settings

    def mxnet(self, lines="", *overrides, without=""):
        text = MXNET_CONFIG.replace(without, "") if without else MXNET_CONFIG
        return self.load(text + "\n" + lines, *overrides)

    def torch(self, lines="", *overrides):
        return self.load(TORCH_CONFIG + lines, *overrides)


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


@pytest.fixture(autouse=True)
def own_losses(monkeypatch):
    """What a test registers is gone after it."""
    losses = dict(LOSSES)
    monkeypatch.setattr(registry, "LOSSES", losses)
    monkeypatch.setattr("ddl_plugin.recipe.LOSSES", losses)


def changed(settings):
    """The fields that are not as RunSettings has them by default."""
    usual = {f.name: f.default for f in dataclasses.fields(RunSettings)}
    return {name: value for name, value in vars(settings).items() if value not in (usual[name], {}, ())}


def refuses(load, message, *arguments, **options):
    with pytest.raises(UserError, match=re.escape(message)):
        load(*arguments, **options)


# -- arcface_mxnet: what becomes of its keys ---------------------------------------------------------


def test_mxnet_an_identity_loss(files):
    assert changed(files.mxnet()) == {
        "dataset_path": "data/faces", "data_rand_mirror": False, "loss": "arcface", "loss_m1": 1.125,
        "loss_m2": 0.375, "loss_m3": 0.0625, "loss_s": 48.0, "sampler": "images", "sampler_options": {"rule": None},
        "pretrained": "models/big,7", "emb_size": 320, "fc7_lr_mult": 3.0, "max_steps": 700, "lr": 0.04,
        "lr_steps": (300, 600), "mom": 0.85, "wd": 0.0007, "per_batch_size": 50, "verbose": 90,
        "val_targets": ("lfw",),
    }  # fmt: skip
    assert files.notes == [
        f"read as {MXNET}, network 'big', dataset 'faces': loss 'arcface'",
        "dataset.faces.num_classes 777: the identities are counted in the records",
        REST_OF_MXNET,
        "network 'big': the graph is that of the checkpoint models/big,7; "
        "left out: net_output, num_layers, net_name",
    ]


def test_mxnet_entries_are_chosen_on_the_command_line(files):
    settings = files.mxnet("", "network=y1", "dataset=small", "loss=softmax", "pretrained=")
    assert (settings.loss, settings.loss_m2, settings.sampler) == ("softmax", None, "images")
    assert (settings.network, settings.emb_size) == ("y1", 96)
    assert (settings.pretrained, settings.fc7_init) == ("", "random")
    assert (settings.dataset_path, settings.val_targets) == ("data/small", ("agedb", "cfp"))
    assert files.notes == [
        f"read as {MXNET}, network 'y1', dataset 'small': loss 'softmax'",
        REST_OF_MXNET,
        "network 'y1': the graph is the one built here; left out: num_layers",
    ]


def test_mxnet_entries_are_applied_loss_network_dataset(files):
    lines = "loss.arcface.verbose = 1\nnetwork.big.verbose = 2\ndataset.faces.verbose = 3\n"
    lines += "loss.arcface.lr = 1.0\nnetwork.big.lr = 2.0\nloss.arcface.mom = 0.5"
    settings = files.mxnet(lines)
    assert (settings.verbose, settings.lr, settings.mom) == (3, 2.0, 0.5)


@pytest.mark.parametrize("entry", ["", "loss.ddl = edict()"])
def test_mxnet_ddl_with_settings_from_the_command_line(files, entry):
    settings = files.mxnet(entry, "loss=ddl", HARD, "ddl.lambda_order=0.25")
    assert (settings.loss, settings.sampler, settings.identity) == ("ddl", "pairs", "arcface")
    assert (settings.loss_m1, settings.loss_m2, settings.loss_m3, settings.loss_s) == (None,) * 4
    assert settings.ddl == DDLSettings(b=8, hard=("yaw > 3",), lambda_order=0.25)
    assert (settings.per_batch_size, settings.batch_rows) == (None, 48)
    assert files.notes[0] == f"read as {MXNET}, network 'big', dataset 'faces': loss 'ddl' beside 'arcface'"
    assert files.notes[-1] == (
        "default.per_batch_size 50: ddl.b is 8, the largest with 3b(K+1) = 48 <= 50 images a device; "
        "ddl.b=N sets another"
    )


def test_mxnet_ddl_by_hand_in_the_table(files):
    settings = files.mxnet(
        "config.ddl = edict(b=3, bins=40, gamma=20.0)\n"
        "loss.ddl = edict(loss_name='margin_softmax', loss_s=30.0, loss_m1=1.0, loss_m2=0.0, loss_m3=0.125)\n"
        "loss.ddl.update(b=4, easy='yaw < 2', hard=[{'size': (22, 26)}, {'size': [12, 16]}], lambda_pos=0.2,\n"
        "    lambda_neg=0.3, lambda_order=0.4, bins=50, distance='js', neg_mining='random', detach_teacher=True,\n"
        "    identity_rows='singles', scope='global', attributes='pose.csv')\n"
        "default.loss = 'ddl'",
    )
    assert settings.ddl == DDLSettings(
        b=4, easy="yaw < 2", hard=({"size": (22, 26)}, {"size": (12, 16)}), lambda_pos=0.2, lambda_neg=0.3,
        lambda_order=0.4, bins=50, gamma=20.0, distance="js", neg_mining="random", detach_teacher=True,
        identity="cosface", identity_rows="singles", scope="global",
    )  # fmt: skip
    assert settings.ddl.hard[1].degradation == Degradation(size=(12, 16))
    margins = (settings.loss_m1, settings.loss_m2, settings.loss_m3, settings.loss_s)
    assert margins == (1.0, 0.0, 0.125, 30.0)
    assert (settings.attributes, settings.per_batch_size) == ("pose.csv", None)
    note = "default.per_batch_size 50: with ddl.b 4 there are 3b(K+1) = 36 images a device"
    assert files.notes[-1] == note


def test_mxnet_an_identity_that_is_named_stays(files):
    lines = "loss.ddl = edict(loss_m1=1.0, loss_m2=0.0, loss_m3=0.125, identity='combined', hard='yaw > 1')"
    settings = files.mxnet(lines, "loss=ddl")
    assert (settings.identity, settings.loss_m3) == ("combined", 0.125)


def test_mxnet_overrides_win_over_everything(files):
    lines = "loss.ddl = edict(lr=0.5, b=4, loss_m2=0.125, hard=['yaw > 3'])"
    overrides = (
        "loss=ddl", "lr=0.25", "ddl.b=6", "loss_m2=0.0625", "pretrained=other,3", "per_batch_size=36",
        "max_steps=9", "lr_steps=4", "dataset_path=elsewhere",
    )  # fmt: skip
    settings = files.mxnet(lines, *overrides)
    assert (settings.lr, settings.ddl.b, settings.loss_m2) == (0.25, 6, 0.0625)
    assert (settings.pretrained, settings.per_batch_size) == ("other,3", 36)
    assert (settings.max_steps, settings.lr_steps, settings.dataset_path) == (9, (4,), "elsewhere")
    assert "the checkpoint other,3" in files.notes[-1]  # nothing of b, steps and lr_steps


def test_mxnet_an_identity_loss_on_the_batches_of_ddl(files):
    settings = files.mxnet("config.ddl = edict(b=4, hard=['yaw > 3'])")
    assert (settings.loss, settings.sampler, settings.batch_rows) == ("arcface", "pairs", 24)
    assert (
        "loss 'arcface': ddl says what the batches are, and is not in the loss; loss=ddl puts it there"
        in (files.notes)
    )
    settings = files.mxnet("config.ddl = edict(b=4, hard=['yaw > 3'])", "sampler=images")
    assert (settings.sampler, settings.batch_rows) == ("images", 50)
    assert not [note for note in files.notes if "puts it there" in note or "per_batch_size" in note]


def test_mxnet_an_entry_of_another_name_is_known_by_its_margins(files):
    settings = files.mxnet("", "loss=mine")
    assert (settings.loss, settings.loss_m3, settings.loss_s) == ("cosface", 0.25, 32.0)
    assert files.mxnet("loss.other = edict(loss_name='softmax')", "loss=other").loss == "softmax"
    assert files.mxnet("loss.other = edict(loss_name='margin_softmax')", "loss=other").loss == "nsoftmax"
    assert files.mxnet("loss.softmax.loss_name = 'margin_softmax'", "loss=softmax").loss == "nsoftmax"
    assert files.mxnet("", "loss=cosface").loss == "cosface"  # ours, without an entry


def test_mxnet_a_registered_loss_takes_ddl_too(files):
    register_loss("own", len, description="a test", defaults={"weight": 1.0})
    lines = "loss.own = edict(b=4, hard=['yaw > 3'])\nconfig.own = edict(weight=0.5)"
    settings = files.mxnet(lines, "loss=own")
    assert (settings.loss, settings.ddl.b, settings.loss_options) == ("own", 4, {"weight": 0.5})


def test_mxnet_a_host_without_an_end_and_steps_beyond_ours(files):
    lines = "config.max_steps = 0\ndefault.lr_steps = '1000,1600'"
    settings = files.mxnet(lines)
    assert (settings.max_steps, settings.lr_steps) == (1000, (1000, 1600))
    assert files.notes[-2:] == [
        "config.max_steps 0, without an end: 1000 steps; max_steps=N sets others",
        "default.lr_steps: all steps lie beyond max_steps 1000, so lr stays 0.04; lr_steps=A,B sets others",
    ]
    files.mxnet(lines, "max_steps=1001")
    assert not [note for note in files.notes if "max_steps" in note]
    files.mxnet(lines, "lr_steps=2000")
    assert "config.max_steps 0" in files.notes[-1]


def test_mxnet_default_holds_over_config_and_says_so(files):
    settings = files.mxnet("config.verbose = 5\nconfig.mom = 0.85\nconfig.pretrained = 'mine,1'")
    assert (settings.verbose, settings.pretrained) == (90, "models/big,7")
    assert files.notes[1:3] == [
        "config.verbose 5: default.verbose holds, as for the host: 90",
        "config.pretrained 'mine,1': default.pretrained holds, as for the host: 'models/big,7'",
    ]
    settings = files.mxnet("default.pop('verbose')\nconfig.verbose = 5")
    assert settings.verbose == 5
    settings = files.mxnet("config.pretrained = 'mine,1'\ndefault.pretrained = ''")
    assert settings.pretrained == "mine,1"
    assert files.mxnet("default.pretrained_epoch = 0").pretrained == "models/big,0"


def test_mxnet_the_function_of_the_file_has_the_say(files):
    lines = "given = generate_config\ndef generate_config(*names):\n    given(*names)\n    config.seed = len(names)"
    assert files.mxnet(lines).seed == 3


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("config.fc7_wd_mult = 10.0", "fc7_wd_mult 10.0: the classifier has the weight decay of all, wd"),
        ("config.fc7_no_bias = True", "fc7_no_bias True: the classifier of plain softmax has a bias"),
        (
            "config.data_cutoff = True",
            "data_cutoff True: images are not cut; ddl.hard=[{'occlude': (0.2, 0.4)}] makes hard ones so",
        ),
        ("config.data_color = 2", "data_color 2: colours are not changed"),
        (
            "config.data_images_filter = 9",
            "data_images_filter 9: no identity is left out; ddl.easy and ddl.hard choose images",
        ),
        ("config.fp16 = True", "fp16 True: training is in float32"),
        ("network.big.fp16 = True", "network.big.fp16 True: training is in float32"),
        (
            "default.kvstore = 'dist_sync'",
            "default.kvstore 'dist_sync': --kvstore on the command line joins several machines",
        ),
    ],
)
def test_mxnet_what_would_change_the_result_has_a_note(files, line, note):
    files.mxnet(line)
    assert note in files.notes


def test_mxnet_the_same_keys_with_usual_values_are_named_in_one_line(files):
    files.mxnet(
        "config.fc7_wd_mult = 1.0\nconfig.fc7_no_bias = False\nconfig.data_cutoff = False\nconfig.data_color = 0\n"
        "config.data_images_filter = 0\nconfig.fp16 = False\nconfig.rec = 'x'\ndefault.max_steps = 3\n"
        "dataset.faces.count_flops = True"
    )
    assert files.notes[2] == (
        "no meaning here, left out: fc7_wd_mult, fc7_no_bias, data_cutoff, data_color, data_images_filter, fp16, rec, "
        "dataset.faces.count_flops, default.frequent, default.kvstore, default.max_steps"
    )


# -- arcface_mxnet: mistakes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            "default.network = 'bigg'",
            "default.network: expected an entry of the table 'network' (big, y1), got 'bigg'; did you mean 'big'?",
        ),
        ("default.pop('dataset')", "default.dataset: expected an entry of the table 'dataset' (faces, small), got None"),
        (
            "default.loss = 'ddll'",
            "default.loss: expected an entry of the table 'loss' (softmax, arcface, mine, triplet), got 'ddll'; "
            "did you mean 'ddl'?",
        ),
        ("network.big = 'r50'", "network.big: expected a dict of keys, got 'r50'"),
        (
            "default.loss = 'triplet'",
            "loss.triplet.loss_name: expected 'margin_softmax' or 'softmax', got 'triplet'; loss=ddl or loss=arcface",
        ),
        ("loss.x = edict()\ndefault.loss = 'x'", "loss.x.loss_name: expected 'margin_softmax' or 'softmax', got None"),
        (
            "default.lr_steps = '300,6oo'",
            "lr_steps: expected increasing steps, e.g. [500, 800], got '300,6oo' (lr_steps comes from default.lr_steps)",
        ),
        ("loss.arcface.lr = '0.1'", "lr: expected a number >= 0, got '0.1' (lr comes from loss.arcface.lr)"),
        ("config.fc7_lr_mult = 'a'", "fc7_lr_mult: expected a number >= 0, got 'a'"),
        (
            "dataset.faces.image_shape = (96, 112, 3)",
            "dataset.faces.image_shape: expected (112, 112, 3), the size of all images here, got (96, 112, 3)",
        ),
        ("dataset.faces.image_shape = 112", "dataset.faces.image_shape: expected (112, 112, 3)"),
        ("dataset.faces.image_shape = '112,112,3'", "dataset.faces.image_shape: expected (112, 112, 3)"),
        (
            "dataset.faces.dataset_path = ['a']",
            "dataset_path: expected the folder of train.rec, or 'synthetic', got ('a',) "
            "(dataset_path comes from dataset.faces.dataset_path)",
        ),
        ("default.pretrained = ('models/big', 7)", "default.pretrained: expected the prefix of a checkpoint's files"),
        ("default.pretrained_epoch = '7'", "default.pretrained_epoch: expected the checkpoint's number"),
        ("default.pretrained_epoch = True", "default.pretrained_epoch: expected the checkpoint's number"),
        ("default.pretrained_epoch = -1", "a whole number >= 0, got -1"),
        ("default.pop('pretrained_epoch')", "default.pretrained_epoch: expected the checkpoint's number"),
        ("config.emb_sise = 1", "config: unknown key 'emb_sise'; did you mean 'emb_size'?"),
        ("config.hard = ['yaw > 1']", "config: unknown key 'hard'; did you mean 'ddl.hard'?"),
        (
            "config.hard = ['yaw > 1']\nloss.ddl = edict(b=4)\ndefault.loss = 'ddl'",
            "config: unknown key 'hard'; did you mean 'ddl.hard'?",
        ),
        ("network.big.num_layer = 1", "network.big: unknown key 'num_layer'; did you mean 'num_layers'?"),
        ("default.verbos = 1", "default: unknown key 'verbos'; did you mean 'verbose'?"),
        ("config.qqqq = 1", "config: unknown key 'qqqq'"),
        (
            "loss.ddl = edict(lamda_order=1)\ndefault.loss = 'ddl'",
            "loss.ddl: unknown key 'lamda_order'; did you mean 'lambda_order'?",
        ),
        ("loss.arcface.b = 4", "loss.arcface: unknown key 'b'"),
        ("default.loss = 'ddl'", "ddl: expected a dict with b and hard"),
        ("default.loss = 'ddl'\nconfig.ddl = 4", "ddl: expected a dict of b, easy, hard"),
        ("default.loss = 'ddl'\nconfig.ddl = 4\nloss.ddl = edict(b=4)", "ddl: expected a dict of b, easy, hard"),
        ("default.loss = 'ddl'\nconfig.ddl = edict(hard=[])", "ddl.hard: expected K >= 1 hard distributions"),
        (
            "default.loss = 'ddl'\nconfig.ddl = edict(hard=['yaw > 1'])\ndefault.per_batch_size = 11",
            "default.per_batch_size: expected 3b(K+1) images with b >= 2, 12 or more for K = 1; ddl.b=N sets them, got 11",
        ),
        (
            "default.loss = 'ddl'\nconfig.ddl = edict(hard=['yaw > 1'], b=4)\ndefault.per_batch_size = '50'",
            "per_batch_size: expected a whole number >= 1, got '50' (per_batch_size comes from default.per_batch_size)",
        ),
        (
            "default.loss = 'ddl'\nconfig.ddl = edict(hard=['yaw > 1'])\ndefault.per_batch_size = True",
            "per_batch_size: expected a whole number >= 1, got True",
        ),
        (
            "default.loss = 'ddl'\nconfig.ddl = edict(hard=['yaw > 1'], b='four')",
            "ddl.b: expected a whole number >= 2, got 'four'",
        ),
        (
            "default.pretrained = ''",
            "default.network: expected one of y1, y2, tiny, the graphs that are built here, got 'big'; "
            "pretrained=PREFIX,EPOCH names a checkpoint of MXNet",
        ),
        (
            "default.pretrained = ''\ndefault.network = 'y1'\nnetwork.y1.net_act = 'relu'",
            "net_act: expected 'prelu', as network 'y1' is built here, got 'relu'; pretrained=PREFIX,EPOCH",
        ),
        (
            "default.pretrained = ''\ndefault.network = 'y1'\nnetwork.y1.net_blocks = [2, 8, 16, 4]",
            "net_blocks: expected (1, 4, 6, 2), as network 'y1' is built here, got [2, 8, 16, 4]",
        ),
        ("network = None", "network: expected config, network, dataset, loss and default as dicts"),
        ("del config", "and a function generate_config, found no such config"),
        ("del default, loss", "loss: expected config, network, dataset, loss and default as dicts and a function "
         "generate_config, found no such loss, default"),
        ("del generate_config", "generate_config: expected config, network,"),
        ("default = 'r50'", "found no such default"),
        ("del generate_config, default", "default: expected config, network,"),
    ],
)  # fmt: skip
def test_mxnet_mistakes_name_file_style_and_key(files, tmp_path, lines, message):
    with pytest.raises(UserError) as error:
        files.mxnet(lines)
    assert str(error.value).startswith(f"{tmp_path / 'config.py'} (read as {MXNET}): ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("network=bik", "override network: expected an entry of the table 'network' (big, y1), got 'bik'; did you mean"),
        ("network=tinny", "(big, y1), got 'tinny'; did you mean 'tiny'?"),
        ("dataset=tiny", "override dataset: expected an entry of the table 'dataset' (faces, small), got 'tiny'"),
        ("loss=", "override loss: expected an entry of the table 'loss' (softmax, arcface, mine, triplet), got ''"),
        ("loss", "override: expected KEY=VALUE such as ddl.lambda_order=0.4, got 'loss'"),
        ("lr=fast", f"(read as {MXNET}): lr: expected a number >= 0, got 'fast'"),
        ("learning=1", "config: unknown key 'learning'"),
        ("num_layers=9", "config: unknown key 'num_layers'"),
    ],
)  # fmt: skip
def test_mxnet_mistakes_on_the_command_line(files, override, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        files.mxnet("", override)
    assert "comes from" not in str(error.value)


def test_a_batch_asked_for_on_the_command_line_is_held_to(files):
    ddl = "config.ddl = edict(hard=['yaw > 3', 'yaw > 5'])"
    settings = files.mxnet(ddl, "loss=ddl", "per_batch_size=72")
    assert (settings.ddl.b, settings.per_batch_size) == (8, 72)
    message = "per_batch_size: expected 3b(K+1) = 72 for b = 8, K = 2, got 73; leave it out, or set ddl.b=8"
    refuses(files.mxnet, message, ddl, "loss=ddl", "per_batch_size=73")
    refuses(files.mxnet, "expected 3b(K+1) = 36", ddl, "loss=ddl", "per_batch_size=72", "ddl.b=4")


@pytest.mark.parametrize(
    ("hard", "b"), [("'yaw > 1'", 8), ("{'size': 14}", 8), ("['a', 'b']", 5), ("['a', {'size': 14}, 'c']", 4)]
)
def test_b_is_the_largest_that_fits(files, hard, b):
    assert files.mxnet(f"config.ddl = dict(hard={hard})", "loss=ddl").ddl.b == b
    assert files.torch(f"config.ddl = dict(hard={hard})\n", PRETRAINED).ddl.b == b


def test_the_smallest_b_and_a_b_that_fits_already(files):
    ddl = "config.ddl = edict(hard=['yaw > 3'])\n"
    settings = files.mxnet(ddl + "default.per_batch_size = 12", "loss=ddl")
    assert (settings.ddl.b, settings.batch_rows) == (2, 12)
    settings = files.mxnet(ddl + "config.ddl.b = 4\ndefault.per_batch_size = 24", "loss=ddl")
    assert settings.batch_rows == 24
    assert not [note for note in files.notes if "per_batch_size" in note]


def test_mxnet_what_fails_within_its_function(files, tmp_path):
    where = rf"{re.escape(str(tmp_path / 'config.py'))} \(read as {MXNET}\): generate_config, line \d+: KeyError: 'x'"
    with pytest.raises(UserError, match=where):
        files.mxnet("def generate_config(n, d, l):\n    return network['x']")
    message = r"generate_config: TypeError: generate_config\(\) takes 1 positional argument but 3 were given"
    with pytest.raises(UserError, match=message):
        files.mxnet("def generate_config(n):\n    pass")
    with pytest.raises(
        UserError, match=rf"{re.escape(str(tmp_path / 'config.py'))}, line \d+: ZeroDivisionError"
    ):
        files.mxnet("default.lr = 1 / 0")


# -- arcface_torch -----------------------------------------------------------------------------------


def test_torch_its_own_margin_softmax(files):
    assert changed(files.torch("", PRETRAINED)) == {
        "dataset_path": "data/faces", "loss": "arcface", "loss_m1": 1.0, "loss_m2": 0.375, "loss_m3": 0.0,
        "loss_s": 64.0, "sampler": "images", "sampler_options": {"rule": None}, "pretrained": "models/big,7",
        "emb_size": 320, "lr": 0.04, "lr_steps": (500,), "mom": 0.85, "wd": 0.0007, "per_batch_size": 50,
        "seed": 11, "num_threads": 5, "verbose": 90, "val_targets": ("agedb", "cfp"),
    }  # fmt: skip
    assert files.notes == [
        f"read as {TORCH}, no base.py beside it: loss 'arcface'",
        "network 'r50': the graph is that of the checkpoint models/big,7",
    ]


@pytest.mark.parametrize("lines", ["", "config.loss = 'ddl'\n"])
def test_torch_ddl(files, lines):
    settings = files.torch(
        lines
        + "config.ddl = edict(hard=['yaw > 3', {'size': (12, 16)}], bins=50)\nconfig.attributes = 'a.csv'\n"
        "config.margin_list = [1, 0, 0.4]\n",
        PRETRAINED,
    )
    assert settings.ddl == DDLSettings(b=5, hard=("yaw > 3", {"size": (12, 16)}), bins=50, identity="cosface")
    margins = (settings.loss_m1, settings.loss_m2, settings.loss_m3, settings.loss_s)
    assert (settings.loss, margins) == ("ddl", (1, 0, 0.4, 64.0))
    assert (settings.sampler, settings.attributes, settings.batch_rows) == ("pairs", "a.csv", 45)
    assert files.notes[0] == f"read as {TORCH}, no base.py beside it: loss 'ddl' beside 'cosface'"
    assert files.notes[-1] == (
        "config.batch_size 50: ddl.b is 5, the largest with 3b(K+1) = 45 <= 50 images a device; ddl.b=N sets another"
    )


def test_torch_ddl_from_the_command_line(files):
    settings = files.torch("", PRETRAINED, HARD, "loss_m2=0.25", "ddl.b=4", "wd=0.5", "num_threads=1")
    assert (settings.loss, settings.identity, settings.ddl.b) == ("ddl", "arcface", 4)
    assert (settings.loss_m1, settings.loss_m2, settings.wd, settings.num_threads) == (1.0, 0.25, 0.5, 1)
    assert files.notes[-1] == "config.batch_size 50: with ddl.b 4 there are 3b(K+1) = 24 images a device"


@pytest.mark.parametrize(
    ("overrides", "loss"),
    [
        ((HARD, "ddl.identity=cosface"), "ddl"),
        (("loss=cosface",), "cosface"),
        (("loss=cosface", HARD), "cosface"),
    ],
)
def test_torch_an_identity_loss_asked_for_by_name_has_its_own_margins(files, overrides, loss):
    settings = files.torch("", PRETRAINED, *overrides)
    assert (settings.loss, settings.identity) == (loss, "cosface")
    assert (settings.loss_m1, settings.loss_m2, settings.loss_m3, settings.loss_s) == (None,) * 4
    assert "margin_list (1.0, 0.375, 0.0): the margins of 'cosface' hold instead" in files.notes


def test_torch_combined_margins_are_all_applied(files):
    settings = files.torch("config.margin_list = (1.0, 0.3, 0.2)\n", PRETRAINED)
    assert (settings.loss, settings.loss_m2, settings.loss_m3) == ("combined", 0.3, 0.2)
    note = "margin_list (1.0, 0.3, 0.2): all three are applied; the host applies the third alone where it is above 0"
    assert note in files.notes
    assert files.torch("config.margin_list = (1.5, 0.0, 0.0)\n", PRETRAINED).loss == "combined"
    assert not [note for note in files.notes if "margin_list" in note]


def test_torch_without_margins_the_loss_has_to_be_named(files):
    assert files.torch("config.pop('margin_list')\nconfig.loss = 'cosface'\n", PRETRAINED).loss_m3 is None
    message = "margin_list: expected three margins (m1, m2, m3), or `loss`, got None"
    refuses(files.torch, message, "config.pop('margin_list')\n", PRETRAINED)


def test_torch_a_graph_that_is_built_here(files):
    settings = files.torch("config.network = 'y2'\n")
    assert (settings.network, settings.emb_size, settings.fc7_init) == ("y2", 320, "random")
    settings = files.torch("", "network=tiny", PRETRAINED)  # ours: the graph built anew
    assert (settings.network, settings.fc7_init) == ("tiny", "mean")
    assert files.notes == [f"read as {TORCH}, no base.py beside it: loss 'arcface'"]
    settings = files.torch("", "network=tiny", "emb_size=16")
    assert (settings.network, settings.emb_size, settings.fc7_init) == ("tiny", 16, "random")


def test_torch_base_lies_under_it(files):
    base = "from easydict import EasyDict\nconfig = EasyDict(margin_list=(1.0, 0.0, 0.25), momentum=0.75, seed=2048,\n"
    base += "    optimizer='sgd', gradient_acc=1, lr='slow', weight_decay=0.125)\n"
    files.write(base, "base.py")
    lines = "for key in ('margin_list', 'momentum', 'seed'):\n    config.pop(key)\n"
    settings = files.torch(lines, PRETRAINED)
    assert (settings.loss, settings.loss_m3, settings.mom, settings.seed) == ("cosface", 0.25, 0.75, 2048)
    assert (settings.lr, settings.wd) == (0.04, 0.0007)
    assert files.notes == [
        f"read as {TORCH} over base.py: loss 'cosface'",
        "no meaning here, left out: optimizer, gradient_acc",
        "network 'r50': the graph is that of the checkpoint models/big,7",
    ]
    message = "lr: expected a number >= 0, got 'slow' (lr comes from base.py's config.lr)"
    refuses(files.torch, message, lines + "config.pop('lr')\n", PRETRAINED)


def test_torch_base_itself_is_a_config(files):
    path = files.write(TORCH_CONFIG, "base.py")
    assert load_recipe(str(path), [PRETRAINED], files.notes.append).lr == 0.04
    assert files.notes[0] == f"{path}: read as {TORCH}, no base.py beside it: loss 'arcface'"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config = 3\n", "base.py: config: expected an EasyDict named `config`, got 'int'"),
        ("x = 1 / 0\n", "base.py, line 1: ZeroDivisionError: division by zero"),
        ("config = {'lerning': 1}\n", "base.py: config: unknown key 'lerning'"),
    ],
)
def test_torch_mistakes_in_base(files, tmp_path, text, message):
    files.write(text, "base.py")
    with pytest.raises(UserError, match=re.escape(message)) as error:
        files.torch("", PRETRAINED)
    assert str(error.value).startswith(f"{tmp_path / 'config.py'} (read as {TORCH}): ")


def test_torch_our_keys_in_the_file_hold(files):
    settings = files.torch(
        "config.wd = 0.25\nconfig.dataset_path = 'here'\nconfig.pretrained = 'own,2'\nconfig.num_threads = 5\n"
        "config.max_steps = 30\nconfig.lr_steps = [10]\nconfig.num_epoch = 4\n"
    )
    assert (settings.wd, settings.dataset_path, settings.pretrained) == (0.25, "here", "own,2")
    assert files.notes[1:] == [
        "rec 'data/faces': dataset_path 'here' is set too, and holds",
        "weight_decay 0.0007: wd 0.25 is set too, and holds",
        "num_workers 5: num_threads 5 is set too, and holds",
        "network 'r50': the graph is that of the checkpoint own,2",
        "num_epoch 4: steps are counted here, 30 of them, lr 0.04 divided by 10 at 10; "
        "max_steps=N and lr_steps=A,B set others",
    ]


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("config.num_classes = 93431", "num_classes 93431: the identities are counted in the records"),
        ("config.warmup_epoch = 2", "warmup_epoch 2: lr starts at its full value"),
        ("config.sample_rate = 0.1", "sample_rate 0.1: every class takes part in every step"),
        (
            "config.interclass_filtering_threshold = 0.4",
            "interclass_filtering_threshold 0.4: no class is filtered out",
        ),
        ("config.fp16 = True", "fp16 True: training is in float32"),
        (
            "config.optimizer = 'adamw'",
            "optimizer 'adamw': trained by SGD with momentum; set lr= and wd= as they are for SGD",
        ),
        (
            "config.dali_aug = True",
            "dali_aug True: images are mirrored and nothing else; ddl.hard degrades on purpose",
        ),
        ("config.gradient_acc = 12", "gradient_acc 12: every step updates the weights"),
        ("config.resume = True", "resume True: --resume on the command line goes on with a run"),
        ("config.rec = 'synthetic'", "rec 'synthetic': the data set that is drawn here, not random pixels"),
        (
            "config.num_epoch = 20",
            "num_epoch 20: steps are counted here, 1000 of them, lr 0.04 divided by 10 at 500; "
            "max_steps=N and lr_steps=A,B set others",
        ),
    ],
)
def test_torch_what_would_change_the_result_has_a_note(files, line, note):
    files.torch(line + "\n", PRETRAINED)
    assert note in files.notes


def test_torch_the_same_keys_with_usual_values_are_named_in_one_line(files):
    files.torch(
        "config.warmup_epoch = 0\nconfig.sample_rate = 1.0\nconfig.interclass_filtering_threshold = 0\n"
        "config.fp16 = False\nconfig.optimizer = 'sgd'\nconfig.dali_aug = False\nconfig.gradient_acc = 1\n"
        "config.resume = False\nconfig.num_image = 5\nconfig.output = None\nconfig.net_act = 'prelu'\n",
        PRETRAINED,
    )
    assert files.notes[1] == (
        "no meaning here, left out: warmup_epoch, sample_rate, interclass_filtering_threshold, fp16, optimizer, "
        "dali_aug, gradient_acc, resume, num_image, output, net_act"
    )
    assert len(files.notes) == 3


def test_torch_decoding_in_the_trainers_own_process_is_one_thread(files):
    settings = files.torch("config.num_workers = config.weight_decay = 0\n", PRETRAINED)
    assert (settings.num_threads, settings.wd) == (1, 0)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            "config.margin_list = (1.0, 0.5)\n",
            "margin_list: expected three margins (m1, m2, m3), got (1.0, 0.5)",
        ),
        (
            "config.margin_list = '1.0,0.5,0'\n",
            "margin_list: expected three margins (m1, m2, m3), got '1.0,0.5,0'",
        ),
        ("config.margin_list = (1.0, '0.5', 0)\n", "margin_list: expected three margins"),
        ("config.margin_list = 0.5\n", "margin_list: expected three margins (m1, m2, m3), got 0.5"),
        ("config.margin_list = (True, 0.5, 0)\n", "margin_list: expected three margins"),
        (
            "config.margin_list = (1.0, 0, -0.4)\n",
            "loss_m3: expected a number >= 0, got -0.4 (loss_m3 comes from config.margin_list)",
        ),
        (
            "config.rec = 7\n",
            "dataset_path: expected the folder of train.rec, or 'synthetic', got 7 (dataset_path comes from config.rec)",
        ),
        ("config.embedding_size = '512'\n", "(emb_size comes from config.embedding_size)"),
        ("config.batch_size = 12.5\n", "(per_batch_size comes from config.batch_size)"),
        ("config.momentum = 2\n", "mom: expected a number below 1, got 2 (mom comes from config.momentum)"),
        ("config.weight_decay = None\n", "(wd comes from config.weight_decay)"),
        ("config.num_workers = -1\n", "(num_threads comes from config.num_workers)"),
        ("config.seed = None\n", "seed: expected a whole number >= 0, got None"),
        ("config.loss = ['ddl']\n", "loss: expected a name such as 'ddl' or 'arcface', got ['ddl']"),
        ("config.ddl = 4\n", "ddl: expected a dict of b, easy, hard"),
        ("config.embeding_size = 5\n", "config: unknown key 'embeding_size'; did you mean 'embedding_size'?"),
        ("config.hard = []\n", "config: unknown key 'hard'; did you mean 'ddl.hard'?"),
    ],
)
def test_torch_mistakes_name_file_style_and_key(files, tmp_path, lines, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        files.torch(lines, PRETRAINED)
    assert str(error.value).startswith(f"{tmp_path / 'config.py'} (read as {TORCH}): ")


def test_torch_its_graphs_need_a_checkpoint(files):
    message = (
        "config.network: expected one of y1, y2, tiny, the graphs that are built here, got 'r50'; pretrained="
    )
    refuses(files.torch, message)


# -- which style a file is ---------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["rec = 'x'", "margin_list = (1, 0.5, 0)", "embedding_size = 5"])
def test_one_key_of_its_own_makes_a_file_arcface_torchs(files, line):
    refuses(
        files.load,
        f"(read as {TORCH})",
        f"from easydict import EasyDict\nconfig = EasyDict()\nconfig.{line}\n",
    )


def test_our_recipes_stay_ours(files):
    ours = "from easydict import EasyDict\nconfig = EasyDict(dataset_path='faces', pretrained='m,0')\n"
    ours += "config.ddl = EasyDict(b=4, hard=['yaw > 3'])\n"
    files.write(TORCH_CONFIG, "base.py")
    settings = files.load(ours + "loss, default = {}, {}\n")  # names of its own, not the host's tables
    assert (settings.ddl.b, settings.lr, files.notes) == (4, 0.001, [])
    message = "config.py: config: unknown key 'batch_size'; did you mean 'per_batch_size'?"
    refuses(files.load, message, ours + "config.batch_size = 5\n")


def test_notes_are_for_those_who_ask(files, capsys):
    path = files.write(MXNET_CONFIG, "config.py")
    assert load_recipe(str(path)).lr == 0.04
    assert capsys.readouterr() == ("", "")


def test_a_mistake_comes_without_notes(files):
    with pytest.raises(UserError):
        files.mxnet("config.val_targets = 3")
    assert files.notes == []


# -- what must stay in step with other parts ---------------------------------------------------------


def test_the_graphs_are_those_that_are_built():
    assert set(NETWORKS) == set(BUILT)


def test_margins_and_names_of_identity_losses_agree():
    named = {name: identity_of(*values[:3]) for name, values in IDENTITY_LOSSES.items() if values}
    assert all(name == found for name, found in named.items())


def tables():
    """Header -> rows of cells, of every table of the docs."""
    found = {}
    for block in re.findall(r"(?:^\|.*\n)+", DOCS.read_text(encoding="utf-8"), flags=re.M):
        rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in block.splitlines()]
        found.setdefault(tuple(rows[0]), []).append(rows[2:])
    return found


def test_the_docs_have_every_key_with_its_default():
    *run, ddl, identification = tables()[("key", "meaning", "default", "paper")]
    for rows, cls in (
        (list(chain(*run)), RunSettings),
        (ddl, DDLSettings),
        (identification, IdentificationSettings),
    ):
        documented = {key.strip("`"): default for key, _, default, _ in rows}
        fields = [f for f in dataclasses.fields(cls) if not f.name.endswith("_options")]
        assert sorted(documented) == sorted(f.name for f in fields)
        for f in fields:
            cell = documented[f.name]
            usual = {} if f.default is dataclasses.MISSING else f.default
            assert (
                cell == "-"
                if usual in ("", ()) and cell == "-"
                else ast.literal_eval(cell.strip("`")) == usual
            )
    assert [key for key, _, default, _ in list(chain(*run)) + ddl if default == "-"] == [
        "`dataset_path`",
        "`hard`",
    ]


def test_the_docs_have_every_key_of_the_hosts_that_is_mapped():
    text = DOCS.read_text(encoding="utf-8")
    mxnet, torch = text.split("### arcface_mxnet")[1].split("### arcface_torch")
    rows = {row[0].strip("`"): row[1] for row in tables()[("there", "here")][1]}
    for name, key in keys.TORCH_NAMES.items():
        assert rows[name].startswith(f"`{key}`")
    for name in (*keys.TORCH_TELLING, "margin_list", "num_epoch"):
        assert f"`{name}`" in torch
    arguments = [f"default.{name}" for name in (*keys.MXNET_ARGUMENTS, "pretrained", "pretrained_epoch")]
    for name in (*keys.MXNET_TELLING, *keys.MXNET_CHECKED, *arguments):
        assert f"`{name}`" in mxnet


# -- the command -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory, save_new_model):
    """A folder with a small drawn data set, `faces`, and a checkpoint, `model,3`, of an embedding of 16."""
    folder = tmp_path_factory.mktemp("place")
    generate(folder / "faces", identities=10, images=8, processes=1, progress=False)
    save_new_model(folder / "model", 3)
    return folder


SMALL = """\
from easydict import EasyDict
config = EasyDict()
config.attributes = "attributes.npz"
config.ddl = EasyDict(easy="abs(yaw) < 20", hard=["abs(yaw) > 30"])
"""
OURS = SMALL + "config.dataset_path, config.pretrained, config.ddl.b = 'faces', 'model,3', 3\n"
HOSTS_MXNET = (
    SMALL
    + """\
config.max_steps, config.emb_size = 0, 16
network = EasyDict(r100=EasyDict(net_name="fresnet"))
dataset = EasyDict(faces=EasyDict(dataset_path="faces", num_classes=10, image_shape=(112, 112, 3)))
loss = EasyDict(arcface=EasyDict(loss_name="margin_softmax"))
default = EasyDict(network="r100", dataset="faces", loss="arcface", pretrained="model", pretrained_epoch=3)
default.update(lr=0.1, lr_steps="10,20", wd=0.0005, mom=0.9, per_batch_size=20, verbose=0)


def generate_config(n, d, l):
    config.update({**loss[l], **network[n], **dataset[d]})
"""
)
HOSTS_TORCH = (
    SMALL
    + """\
config.rec, config.network, config.embedding_size, config.batch_size = "faces", "r50", 16, 20
config.margin_list, config.fp16 = (1.0, 0.0, 0.4), True
"""
)


@pytest.mark.parametrize(
    ("text", "overrides", "identity", "notes"),
    [
        (OURS, (), "arcface", 0),
        (HOSTS_MXNET, ("loss=ddl",), "arcface", 5),
        (HOSTS_TORCH, ("pretrained=model,3",), "cosface", 4),
    ],
    ids=["ours", "arcface_mxnet", "arcface_torch"],
)
def test_a_dry_run_of_each_style(place, backend, text, overrides, identity, notes):
    (place / "config.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "ddl_plugin.train", "config.py", *overrides, "--backend", backend, "--dry-run", "--quiet"],
        cwd=place, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '"loss": "ddl"' in done.stdout
    assert f'"identity": "{identity}"' in done.stdout
    assert "batch: 18 images a device, 18 a step on 1 device(s)" in done.stdout
    assert re.search(r"^margin_hard +-?\d\.\d{4}$", done.stdout, flags=re.M)
    lines = done.stderr.splitlines()
    assert [line for line in lines if not line.startswith("note: config.py: ")] == []
    assert len(lines) == notes, done.stderr
