"""Whose similarities make up the histograms of a step on several devices (`ddl.scope`), over `F`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from ddl_plugin.settings import DDLSettings

#: build(F, embedding, settings, options) -> (loss (1,), terms (1, T), names): what the registry holds of a loss.
Build = Callable[[Any, Any, DDLSettings, dict[str, Any]], tuple[Any, Any, tuple[str, ...]]]


def together(F: Any, rows: Any, settings: DDLSettings, devices: int) -> Any:
    """The blocks of several devices as the block of one device with devices * b pairs and singles.

    (devices * 3b(K+1), ...), a block of 3b(K+1) rows after the other, -> (3(devices*b)(K+1), ...).
    """
    # (device, distribution and part, b, ...): a part is first images, second images or singles.
    parts = 3 * settings.distributions
    blocks = F.reshape(rows, shape=(-4, devices, parts * settings.b, -2))
    blocks = F.reshape(blocks, shape=(0, -4, parts, settings.b, -2))
    return F.reshape(F.reshape(F.swapaxes(blocks, dim1=0, dim2=1), shape=(-3, 0, -2)), shape=(-3, -2))


def step_loss(
    F: Any, embedding: Any, build: Build, settings: DDLSettings, options: dict[str, Any], devices: int
) -> tuple[Any, Any, tuple[str, ...]]:
    """The loss of one step over all devices' embeddings, with its terms and their names.

    Scope 'device': the mean over the devices of what each one's own rows give, as the paper's per-GPU batch.
    Scope 'global': all rows at once, as the authors' released code gathers them.

    Input: embedding (devices * 3b(K+1), D), a device's block after the other.
    Outputs: loss (1,), terms (1, T), names.
    """
    if settings.scope == "global":
        pooled = dataclasses.replace(settings, b=devices * settings.b)
        return build(F, together(F, embedding, settings, devices), pooled, options)
    rows = settings.rows
    built = [
        build(F, F.slice_axis(embedding, axis=0, begin=d * rows, end=(d + 1) * rows), settings, options)
        for d in range(devices)
    ]
    losses, terms, names = zip(*built, strict=True)
    return F.add_n(*losses) / devices, F.add_n(*terms) / devices, names[0]
