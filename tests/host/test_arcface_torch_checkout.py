"""A folder of arcface_torch is known by what it has; what a loss cannot join is refused with what was looked for."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from arcface_torch_runs import checkout

from ddl_plugin.errors import UserError
from ddl_plugin.host.__main__ import main
from ddl_plugin.host.arcface_torch.checkout import find_config, inspect, is_one


@pytest.fixture
def folder(tmp_path):
    return checkout(tmp_path)


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_it_is_told_from_the_other_host(folder, tmp_path):
    assert is_one(folder)
    assert not is_one(tmp_path)
    found = inspect(folder)
    assert (found.path, found.needs_gpu) == (folder / "train_v2.py", False)
    replace(folder / "train_v2.py", '"gloo"', '"nccl"')
    assert inspect(folder).needs_gpu


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("train_v2.py", "from partial_fc_v2 import PartialFC_V2", "from partial_fc_v2 import PartialFC", r"train_v2.py: looked for PartialFC_V2, imported from partial_fc_v2 there"),
        ("partial_fc_v2.py", "class PartialFC_V2(", "class PartialFC_V3(", r"partial_fc_v2.py: looked for PartialFC_V2, defined there"),
        ("train_v2.py", "from dataset import get_dataloader", "import dataset", r"train_v2.py: looked for get_dataloader, imported from dataset there"),
        ("dataset.py", "def get_dataloader(", "def loader(", r"dataset.py: looked for get_dataloader, defined there"),
        ("backbones/__init__.py", "def get_model(", "def model(", r"__init__.py: looked for get_model, defined there"),
        ("utils/utils_config.py", "def get_config(", "def config(", r"utils_config.py: looked for get_config"),
        ("utils/utils_callbacks.py", "class CallBackLogging(", "class Logging(", r"utils_callbacks.py: looked for CallBackLogging"),
        ("train_v2.py", "import argparse", "print 'Python 2'", r"train_v2.py cannot be read as Python: "),
    ],
)  # fmt: skip
def test_what_cannot_be_joined_is_refused_with_what_was_looked_for(folder, file, old, new, message):
    replace(folder / file, old, new)
    with pytest.raises(UserError, match=message):
        inspect(folder)


def test_a_missing_part_and_a_missing_trainer_are_named(folder):
    with pytest.raises(
        UserError, match=r"expected train_v3.py in .*, got train_v2.py; did you mean 'train_v2.py'"
    ):
        inspect(folder, "train_v3.py")
    (folder / "partial_fc_v2.py").unlink()
    with pytest.raises(UserError, match=f"expected partial_fc_v2.py in {re.escape(str(folder))}"):
        inspect(folder)


def test_the_config_is_found_where_the_trainer_looks_for_it(folder):
    assert find_config(folder, ["configs/small.py"]) == folder / "configs" / "small.py"
    for arguments, message in (
        ([], r"expected the trainer's config, got none; give it after '--'"),
        (["small.py"], r"starts with 'configs/', got 'small.py'"),
        ([str(folder / "configs" / "small.py")], r"starts with 'configs/', got '/"),
        (["configs/smal.py"], r"has no configs/smal.py; did you mean 'configs/small.py'"),
        (["configs/small"], r"has no configs/small; did you mean 'configs/small.py'"),
    ):
        with pytest.raises(UserError, match=message):
            find_config(folder, arguments)


def test_a_folder_of_neither_host_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path), "--", "configs/small.py"]) == 2
    assert re.fullmatch(
        r"error: host: expected train.py in .*, got no trainer.*arcface_mxnet or recognition/arcface_torch.*\n",
        capsys.readouterr().err,
    )


def test_the_other_host_without_mxnet_is_one_line(monkeypatch, capsys):
    own = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *p: None if name == "mxnet" else own(name, *p)
    )
    monkeypatch.setitem(sys.modules, "mxnet", None)
    monkeypatch.delitem(sys.modules, "ddl_plugin.mxnet_setup", raising=False)
    assert main([str(Path(__file__).parent / "small_host"), "--", "--loss", "ddl"]) == 2
    line = r"error: MXNet cannot be imported \(.*\): pip install 'mxnet==1.9.1' .*\n"
    assert re.fullmatch(line, capsys.readouterr().err)


def test_devices_are_not_this_trainers_to_choose(folder, capsys):
    assert main([str(folder), "--devices", "gpu:0", "--", "configs/small.py"]) == 2
    assert capsys.readouterr().err.startswith("error: --devices: arcface_torch has one GPU a process")
