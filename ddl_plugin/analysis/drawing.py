"""What every figure shares: Matplotlib, which is optional, its style, and how a figure is written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ddl_plugin.errors import UserError
from ddl_plugin.files import replaced

SUFFIXES = (".pdf", ".png", ".svg")

STYLE = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "ddl_plugin",
    "pdf.fonttype": 42,
}
_DPI = 200  # of a .png


def check_output(path: str | os.PathLike) -> Path:
    """`path`, when a figure can be written there; asked before long work, so that no work is lost.

    Raises:
        UserError: a suffix other than pdf, png, svg; Matplotlib is not installed.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"{path}: expected a figure's suffix, one of {', '.join(SUFFIXES)}, got {path.suffix!r}"
        )
    open_matplotlib()
    return path


def open_matplotlib() -> tuple[Any, Any, Any]:
    try:
        import matplotlib.lines
        import matplotlib.patches
        import matplotlib.ticker
        from matplotlib.backends import backend_agg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(f"figures need Matplotlib ({error}): pip install 'ddl_plugin[plot]'") from error
    return matplotlib, Figure, backend_agg.FigureCanvasAgg


def plain(text: str) -> str:
    """Text in which a dollar sign is one, and does not begin a formula."""
    return text.replace("$", r"\$")


def save(figure, path: Path) -> None:
    """Write the whole figure or leave what was there; the same scores give the same bytes."""
    kind = path.suffix.lower().lstrip(".")
    metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {"Software": None}}[kind]
    with replaced(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=_DPI, metadata=metadata)
