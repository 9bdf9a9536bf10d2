"""Examples of where models fail, and a picture of them (the paper's Fig. 7)."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddl_plugin.analysis.drawing import STYLE, check_output, open_matplotlib, plain, save
from ddl_plugin.errors import UserError

MOST = 6  # examples of a kind

_FACE = 0.95  # inches
_LINE = 0.135  # inches of a line of text
_ACROSS = 6  # faces beside each other
_CHARACTERS = 17  # of a line under one face
_TITLE_CHARACTERS = 12  # of a title, an inch
_MISSING = np.full((112, 112, 3), 225, np.uint8)


@dataclass(frozen=True)
class Face:
    """One image of an example. image: uint8 (112, 112, 3) RGB, or None where there is none to show."""

    image: np.ndarray | None
    role: str  # such as "probe"
    name: str  # such as the file's name


@dataclass(frozen=True)
class Example:
    """Faces that a model should have told apart or brought together, and what it said of them."""

    title: str
    faces: tuple[Face, ...]
    lines: tuple[str, ...]


def turned(
    before: np.ndarray, after: np.ndarray, right_before: np.ndarray, right_after: np.ndarray, most: int = MOST
) -> np.ndarray:
    """Comparisons of the same person that one model gets wrong and another right (the paper's Fig. 7).

    before, after: (n,) how far above what it has to reach each score of the two models is. right_before, right_after:
    bool (n,), whether that is enough.

    Returns:
        int64, at most `most` of 0..n-1: those that rose most; of equal ones the first.
    """
    found = np.flatnonzero(~right_before & right_after)
    rise = np.asarray(after)[found] - np.asarray(before)[found]
    return found[np.argsort(-rise, kind="stable")[:most]]


def failures_figure(examples: Sequence[Example], path: str | os.PathLike, title: str = "") -> None:
    """Draw examples, as many beside each other as have room: faces, below them who they are, and what was said.

    path: a .png, .pdf or .svg file. `UserError` for another suffix, no Matplotlib, no example, an example without a
    face, an image that is not uint8 (H, W, 3).
    """
    path = check_output(path)
    _check(examples)
    matplotlib, figure_class, canvas_class = open_matplotlib()
    widest = max(len(example.faces) for example in examples)
    columns = min(len(examples), max(1, _ACROSS // widest))
    lines = [examples[i : i + columns] for i in range(0, len(examples), columns)]
    heights = [_FACE + _LINE * max(_text_lines(example) for example in line) + 0.3 for line in lines]
    with matplotlib.rc_context({**STYLE, "font.size": 7, "axes.titlesize": 8}):
        width = columns * widest * (_FACE + 0.08) + 0.2 * columns
        heading = textwrap.wrap(title, int(_TITLE_CHARACTERS * width))
        above = 0.05 + 0.17 * len(heading) + (0.13 if heading else 0)
        size = (width, sum(heights) + above)
        figure = figure_class(figsize=size)
        canvas_class(figure)
        text = plain("\n".join(heading))
        figure.text(0.1 / size[0], 1 - 0.08 / size[1], text, va="top", fontsize=9, fontweight="bold")
        top = size[1] - above
        for line, height in zip(lines, heights, strict=True):
            for column, example in enumerate(line):
                left = 0.1 + column * (widest * (_FACE + 0.08) + 0.2)
                _draw(figure, example, left, top, size)
            top -= height
        save(figure, path)


def _check(examples: Sequence[Example]) -> None:
    if not examples:
        raise UserError("figure: expected one example or more, got none")
    for example in examples:
        if not example.faces:
            raise UserError(f"figure: {example.title}: expected one face or more, got none")
        for face in example.faces:
            image = face.image
            if image is not None and (image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3):
                raise UserError(
                    f"figure: {example.title}, {face.name}: expected an image uint8 (112, 112, 3), got {image.dtype} "
                    f"{image.shape}"
                )


def _wrapped(example: Example) -> tuple[list[str], list[str], list[str]]:
    """What stands above the faces, under each one and under all of them, in lines that fit."""
    under = [
        "\n".join([*textwrap.wrap(face.role, _CHARACTERS), *textwrap.wrap(face.name, _CHARACTERS)])
        for face in example.faces
    ]
    width = (_CHARACTERS + 1) * len(example.faces)
    below = [part for line in example.lines for part in textwrap.wrap(line, width)]
    return textwrap.wrap(example.title, width - 3), under, below


def _text_lines(example: Example) -> int:
    title, under, below = _wrapped(example)
    return len(title) + max(text.count("\n") + 1 for text in under) + len(below)


def _draw(figure: Any, example: Example, left: float, top: float, size: tuple[float, float]) -> None:
    """One example with its upper left corner at (left, top), in inches from the figure's lower left corner."""

    def write(x: float, y: float, text: str, **style: Any) -> None:
        figure.text(x / size[0], y / size[1], plain(text), va="top", linespacing=1.15, **style)

    title, under, below = _wrapped(example)
    write(left, top, "\n".join(title), fontweight="bold")
    faces_top = top - _LINE * len(title) - 0.04
    for i, (face, text) in enumerate(zip(example.faces, under, strict=True)):
        x = left + i * (_FACE + 0.08)
        box = (x / size[0], (faces_top - _FACE) / size[1], _FACE / size[0], _FACE / size[1])
        ax = figure.add_axes(box)
        ax.imshow(_MISSING if face.image is None else face.image)
        ax.set_axis_off()
        if face.image is None:
            ax.text(0.5, 0.5, "no image", transform=ax.transAxes, ha="center", va="center", color="0.35")
        write(x, faces_top - _FACE - 0.04, text, color="0.25")
    most = max(text.count("\n") + 1 for text in under)
    write(left, faces_top - _FACE - 0.04 - _LINE * most, "\n".join(below))
