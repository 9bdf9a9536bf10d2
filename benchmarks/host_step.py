"""Images/s of InsightFace's own train.py: its iterator and ArcFace, against our batches and DDL.

Each row is a process of its own, through the same command, the rounds interleaved. FOLDER is recognition/arcface_mxnet
in a checkout of insightface; nothing is written there.

    python benchmarks/host_step.py FOLDER --data LFW_FOLDER --pretrained y1/model,0 --rename fc1_weight=pre_fc1_weight
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from tabulate import tabulate

from ddl_plugin.data.records import Records

LOSSES = ("arcface", "ddl")

ENTRIES = """
dataset.bench = edict(dataset='bench', dataset_path={data!r}, num_classes={classes}, image_shape=(112, 112, 3),
    val_targets=[])
loss.ddl = edict(hard=[{{'size': (12, 16)}}], rename={rename}, max_pairs_per_identity=2, fc7_init='random')
config.max_steps = {steps}
config.count_flops = False
"""


def prepare(options: argparse.Namespace, scratch: Path) -> Path:
    """A copy of the folder with a config.py that knows the data set and the loss."""
    folder = scratch / "arcface_mxnet"
    shutil.copytree(options.folder, folder)
    rename = dict([options.rename.split("=")]) if options.rename else {}
    entries = ENTRIES.format(
        data=str(options.data.resolve()),
        classes=Records(options.data).num_classes,
        rename=rename,
        steps=options.steps,
    )
    (folder / "config.py").write_text((folder / "sample_config.py").read_text() + entries)
    return folder


def rates(options: argparse.Namespace, folder: Path, loss: str) -> list[float]:
    """Images/s of each step but the first two, as the trainer's own log has them."""
    prefix, epoch = options.pretrained.rsplit(",", 1)
    command = [
        sys.executable, "-m", "ddl_plugin.host", folder, "--devices", options.devices, "--", "--loss", loss,
        "--network", options.network, "--dataset", "bench", "--pretrained", Path(prefix).resolve(),
        "--pretrained-epoch", epoch, "--per-batch-size", options.images, "--frequent", 1, "--lr", 1e-4,
    ]  # fmt: skip
    done = subprocess.run(
        list(map(str, command)), cwd=folder.parent, capture_output=True, text=True, check=False
    )
    found = [float(rate) for rate in re.findall(r"Speed: ([\d.]+) samples/sec", done.stderr)]
    if done.returncode or len(found) < 3:
        sys.exit(f"{loss}: {done.stderr[-1000:]}")
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of train.rec")
    parser.add_argument("--pretrained", required=True, metavar="PREFIX,EPOCH")
    parser.add_argument("--rename", default="", metavar="OLD=NEW", help="an array of the checkpoint")
    parser.add_argument("--network", default="y1")
    parser.add_argument("--devices", default="cpu")
    parser.add_argument("--images", type=int, default=48, help="of a device, a multiple of 6")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    results: dict[str, list[float]] = {loss: [] for loss in LOSSES}
    with tempfile.TemporaryDirectory() as scratch:
        folder = prepare(options, Path(scratch))
        for _ in range(options.rounds):
            for loss in LOSSES:
                results[loss] += rates(options, folder, loss)
    base = np.median(results["arcface"])
    names = {"arcface": "arcface, its own iterator", "ddl": "ddl, our batches"}
    rows = [
        (names[loss], np.min(found), np.median(found), np.max(found), np.median(found) / base)
        for loss, found in results.items()
    ]
    print(
        f"train.py, {options.network}, {options.images} images a device on {options.devices}, {options.rounds} round(s)"
    )
    print(
        tabulate(
            rows,
            headers=["", "min images/s", "median", "max", "ratio"],
            floatfmt=("", ".1f", ".1f", ".1f", ".2f"),
        )
    )


if __name__ == "__main__":
    main()
