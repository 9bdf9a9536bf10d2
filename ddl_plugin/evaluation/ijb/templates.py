"""Image features averaged to media, media added to templates, templates of length 1."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ddl_plugin.evaluation.ijb.lists import Images

_CHUNK_VALUES = 1 << 17  # float64 values of the images worked on at a time: 1 MiB stays in the caches


@dataclass(frozen=True)
class Weighting:
    """What an image's feature is before it is averaged; the defaults are those of InsightFace's evaluation."""

    flip: bool = True  # F1: the mirrored image's embedding is added
    norm_score: bool = True  # N1: the feature keeps its length, which grows with the quality of the image
    detector_score: bool = True  # D1: it is multiplied by the score of the detector


#: By name: what InsightFace's scripts do, and the plain average of unit features.
PRESETS = {"insightface": Weighting(), "paper": Weighting(flip=False, norm_score=False, detector_score=False)}


@dataclass(frozen=True)
class Templates:
    numbers: np.ndarray  # int64 (T,), ascending
    features: np.ndarray  # float64 (T, D), of length 1; zeros where there is none
    known: np.ndarray  # bool (T,): has a feature


#: read(start, stop) -> (embeddings, those of the mirrored images or None), float32 (n, D), NaN where none is.
Read = Callable[[int, int], tuple[np.ndarray, np.ndarray | None]]


def build_templates(images: Images, read: Read, usable: np.ndarray, weighting: Weighting) -> Templates:
    """The feature of every template, in double precision.

    A template is the sum over its media of the mean over a medium's images, divided by its length. Images that
    are not usable (bool (N,)) are left out; a template without any other has no feature.
    """
    new = np.append(True, images.templates[1:] != images.templates[:-1])  # they ascend
    numbers, rows = images.templates[new], np.cumsum(new) - 1
    share = _shares(images, usable)
    if weighting.detector_score:
        share *= np.where(usable, images.scores, 0).astype(np.float64)
    features = None
    start, step = 0, 1
    while start < len(images):
        stop = min(start + step, len(images))
        values = _features(read(start, stop), usable[start:stop], weighting)
        if features is None:
            features = np.zeros((len(numbers), values.shape[1]))
            step = max(1, _CHUNK_VALUES // values.shape[1])
        part = rows[start:stop]
        firsts = np.append(0, np.flatnonzero(part[1:] != part[:-1]) + 1)
        bounds = itertools.pairwise([*firsts.tolist(), len(part)])
        weights = share[start:stop]
        # Ten times as fast as np.add.reduceat over the rows.
        for row, (first, last) in zip(part[firsts].tolist(), bounds, strict=True):
            features[row] += weights[first:last] @ values[first:last]
        start = stop
    lengths = np.sqrt(np.einsum("td,td->t", features, features))
    known = lengths > 0
    features /= np.where(known, lengths, 1)[:, None]
    return Templates(numbers, features, known)


def _shares(images: Images, usable: np.ndarray) -> np.ndarray:
    """One over the number of usable images of the same template and medium, 0 for the others: float64 (N,)."""
    new = np.ones(len(images), bool)
    new[1:] = (images.templates[1:] != images.templates[:-1]) | (images.media[1:] != images.media[:-1])
    medium = np.cumsum(new) - 1
    counts = np.bincount(medium, usable)
    return np.where(usable, 1 / np.maximum(counts[medium], 1), 0)


def _features(
    embeddings: tuple[np.ndarray, np.ndarray | None], usable: np.ndarray, weighting: Weighting
) -> np.ndarray:
    plain, mirrored = embeddings
    values = np.add(plain, mirrored, dtype=np.float64) if weighting.flip else plain.astype(np.float64)
    values[~usable] = 0
    if not weighting.norm_score:
        lengths = np.sqrt(np.einsum("nd,nd->n", values, values))
        values /= np.where(lengths > 0, lengths, 1)[:, None]
    return values
