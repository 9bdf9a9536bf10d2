"""What a partition holds, for a person to judge: counts of each set, what is in none and in several of them."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ddl_plugin.data.attributes import AttributeTable
from ddl_plugin.data.partition import Partition
from ddl_plugin.data.records import Records


def set_counts(records: Records, partition: Partition) -> list[dict[str, Any]]:
    """One row per distribution: images, identities, how many have one image (they give singles but no pair),
    images per identity (median, most), and the pairs that could be made."""
    rows = []
    for row, distribution in zip(partition.summary(), partition.distributions, strict=True):
        _, sizes = np.unique(records.labels[distribution.positions], return_counts=True)
        sizes = sizes.astype(np.int64)
        rows.append(
            {
                **row,
                "with_one_image": int((sizes == 1).sum()),
                "images_per_identity": {"median": float(np.median(sizes)), "most": int(sizes.max())},
                "possible_pairs": int((sizes * (sizes - 1) // 2).sum()),
            }
        )
    return rows


def shared_counts(records: Records, partition: Partition) -> list[dict[str, Any]]:
    """What is in no set, and in each combination of several that occurs: {sets, images, identities} a row."""
    code = np.zeros(len(records), np.int64)
    for k, own in enumerate(partition.members(len(records))):
        code[own] += 1 << k
    rows = []
    for value in sorted({0, *np.unique(code).tolist()}):
        sets = [d.name for k, d in enumerate(partition.distributions) if value >> k & 1]
        chosen = code == value
        if len(sets) != 1:
            identities = len(np.unique(records.labels[chosen]))
            rows.append({"sets": sets, "images": int(chosen.sum()), "identities": identities})
    return rows


def save_partition(
    path: str | os.PathLike, records: Records, partition: Partition, provenance: dict[str, Any]
) -> None:
    """Write an attribute table (.npz): `record`, and for each set a column of True and False named like it.

    As a recipe's `attributes` it gives the same sets again by the rules 'easy', 'hard', whatever becomes of the
    table they were made from. provenance: JSON values.
    """
    members = partition.members(len(records))
    columns = {d.name: own for d, own in zip(partition.distributions, members, strict=True)}
    AttributeTable(records.keys, columns, provenance=provenance).save(path)
