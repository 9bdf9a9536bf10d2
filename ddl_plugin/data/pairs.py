"""Positive pairs, built offline with the base model (section 3.1), and the file that keeps them.

Per distribution and identity up to `max_pairs_per_identity` pairs of images; those with a cosine below 0 are
usually outliers: they are dropped and counted.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ddl_plugin.data.degrade import degrade
from ddl_plugin.data.faces import SHAPE, load_face
from ddl_plugin.data.partition import Distribution, Partition
from ddl_plugin.data.records import Records
from ddl_plugin.errors import UserError
from ddl_plugin.files import replaced

#: embed(images uint8 (n, 112, 112, 3) RGB) -> float32 (n, D), not normalised.
Embed = Callable[[np.ndarray], np.ndarray]

_FORMAT = 1  # of the file
_CANDIDATES, _PIXELS = 101, 102  # what random numbers are for: part of their key beside the seed
_BATCH = 64  # images given to `embed` at a time
_THREADS = 2  # batches being decoded while one is embedded
_CHUNK = 1 << 15  # images, rounded up to whole identities, whose embeddings are held at a time
#: What NumPy, zipfile and json raise for a file that was cut off, altered, or is something else.
_DAMAGE = (
    OSError, EOFError, KeyError, ValueError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class Pairs:
    """The positive pairs of one distribution: same identity, cosine >= 0 under the base model.

    first, second: (M,) int32 positions in the records, first < second. candidates: pairs that were compared.
    dropped: those of them with a cosine below 0; M = candidates - dropped.
    """

    first: np.ndarray
    second: np.ndarray
    candidates: int
    dropped: int


def build_pairs(
    records: Records,
    partition: Partition,
    embed: Embed,
    *,
    max_pairs_per_identity: int = 100,
    seed: int = 0,
    b: int = 1,
    progress: bool = False,
) -> tuple[Pairs, ...]:
    """The pairs of each distribution, in the order of `partition`.

    Deterministic for a seed, whatever the threads: the candidates are drawn without replacement from an
    identity's n(n-1)/2 pairs, and image i of distribution k is degraded with a generator of its own, keyed
    by (seed, k, i). Only images that occur in a pair are embedded. Costs about 60 bytes a candidate
    while they are drawn, 9 after that, and the embeddings of about 32,768 images at a time.

    `UserError` where the model gives NaN, where a distribution has no identity with two images, or where
    fewer than `b` (ddl.b) pairs are left.
    """
    return tuple(
        _of_distribution(
            records, distribution, embed, max_pairs_per_identity, seed, number, b, progress
        )
        for number, distribution in enumerate(partition.distributions)
    )  # fmt: skip


def _of_distribution(
    records: Records,
    distribution: Distribution,
    embed: Embed,
    most: int,
    seed: int,
    number: int,
    b: int,
    progress: bool,
) -> Pairs:
    labels = records.labels[distribution.positions]
    first, second, starts = candidate_pairs(
        distribution.positions, labels, most, np.random.default_rng((seed, _CANDIDATES, number))
    )
    who = f"ddl: {distribution.name} ({distribution.label})"
    if len(first) == 0:
        raise UserError(
            f"{who}: expected identities with two images or more, got "
            f"{len(np.unique(labels))} identities with one image each ({len(labels)} images); "
            f"widen the rule or add images"
        )
    similar = np.empty(len(first), bool)
    total = len(np.union1d(first, second)) if progress else None
    with (
        ThreadPoolExecutor(_THREADS, "pairs") as pool,
        tqdm(
            desc=f"pairs of {distribution.name}", total=total, unit="img", disable=not progress, leave=False
        ) as bar,
    ):
        for part in _whole_identities(starts):
            used = np.union1d(first[part], second[part])
            embeddings = _unit_embeddings(
                records, distribution, used, embed, (seed, _PIXELS, number), pool, bar
            )
            one, other = np.searchsorted(used, first[part]), np.searchsorted(used, second[part])
            similar[part] = _cosines(embeddings, one, other) >= 0
    kept = int(similar.sum())
    if kept < b:
        what = "all" if kept == 0 else f"{len(first) - kept}"
        raise UserError(
            f"{who}: expected at least {b} positive pairs with a cosine >= 0, got {kept}: {what} of "
            f"{len(first)} candidates are below 0; check that the base model fits these images, lower ddl.b "
            f"or widen the rule"
        )
    return Pairs(first[similar], second[similar], len(first), len(first) - kept)


# -- candidates --------------------------------------------------------------------------------------------


def candidate_pairs(
    positions: np.ndarray, labels: np.ndarray, most: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Up to `most` distinct pairs of each identity with two images or more, uniformly without replacement.

    positions: (n,) sorted; labels: (n,) their identities. Returns first, second: (M,) int32, first < second,
    identity by identity; starts: (identities + 1,) int64, where the pairs of each identity begin, and M.
    Costs O(M + n log n), not the number of possible pairs.
    """
    by_identity = np.argsort(labels, kind="stable")
    _, offsets, sizes = np.unique(labels[by_identity], return_index=True, return_counts=True)
    offsets, sizes = offsets[sizes > 1], sizes[sizes > 1].astype(np.int64)
    possible = sizes * (sizes - 1) // 2
    counts = np.minimum(possible, most)
    starts = np.concatenate([[0], np.cumsum(counts)])
    ranks = np.arange(starts[-1]) - np.repeat(starts[:-1], counts)  # all of them, where there are few
    for identity in np.flatnonzero(possible > most):
        drawn = rng.choice(possible[identity], most, replace=False, shuffle=False)
        ranks[starts[identity] : starts[identity + 1]] = np.sort(drawn)
    i, j = unrank(ranks)
    base = np.repeat(offsets, counts)
    ordered = positions[by_identity].astype(np.int32)
    return ordered[base + i], ordered[base + j], starts


