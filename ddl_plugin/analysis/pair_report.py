"""What was built of positive pairs, for a person to judge: kept, dropped, and who has none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ddl_plugin.data.pairs import BINS, Pairs

QUANTILES = (0.05, 0.5, 0.95)


def pair_counts(pairs: Sequence[Pairs], about: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per distribution, JSON values; about: rows of `Partition.summary`.

    Quantiles are of the kept pairs' cosines, to a step of the histogram (0.01).
    """
    return [
        {
            **row,
            "candidates": own.candidates,
            "kept": len(own.first),
            "dropped": own.dropped,
            "unreadable": own.unreadable,
            "quantiles": dict(zip(map(str, QUANTILES), quantiles(own.histogram), strict=True)),
            "identities_without_a_pair": {
                "one_image": row["identities"] - own.paired - own.emptied,
                "all_dropped": own.emptied,
            },
            "histogram": {"from": -1, "to": 1, "counts": own.histogram.tolist()},
        }
        for row, own in zip(about, pairs, strict=True)
    ]


def quantiles(histogram: np.ndarray) -> list[float | None]:
    """`QUANTILES` of the kept half of a histogram: lower edges of the steps; None where nothing is kept."""
    kept = np.cumsum(histogram[BINS:])
    if not kept[-1]:
        return [None] * len(QUANTILES)
    return [int(np.searchsorted(kept, q * kept[-1])) / BINS for q in QUANTILES]
