"""Every backbone family of InsightFace's arcface_mxnet: exported, checked, compared with MXNet and PyTorch, loaded by insightface.

DIR is an unmodified checkout of insightface (or its recognition/arcface_mxnet); nothing is written there. Networks are
built by its own get_symbol() from its sample_config.py, with random parameters: what is compared is the graph.

    python benchmarks/export_families.py --insightface DIR --output table.md

Every step is a process of its own: the modules there have generic names and rename layers when a network is built
twice, and the export must be measured without MXNet in memory.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from ddl_plugin.files import write_text

IMAGES = 6
TOLERANCE = 1e-4  # of unit embeddings, as the export itself has it
HEADERS = (
    "network", "options", "nodes", "checker, strict shapes", "MXNet - ONNX Runtime", "1 - cosine",
    "model_zoo mean, std", "model_zoo - MXNet", "MXNet - PyTorch", "s", "peak MB",
)  # fmt: skip


def _resnets() -> Iterator[tuple[str, dict[str, Any]]]:
    """IResNet: the heads, then the units with all their options at depth 18, then the depths."""
    heads = ("E", "F", "FC", "GAP", "GNAP", "GDC", "SFC", "G", "H", "I", "J")
    for output in heads:
        yield "r50", {"num_layers": 18, "net_output": output}
    yield "r50", {"num_layers": 18, "net_output": "GNAP", "emb_size": 256}
    yield "r50", {"num_layers": 18, "net_output": "GNAP", "emb_size": 1024}
    for unit in (1, 2, 3):
        for se, act in ((0, "relu"), (1, "relu"), (1, "prelu")):
            yield "r50", {"num_layers": 18, "net_unit": unit, "net_se": se, "net_act": act}
    for unit in (1, 3):
        for first in (0, 2):
            yield "r50", {"num_layers": 18, "net_unit": unit, "net_input": first}
    yield "r50", {"num_layers": 18, "fp16": True}
    yield "r50", {"num_layers": 18, "memonger": True, "per_batch_size": 8, "image_shape": (112, 112, 3)}
    for depth in (34, 50, 100, 124):
        for unit in (1, 3):
            yield "r50", {"num_layers": depth, "net_unit": unit}
    yield "r100", {"net_se": 1}
    yield "r100fc", {}


def _others() -> Iterator[tuple[str, dict[str, Any]]]:
    for name in ("y1", "y2"):
        for output in ("GDC", "E", "GAP", "GNAP", "FC", "F"):
            yield name, {"net_output": output}
    yield "y1", {"net_act": "relu"}
    yield "y1", {"net_multiplier": 2.0}
    for name in ("m1", "m05", "mnas", "mnas05", "mnas025"):
        for output in ("GDC", "E"):
            yield name, {"net_output": output}
    for name in ("d169", "d201"):
        for output in ("E", "GAP"):
            yield name, {"net_output": output}
    yield "vargfacenet", {}
    yield "vargfacenet", {"net_multiplier": 1.0, "net_act": "relu"}


FAMILIES = (*_resnets(), *_others())


def title(network: str, options: dict[str, Any]) -> tuple[str, str]:
    """(name, options) as the table shows them."""
    shown = {key.removeprefix("net_"): value for key, value in options.items()}
    depth = shown.pop("num_layers", None)
    hidden = ("per_batch_size", "image_shape")
    return (
        f"r{depth}" if depth else network,
        ", ".join(f"{key} {value}" for key, value in shown.items() if key not in hidden) or "as configured",
    )


# Step 1, with MXNet and upstream's modules.


def _upstream_symbol(folder: Path, network: str, options: dict[str, Any]) -> Any:
    """get_symbol() of a network of sample_config.py, with options changed."""
    from ddl_plugin.mxnet_setup import mx

    mx.gpu = mx.cpu  # its memonger binds on GPU 0 to see what memory a plan takes
    sys.path[:0] = [str(folder), str(folder / "symbol")]
    spec = importlib.util.spec_from_file_location("config", folder / "sample_config.py")
    settings = importlib.util.module_from_spec(spec)
    sys.modules["config"] = settings  # the name by which the networks import it
    spec.loader.exec_module(settings)
    settings.config.update({**settings.network[network], **options})
    with contextlib.redirect_stdout(io.StringIO()):  # they print their options
        return importlib.import_module(settings.config.net_name).get_symbol()


def _random_values(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Small gains and large offsets: otherwise a random network multiplies rounding errors from layer to layer.

    Gammas that count as 1 are not 1 either; PReLU's slopes share their name.
    """
    if name.endswith(("gamma", "alpha")):
        return rng.uniform(0.1, 0.7, shape)
    if name.endswith("weight"):
        return rng.normal(0, (1.5 / np.prod(shape[1:])) ** 0.5, shape)
    return rng.normal(0, 0.5, shape)


def images() -> np.ndarray:
    """Coarse random patterns under noise, uint8 (IMAGES, 112, 112, 3)."""
    rng = np.random.default_rng(1)
    coarse = rng.uniform(0, 255, (IMAGES, 7, 7, 3)).repeat(16, axis=1).repeat(16, axis=2)
    return np.clip(coarse + rng.normal(0, 20, coarse.shape), 0, 255).astype(np.uint8)


