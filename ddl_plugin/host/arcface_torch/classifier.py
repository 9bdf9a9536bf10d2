"""The first rows of the trainer's classifier: the mean embedding of each identity, a rank's own identities in each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from ddl_plugin.data.faces import readable_faces
from ddl_plugin.data.records import Records
from ddl_plugin.pytorch.torch_setup import torch

_IMAGES = 128  # read at a time


def start_from_means(
    weight: torch.Tensor,
    first: int,
    records: Records,
    chosen: np.ndarray,
    embed: Callable[[np.ndarray], np.ndarray],
    progress: bool,
) -> None:
    """Make row i of `weight` (rows, D) the unit mean of identity first + i's unit embeddings.

    chosen: positions of the images that are averaged, of whatever identities. Rows of identities without one keep
    what they have.
    """
    labels = records.labels[chosen]
    chosen = chosen[(labels >= first) & (labels < first + len(weight))]
    sums = torch.zeros(weight.shape, dtype=torch.float32)
    starts = range(0, len(chosen), _IMAGES)
    for start in tqdm(
        starts, "classifier from mean embeddings", unit="batch", leave=False, disable=not progress
    ):
        part, images = readable_faces(records, chosen[start : start + _IMAGES])
        if len(part):
            unit = torch.nn.functional.normalize(torch.from_numpy(embed(images)))
            sums.index_add_(0, torch.from_numpy(records.labels[part].astype(np.int64) - first), unit)
    norms = sums.norm(dim=1, keepdim=True)
    there = norms[:, 0] > 1e-6
    with torch.no_grad():
        weight[there] = (sums[there] / norms[there]).to(weight)
