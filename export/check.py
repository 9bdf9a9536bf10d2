"""The checks of an exported file: the same numbers as MXNet, and the same graph as the base model's."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from ddl_plugin.cli import uninterrupted
from ddl_plugin.errors import CheckError, UserError
from ddl_plugin.evaluation.onnx_model import open_session
from ddl_plugin.export.graph import EMBEDDING, Checkpoint, find_checkpoint

BATCHES = (1, 4, 33)  # one image, a few, and more than the batch a runtime is likely to have planned for
TOLERANCE = 1e-4  # on unit embeddings


def random_images(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Uniform noise, uint8 (count, size, size, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def smooth_images(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Sums of a few slow waves, as smooth as faces are, uint8 (count, size, size, 3)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:size, 0:size] / size
    frequency = rng.uniform(-3, 3, (2, count, 1, 1, 3, 4))
    phase = rng.uniform(0, 2 * np.pi, (count, 1, 1, 3, 4))
    angle = (
        2 * np.pi * (frequency[0] * rows[..., None, None] + frequency[1] * columns[..., None, None]) + phase
    )
    return np.clip(127.5 + 40 * np.sin(angle).sum(axis=-1), 0, 255).astype(np.uint8)


class _MXNetNetwork:
    """The checkpoint's embedding in MXNet itself, which reads the files independently of our own readers."""

    def __init__(self, files: Checkpoint):
        with uninterrupted():
            from ddl_plugin.mxnet_setup import mx, symbol_from_json

        self.mx = mx
        self.executor, self.bound_shape = None, None
        symbol = symbol_from_json(_in_float32(files.symbol.read_text(encoding="utf-8")))
        self.symbol = symbol.get_internals()[EMBEDDING]
        self.params = {
            name.partition(":")[2]: array.astype("float32")
            for name, array in mx.nd.load(str(files.params)).items()
        }

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        if batch.shape != self.bound_shape:
            self.executor = self.symbol.simple_bind(self.mx.cpu(), grad_req="null", data=batch.shape)
            self.executor.copy_params_from(self.params, self.params, allow_extra_params=True)
            self.bound_shape = batch.shape
        return self.executor.forward(is_train=False, data=self.mx.nd.array(batch))[0].asnumpy()


def _in_float32(symbol: str) -> str:
    """The symbol with its casts to half precision made casts to float32, which is what the exported graph computes."""
    content = json.loads(symbol)
    for node in content["nodes"]:
        for attrs in (node.get(key, {}) for key in ("attrs", "attr", "param")):
            if node["op"] == "Cast" and attrs.get("dtype") == "float16":
                attrs["dtype"] = "float32"
    return json.dumps(content)


def _open_mxnet(files: Checkpoint) -> tuple[_MXNetNetwork | None, str]:
    """The network and MXNet's version, or None and why there is none."""
    try:
        network = _MXNetNetwork(files)
    except UserError as error:  # MXNet is not installed, or cannot be imported
        return None, str(error)
    return network, network.mx.__version__


def _batch(images: np.ndarray, size: int) -> np.ndarray:
    """`size` images, cycling through those given, as float32 (size, 3, S, S)."""
    chosen = images[np.arange(size) % len(images)]
    return np.ascontiguousarray(chosen.transpose(0, 3, 1, 2), dtype=np.float32)


def _unit(embeddings: np.ndarray) -> np.ndarray:
    embeddings = embeddings.astype(np.float64)
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)


def difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """(largest difference of the unit embeddings' components, least cosine) of two (n, D) arrays."""
    first, second = _unit(first), _unit(second)
    return float(np.abs(first - second).max()), float((first * second).sum(axis=1).min())