def unrank(ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pair i < j of each rank j(j-1)/2 + i: int64 (M,) -> two int64 (M,).

    Exact for ranks below 2**49, the pairs of 33 million images: up to there float64 holds 8 r + 1.
    """
    j = ((1 + np.sqrt(1 + 8 * ranks.astype(np.float64))) / 2).astype(np.int64)
    return ranks - j * (j - 1) // 2, j


def _whole_identities(starts: np.ndarray) -> Iterator[slice]:
    """Slices of the pairs, of whole identities, each with at most `_CHUNK` / 2 pairs or of one identity."""
    begin = 0
    while begin < len(starts) - 1:
        end = int(np.searchsorted(starts, starts[begin] + _CHUNK // 2, side="right")) - 1
        end = max(end, begin + 1)
        yield slice(int(starts[begin]), int(starts[end]))
        begin = end


# -- similarities ------------------------------------------------------------------------------------------


def _unit_embeddings(
    records: Records,
    distribution: Distribution,
    positions: np.ndarray,
    embed: Embed,
    key: tuple[int, int, int],
    pool: ThreadPoolExecutor,
    bar: tqdm,
) -> np.ndarray:
    """Embeddings of the images at `positions` divided by their norms: float32 (n, D)."""
    result = None
    done = 0
    for images in _decoded_ahead(records, distribution, positions, key, pool):
        embeddings = np.asarray(embed(images), np.float32)
        finite = np.isfinite(embeddings).all(axis=1)
        if not finite.all():
            bad = positions[done + int(np.argmin(finite))]
            raise UserError(
                f"the base model gives NaN or infinite values for record {records.keys[bad]} of {records.path}: "
                f"expected finite embeddings; check the checkpoint's weights and the image"
            )
        norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
        if result is None:
            result = np.empty((len(positions), embeddings.shape[1]), np.float32)
        np.divide(embeddings, np.maximum(norms, 1e-12), out=result[done : done + len(images)])
        done += len(images)
        bar.update(len(images))
    return result


def _decoded_ahead(
    records: Records,
    distribution: Distribution,
    positions: np.ndarray,
    key: tuple[int, int, int],
    pool: ThreadPoolExecutor,
) -> Iterator[np.ndarray]:
    """Batches of degraded images, uint8 (n, 112, 112, 3), read by `pool` while the caller uses the last one."""

    def load(batch: np.ndarray) -> np.ndarray:
        images = np.empty((len(batch), *SHAPE), np.uint8)
        for row, position in enumerate(batch):
            image = load_face(records, position)
            if distribution.degradation.active:
                image = degrade(image, distribution.degradation, np.random.default_rng((*key, position)))
            images[row] = image
        return images

    pending = deque()
    for start in range(0, len(positions), _BATCH):
        pending.append(pool.submit(load, positions[start : start + _BATCH]))
        if len(pending) > _THREADS:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _cosines(unit: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """<unit[one], unit[other]>: float32 (M,), some rows at a time."""
    result = np.empty(len(one), np.float32)
    for start in range(0, len(one), 1 << 14):
        part = slice(start, start + (1 << 14))
        result[part] = np.einsum("md,md->m", unit[one[part]], unit[other[part]])
    return result


# -- the file ----------------------------------------------------------------------------------------------


def save_pairs(path: str | os.PathLike, pairs: Sequence[Pairs], made_from: dict) -> None:
    """Write the pairs and what they were made from (JSON values) as an .npz; never a part of a file."""
    arrays = {
        "made_from": np.array(json.dumps({"format": _FORMAT, **made_from}, sort_keys=True)),
        "counts": np.array([(p.candidates, p.dropped) for p in pairs], np.int64),
    }
    for k, own in enumerate(pairs):
        arrays[f"first{k}"], arrays[f"second{k}"] = own.first, own.second
    with replaced(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def load_pairs(path: str | os.PathLike, made_from: dict) -> tuple[tuple[Pairs, ...], None] | tuple[None, str]:
    """(pairs, None) where the file holds pairs made from `made_from`, else (None, why it does not)."""
    path = Path(path)
    if not path.is_file():
        return None, f"{path} is not there"
    try:
        with np.load(path, allow_pickle=False) as file:
            recorded = json.loads(str(file["made_from"]))
            changed = _difference(recorded, json.loads(json.dumps({"format": _FORMAT, **made_from})))
            if changed:
                return None, f"{path}: {changed}"
            pairs = tuple(
                Pairs(file[f"first{k}"], file[f"second{k}"], int(candidates), int(dropped))
                for k, (candidates, dropped) in enumerate(file["counts"])
            )
        if not all(_sound(own) for own in pairs):
            return None, f"{path} is damaged: its arrays do not belong together"
    except _DAMAGE as error:
        return None, f"{path} is damaged ({type(error).__name__}: {error})"
    return pairs, None


def _difference(recorded: dict, wanted: dict) -> str | None:
    """'made with seed 1, now 2' for the first entry that differs, or None."""
    for name in sorted({*recorded, *wanted}):
        old, new = recorded.get(name), wanted.get(name)
        if old != new:
            return f"made with {name} {old!r}, now {new!r}"
    return None


def _sound(pairs: Pairs) -> bool:
    shapes = {pairs.first.shape, pairs.second.shape, (pairs.candidates - pairs.dropped,)}
    return len(shapes) == 1 and pairs.first.dtype == pairs.second.dtype == np.int32
