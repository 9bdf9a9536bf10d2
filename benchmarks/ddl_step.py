"""What DDL costs: a training step with it against the same step with the identity loss alone.

Two modules with the same weights take the same batches in turn (A B A B ...) in one process; the ratio is
taken pair by pair, so that a machine whose speed drifts does not favour either.

    python benchmarks/ddl_step.py --network y1 --b 8 --hard 2 --steps 15
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from tabulate import tabulate

from ddl_plugin.backbone.checkpoint import IMAGE_SHAPE, new_backbone
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.settings import DDLSettings, RunSettings
from ddl_plugin.training.devices import parse_devices
from ddl_plugin.training.graph import training_graph

CLASSES = 1000


def step_module(settings: RunSettings, backbone, contexts) -> mx.mod.Module:
    """A module bound for one step of `settings`, its classifier random."""
    rows = settings.batch_rows * len(contexts)
    graph = training_graph(settings, backbone, CLASSES, contexts)
    module = mx.mod.Module(graph.symbol, context=contexts)
    module.bind([("data", (rows, *IMAGE_SHAPE))], [("softmax_label", (rows,))])
    module.init_params(
        mx.init.Normal(0.01), to_ndarrays(backbone.arg), to_ndarrays(backbone.aux), allow_missing=True
    )
    module.init_optimizer(optimizer="sgd", optimizer_params={"learning_rate": 1e-3, "momentum": 0.9})
    return module


def to_ndarrays(arrays: dict[str, np.ndarray]) -> dict:
    return {name: mx.nd.array(array) for name, array in arrays.items()}


def seconds_of_step(module: mx.mod.Module, batch: mx.io.DataBatch) -> float:
    began = time.perf_counter()
    module.forward_backward(batch)
    module.update()
    # Reading every output is what the trainer's log does after a step.
    for output in module.get_outputs():
        output.asnumpy()
    mx.nd.waitall()
    return time.perf_counter() - began


def random_batch(rows: int, rng: np.random.Generator) -> mx.io.DataBatch:
    images = rng.integers(0, 256, (rows, *IMAGE_SHAPE)).astype(np.float32)
    return mx.io.DataBatch([mx.nd.array(images)], [mx.nd.array(rng.integers(0, CLASSES, rows))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="y1")
    parser.add_argument("--b", type=int, default=8)
    parser.add_argument("--hard", type=int, default=2, help="K, hard distributions")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--devices", default="cpu")
    options = parser.parse_args()
    contexts = parse_devices(options.devices)
    ddl = DDLSettings(b=options.b, hard=tuple({"size": 8 + k} for k in range(options.hard)))
    with_ddl = RunSettings(dataset_path="-", network=options.network, fc7_init="random", ddl=ddl)
    settings = {"identity loss alone": with_ddl.without_distributions_loss(), "with DDL": with_ddl}
    backbone = new_backbone(options.network, None, 0)
    modules = {name: step_module(own, backbone, contexts) for name, own in settings.items()}
    batch = random_batch(with_ddl.batch_rows * len(contexts), np.random.default_rng(0))
    for module in modules.values():  # first steps allocate and compile
        seconds_of_step(module, batch), seconds_of_step(module, batch)
    times = np.array([[seconds_of_step(m, batch) for m in modules.values()] for _ in range(options.steps)])
    ratios = times[:, 1] / times[:, 0]
    rows = [(name, *np.percentile(1000 * times[:, i], (0, 50, 100))) for i, name in enumerate(modules)]
    print(
        f"{options.network}, {batch.data[0].shape[0]} images a step, b = {options.b}, K = {options.hard}, {contexts}"
    )
    print(tabulate(rows, headers=["step", "min ms", "median ms", "max ms"], floatfmt=".0f"))
    low, median, high = np.percentile(ratios, (25, 50, 75))
    print(
        f"ratio, pair by pair over {options.steps} pairs: median {median:.3f}, quartiles {low:.3f} to {high:.3f}"
    )


if __name__ == "__main__":
    main()
