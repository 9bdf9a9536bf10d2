"""Where the classifier's rows (fc7_weight) start."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from ddl_plugin.backbone.arrays import require_finite
from ddl_plugin.data.faces import readable_faces
from ddl_plugin.data.records import Records
from ddl_plugin.errors import UserError
from ddl_plugin.settings import RunSettings
from ddl_plugin.training.backends import Backbone

#: Images of one identity whose embeddings are averaged: enough for a stable mean of a large identity.
IMAGES_PER_IDENTITY = 16
_RANDOM_SCALE = 0.01  # the host's initialisation, for identities without images and `fc7_init: random`


def initial_fc7(
    settings: RunSettings,
    backbone: Backbone,
    records: Records,
    embed: Callable[[np.ndarray], np.ndarray],
    progress: bool,
) -> np.ndarray:
    """(num_classes, emb_size) float32, as `fc7_init` says; never another way than it says."""
    shape = (records.num_classes, backbone.emb_size)
    if settings.fc7_init == "checkpoint":
        return _from_checkpoint(backbone, shape)
    rng = np.random.default_rng([settings.seed, 0xFC7])
    weight = rng.normal(0, _RANDOM_SCALE, shape).astype(np.float32)
    if settings.fc7_init == "mean":
        chosen = some_of_each(records.labels, rng)
        means, there = mean_embeddings(records, chosen, embed, shape, progress)
        weight[there] = means[there]
    return weight


def _from_checkpoint(backbone: Backbone, shape: tuple[int, int]) -> np.ndarray:
    if backbone.fc7 is None:
        raise UserError(
            f"fc7_init: 'checkpoint', but {backbone.source} holds no fc7_weight (InsightFace drops it "
            f"when ckpt_embedding is set); use fc7_init = 'mean'"
        )
    if backbone.fc7.shape != shape:
        raise UserError(
            f"fc7_init: expected fc7_weight of shape {shape} (identities, embedding) in {backbone.source}, "
            f"got {backbone.fc7.shape}; for other identities use fc7_init = 'mean'"
        )
    require_finite({"fc7_weight": backbone.fc7}, backbone.source)
    return backbone.fc7.astype(np.float32)


def some_of_each(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Positions of up to IMAGES_PER_IDENTITY images of every identity, sorted: (m,) int64."""
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    ordered = labels[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    rank = np.arange(len(labels)) - np.repeat(starts, np.diff(np.r_[starts, len(labels)]))
    return np.sort(order[rank < IMAGES_PER_IDENTITY])


def mean_embeddings(
    records: Records, positions: np.ndarray, embed, shape: tuple[int, int], progress: bool, batch: int = 128
) -> tuple[np.ndarray, np.ndarray]:
    """Unit mean of the unit embeddings of each identity, (classes, D) float32, and which have one."""
    sums = np.zeros(shape, np.float64)
    for start in tqdm(
        range(0, len(positions), batch),
        "classifier from mean embeddings",
        unit="batch",
        leave=False,
        disable=not progress,
    ):
        part, images = readable_faces(records, positions[start : start + batch])
        if not len(part):
            continue
        vectors = embed(images).astype(np.float64)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        np.add.at(sums, records.labels[part], vectors)
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    return (sums / np.maximum(norms, 1e-12)).astype(np.float32), norms[:, 0] > 1e-6
