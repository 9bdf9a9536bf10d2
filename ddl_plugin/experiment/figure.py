"""A study's table as a figure: a panel a measure; rows down, or along `study.axis`."""

from __future__ import annotations

import math
import os
from typing import Any

from ddl_plugin.analysis.drawing import STYLE, check_output, open_matplotlib, plain, save
from ddl_plugin.experiment.results import Cell, Table
from ddl_plugin.experiment.study import BASE_ROW, Study

_PANEL = (2.6, 0.24)  # inches: width, and height of a row
_COLUMNS = 3
_COLOR, _BASE = "#1f4e79", "#888888"


def study_figure(study: Study, table: Table, path: str | os.PathLike) -> None:
    """Draw every measure of `table` in a panel of its own: the mean, a bar of its standard deviation over the seeds,
    a light point for each seed, and the base model as a dotted line.

    path: .pdf or .svg (vector) or .png. Raises `UserError` for another suffix or without Matplotlib.
    """
    path = check_output(path)
    matplotlib, figure_class, canvas_class = open_matplotlib()
    measures = list(next(iter(table.values())))
    across = min(_COLUMNS, len(measures))
    down = math.ceil(len(measures) / across)
    rows = {row.name: table[row.name] for row in study.rows}
    height = 2.2 if study.axis else _PANEL[1] * len(rows) + 0.9
    with matplotlib.rc_context(STYLE):
        figure = figure_class(
            figsize=(_PANEL[0] * across + (0 if study.axis else 1.6), height * down), layout="constrained"
        )
        canvas_class(figure)
        axes = figure.subplots(down, across, squeeze=False, sharey=not study.axis)
        for ax in axes.flat[len(measures) :]:
            ax.set_visible(False)
        for ax, measure in zip(axes.flat, measures, strict=False):
            cells = {name: cells[measure] for name, cells in rows.items() if cells[measure].values}
            base = table.get(BASE_ROW, {}).get(measure)
            (_sweep if study.axis else _ladder)(ax, study, list(rows), cells, base)
            ax.set_title(plain(measure), fontweight="bold")
            (ax.set_ylabel if study.axis else ax.set_xlabel)(_unit(measure))
        if study.title:
            figure.suptitle(plain(study.title))
        save(figure, path)


def _unit(measure: str) -> str:
    if measure == "images/s":
        return measure
    what = measure.rsplit(": ", 1)[-1]
    return {"margin": "cosine", "intersection": "share"}.get(what, "percent")


def _ladder(ax: Any, study: Study, names: list[str], cells: dict[str, Cell], base: Cell | None) -> None:
    """Rows down, values along."""
    for name, cell in cells.items():
        y = names.index(name)
        ax.plot(
            cell.values, [y] * len(cell.values), "o", color=_COLOR, alpha=0.3, markersize=3, markeredgewidth=0
        )
        ax.errorbar(
            cell.mean, y, xerr=cell.spread or 0, fmt="D", color=_COLOR, markersize=4, capsize=2, linewidth=1
        )
    if base is not None and base.values:
        ax.axvline(base.mean, color=_BASE, linestyle=":", linewidth=1)
    ax.set_yticks(range(len(names)), [plain(name) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.locator_params(axis="x", nbins=5)
    ax.grid(axis="x", linewidth=0.3)


def _sweep(ax: Any, study: Study, names: list[str], cells: dict[str, Cell], base: Cell | None) -> None:
    """`study.axis` along, values up."""
    at = {row.name: float(row.set[study.axis]) for row in study.rows}
    shown = sorted(cells, key=at.__getitem__)
    for name in shown:
        ax.plot([at[name]] * len(cells[name].values), cells[name].values, "o", color=_COLOR, alpha=0.3, markersize=3,
                markeredgewidth=0)  # fmt: skip
    ax.errorbar(
        [at[name] for name in shown], [cells[name].mean for name in shown],
        yerr=[cells[name].spread or 0 for name in shown], fmt="D-", color=_COLOR, markersize=4, capsize=2, linewidth=1,
    )  # fmt: skip
    if base is not None and base.values:
        ax.axhline(base.mean, color=_BASE, linestyle=":", linewidth=1)
    ax.set_xlabel(study.axis)
    ax.grid(linewidth=0.3)
