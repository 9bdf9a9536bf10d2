"""Candidates of positive pairs: some pairs of images of each identity, drawn without listing all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ddl_plugin.data.partition import Distribution
from ddl_plugin.data.shards import shard_range
from ddl_plugin.errors import UserError

_CANDIDATES = 101  # what random numbers are for: part of their key beside the seed
_BLOCK = 1 << 18  # candidates drawn at a time, rounded up to whole identities


@dataclass(frozen=True)
class Candidates:
    """Pairs of one distribution, identity by identity.

    first, second: (M,) int32 positions in the records, first < second. starts: (identities + 1,) int64, where the
    pairs of each identity begin, and M.
    """

    first: np.ndarray
    second: np.ndarray
    starts: np.ndarray

    def images(self, count: int) -> int:
        """How many of `count` positions occur in a candidate."""
        used = np.zeros(count, bool)
        used[self.first] = used[self.second] = True
        return int(used.sum())


def draw_candidates(
    labels: np.ndarray,
    distribution: Distribution,
    number: int,
    *,
    most: int,
    seed: int,
    share: tuple[int, int] | None = None,
) -> Candidates:
    """Up to `most` pairs of each identity of distribution `number`, a function of (seed, number) alone.

    labels: (N,) int32 of all records. share: (i, n), those of part i of n of the data set's identities only, which
    have about as many images in every part. `UserError` where no identity has two images.
    """
    own = labels[distribution.positions]
    first, second, starts = candidate_pairs(
        distribution.positions, own, most, np.random.default_rng((seed, _CANDIDATES, number))
    )
    if len(first) == 0:
        raise UserError(
            f"ddl: {distribution.name} ({distribution.label}): expected identities with two images or more, got "
            f"{len(np.unique(own))} identities with one image each ({len(own)} images); "
            f"widen the rule or add images"
        )
    if share is not None:
        begin, end = _shared(labels, labels[first[starts[:-1]]], *share)
        starts = starts[begin : end + 1]
        part = slice(int(starts[0]), int(starts[-1]))
        first, second, starts = first[part].copy(), second[part].copy(), starts - starts[0]
    return Candidates(first, second, starts)


def _shared(labels: np.ndarray, identities: np.ndarray, i: int, n: int) -> tuple[int, int]:
    """Which of `identities`, ascending, are in part `i` of `n` of those of all images: [begin, end).

    The same ones in every distribution, so that no two machines embed the same image.
    """
    ordered = np.sort(labels)
    begin, end = shard_range(len(ordered), i, n)
    first = int(np.searchsorted(identities, ordered[begin]))
    return first, int(np.searchsorted(identities, ordered[end])) if i + 1 < n else len(identities)


def candidate_pairs(
    positions: np.ndarray, labels: np.ndarray, most: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Up to `most` distinct pairs of each identity with two images or more, uniformly without replacement.

    positions: (n,) sorted; labels: (n,) their identities. Returns first, second: (M,) int32, first < second,
    identity by identity; starts: (identities + 1,) int64, where the pairs of each identity begin, and M.
    Costs O(M + n log n), not the number of possible pairs; beside the result some 20 bytes an image.
    """
    by_identity = np.argsort(labels, kind="stable")
    _, offsets, sizes = np.unique(labels[by_identity], return_index=True, return_counts=True)
    offsets, sizes = offsets[sizes > 1], sizes[sizes > 1].astype(np.int64)
    ordered = positions[by_identity].astype(np.int32)
    del by_identity
    possible = sizes * (sizes - 1) // 2
    counts = np.minimum(possible, most)
    starts = np.concatenate([[0], np.cumsum(counts)])
    first, second = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.int32)
    for begin, end in blocks(starts, _BLOCK):
        part = slice(int(starts[begin]), int(starts[end]))
        ranks = np.arange(part.start, part.stop)
        ranks -= np.repeat(starts[begin:end], counts[begin:end])  # all of them, where there are few
        for identity in begin + np.flatnonzero(possible[begin:end] > most):
            drawn = rng.choice(possible[identity], most, replace=False, shuffle=False)
            at = starts[identity] - part.start
            ranks[at : at + most] = np.sort(drawn)
        i, j = unrank(ranks)
        base = np.repeat(offsets[begin:end], counts[begin:end])
        first[part], second[part] = ordered[base + i], ordered[base + j]
    return first, second, starts


def unrank(ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pair i < j of each rank j(j-1)/2 + i: int64 (M,) -> two int64 (M,).

    Exact for ranks below 2**49, the pairs of 33 million images: up to there float64 holds 8 r + 1.
    """
    j = ((1 + np.sqrt(1 + 8 * ranks.astype(np.float64))) / 2).astype(np.int64)
    return ranks - j * (j - 1) // 2, j


def blocks(starts: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Identities [begin, end) one block after the other, each of at most `most` pairs or of one identity."""
    begin = 0
    while begin < len(starts) - 1:
        end = int(np.searchsorted(starts, starts[begin] + most, side="right")) - 1
        end = max(end, begin + 1)
        yield begin, end
        begin = end