def compare_runtimes(
    checkpoint: str | Checkpoint,
    onnx_path: str | os.PathLike,
    images: np.ndarray | None = None,
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """Run an ONNX file in ONNX Runtime and its checkpoint in MXNet on the same images, at batch 1, 4 and 33.

    Always on noise and on smooth synthetic images; on real ones too where `images`, uint8 (n, S, S, 3) RGB, are given.
    Where MXNet is not installed the result says so (`compared` False) and the ONNX file is only run.

    Raises CheckError with the figures when an embedding is not finite, or when unit embeddings differ by more than
    `tolerance` in any component.
    """
    files = checkpoint if isinstance(checkpoint, Checkpoint) else find_checkpoint(checkpoint)
    session = open_session(onnx_path)
    network, mxnet = _open_mxnet(files)
    side = session.get_inputs()[0].shape[2]
    sets = {"random": random_images(max(BATCHES), side), "smooth": smooth_images(max(BATCHES), side)}
    if images is not None:
        sets["real"] = images
    rows = []
    for size, (name, pixels) in product(BATCHES, sets.items()):
        batch = _batch(pixels, size)
        row: dict[str, Any] = {"images": name, "batch": size}
        found = session.run(None, {session.get_inputs()[0].name: batch})[0]
        if not np.isfinite(found).all():
            raise CheckError(
                f"{files.params}: ONNX embeddings of {name} images at batch {size} are not finite"
            )
        if network is not None:
            row["max_difference"], row["min_cosine"] = difference(network(batch), found)
        rows.append(row)
    result: dict[str, Any] = {
        "compared": network is not None,
        "mxnet": mxnet,
        "onnxruntime": session.get_providers()[0],
        "tolerance": tolerance,
        "rows": rows,
    }
    if network is not None:
        worst = max(rows, key=lambda row: row["max_difference"])
        result["max_difference"] = worst["max_difference"]
        result["min_cosine"] = min(row["min_cosine"] for row in rows)
        # Written so that a difference that is not a number (MXNet's own overflow) does not pass.
        if not all(row["max_difference"] <= tolerance for row in rows):
            raise CheckError(
                f"{files.params}: MXNet and ONNX Runtime differ by {worst['max_difference']:.1e} on unit embeddings "
                f"(tolerance {tolerance:g}), least cosine {result['min_cosine']:.6f}, "
                f"worst on {worst['images']} images at batch {worst['batch']}"
            )
    return result


def _value_info(values: Any) -> list[str]:
    """Inputs or outputs as 'name type[shape]'."""
    described = []
    for value in values:
        tensor = value.type.tensor_type
        shape = ", ".join(dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim)
        described.append(f"{value.name} {onnx.TensorProto.DataType.Name(tensor.elem_type)}[{shape}]")
    return described


def _node_text(node: onnx.NodeProto) -> str:
    attributes = ", ".join(
        f"{a.name}={onnx.helper.get_attribute_value(a)}" for a in sorted(node.attribute, key=lambda a: a.name)
    )
    return (
        f"{node.op_type}({attributes}) {node.name!r} from {', '.join(node.input)} to {', '.join(node.output)}"
    )


def _initializer_text(tensor: onnx.TensorProto) -> str:
    """Name, type and shape; the value as well where it is no weight (scalars, shapes, axes)."""
    kind = onnx.TensorProto.DataType.Name(tensor.data_type)
    text = f"initializer {tensor.name} {kind}{list(tensor.dims)}"
    is_weight = len(tensor.dims) > 0 and tensor.data_type not in (
        onnx.TensorProto.INT64,
        onnx.TensorProto.INT32,
    )
    return text if is_weight else f"{text} = {numpy_helper.to_array(tensor).tolist()}"


def _described(model: onnx.ModelProto) -> Iterator[tuple[str, list[str]]]:
    yield "operator sets", [f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import]
    yield "inputs", _value_info(model.graph.input)
    yield "outputs", _value_info(model.graph.output)
    yield "nodes", [_node_text(node) for node in model.graph.node]
    yield "initializers", [_initializer_text(tensor) for tensor in model.graph.initializer]


def same_graph(model_a: onnx.ModelProto, model_b: onnx.ModelProto) -> list[str]:
    """What differs between two models beside their weights, in words; empty when nothing does.

    Compared in order: operator sets, inputs, outputs, nodes (operator, attributes, name, edges) and initializers
    (name, type, shape, and the value of those that are no weights, such as the input's mean and scale).
    """
    found = []
    for (what, first), (_, second) in zip(_described(model_a), _described(model_b), strict=True):
        if len(first) != len(second):
            found.append(f"{len(first)} {what} against {len(second)}")
        found += [f"{a} against {b}" for a, b in zip(first, second, strict=False) if a != b]
    return found


def check_same_graph(model: onnx.ModelProto, base: onnx.ModelProto, base_name: str) -> dict[str, Any]:
    """Counts that show what was compared; CheckError naming the first difference from the base model's graph."""
    differences = same_graph(model, base)
    if differences:
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        raise CheckError(f"the graph is not that of {base_name}: {differences[0]}{more}")
    weights = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    return {"base": base_name, "identical": True, "nodes": len(model.graph.node), "values": weights}


def real_images(records: str | os.PathLike, size: int = 112, count: int = max(BATCHES)) -> np.ndarray:
    """Up to `count` images spread evenly over a .rec file, uint8 (n, size, size, 3) RGB; damaged ones left out."""
    from ddl_plugin.data.records import DamagedRecordError, Records

    opened = Records(Path(records), max_damaged=1.0)  # how many may be is for whoever trains on them
    images = []
    for position in np.unique(np.linspace(0, len(opened) - 1, count).astype(np.int64)):
        with contextlib.suppress(DamagedRecordError):
            image = opened.image(int(position))
            if image.shape != (size, size, 3):
                raise UserError(
                    f"{records}: image {position}: expected {size}x{size} RGB, got shape {image.shape}"
                )
            images.append(image)
    if not images:
        raise UserError(f"{records}: expected images to compare with, got none that can be read")
    return np.stack(images)
