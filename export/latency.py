"""How long two models take, in one run: rounds take turns, so that both meet the same load of the machine."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
from tqdm import tqdm

from ddl_plugin.evaluation.onnx_model import open_session
from ddl_plugin.evaluation.providers import describe
from ddl_plugin.export.images import as_input, random_images

BATCHES = (1, 32)
_ROUNDS, _FEWEST, _SECONDS = (
    60,
    5,
    6.0,
)  # until so many rounds or so much time at each batch, but some at least


def compare_latency(
    model: str | os.PathLike, base: str | os.PathLike, batches: tuple[int, ...] = BATCHES
) -> dict[str, Any]:
    """{'batches': [median milliseconds of both, and quartiles of the ratio model / base, at each batch]}."""
    sessions = [open_session(path) for path in (model, base)]
    size = sessions[0].get_inputs()[0].shape[2]
    return {
        **describe(sessions[0]),
        "batches": [_rounds(sessions, as_input(random_images(batch, size))) for batch in batches],
    }


def _rounds(sessions: list, batch: np.ndarray) -> dict[str, Any]:
    def seconds(which: int) -> float:
        session = sessions[which]
        began = time.perf_counter()
        session.run(None, {session.get_inputs()[0].name: batch})
        return time.perf_counter() - began

    for which in (0, 1):  # the first run of a shape plans its memory
        seconds(which)
    taken: list[tuple[float, float]] = []
    end = time.monotonic() + _SECONDS
    for turn in tqdm(range(_ROUNDS), f"latency, batch {len(batch)}", leave=False, disable=None):
        first = turn % 2  # who begins changes
        pair = {which: seconds(which) for which in (first, 1 - first)}
        taken.append((pair[0], pair[1]))
        if len(taken) >= _FEWEST and time.monotonic() > end:
            break
    times = np.array(taken)
    low, middle, high = np.percentile(times[:, 0] / times[:, 1], (25, 50, 75))
    own, other = np.median(times, axis=0) * 1e3
    return {
        "batch": len(batch),
        "rounds": len(taken),
        "milliseconds": float(own),
        "base_milliseconds": float(other),
        "ratio": float(middle),
        "ratio_quartiles": [float(low), float(high)],
    }
