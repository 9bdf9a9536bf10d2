"""Figures of similarity distributions (the paper's Fig. 6), with Matplotlib, which is optional."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ddl_plugin.analysis.distributions import (
    expectation_margin,
    histogram_intersection,
    nodes,
    soft_histogram,
)
from ddl_plugin.analysis.drawing import STYLE, check_output, open_matplotlib, plain, save
from ddl_plugin.errors import UserError

#: model -> distribution -> (negatives, positives)
Scores = Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]

_NEGATIVE = {"color": "#c0504d", "linestyle": (0, (4, 1.5))}  # red, dashed
_POSITIVE = {"color": "#1f4e79", "linestyle": "-"}  # dark blue, solid
_OVERLAP = "0.72"  # grey
_PANEL = (2.4, 1.65)  # inches
_LEGEND = 4.2  # inches, width of the legend in one line
_VISIBLE = 0.004  # of a curve's peak: lower parts are not drawn over the axis


def distribution_figure(scores: Scores, path: str | os.PathLike) -> None:
    """Draw the similarity distributions: a column for each model, a row for each distribution.

    Curves are the paper's soft histograms (Eq. 3-4, R = 100, gamma = 50) scaled to densities; each panel
    says its expectation margin (dotted lines: the means) and histogram intersection (shaded: the overlap).

    Args:
        scores: model -> distribution -> (negatives, positives), cosines; the same distributions for every model,
            e.g. {"base": {"easy": (n, p), "hard": (n, p)}, "DDL": {...}}.
        path: .pdf or .svg (vector) or .png.

    Raises:
        UserError: another suffix, no Matplotlib, nothing to draw, models with different distributions.
    """
    path = check_output(path)
    models, rows = list(scores), list(next(iter(scores.values()), {}))
    for model in models:
        if list(scores[model]) != rows or not rows:
            raise UserError(
                f"figure: expected the distributions {rows} of every model, got {list(scores[model])} of {model!r}"
            )
    if not models:
        raise UserError("figure: expected the scores of one model or more, got none")
    curves = {(m, r): tuple(map(_density, scores[m][r])) for m in models for r in rows}
    matplotlib, figure_class, canvas_class = open_matplotlib()
    with matplotlib.rc_context(STYLE):
        width = max(_PANEL[0] * len(models) + 0.6, _LEGEND)
        figure = figure_class(figsize=(width, _PANEL[1] * len(rows) + 0.9), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08)
        canvas_class(figure)
        axes = figure.subplots(len(rows), len(models), sharex=True, sharey=True, squeeze=False)
        for j, model in enumerate(models):
            for i, row in enumerate(rows):
                _panel(axes[i, j], curves[model, row], scores[model][row])
        _name(axes, models, rows)
        axes[0, 0].set_xlim(_lowest(curves.values()), 1)
        axes[0, 0].set_ylim(bottom=0)
        axes[0, 0].xaxis.set_major_locator(matplotlib.ticker.MultipleLocator(0.5))
        axes[0, 0].xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        _legend(figure, matplotlib)
        save(figure, path)


def _density(scores: np.ndarray) -> np.ndarray:
    """The soft histogram as a density over cosine, at the nodes."""
    histogram = soft_histogram(scores)
    return histogram * (len(histogram) - 1) / 2.0


def _lowest(curves: Iterable[tuple[np.ndarray, ...]]) -> float:
    """Where the axis begins: at the first node that any curve can be seen at, or 0, rounded down to quarters."""
    visible = np.any([d > _VISIBLE * d.max() for pair in curves for d in pair], axis=0)
    return max(-1.0, min(0.0, np.floor(4 * nodes()[np.argmax(visible)]) / 4))


def _panel(axes: Any, curves: tuple[np.ndarray, ...], scores: tuple[np.ndarray, np.ndarray]) -> None:
    t = nodes()
    axes.fill_between(t, np.minimum(*curves), color=_OVERLAP, linewidth=0)
    for density, values, style in zip(curves, scores, (_NEGATIVE, _POSITIVE), strict=True):
        axes.fill_between(t, density, color=style["color"], alpha=0.10, linewidth=0)
        axes.plot(t, np.where(density > _VISIBLE * density.max(), density, np.nan), linewidth=1.3, **style)
        mean = float(np.mean(values, dtype=np.float64))
        top = np.interp(mean, t, density)
        axes.plot([mean, mean], [0, top], color=style["color"], linewidth=0.8, linestyle=":")
    text = f"margin {expectation_margin(*scores):.3f}   intersection {histogram_intersection(*scores):.3f}"
    axes.text(0.5, 1.03, text, transform=axes.transAxes, ha="center", va="bottom")


def _name(axes: np.ndarray, models: list[str], rows: list[str]) -> None:
    for ax, model in zip(axes[0], models, strict=True):
        ax.set_title(plain(textwrap.fill(model, 30)), fontweight="bold", pad=16)
    for ax in axes[-1]:
        ax.set_xlabel("cosine similarity")
    for ax, row in zip(axes[:, 0], rows, strict=True):
        ax.set_ylabel("density")
        ax.annotate(
            plain(textwrap.fill(row, 22)), (0, 0.5), (-34, 0), xycoords="axes fraction", textcoords="offset points",
            rotation=90, ha="right", va="center", fontsize=9, fontweight="bold",
        )  # fmt: skip


def _legend(figure: Any, matplotlib: Any) -> None:
    handles = [
        matplotlib.lines.Line2D([], [], linewidth=1.3, label="different persons", **_NEGATIVE),
        matplotlib.lines.Line2D([], [], linewidth=1.3, label="same person", **_POSITIVE),
        matplotlib.patches.Patch(color=_OVERLAP, linewidth=0, label="intersection"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
