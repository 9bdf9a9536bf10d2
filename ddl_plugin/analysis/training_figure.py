"""The terms of a run's log over its steps, as curves."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np

from ddl_plugin.analysis.drawing import STYLE, check_output, open_matplotlib, save
from ddl_plugin.errors import UserError, did_you_mean
from ddl_plugin.files import reading

#: Columns of a log: step (n,) and one array (n,) a term, NaN where a step has none.
Log = dict[str, np.ndarray]

_LEFT_OUT = ("mean_", "outliers_", "lr", "images_per_second")
_WINDOWS = 40  # curves are means over this part of the steps
_PANEL = (2.5, 1.7)  # inches
_COLUMNS = 3
_LINES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
_COLORS = ("#1f4e79", "#c0504d", "#4f7f3a", "#7a5195", "#888888")


def read_log(path: str | os.PathLike) -> Log:
    """The training steps of a log.jsonl, by column; a last line that was cut off is left out.

    Raises `UserError` for a file without a training step.
    """
    rows = []
    with reading(Path(path)), Path(path).open(encoding="utf-8") as file:
        for line in file:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(row, dict) and row.get("kind") == "train":
                rows.append(row)
    if not rows:
        raise UserError(f"{path}: expected the log of a run, with lines of kind 'train', got none")
    names = dict.fromkeys(name for row in rows for name in row if name != "kind")
    return {name: np.array([row.get(name, math.nan) for row in rows], np.float64) for name in names}


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Means over `window` steps around each, fewer at the ends: (n,) -> (n,)."""
    kernel = np.ones(min(window, len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def training_figure(logs: Mapping[str, Log], path: str | os.PathLike, terms: Sequence[str] = ()) -> None:
    """A panel a term, a line a run: means over a fortieth of the steps, single steps behind them in light.

    terms: which; () means the losses, margins and intersections of all runs.
    Raises `UserError` for a term that no log has, another suffix, or without Matplotlib.
    """
    path = check_output(path)
    known = list(dict.fromkeys(name for log in logs.values() for name in log if name != "step"))
    for term in terms:
        if term not in known:
            raise UserError(
                f"--term: expected one of {', '.join(known)}, got {term!r}{did_you_mean(term, known)}"
            )
    terms = list(terms) or [name for name in known if not name.startswith(_LEFT_OUT)]
    matplotlib, figure_class, canvas_class = open_matplotlib()
    across = min(_COLUMNS, len(terms))
    down = math.ceil(len(terms) / across)
    with matplotlib.rc_context(STYLE):
        figure = figure_class(figsize=(_PANEL[0] * across, _PANEL[1] * down + 0.4), layout="constrained")
        canvas_class(figure)
        axes = figure.subplots(down, across, squeeze=False, sharex=True)
        for ax in axes.flat[len(terms) :]:
            ax.set_visible(False)
        for ax, term in zip(axes.flat, terms, strict=False):
            ax.set_title(term)
            for (name, log), color, line in zip(logs.items(), cycle(_COLORS), cycle(_LINES)):
                if term in log:
                    _curve(ax, name, log["step"], log[term], color, line)
        for ax in axes.flat[max(0, len(terms) - across) : len(terms)]:
            ax.set_xlabel("step")
            ax.tick_params(labelbottom=True)
        handles = [
            matplotlib.lines.Line2D([], [], color=color, linestyle=line, label=name)
            for name, color, line in zip(logs, cycle(_COLORS), cycle(_LINES))
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False)
        save(figure, path)


def _curve(ax, name: str, step: np.ndarray, values: np.ndarray, color: str, line) -> None:
    there = np.isfinite(values)
    step, values = step[there], values[there]
    if not values.size:
        return
    window = max(1, len(values) // _WINDOWS)
    if window > 1:
        ax.plot(step, values, color=color, alpha=0.2, linewidth=0.5)
    ax.plot(step, smoothed(values, window), color=color, linestyle=line, linewidth=1.2, label=name)
