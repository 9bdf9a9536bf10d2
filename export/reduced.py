"""How near a model in fewer bits stays to the float32 one: cosines of embeddings, and verification accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ddl_plugin.errors import CheckError
from ddl_plugin.evaluation.bins import BinSet
from ddl_plugin.evaluation.onnx_model import OnnxEmbedder, open_session
from ddl_plugin.evaluation.verification import verify
from ddl_plugin.export.images import BATCHES, as_input, image_sets
from ddl_plugin.export.parity import unit

#: Half precision: the least cosine on any image.
HALF_COSINE = 0.999
#: 8 bits: the mean cosine on real images. Noise is nothing like the images it was calibrated on and is only reported.
INT8_COSINE = 0.9


def compare_reduced(
    kind: str, path: str | Path, single: str | Path, images: np.ndarray | None
) -> dict[str, dict[str, float]]:
    """{set of images: {min_cosine, mean_cosine}} of a reduced model ('fp16' or 'int8') with the float32 one.

    Raises CheckError with the figures where the embeddings are too far apart; see HALF_COSINE and INT8_COSINE.
    """
    reduced, full = open_session(path), open_session(single)
    name = full.get_inputs()[0].name
    found = {}
    for kind_of_images, pixels in image_sets(full.get_inputs()[0].shape[2], images).items():
        batch = as_input(pixels[: max(BATCHES)])
        both = [session.run(None, {name: batch})[0] for session in (reduced, full)]
        cosine = np.einsum("ij,ij->i", *map(unit, both))
        found[kind_of_images] = {"min_cosine": float(cosine.min()), "mean_cosine": float(cosine.mean())}
    _check(kind, path, found)
    return found


def _check(kind: str, path: str | Path, found: Mapping[str, Mapping[str, float]]) -> None:
    if kind == "fp16":
        worst = min(found, key=lambda name: found[name]["min_cosine"])
        value, limit, which = found[worst]["min_cosine"], HALF_COSINE, "least"
        broken = any(not entry["min_cosine"] >= limit for entry in found.values())
    else:
        worst = "real"
        value, limit, which = found[worst]["mean_cosine"], INT8_COSINE, "mean"
        broken = not value >= limit
    if broken:
        raise CheckError(
            f"{kind} model: {which} cosine with the float32 model {value:.6f} on {worst} images, expected at least "
            f"{limit:g}; use the float32 model"
        )


def verify_models(models: Mapping[str, str | Path], sets: Sequence[BinSet]) -> dict[str, dict[str, Any]]:
    """{model: {set: result of `verify`}}: every model on the same sets."""
    found = {}
    for name, path in models.items():
        embed = OnnxEmbedder(path)
        found[name] = {
            bin_set.name: verify(
                embed,
                bin_set,
                progress=lambda batches, name=name: tqdm(
                    batches, f"verify {name}", leave=False, disable=None
                ),
            )
            for bin_set in sets
        }
    return found
