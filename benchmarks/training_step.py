"""Images/s and peak memory of a training step, of MXNet and of PyTorch where both are installed. MXNet's own PReLU
stands beside the equivalent graph that trains; PyTorch's identity loss beside the same step with DDL (K = 2).
Each row is a process of its own, the rounds interleaved.

    python benchmarks/training_step.py --network y1 --images 96 --rounds 1
    python benchmarks/training_step.py --backend torch --devices gpu --amp bf16 --network y1 --images 144 --steps 50
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import subprocess
import sys
import time

import numpy as np
from tabulate import tabulate

CLASSES = 1000
HARD = 2  # K, of the variant with DDL

#: name -> (backend, what is measured)
VARIANTS = {
    "MXNet's PReLU": ("mxnet", "slow"),
    "MXNet, equivalent graph": ("mxnet", "fast"),
    "PyTorch": ("torch", "arcface"),
    "PyTorch with DDL": ("torch", "ddl"),
}


def measure(options: argparse.Namespace) -> None:
    """Print images/s, seconds of the first step, peak MB (of the GPU, where there is one)."""
    backend, what = VARIANTS[options.measure]
    rate, first, peak = (_mxnet if backend == "mxnet" else _torch)(options, what)
    if peak is None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"RESULT {rate} {first} {peak}")


def _mxnet(options: argparse.Namespace, what: str) -> tuple[float, float, None]:
    from ddl_step import random_batch, seconds_of_step, to_ndarrays

    from ddl_plugin.backbone.checkpoint import IMAGE_SHAPE, new_backbone
    from ddl_plugin.backbone.graph_rewrite import with_fast_prelu
    from ddl_plugin.loss.identity import IdentitySettings
    from ddl_plugin.loss.symbol import training_symbol
    from ddl_plugin.mxnet_setup import mx

    images = options.images
    backbone = new_backbone(options.network, None, 0)
    symbol = with_fast_prelu(backbone.symbol, backbone.shapes) if what == "fast" else backbone.symbol
    graph = training_symbol(
        symbol, num_classes=CLASSES, emb_size=backbone.emb_size,
        identity=IdentitySettings.preset("arcface"), loss="arcface",
    )  # fmt: skip
    module = mx.mod.Module(graph.symbol, context=mx.cpu())
    module.bind([("data", (images, *IMAGE_SHAPE))], [("softmax_label", (images,))])
    module.init_params(
        mx.init.Normal(0.01), to_ndarrays(backbone.arg), to_ndarrays(backbone.aux), allow_missing=True
    )
    module.init_optimizer(optimizer="sgd", optimizer_params={"learning_rate": 1e-3, "momentum": 0.9})
    batch = random_batch(images, np.random.default_rng(0))
    times = [seconds_of_step(module, batch) for _ in range(options.steps)]
    return images / np.median(times[2:]), times[0], None


def _torch(options: argparse.Namespace, what: str) -> tuple[float, float, float | None]:
    """As the trainer makes steps; a GPU's are waited for after the last alone."""
    from ddl_plugin.pytorch.checkpoint import load_backbone, new_backbone
    from ddl_plugin.pytorch.devices import parse_devices
    from ddl_plugin.pytorch.engine import TorchEngine
    from ddl_plugin.pytorch.loader import TorchBatch
    from ddl_plugin.pytorch.torch_setup import torch
    from ddl_plugin.settings import DDLSettings, RunSettings
    from ddl_plugin.training.state import RunState

    devices = parse_devices(options.devices)
    stored = options.network.endswith((".pth", ".pt")) or "," in options.network
    backbone = load_backbone(options.network) if stored else new_backbone(options.network, None, 0)
    rng = np.random.default_rng(0)
    ddl = None
    if what == "ddl":
        rows = 3 * (HARD + 1)
        if options.images % rows:
            sys.exit(f"--images: expected a multiple of {rows} for DDL with K = {HARD}, got {options.images}")
        ddl = DDLSettings(b=options.images // rows, hard=tuple({"size": 14 + 10 * k} for k in range(HARD)))
    settings = RunSettings(
        dataset_path="-", pretrained="-", loss=what, ddl=ddl, sampler="pairs" if ddl else "images", lr=1e-5,
        per_batch_size=options.images, max_steps=options.steps + 1, backend="torch", amp=options.amp,
    )  # fmt: skip
    engine = TorchEngine(settings, backbone, CLASSES, devices, options.images, None, None)
    fc7 = rng.normal(0, 0.01, (CLASSES, backbone.emb_size)).astype(np.float32)
    engine.start(RunState(0, {**backbone.arg, "fc7_weight": fc7}, backbone.aux, b"", 0.0))
    pixels = torch.from_numpy(rng.integers(0, 256, (options.images, 112, 112, 3), np.uint8))
    labels = torch.from_numpy(rng.integers(0, CLASSES, options.images))
    gpu = devices[0].type == "cuda"
    if gpu:
        pixels, labels = pixels.pin_memory(), labels.pin_memory()

    def steps(first: int, count: int) -> float:
        began = time.perf_counter()
        for step in range(first, first + count):
            engine.forward_backward(TorchBatch(step, pixels, labels, None, None), step)
            engine.outcomes()
            engine.update(step)
        engine.outcomes(wait=True)
        return time.perf_counter() - began

    first = steps(0, 1)
    steps(1, 1)
    if not gpu:
        times = [steps(step, 1) for step in range(2, options.steps)]
        return options.images / np.median(times), first, None
    steps(2, 3)
    seconds = steps(5, options.steps)
    return options.images * options.steps / seconds, first, torch.cuda.max_memory_allocated() / 2**20


def run_variant(options: argparse.Namespace, name: str) -> list[float]:
    command = [sys.executable, __file__, "--network", options.network, "--images", str(options.images)]
    command += ["--steps", str(options.steps), "--devices", options.devices, "--measure", name]
    command += [] if options.amp is None else ["--amp", options.amp]
    done = subprocess.run(command, capture_output=True, text=True)
    results = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if not results:
        sys.exit(f"{name}: {done.stderr[-500:]}")
    return [float(value) for value in results[0]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="y1", help="of PyTorch also PREFIX,EPOCH or a state dict (.pth)")
    parser.add_argument("--images", type=int, default=90)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--backend", choices=("mxnet", "torch"), help="default: those that are installed")
    parser.add_argument("--devices", default="cpu", help="of PyTorch: cpu or gpu")
    parser.add_argument("--amp", choices=("bf16",), help="of PyTorch")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        measure(options)
        return
    wanted = [options.backend] if options.backend else ["mxnet", "torch"]
    wanted = [backend for backend in wanted if importlib.util.find_spec(backend) is not None]
    variants = [name for name, (backend, _) in VARIANTS.items() if backend in wanted]
    results = {name: [] for name in variants}
    for _ in range(options.rounds):
        for name in variants:
            results[name].append(run_variant(options, name))
    medians = {name: np.median(rows, axis=0) for name, rows in results.items()}
    first = next(iter(medians.values()))[0]
    rows = [(name, rate, rate / first, start, peak) for name, (rate, start, peak) in medians.items()]
    how = f"{options.devices}{'' if options.amp is None else f', {options.amp}'}"
    print(f"{options.network}, {options.images} images a step, {how}, {options.rounds} round(s)")
    print(
        tabulate(
            rows,
            headers=["variant", "images/s", "ratio", "first step s", "peak MB"],
            floatfmt=("", ".1f", ".2f", ".1f", ".0f"),
        )
    )


if __name__ == "__main__":
    main()
