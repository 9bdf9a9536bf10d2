"""How far MXNet and PyTorch part in training: the same checkpoint, batches and steps, distances after some of them.

    python benchmarks/backends.py --data FOLDER --pretrained PREFIX,EPOCH

Rounding grows from step to step in either. So beside the distance of PyTorch from MXNet stands that of a second run
of MXNet, whose convolutions and linear layers start one float32 rounding larger. On the CPU, in float32.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from ddl_plugin.backbone.checkpoint import load_backbone
from ddl_plugin.data.pairs import Pairs
from ddl_plugin.data.partition import build_partition
from ddl_plugin.data.records import Records
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.pytorch import checkpoint as torch_checkpoint
from ddl_plugin.pytorch.torch_setup import torch
from ddl_plugin.settings import DDLSettings, RunSettings
from ddl_plugin.training.dataset import Dataset
from ddl_plugin.training.trainer import Trainer

PAIRS = 4000
LOGGED = ("kind", "step", "lr", "images_per_second")  # of a line of the log, what is no term


def neighbours(labels: np.ndarray) -> Pairs:
    """Positive pairs of images that follow each other in their identity: no model is needed to choose them."""
    order = np.argsort(labels, kind="stable").astype(np.int32)
    first = np.flatnonzero(labels[order][1:] == labels[order][:-1])[:PAIRS]
    return Pairs(order[first], order[first + 1], candidates=len(first), dropped=0)


def nudged(backbone: Any) -> Any:
    """The backbone with its `_weight` arrays one float32 rounding larger."""
    arg = {
        name: np.nextafter(array, np.float32(np.inf)) if name.endswith("_weight") else array
        for name, array in backbone.arg.items()
    }
    return dataclasses.replace(backbone, arg=arg)


def train(
    settings: RunSettings, backbone: Any, fc7: np.ndarray, dataset: Dataset, device: Any, folder: Path
) -> tuple[list[dict[str, np.ndarray]], list[dict[str, float]]]:
    """Parameters and moving statistics at every validation, and the terms of every step."""
    seen = []

    def keep(trained: Any) -> tuple[float, dict[str, float]]:
        seen.append(
            {name: array.astype(np.float64) for name, array in {**trained.arg, **trained.aux}.items()}
        )
        return 0.0, {}

    Trainer(settings, backbone, fc7, dataset, [device], folder, keep, progress=False).run()
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return seen, [
        {key: value for key, value in line.items() if key not in LOGGED}
        for line in lines
        if line["kind"] == "train"
    ]


def distance(
    found: dict[str, np.ndarray], other: dict[str, np.ndarray], start: dict[str, np.ndarray]
) -> float:
    """Euclidean distance of all arrays by the way that `other` has gone from `start`."""
    apart = sum(np.square(found[name] - other[name]).sum() for name in other)
    way = sum(np.square(other[name] - start[name]).sum() for name in other)
    return float(np.sqrt(apart / way))


def terms_apart(found: dict[str, float], other: dict[str, float]) -> float:
    """Largest relative difference of a term (relative to 0.01 where it is smaller)."""
    return max(abs(found[name] - other[name]) / max(abs(other[name]), 1e-2) for name in other)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="holding train.rec")
    parser.add_argument("--pretrained", required=True, metavar="PREFIX,EPOCH")
    parser.add_argument("--b", type=int, default=2, help="pairs of a distribution, of two (default: 2)")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    every = max(1, options.steps // 4)
    settings = RunSettings(
        dataset_path=str(options.data), pretrained=options.pretrained, lr=options.lr, max_steps=options.steps,
        lr_steps=(options.steps // 2,), verbose=every, ddl=DDLSettings(b=options.b, hard=({"size": 24},)),
    )  # fmt: skip
    records = Records(options.data)
    partition = build_partition(records, settings.ddl, None)
    pairs = neighbours(records.labels)
    dataset = Dataset(options.data, records, partition, tuple(pairs for _ in partition.distributions))
    ours = load_backbone(options.pretrained)
    fc7 = np.random.default_rng(5).normal(0, 0.05, (records.num_classes, ours.emb_size)).astype(np.float32)
    in_torch = dataclasses.replace(settings, backend="torch")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        base, base_terms = train(settings, ours, fc7, dataset, mx.cpu(), folder / "mxnet")
        others = {
            "PyTorch": train(
                in_torch, torch_checkpoint.load_backbone(options.pretrained), fc7, dataset,
                torch.device("cpu"), folder / "torch",
            ),
            "MXNet, one rounding apart": train(
                settings, nudged(ours), fc7, dataset, mx.cpu(), folder / "nudged"
            ),
        }  # fmt: skip
    start = {name: array.astype(np.float64) for name, array in {**ours.arg, **ours.aux}.items()}
    rows = []
    for i, arrays in enumerate(base):
        step = min((i + 1) * every, options.steps)
        rows.append(
            [f"distance after {step} steps, by the way trained"]
            + [f"{distance(seen[i], arrays, start):.1e}" for seen, _ in others.values()]
        )
    for step in sorted({0, options.steps // 4, options.steps - 1}):
        rows.append(
            [f"largest relative difference of a term at step {step}"]
            + [f"{terms_apart(terms[step], base_terms[step]):.1e}" for _, terms in others.values()]
        )
    print(tabulate(rows, headers=["from MXNet", *others], tablefmt="github", disable_numparse=True))
    print(f"{settings.batch_rows} images a step, lr {options.lr:g}, one thread")


if __name__ == "__main__":
    main()
