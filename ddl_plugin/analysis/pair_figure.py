"""The figure of positive pairs: how alike the candidates are, and which of them are dropped."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddl_plugin.analysis.drawing import STYLE, check_output, open_matplotlib, save

_KEPT, _DROPPED = "#1f4e79", "#c0504d"  # blue, red
_PANEL = (4.6, 1.7)  # inches


def pair_figure(histograms: Mapping[str, np.ndarray], path: str | os.PathLike) -> None:
    """Draw a panel for each distribution: pairs by cosine, those below 0 as dropped.

    The number of pairs is logarithmic, or a few in a thousand that are dropped could not be seen.

    histograms: name of the distribution -> counts (2 n,) in equal steps of the cosine from -1 to 1. path: a .png,
    .pdf or .svg file. `UserError` for another suffix, and where there is no Matplotlib.
    """
    path = check_output(path)
    matplotlib, figure_class, canvas_class = open_matplotlib()
    with matplotlib.rc_context(STYLE):
        height = _PANEL[1] * len(histograms) + 0.5
        figure = figure_class(figsize=(_PANEL[0], height), layout="constrained")
        canvas_class(figure)
        axes = figure.subplots(len(histograms), 1, sharex=True, squeeze=False)[:, 0]
        for ax, (name, counts) in zip(axes, histograms.items(), strict=True):
            _panel(ax, name, np.asarray(counts))
        axes[-1].set_xlabel("cosine similarity of the two images")
        figure.legend(
            handles=[
                matplotlib.patches.Patch(color=_KEPT, label="kept"),
                matplotlib.patches.Patch(color=_DROPPED, label="dropped (below 0)"),
            ],
            loc="outside lower center", ncols=2, frameon=False,
        )  # fmt: skip
        save(figure, path)


def _panel(ax: Any, name: str, counts: np.ndarray) -> None:
    edges = np.linspace(-1, 1, len(counts) + 1)
    half = len(counts) // 2
    for part, color in ((slice(0, half), _DROPPED), (slice(half, None), _KEPT)):
        ax.bar(edges[:-1][part], counts[part], width=edges[1] - edges[0], align="edge", color=color)
    dropped, total = int(counts[:half].sum()), int(counts.sum())
    share = f" ({100 * dropped / total:.2g} %)" if total else ""
    title = f"{name}: {total - dropped:,} kept, {dropped:,} dropped{share}"
    ax.set_title(textwrap.fill(title, 70), loc="left")
    ax.set_ylim(0.7, max(10, 2 * counts.max(initial=1)))
    ax.set_yscale("log")
    filled = np.flatnonzero(counts)
    ax.set_xlim(min(-0.1, edges[filled[0]] - 0.05) if filled.size else -1, 1)
    ax.axvline(0, color="0.4", linewidth=0.6)
    ax.set_ylabel("pairs")
