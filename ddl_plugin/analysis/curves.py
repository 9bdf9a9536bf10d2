"""ROC, CMC and DET figures of several models side by side, with Matplotlib, which is optional."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddl_plugin.analysis.drawing import STYLE, check_output, open_matplotlib, plain, save
from ddl_plugin.errors import UserError

#: model -> (x, y), each (n,); x rises
Curves = Mapping[str, tuple[np.ndarray, np.ndarray]]

# Told apart without colour: every line has dashes and a marker of its own. Colours after Okabe and Ito.
_COLORS = ("#1f4e79", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "0.35")
_DASHES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_SIZE = (3.5, 2.9)  # inches: a column of a paper
_LEGEND_LINE = 0.19  # inches
_NAME_WIDTH, _TITLE_WIDTH = 46, 40  # characters of a line
_LOWEST = 1e-9  # a rate below it counts as 0: it has no place on a logarithmic axis
_ROUNDING = 1e-9
_FEW = 20  # ranks that still have a marker each, on a linear axis


def roc_figure(curves: Curves, path: str | os.PathLike, title: str = "") -> None:
    """Draw TAR over FAR, the FAR logarithmic, a line a model.

    Lines are stairs: at each FAR the TAR of the last operating point that does not exceed it ("at most"); markers
    stand at the decades. Left of its first FAR above 0 a line is pale: what is accepted there costs no negative of
    these, and says little of FARs that so few of them cannot resolve.

    curves: model -> (FAR, TAR), rates 0..1 in float64 (n,), FAR rising, as `metrics.roc` gives them. path: a .pdf or
    .svg (vector) or .png file. `UserError` for another suffix, no Matplotlib, no curve, wrong values.
    """
    lines = _checked(curves, "FAR", "TAR")

    def draw(ax: Any, matplotlib: Any) -> None:
        lowest, _ = _stairs(ax, lines)
        ax.set_xscale("log")
        _rate_axis(ax, matplotlib, lowest)
        ax.set_xlabel("false accept rate (FAR)")
        ax.set_ylabel("true accept rate (TAR), %")

    _figure(curves, path, title, draw)


def cmc_figure(curves: Curves, path: str | os.PathLike, title: str = "") -> None:
    """Draw the identification rate over the rank, a line a model; beyond 20 ranks their axis is logarithmic.

    curves: model -> (rank, rate): ranks 1, 2, .. rising (n,), rates 0..1 (n,). Else as `roc_figure`.
    """
    lines = _checked(curves, "rank", "rate", ranks=True)
    last = max(int(rank[-1]) for rank, _ in lines.values())

    def draw(ax: Any, matplotlib: Any) -> None:
        for (rank, rate), style in zip(lines.values(), map(_style, range(len(lines))), strict=True):
            marked = np.flatnonzero(np.isin(rank, _marked_ranks(last)))
            ax.plot(rank, 100 * rate, linewidth=1.3, markersize=4, markevery=marked.tolist(), **style)
        if last > _FEW:
            ax.set_xscale("log")
            ax.set_xlim(0.93, last * 1.07)
        else:
            ax.set_xlim(0.6, last + 0.4)
        ticks = _marked_ranks(last)
        ticks = ticks[:: -(-len(ticks) // 10)]
        ax.xaxis.set_major_locator(matplotlib.ticker.FixedLocator(ticks))
        ax.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%d"))
        ax.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        _rate_axis(ax, matplotlib, 100 * min(float(rate[0]) for _, rate in lines.values()))
        ax.set_xlabel("rank")
        ax.set_ylabel("identification rate, %")

    _figure(curves, path, title, draw)


def det_figure(curves: Curves, path: str | os.PathLike, title: str = "") -> None:
    """Draw FNIR over FPIR of an open-set search, both logarithmic, a line a model: lower is better.

    Lines are stairs as in `roc_figure`; a FNIR of 0 has no place on the axis and is not drawn.

    curves: model -> (FPIR, FNIR), rates 0..1 (n,), FPIR rising. Else as `roc_figure`.
    """
    lines = _checked(curves, "FPIR", "FNIR")
    drawn = {name: (x, np.where(y > 0, y, np.nan)) for name, (x, y) in lines.items()}

    def draw(ax: Any, matplotlib: Any) -> None:
        lowest, highest = _stairs(ax, drawn)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_ylim(lowest / 1.3, min(100.0, highest * 1.3))
        ax.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        ax.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        ax.set_xlabel("false positive identification rate (FPIR)")
        ax.set_ylabel("false negative\nidentification rate (FNIR), %", multialignment="center")

    _figure(curves, path, title, draw)


def _stairs(ax: Any, curves: Curves) -> tuple[float, float]:
    """Draw the curves, their rates y in percent; the lowest and the highest y that can be seen."""
    firsts = [float(x[x >= _LOWEST][0]) for x, _ in curves.values()]
    left = min(0.01, 10.0 ** np.floor(np.log10(min(firsts)) - 0.15))
    seen = []
    for i, (far, rate) in enumerate(curves.values()):
        style = _style(i)
        line = {"color": style["color"], "linestyle": style["linestyle"], "linewidth": 1.3}
        begin = int(np.argmax(far >= _LOWEST))
        x, y = np.append(far[begin:], 1.0), 100 * np.append(rate[begin:], rate[-1])
        ax.plot(x, y, drawstyle="steps-post", **line)
        if begin and x[0] > left:
            before = 100 * rate[begin - 1]
            ax.plot([left, x[0], x[0]], [before, before, y[0]], alpha=0.35, **line)
            seen.append(before)
        at = _decades(x[0])
        marked = y[np.searchsorted(x, at * (1 + _ROUNDING), side="right") - 1]
        ax.plot(at, marked, color=style["color"], marker=style["marker"], linestyle="", markersize=4)
        seen.extend(y)
    ax.set_xlim(left, 1)
    seen = [value for value in seen if np.isfinite(value)] or [1.0, 100.0]
    return min(seen), max(seen)


def _checked(curves: Curves, x_name: str, y_name: str, ranks: bool = False) -> Curves:
    """The curves as float64 arrays."""
    if not curves:
        raise UserError("figure: expected the curve of one model or more, got none")
    checked = {}
    for model, curve in curves.items():
        x, y = (np.asarray(values, dtype=np.float64) for values in curve)
        where = f"figure: curve of {model!r}"
        if x.ndim != 1 or x.shape != y.shape or not x.size:
            raise UserError(
                f"{where}: expected as many {x_name} as {y_name}, one or more, got {x.shape} and {y.shape}"
            )
        rates = y if ranks else np.concatenate((x, y))
        if not np.all((rates >= 0) & (rates <= 1)):
            raise UserError(f"{where}: expected rates in 0..1, got others")
        if np.any(np.diff(x) < 0):
            raise UserError(f"{where}: expected {x_name} to rise, got one that falls")
        if ranks and not (np.all(x == np.round(x)) and x[0] >= 1):
            raise UserError(f"{where}: expected ranks from 1 on, got {x[0]:g}..{x[-1]:g}")
        if not ranks and x[-1] < _LOWEST:
            raise UserError(f"{where}: expected a {x_name} above 0, got {x.size} of 0")
        checked[model] = (x, y)
    return checked


def _decades(first: float) -> np.ndarray:
    """1e-k .. 0.1, those of them that a line from `first` on reaches."""
    lowest = int(np.ceil(np.log10(first) - _ROUNDING))
    return 10.0 ** np.arange(lowest, 0)


def _marked_ranks(last: int) -> list[int]:
    if last <= _FEW:
        return list(range(1, last + 1))
    steps = [digit * 10**power for power in range(len(str(last))) for digit in (1, 2, 5)]
    return [step for step in steps if step <= last]


def _style(i: int) -> dict[str, Any]:
    return {
        "color": _COLORS[i % len(_COLORS)],
        "linestyle": _DASHES[i % len(_DASHES)],
        "marker": _MARKERS[i % len(_MARKERS)],
    }


def _rate_axis(ax: Any, matplotlib: Any, lowest: float) -> None:
    """From the lowest rate (percent), rounded down, to 100 %, with room for the markers."""
    step = 5.0 if lowest < 95 else 1.0
    bottom = max(0.0, min(99.0, np.floor(lowest / step) * step))
    room = 0.03 * (100 - bottom)
    ax.set_ylim(bottom - room, 100 + room)
    ax.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))


def _figure(curves: Curves, path: str | os.PathLike, title: str, draw: Callable[[Any, Any], None]) -> None:
    path = check_output(path)
    matplotlib, figure_class, canvas_class = open_matplotlib()
    names = [_text(str(name), _NAME_WIDTH) for name in curves]
    lines = sum(name.count("\n") + 1 for name in names)
    with matplotlib.rc_context(STYLE):
        figure = figure_class(figsize=(_SIZE[0], _SIZE[1] + _LEGEND_LINE * lines), layout="constrained")
        canvas_class(figure)
        ax = figure.subplots()
        ax.grid(True, which="major", color="0.88", linewidth=0.6)
        ax.set_axisbelow(True)
        draw(ax, matplotlib)
        if title:
            ax.set_title(_text(title, _TITLE_WIDTH), fontweight="bold")
        handles = [
            matplotlib.lines.Line2D([], [], linewidth=1.3, markersize=4, label=name, **_style(i))
            for i, name in enumerate(names)
        ]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=1, frameon=False, handlelength=3.6,
            borderaxespad=0.2, labelspacing=0.3,
        )  # fmt: skip
        save(figure, Path(path))


def _text(text: str, width: int) -> str:
    """In lines of `width`; a dollar sign is one, not the begin of a formula."""
    return plain(textwrap.fill(text, width))
