"""InsightFace's own recognition/arcface_mxnet, as it is, with its published y1 and LFW.

`INSIGHTFACE_MXNET_DIR` names the folder in a checkout of insightface.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ddl_plugin.backbone.checkpoint import load_backbone
from ddl_plugin.data.attributes import AttributeTable
from ddl_plugin.data.records import Records
from ddl_plugin.export.params import load_params

ENTRIES = """
dataset.lfw = edict()
dataset.lfw.dataset = 'lfw'
dataset.lfw.dataset_path = {dataset!r}
dataset.lfw.num_classes = 2623
dataset.lfw.image_shape = (112, 112, 3)
dataset.lfw.val_targets = []
loss.ddl = edict()
loss.ddl.attributes = {table!r}
loss.ddl.easy = 'used == 1'
loss.ddl.hard = [{{'size': (12, 16)}}]
loss.ddl.max_pairs_per_identity = 3
loss.ddl.rename = {{'fc1_weight': 'pre_fc1_weight'}}
config.max_steps = {steps}
config.count_flops = False
"""
SEEDED = Path(__file__).parent / "seeded.py"


@pytest.fixture
def checkout(tmp_path, shared_data):
    """checkout(steps): a copy of the folder with a config.py made of its sample_config.py."""
    source = os.environ.get("INSIGHTFACE_MXNET_DIR")
    if not source:
        pytest.skip("set INSIGHTFACE_MXNET_DIR to recognition/arcface_mxnet in a checkout of insightface")

    def make(steps: int) -> Path:
        folder = tmp_path / "arcface_mxnet"
        shutil.copytree(source, folder, dirs_exist_ok=True)
        # Few images, so that the pairs are soon built.
        keys = Records(shared_data / "lfw112_dev").keys
        AttributeTable(keys, {"used": (keys <= 400).astype(float)}).save(tmp_path / "used.npz")
        entries = ENTRIES.format(
            dataset=str(shared_data / "lfw112_dev"), table=str(tmp_path / "used.npz"), steps=steps
        )
        (folder / "config.py").write_text((folder / "sample_config.py").read_text() + entries)
        return folder

    return make


def run(folder: Path, *arguments: object, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=folder.parent, env={**os.environ, **environment},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("trainer", ["train.py", "train_parall.py"])
def test_ddl_trains_the_published_model_on_two_devices(checkout, shared_data, trainer):
    folder = checkout(2)
    base = shared_data / "y1_ms1m" / "model"
    log = run(
        folder, "-m", "ddl_plugin.host", folder, "--trainer", trainer, "--devices", "cpu:0,1", "--", "--loss", "ddl",
        "--network", "y1", "--dataset", "lfw", "--pretrained", base, "--pretrained-epoch", 0, "--per-batch-size", 12,
        "--frequent", 1, "--verbose", 2, "--ckpt", 2, "--lr", 0.001,
    )  # fmt: skip
    for name in ("ddl", "kl_pos", "order", "margin_easy", "margin_hard"):
        values = [float(v) for v in re.findall(rf"\b{name}=(-?[\d.]+)", log)]
        assert len(values) >= 2, name
    saved = load_backbone(f"{folder.parent / 'models' / 'y1-ddl-lfw' / 'model'},1")
    before = load_params(f"{base}-0000.params")[0]
    change = np.abs(saved.arg["conv_1_conv2d_weight"] - before["conv_1_conv2d_weight"]).max()
    assert 0 < change < 0.1


def test_arcface_trains_to_the_same_bits(checkout):
    folder = checkout(5)
    params = []
    for name in ("alone", "through_us"):
        run(
            folder, SEEDED, name, folder, "--loss", "arcface", "--network", "y1", "--dataset", "lfw", "--per-batch-size", 4,
            "--verbose", 5, "--ckpt", 2, "--lr", 0.01, "--models-root", folder.parent / name, CUDA_VISIBLE_DEVICES="",
        )  # fmt: skip
        params.append(load_params(folder.parent / name / "y1-arcface-lfw" / "model-0001.params"))
    (arg, aux), (arg_through_us, aux_through_us) = params
    assert list(arg) == list(arg_through_us)
    for name, array in arg.items():
        assert np.array_equal(array, arg_through_us[name]), name
    # Not their values: now and then the trainer saves before the last step's statistics are there, alone too.
    assert list(aux) == list(aux_through_us)
