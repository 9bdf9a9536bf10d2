"""InsightFace's own recognition/arcface_torch, as it is, on CPUs.

`INSIGHTFACE_TORCH_DIR` names the folder in a checkout of insightface. It needs torchvision, tensorboard and scikit-learn.
"""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from arcface_torch_runs import shown  # noqa: E402

from ddl_plugin.data.records import Records  # noqa: E402

ON_CPU = Path(__file__).parent / "arcface_torch_on_cpu.py"
CONFIG = """
from easydict import EasyDict as edict
config = edict()
config.margin_list = (1.0, 0.0, 0.4)
config.network = "mbf"
config.output = None
config.embedding_size = 64
config.sample_rate = {sample_rate}
config.fp16 = False
config.weight_decay = 1e-4
config.batch_size = 12
config.lr = 0.02
config.verbose = 3
config.frequent = 1
config.dali = {dali}
config.num_workers = 1
config.save_all_states = True
config.rec = {rec!r}
config.num_classes = 12
config.num_image = 72
config.num_epoch = 1
config.warmup_epoch = 0
config.val_targets = ["pairs"]
config.loss = "ddl"
config.ddl = edict(hard=[{{"size": (12, 16)}}])
"""


@pytest.fixture
def checkout(tmp_path):
    source = os.environ.get("INSIGHTFACE_TORCH_DIR")
    if not source:
        pytest.skip("set INSIGHTFACE_TORCH_DIR to recognition/arcface_torch in a checkout of insightface")
    for name in ("torchvision", "tensorboard", "sklearn", "scipy"):
        pytest.importorskip(name)
    return shutil.copytree(source, tmp_path / "arcface_torch")


def write_bin(path, records):
    """A verification set of 20 pairs, one of an identity and one of two by turns: of both there is one in each fold."""
    images = Records(records)
    pairs = [(6 * i, 6 * i + 1) if i % 2 else (6 * i, 6 * i + 6) for i in range(10)] * 2
    same = [i % 2 == 1 for i in range(10)] * 2
    path.write_bytes(pickle.dumps(([images.payload(i) for pair in pairs for i in pair], same)))


@pytest.mark.parametrize("processes", [1, 2])
def test_the_real_trainer_trains_with_the_loss(checkout, small_records, tmp_path, processes):
    rec = tmp_path / "rec"
    shutil.copytree(small_records, rec)
    write_bin(rec / "pairs.bin", rec)
    text = CONFIG.format(rec=str(rec), dali=processes == 2, sample_rate=1.0 if processes == 1 else 0.5)
    (checkout / "configs" / "ddl.py").write_text(text)
    torchrun = (
        ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}")
        if processes > 1
        else ()
    )
    done = subprocess.run(
        [sys.executable, *torchrun, str(ON_CPU), str(checkout), "--", "configs/ddl.py"], cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    steps = 6 // processes
    for name in ("identity", "ddl", "kl_pos", "order", "margin_easy", "margin_hard"):
        values = shown(done.stdout, name)
        assert len(values) == steps, name
        assert np.isfinite(values).all()
    assert "Accuracy-Flip" in done.stdout  # verification decodes by the stand-in, where MXNet is absent
    saved = torch.load(tmp_path / "work_dirs" / "ddl" / "checkpoint_gpu_0.pt")
    assert list(saved["state_dict_softmax_fc"]) == ["weight"]
    assert saved["global_step"] == steps
    model = torch.load(tmp_path / "work_dirs" / "ddl" / "model.pt")
    assert all(torch.isfinite(array).all() for array in model.values() if array.is_floating_point())