def _changed(symbol: Any, change: Callable[[str, dict[str, str]], None]) -> Any:
    """The symbol with `change(operator, attributes)` applied to its nodes."""
    from ddl_plugin.mxnet_setup import mx

    content = json.loads(symbol.tojson())
    for node in content["nodes"]:
        change(node["op"], node.setdefault("attrs", {}))
    return mx.sym.load_json(json.dumps(content))


def _in_float32(op: str, attributes: dict[str, str]) -> None:
    """MXNet has no half precision on the CPU."""
    if op == "Cast":
        attributes["dtype"] = "float32"


def _without_dropout(op: str, attributes: dict[str, str]) -> None:
    if op == "Dropout":
        attributes["p"] = "0"


def _forward(symbol: Any, values: dict[str, Any], batch: np.ndarray, *, train: bool) -> list[np.ndarray]:
    from ddl_plugin.mxnet_setup import mx

    executor = symbol.simple_bind(mx.cpu(), grad_req="null", data=batch.shape)
    executor.copy_params_from(values, values, allow_extra_params=True)
    return [value.asnumpy() for value in executor.forward(is_train=train, data=mx.nd.array(batch))]


def _statistics(symbol: Any, values: dict[str, Any], batch: np.ndarray) -> dict[str, np.ndarray]:
    """Means and variances of what each BatchNorm reads, as after training: signals neither die nor explode in hundreds
    of layers, and different images have different embeddings."""
    from ddl_plugin.mxnet_setup import mx

    nodes, internals = json.loads(symbol.tojson())["nodes"], symbol.get_internals()
    norms = [[nodes[i] for i, *_ in node["inputs"]] for node in nodes if node["op"] == "BatchNorm"]
    read = [node["name"] if node["op"] == "null" else f"{node['name']}_output" for node, *_ in norms]
    found = {}
    inputs = _forward(mx.sym.Group([internals[name] for name in read]), values, batch, train=True)
    for value, (*_, mean, variance) in zip(inputs, norms, strict=True):
        axes = (0, *range(2, value.ndim))
        # Where these few images hardly differ, their rounding errors would otherwise be blown up.
        least = 0.01 * np.square(value).mean()
        found[mean["name"]], found[variance["name"]] = (
            value.mean(axis=axes),
            value.var(axis=axes).clip(least),
        )
    return found


def build(folder: Path, prefix: Path, network: str, options: dict[str, Any]) -> None:
    """Write the checkpoint and, as PREFIX.npy, its embeddings in MXNet."""
    from ddl_plugin.mxnet_setup import mx

    symbol = _upstream_symbol(folder, network, options).get_internals()["fc1_output"]
    rng = np.random.default_rng(0)
    batch = images().transpose(0, 3, 1, 2).astype(np.float32)
    shapes, _, aux_shapes = symbol.infer_shape(data=batch.shape)
    types = dict(zip(symbol.list_arguments(), symbol.infer_type(data=np.float32)[0], strict=True))
    arg = {
        name: mx.nd.array(_random_values(rng, name, shape).astype(types[name]), dtype=types[name])
        for name, shape in zip(symbol.list_arguments(), shapes, strict=True)
        if name != "data"
    }
    values = {name: array.astype("float32") for name, array in arg.items()}
    values |= {
        name: mx.nd.ones(size) for name, size in zip(symbol.list_auxiliary_states(), aux_shapes, strict=True)
    }
    reference = _changed(symbol, _in_float32)
    aux = {
        name: mx.nd.array(array)
        for name, array in _statistics(_changed(reference, _without_dropout), values, batch).items()
    }
    np.save(f"{prefix}.npy", _forward(reference, values | aux, batch, train=False)[0])
    mx.model.save_checkpoint(str(prefix), 0, symbol, arg, aux)


# Step 2, without MXNet.


