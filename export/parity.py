"""Parity: an exported file gives the embeddings that the host gives which trained the checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx

from ddl_plugin.errors import CheckError
from ddl_plugin.evaluation.onnx_model import open_session
from ddl_plugin.evaluation.providers import describe
from ddl_plugin.export.departure import Reference, explain
from ddl_plugin.export.graph import Checkpoint, find_checkpoint
from ddl_plugin.export.images import BATCHES, as_input, image_sets
from ddl_plugin.export.mxnet_network import open_mxnet

TOLERANCE = 1e-4  # on unit embeddings

#: The checkpoint's network in a host and the host's version, or None and why there is none.
OpenNetwork = Callable[[Checkpoint], tuple[Reference | None, str]]


def unit(embeddings: np.ndarray) -> np.ndarray:
    """Rows of (n, D) divided by their length, float64."""
    embeddings = embeddings.astype(np.float64)
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)


def difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """(largest difference of the unit embeddings' components, least cosine) of two (n, D) arrays."""
    first, second = unit(first), unit(second)
    return float(np.abs(first - second).max()), float((first * second).sum(axis=1).min())


def compare_runtimes(
    checkpoint: str | Checkpoint,
    onnx_path: str | os.PathLike,
    images: np.ndarray | None = None,
    tolerance: float = TOLERANCE,
    open_network: OpenNetwork = open_mxnet,
) -> dict[str, Any]:
    """Run an ONNX file in ONNX Runtime and its checkpoint in its host on the same images, at batch 1, 4 and 33.

    Always on noise and on smooth synthetic images; on real ones too where `images`, uint8 (n, S, S, 3) RGB, are given.
    A batch that is large enough holds images of every kind, and has a row for each. Where the host is not installed the
    result says so (`compared` False) and the ONNX file is only run.

    Raises CheckError with the figures when an embedding is not finite, or when unit embeddings differ by more than
    `tolerance` in any component; it names the first node whose output departs from the host's.
    """
    files = checkpoint if isinstance(checkpoint, Checkpoint) else find_checkpoint(checkpoint)
    session = open_session(onnx_path)
    batches = list(_batches(image_sets(session.get_inputs()[0].shape[2], images)))
    embeddings = [session.run(None, {session.get_inputs()[0].name: batch})[0] for batch, _ in batches]
    runtime = describe(session)
    del session  # a large network's memory goes before the host takes its own
    network, version = open_network(files)
    rows, batch_of_row = [], []
    for (batch, places), found in zip(batches, embeddings, strict=True):
        for name, place in places.items():
            if not np.isfinite(found[place]).all():
                raise CheckError(
                    f"{files.params}: ONNX embeddings of {name} images at batch {len(batch)} are not finite"
                    f"{_where(network, onnx_path, batch)}"
                )
        expected = None if network is None else network(batch)
        for name, place in places.items():
            row: dict[str, Any] = {"images": name, "batch": len(batch)}
            if expected is not None:
                row["max_difference"], row["min_cosine"] = difference(expected[place], found[place])
            rows.append(row)
            batch_of_row.append(batch)
    result: dict[str, Any] = {
        "compared": network is not None,
        "mxnet" if network is None or network.title == "MXNet" else "torch": version,
        **runtime,
        "tolerance": tolerance,
        "rows": rows,
    }
    if network is not None:
        at = max(range(len(rows)), key=lambda i: rows[i]["max_difference"])
        worst = rows[at]
        result["max_difference"] = worst["max_difference"]
        result["min_cosine"] = min(row["min_cosine"] for row in rows)
        # Written so that a difference that is not a number (the host's own overflow) does not pass.
        if not all(row["max_difference"] <= tolerance for row in rows):
            raise CheckError(
                f"{files.params}: {network.title} and ONNX Runtime differ by {worst['max_difference']:.1e} on unit embeddings "
                f"(tolerance {tolerance:g}), least cosine {result['min_cosine']:.6f}, "
                f"worst on {worst['images']} images at batch {worst['batch']}"
                f"{_where(network, onnx_path, batch_of_row[at])}"
            )
    return result


def _batches(sets: Mapping[str, np.ndarray]) -> Iterator[tuple[np.ndarray, dict[str, slice]]]:
    """What is run: each batch, float32 (n, 3, S, S), and where in it each set's images are.

    A batch takes an image of each set in turn, so that the large ones, which take most of the time, are run once.
    """
    for size in BATCHES:
        parts = [sets] if size >= len(sets) else [{name: pixels} for name, pixels in sets.items()]
        for part in parts:
            kinds = list(part.values())
            images = [
                kinds[i % len(kinds)][i // len(kinds) % len(kinds[i % len(kinds)])] for i in range(size)
            ]
            yield (
                as_input(np.stack(images)),
                {name: slice(first, None, len(kinds)) for first, name in enumerate(part)},
            )


def _where(network: Reference | None, onnx_path: str | os.PathLike, batch: np.ndarray) -> str:
    """'; ' and what `departure` found; '' without a host."""
    return "" if network is None else f"; {explain(network, onnx.load(str(onnx_path)), batch)}"
