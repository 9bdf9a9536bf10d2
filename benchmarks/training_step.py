"""Images/s and peak memory of a training step: MXNet's own PReLU against the equivalent graph that trains.
Each row is a process of its own, the rounds interleaved.

    python benchmarks/training_step.py --network y1 --images 96 --rounds 1
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

import numpy as np
from tabulate import tabulate

#: name -> whether PReLU is replaced
VARIANTS = {"MXNet's PReLU": False, "equivalent graph": True}


def measure(network: str, images: int, steps: int, fast: bool) -> None:
    """Print images/s (best step after the first two), seconds of the first step, peak MB."""
    from ddl_step import random_batch, seconds_of_step, to_ndarrays

    from ddl_plugin.backbone.checkpoint import IMAGE_SHAPE, new_backbone
    from ddl_plugin.backbone.graph_rewrite import with_fast_prelu
    from ddl_plugin.loss.identity import IdentitySettings
    from ddl_plugin.loss.symbol import training_symbol
    from ddl_plugin.mxnet_setup import mx

    backbone = new_backbone(network, None, 0)
    symbol = with_fast_prelu(backbone.symbol, backbone.shapes) if fast else backbone.symbol
    graph = training_symbol(
        symbol, num_classes=1000, emb_size=backbone.emb_size,
        identity=IdentitySettings.preset("arcface"), loss="arcface",
    )  # fmt: skip
    module = mx.mod.Module(graph.symbol, context=mx.cpu())
    module.bind([("data", (images, *IMAGE_SHAPE))], [("softmax_label", (images,))])
    module.init_params(
        mx.init.Normal(0.01), to_ndarrays(backbone.arg), to_ndarrays(backbone.aux), allow_missing=True
    )
    module.init_optimizer(optimizer="sgd", optimizer_params={"learning_rate": 1e-3, "momentum": 0.9})
    batch = random_batch(images, np.random.default_rng(0))
    times = [seconds_of_step(module, batch) for _ in range(steps)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"RESULT {images / np.median(times[2:])} {times[0]} {peak}")


def run_variant(options: argparse.Namespace, name: str) -> list[float]:
    command = [sys.executable, __file__, "--network", options.network, "--images", str(options.images)]
    command += ["--steps", str(options.steps), "--measure", str(int(VARIANTS[name]))]
    done = subprocess.run(command, capture_output=True, text=True)
    results = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if not results:
        sys.exit(f"{name}: {done.stderr[-500:]}")
    return [float(value) for value in results[0]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="y1")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        measure(options.network, options.images, options.steps, bool(options.measure))
        return
    results = {name: [] for name in VARIANTS}
    for _ in range(options.rounds):
        for name in VARIANTS:
            results[name].append(run_variant(options, name))
    medians = {name: np.median(rows, axis=0) for name, rows in results.items()}
    first = next(iter(medians.values()))[0]
    rows = [(name, rate, rate / first, start, peak) for name, (rate, start, peak) in medians.items()]
    print(f"{options.network}, {options.images} images a step, one CPU device, {options.rounds} round(s)")
    print(
        tabulate(
            rows,
            headers=["variant", "images/s", "ratio", "first step s", "peak MB"],
            floatfmt=("", ".1f", ".2f", ".1f", ".0f"),
        )
    )


if __name__ == "__main__":
    main()