def _peak_mb() -> float:
    """Most memory that this process has held. (ru_maxrss counts its parent's too.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def export(prefix: Path) -> dict[str, Any]:
    """Write PREFIX.onnx; seconds and peak memory."""
    from ddl_plugin.export.convert import convert

    start = time.perf_counter()
    convert(f"{prefix},0", f"{prefix}.onnx")
    return {"s": f"{time.perf_counter() - start:.1f}", "peak MB": f"{_peak_mb():.0f}"}


# Step 3: what others say of the file.


def _unit(embeddings: np.ndarray) -> np.ndarray:
    return embeddings / np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)


def _distance(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """(largest difference of unit embeddings, 1 - least cosine)."""
    first, second = _unit(first), _unit(second)
    return float(np.abs(first - second).max()), float(1 - (first * second).sum(axis=1).min())


def _judged(difference: float) -> str:
    return f"{difference:.0e}" if difference <= TOLERANCE else f"FAILS: {difference:.0e}"


def _checked(path: Path) -> dict[str, str]:
    import onnx

    model = onnx.load(path)
    nodes = model.graph.node
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    read = {name for node in nodes for name in node.input} | {value.name for value in model.graph.output}
    dead = [name for node in nodes for name in node.output if name not in read]
    dead += [tensor.name for tensor in model.graph.initializer if tensor.name not in read]
    dead += [node.name for node in nodes if node.op_type == "Identity"]
    fed = [value.name for value in model.graph.input] == ["data"]
    passed = "pass" if fed and not dead else f"FAILS: useless {dead[:3]}" if dead else "FAILS: inputs"
    return {"nodes": str(len(nodes)), "checker, strict shapes": passed}


def _in_runtime(path: Path, expected: np.ndarray) -> dict[str, str]:
    from ddl_plugin.evaluation.onnx_model import OnnxEmbedder

    difference, cosine = _distance(OnnxEmbedder(path, threads=1)(images()), expected)
    return {"MXNet - ONNX Runtime": _judged(difference), "1 - cosine": f"{max(cosine, 0):.0e}"}


def _in_model_zoo(path: Path, expected: np.ndarray) -> dict[str, str]:
    from insightface.model_zoo import get_model

    with contextlib.redirect_stdout(io.StringIO()):
        model = get_model(str(path), providers=["CPUExecutionProvider"])
    found = model.get_feat([np.ascontiguousarray(image[:, :, ::-1]) for image in images()])
    return {
        "model_zoo mean, std": f"{model.input_mean:g}, {model.input_std:g}",
        "model_zoo - MXNet": _judged(_distance(found, expected)[0]),
    }


def _in_torch(prefix: Path, expected: np.ndarray) -> dict[str, str]:
    from ddl_plugin.pytorch.checkpoint import load_backbone
    from ddl_plugin.pytorch.embedder import TorchEmbedder

    embed = TorchEmbedder(load_backbone(f"{prefix},0"))
    return {"MXNet - PyTorch": _judged(_distance(embed(images()), expected)[0])}


def _told(cell: str, step: Callable[..., dict[str, str]], *arguments: Any) -> dict[str, str]:
    """The step's cells, or why it failed in `cell`."""
    try:
        return step(*arguments)
    except Exception as error:  # whatever it is, it is this cell's answer
        return {cell: f"FAILS: {' '.join(str(error).split())[:80]}"}


def check(prefix: Path) -> dict[str, str]:
    path, expected = prefix.with_suffix(".onnx"), np.load(f"{prefix}.npy")
    spread = float(np.abs(np.tril(_unit(expected) @ _unit(expected).T, -1)).max())
    found = _told("checker, strict shapes", _checked, path)
    found |= _told("MXNet - ONNX Runtime", _in_runtime, path, expected)
    found |= _told("model_zoo - MXNet", _in_model_zoo, path, expected)
    if importlib.util.find_spec("torch") is not None:
        found |= _told("MXNet - PyTorch", _in_torch, prefix, expected)
    if not spread < 0.999:  # then agreement would say nothing
        found["1 - cosine"] = f"FAILS: embeddings of different images have cosine {spread:.4f}"
    return found


# All of them.


def _alone(step: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a step in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(step, *arguments).result()


def row(folder: Path, network: str, options: dict[str, Any]) -> list[str]:
    name, shown = title(network, options)
    cells = {"network": name, "options": shown}
    with tempfile.TemporaryDirectory() as scratch:
        prefix = Path(scratch) / "model"
        for what, step in (
            ("nodes", lambda: _alone(build, folder, prefix, network, options)),
            ("nodes", lambda: _alone(export, prefix)),
            ("checker, strict shapes", lambda: _alone(check, prefix)),
        ):
            found = _told(what, lambda step=step: step() or {})
            cells |= found
            if found.get(what, "").startswith("FAILS"):
                break
    return [cells.get(header, "") for header in HEADERS]


def _folder(given: Path) -> Path:
    for folder in (given / "recognition" / "arcface_mxnet", given):
        if (folder / "sample_config.py").is_file() and (folder / "symbol").is_dir():
            return folder.resolve()
    sys.exit(f"--insightface: expected a checkout with recognition/arcface_mxnet in it, got {given}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--insightface", type=Path, required=True, metavar="DIR")
    parser.add_argument("--only", metavar="NAME", help="networks of this name, e.g. r100 or y1")
    parser.add_argument("--output", type=Path, metavar="FILE.md", help="also write the table there")
    options = parser.parse_args()
    folder = _folder(options.insightface)
    chosen = [family for family in FAMILIES if options.only in (None, title(*family)[0])]
    if not chosen:
        known = ", ".join(dict.fromkeys(title(*family)[0] for family in FAMILIES))
        sys.exit(f"--only: expected one of {known}, got {options.only!r}")
    rows = [row(folder, *family) for family in tqdm(chosen, disable=None)]
    failed = sum(any(cell.startswith("FAILS") for cell in cells) for cells in rows)
    table = tabulate(rows, headers=HEADERS, tablefmt="github", disable_numparse=True)
    last = f"{len(rows) - failed} of {len(rows)} pass every check."
    print(f"{table}\n\n{last}")
    if options.output:
        write_text(options.output, f"{table}\n\n{last}\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
