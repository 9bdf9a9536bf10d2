"""Embeddings of some identities in two dimensions (t-SNE), as the supplement's Fig. 1 shows them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddl_plugin.analysis.drawing import STYLE, check_output, open_matplotlib, save
from ddl_plugin.data.degrade import degrade
from ddl_plugin.data.faces import readable_faces
from ddl_plugin.data.records import Records
from ddl_plugin.errors import UserError
from ddl_plugin.settings import Degradation

_PERPLEXITY = 15.0  # at most; of few images a third of them
_PANEL = 2.4  # inches
_COLORS = (
    "#1f4e79",
    "#c0504d",
    "#4f7f3a",
    "#7a5195",
    "#b8860b",
    "#2a9d8f",
    "#888888",
    "#8c564b",
    "#e377c2",
    "#000000",
)


@dataclass(frozen=True)
class Shown:
    """The images of a map: uint8 (n, 112, 112, 3) RGB, whose they are (n,) int64, which are hard (n,) bool."""

    images: np.ndarray
    identity: np.ndarray
    hard: np.ndarray


def choose(
    labels: np.ndarray, hard: np.ndarray | None, identities: int, images: int, seed: int
) -> np.ndarray:
    """Positions of up to `images` images of `identities` random identities, int64 ascending.

    With `hard`, bool (N,), identities that have two easy and two hard images or more, and as many of both kinds as
    there are, up to half each. Raises `UserError` where there are too few such identities.
    """
    kinds = [np.ones(len(labels), bool)] if hard is None else [~hard, hard]
    counts = [np.bincount(labels[kind], minlength=labels.max() + 1) for kind in kinds]
    eligible = np.flatnonzero(np.min(counts, axis=0) >= 2)
    if len(eligible) < identities:
        what = "two images" if hard is None else "two easy and two hard images"
        raise UserError(
            f"--identities: expected at most {len(eligible)}, the number of identities with {what} or more, got {identities}"
        )
    rng = np.random.default_rng(seed)
    chosen = []
    for identity in rng.choice(eligible, identities, replace=False):
        for kind in kinds:
            own = np.flatnonzero(kind & (labels == identity))
            chosen.append(rng.permutation(own)[: images // len(kinds)])
    return np.sort(np.concatenate(chosen))


def load(records: Records, positions: np.ndarray, hard: np.ndarray | None, size: int | None) -> Shown:
    """The images at `positions`; with `size` each once more, shrunk to it, as its hard image."""
    positions, images = readable_faces(records, positions)
    identity = records.labels[positions].astype(np.int64)
    if size is None:
        return Shown(images, identity, hard[positions])
    small, rng = Degradation(size=size), np.random.default_rng(0)
    shrunk = np.array([degrade(image, small, rng) for image in images])
    return Shown(
        np.concatenate([images, shrunk]), np.tile(identity, 2), np.repeat([False, True], len(images))
    )


def tsne(embeddings: np.ndarray, seed: int) -> np.ndarray:
    """t-SNE of unit embeddings: (n, D) -> (n, 2) float32. `UserError` without scikit-learn."""
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise UserError(
            f"embedding maps need scikit-learn ({error}): pip install 'ddl_plugin[plot]'"
        ) from error
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    perplexity = min(_PERPLEXITY, (len(unit) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(unit)


def map_figure(maps: Mapping[str, np.ndarray], shown: Shown, path: str | os.PathLike) -> None:
    """A panel a model: a colour an identity, dots the easy images, crosses the hard ones.

    The axes of a t-SNE map have no unit: distances mean something within a neighbourhood only.
    """
    path = check_output(path)
    matplotlib, figure_class, canvas_class = open_matplotlib()
    with matplotlib.rc_context(STYLE):
        figure = figure_class(figsize=(_PANEL * len(maps), _PANEL + 0.6), layout="constrained")
        canvas_class(figure)
        axes = figure.subplots(1, len(maps), squeeze=False)[0]
        for ax, (name, points) in zip(axes, maps.items(), strict=True):
            _panel(ax, points, shown)
            ax.set_title(name, fontweight="bold")
        marks = {"label": "easy", "marker": "o"}, {"label": "hard", "marker": "+"}
        handles = [matplotlib.lines.Line2D([], [], color="0.3", linestyle="", **mark) for mark in marks]
        figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
        save(figure, path)


def _panel(ax: Any, points: np.ndarray, shown: Shown) -> None:
    for number, identity in enumerate(np.unique(shown.identity)):
        own, color = shown.identity == identity, _COLORS[number % len(_COLORS)]
        easy, hard = points[own & ~shown.hard], points[own & shown.hard]
        ax.plot(easy[:, 0], easy[:, 1], "o", color=color, markersize=3.5, markeredgewidth=0, alpha=0.8)
        ax.plot(hard[:, 0], hard[:, 1], "+", color=color, markersize=6, markeredgewidth=1)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_aspect("equal", adjustable="datalim")
