"""Unit-length embeddings of many images, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from ddl_plugin.errors import UserError

#: embed(images uint8 (n, 112, 112, 3) RGB) -> float32 (n, D), not normalised.
Embed = Callable[[np.ndarray], np.ndarray]

#: Wraps an iterable of batches, as tqdm does.
Progress = Callable[[Iterable], Iterable]


def no_progress(batches: Iterable) -> Iterable:
    return batches


def extract(
    embed: Embed,
    load: Callable[[int, int], np.ndarray],
    count: int,
    *,
    flip: bool,
    describe: Callable[[int], str],
    batch: int = 64,
    progress: Progress = no_progress,
) -> np.ndarray:
    """Embeddings of images 0 .. count - 1 divided by their length.

    Args:
        embed: the network.
        load: load(start, stop) -> uint8 (stop - start, 112, 112, 3) RGB.
        flip: add the embedding of the mirrored image before dividing, as InsightFace's verification does.
        describe: how an error calls image i.
        batch: images in one call of `embed`.

    Returns:
        float64 (count, D), unit length: exactly what upstream's float64 arithmetic gives.

    Raises:
        UserError: naming the first image whose embedding is not finite or zero, with the others of its batch counted.
    """
    features = None
    for start in progress(range(0, count, batch)):
        stop = min(start + batch, count)
        images = load(start, stop)
        rows = embed(images).astype(np.float64)
        if flip:
            with np.errstate(invalid="ignore"):  # inf - inf, refused below
                rows += embed(np.ascontiguousarray(images[:, :, ::-1]))
        length = np.linalg.norm(rows, axis=1)
        bad = np.flatnonzero(~(np.isfinite(length) & (length > 0)))
        if bad.size:
            others = f", and {bad.size - 1} others among {stop} of {count} images" if bad.size > 1 else ""
            raise UserError(
                f"{describe(start + int(bad[0]))}: expected a finite, non-zero embedding, got "
                f"length {length[bad[0]]:g}{others}; check the model's weights and its input"
            )
        if features is None:
            features = np.empty((count, rows.shape[1]))
        features[start:stop] = rows / length[:, None]
    return features
