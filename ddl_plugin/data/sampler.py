"""Which images make up the batch of a step: a pure function of (seed, step), so a run can resume anywhere.

The block of one device, b pairs and K hard distributions, has 3b(K+1) rows; distribution k = 0 (easy) to K has
rows [3bk, 3bk+b) first images, [3bk+b, 3bk+2b) second images, [3bk+2b, 3bk+3b) singles (section 3.1).
A batch for n devices is n such blocks, one after the other: block d of step t is what one device alone would
get in step t*n + d.

A sampler may offer a spare for an image that cannot be read: `spare(step, sampled, row, rng)` returns (rows, their
other positions), all rows that change with `row` of the batch `sampled`, or None where it has no other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ddl_plugin.data.pairs import Pairs
from ddl_plugin.data.partition import Distribution, Partition
from ddl_plugin.errors import UserError
from ddl_plugin.settings import DDLSettings

# What a stream of random numbers is for; part of its key beside the seed and the distribution.
_PAIRS, _SINGLES, _PHASES, _IMAGES = range(4)


@dataclass(frozen=True)
class SampledBatch:
    """The rows of one batch.

    positions: (rows,) int64, positions in the records. distribution: (rows,) int16, 0 easy, 1..K hard.
    """

    positions: np.ndarray
    distribution: np.ndarray


class ShuffledPasses:
    """An endless sequence of shuffled passes over `range(count)`, cut into blocks of `block` distinct items.

    Invariants: every pass holds each item once, so that the counts of any two items differ by at most one at
    the end of every pass (two in between); the items of one block are distinct even where the block straddles
    two passes; block i depends on `key` and i alone.

    A straddling block is kept distinct by moving, at the head of the new pass, the items that the old pass put
    into this block, further back. With fewer than two blocks of items there is no room for that: then
    one order is repeated until a pass ends where a block does, and any `block` items in a row are distinct.

    Costs O(block) a block, and O(count) time where a pass starts; 4 bytes an item are held. Thread-safe.
    """

    def __init__(self, count: int, block: int, key: tuple[int, ...]):
        if not 1 <= block <= count:
            raise ValueError(f"block: expected 1 to {count} (the number of items), got {block}")
        self.count = count
        self.block = block
        self._key = key
        self._same_order = 1 if count >= 2 * block else block // int(np.gcd(count, block))
        self._lock = threading.Lock()
        self._held = -1  # the pass whose order is held
        self._order = np.empty(0, np.int32)

    def take(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Block `index`: its items, (block,) int64, and the pass each belongs to, (block,) int64."""
        passes, places = np.divmod(np.arange(self.block, dtype=np.int64) + index * self.block, self.count)
        items = np.empty(self.block, np.int64)
        with self._lock:
            for number in range(int(passes[0]), int(passes[-1]) + 1):
                here = passes == number
                items[here] = self._order_of(number)[places[here]]
        return items, passes

    def _order_of(self, number: int) -> np.ndarray:
        if number != self._held:
            before = self._straddling(number)
            self._order = np.empty(0, np.int32)  # two orders need not be held at a time
            order = self._shuffled(number)
            if before.size:
                _keep_out(order, before, self.block)
            self._order, self._held = order, number
        return self._order

    def _straddling(self, number: int) -> np.ndarray:
        """The items of the pass before `number` that are in the block in which `number` starts."""
        size = number * self.count % self.block
        if size == 0 or self._same_order > 1:
            return np.empty(0, np.int32)
        # _keep_out leaves the tail as it was shuffled, so no earlier pass needs to be known.
        before = self._order if self._held == number - 1 else self._shuffled(number - 1)
        return before[-size:].copy()

    def _shuffled(self, number: int) -> np.ndarray:
        order = np.arange(self.count, dtype=np.int32)
        np.random.default_rng((*self._key, number // self._same_order)).shuffle(order)
        return order


def _keep_out(order: np.ndarray, items: np.ndarray, block: int) -> None:
    """Swap `items` out of the first `block - len(items)` places of `order`, in place.

    The last `block - 1` places, which the next pass may have to keep out in turn, stay as they are.
    Needs len(order) >= 2 * block and 0 < len(items) < block.
    """
    head = block - len(items)
    clashes = np.flatnonzero(np.isin(order[:head], items))
    # Of these len(items) places at most len(items) - len(clashes) hold one of the items: enough are free.
    places = np.arange(head, block)
    free = places[~np.isin(order[places], items)][: len(clashes)]
    order[clashes], order[free] = order[free], order[clashes]


def _other(count: int, taken: Callable[[int], bool], most: int, rng: np.random.Generator) -> int | None:
    """The first from a random one of `range(count)` on that is not `taken`, of which there are at most `most`."""
    start = int(rng.integers(count))
    for item in range(start, start + min(count, most + 1)):
        if not taken(item % count):
            return item % count
    return None


class _Blocks:
    """Blocks of b pairs and b singles of one distribution."""

    def __init__(self, positions: np.ndarray, labels: np.ndarray, pairs: Pairs, b: int, key: tuple[int, int]):
        seed, number = key
        own = labels[positions]
        by_identity = np.argsort(own, kind="stable")
        identities, starts, sizes = np.unique(own[by_identity], return_index=True, return_counts=True)
        self._positions = positions[by_identity].astype(np.int32)
        self._identities = identities
        self._starts = starts
        self._sizes = sizes
        self._pairs = pairs
        # Where each identity's cycle through its images begins.
        self._phases = np.random.default_rng((seed, _PHASES, number)).integers(0, sizes)
        self.pair_passes = ShuffledPasses(len(pairs.first), b, (seed, _PAIRS, number))
        self.identity_passes = ShuffledPasses(len(sizes), b, (seed, _SINGLES, number))

    def block(self, index: int) -> np.ndarray:
        """Positions of block `index`: b first images, b second images, b singles, (3b,) int64."""
        pairs, _ = self.pair_passes.take(index)
        identities, passes = self.identity_passes.take(index)
        image = (self._phases[identities] + passes) % self._sizes[identities]
        singles = self._positions[self._starts[identities] + image]
        return np.concatenate([self._pairs.first[pairs], self._pairs.second[pairs], singles], dtype=np.int64)

    def other_pair(
        self, first: np.ndarray, second: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray | None:
        """A pair that is none of these, (2,) int64."""
        pairs = self._pairs

        def taken(pair: int) -> bool:
            return bool(((first == pairs.first[pair]) & (second == pairs.second[pair])).any())

        pair = _other(len(pairs.first), taken, len(first), rng)
        return None if pair is None else np.array([pairs.first[pair], pairs.second[pair]], np.int64)

    def other_single(self, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
        """An image of an identity that is none of `labels`, (1,) int64."""
        present = np.searchsorted(self._identities, labels)
        identity = _other(len(self._sizes), lambda one: one in present, len(present), rng)
        if identity is None:
            return None
        image = rng.integers(self._sizes[identity])
        return self._positions[[self._starts[identity] + image]].astype(np.int64)


class PairSampler:
    """Batches of pairs and singles (section 3.1), in the layout given at the top of this module.

    labels: (N,) int, identity of each position. pairs: one `Pairs` per distribution of `partition`.
    Each distribution has its own streams: shuffled passes over its pairs, and over its identities, of which
    every pass takes the next image. Within a block the b pairs are distinct and so are the b single
    identities. An identity's pass-by-pass images cycle through all it has in the distribution.

    together: for a loss over all devices (`ddl.scope` global), where two images of one identity would be a
    negative pair: then what is distinct within a block is so within a step.

    `UserError` where a distribution has fewer than b pairs or fewer than b identities (of all devices, together).
    """

    def __init__(
        self,
        labels: np.ndarray,
        partition: Partition,
        pairs: Sequence[Pairs],
        settings: DDLSettings,
        *,
        devices: int = 1,
        seed: int = 0,
        together: bool = False,
    ):
        distributions = partition.distributions
        if not len(distributions) == len(pairs) == settings.distributions:
            raise ValueError(
                f"expected {settings.distributions} distributions and as many sets of pairs, "
                f"got {len(distributions)} and {len(pairs)}"
            )
        drawn = settings.b * (devices if together else 1)  # of a distribution at a time
        self._labels = labels = np.asarray(labels)
        for distribution, own in zip(distributions, pairs, strict=True):
            _require_enough(distribution, len(own.first), "positive pairs", settings.b, drawn)
            identities = len(np.unique(labels[distribution.positions]))
            _require_enough(distribution, identities, "identities", settings.b, drawn)
        self.devices = devices
        self.rows = devices * settings.rows
        self._together = together
        self._b = settings.b
        self._block_distribution = np.repeat(np.arange(len(pairs), dtype=np.int16), 3 * settings.b)
        self._blocks = [
            _Blocks(distribution.positions, labels, own, drawn, (seed, number))
            for number, (distribution, own) in enumerate(zip(distributions, pairs, strict=True))
        ]
        longest = max(
            passes.count for own in self._blocks for passes in (own.pair_passes, own.identity_passes)
        )
        self.steps_per_epoch = -(-longest // (settings.b * devices))

    def batch(self, step: int) -> SampledBatch:
        """The batch of step `step` >= 0."""
        if self._together:
            # (distribution, part, device, pair) -> (device, distribution, part, pair)
            drawn = np.stack([own.block(step) for own in self._blocks])
            drawn = drawn.reshape(len(self._blocks), 3, self.devices, self._b)
            positions = drawn.transpose(2, 0, 1, 3).reshape(-1)
        else:
            blocks = range(step * self.devices, (step + 1) * self.devices)
            positions = np.concatenate([own.block(block) for block in blocks for own in self._blocks])
        return SampledBatch(positions, np.tile(self._block_distribution, self.devices))

    def spare(
        self, step: int, sampled: SampledBatch, row: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Another pair in the place of the one that has `row`, or another identity's image in that of a single:
        none that is in the block already (of the step, together). The identity loss has its label right, and
        b singles are still of distinct identities."""
        shape = (self.devices, len(self._blocks), 3, self._b)
        rows, positions = np.arange(self.rows).reshape(shape), sampled.positions.reshape(shape)
        device, number, part, place = np.unravel_index(row, shape)
        near = positions[:, number] if self._together else positions[device : device + 1, number]
        first, second, singles = near.swapaxes(0, 1).reshape(3, -1)
        if part < 2:
            changed = rows[device, number, :2, place]
            other = self._blocks[number].other_pair(first, second, rng)
        else:
            changed = rows[device, number, 2:, place]
            other = self._blocks[number].other_single(self._labels[singles], rng)
        return None if other is None else (changed, other)


def _require_enough(distribution: Distribution, count: int, what: str, b: int, drawn: int) -> None:
    if count < drawn:
        devices = "" if drawn == b else f" on {drawn // b} devices, {drawn}"
        raise UserError(
            f"ddl: {distribution.name} ({distribution.label}): expected at least b = {b}{devices} {what}, "
            f"got {count}; lower ddl.b or widen the rule"
        )


class Share:
    """One machine's share of the batches of `sampler`, which is that of all devices of all machines.

    Machine `rank` of `workers` has rows [first_row, first_row + rows) of every batch, whole blocks: no two
    machines get the same block, and together they train on what one machine with all devices would.
    """

    def __init__(self, sampler, rank: int, workers: int):
        if sampler.rows % workers or not 0 <= rank < workers:
            raise ValueError(f"expected a share of {sampler.rows} rows, got {rank} of {workers}")
        self.rows = sampler.rows // workers
        self.first_row = rank * self.rows
        self.steps_per_epoch = sampler.steps_per_epoch
        self._sampler = sampler

    def batch(self, step: int) -> SampledBatch:
        """This machine's rows of the batch of step `step` >= 0."""
        whole = self._sampler.batch(step)
        rows = slice(self.first_row, self.first_row + self.rows)
        return SampledBatch(whole.positions[rows], whole.distribution[rows])

    def spare(
        self, step: int, sampled: SampledBatch, row: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """As `sampler` has it, for a row of this share."""
        if not hasattr(self._sampler, "spare"):
            return None
        whole = self._sampler.batch(step)
        positions = whole.positions.copy()
        positions[self.first_row : self.first_row + self.rows] = sampled.positions
        whole = SampledBatch(positions, whole.distribution)
        found = self._sampler.spare(step, whole, self.first_row + row, rng)
        return None if found is None else (found[0] - self.first_row, found[1])


class ImageSampler:
    """Shuffled passes over all images, for ordinary training: the interface of `PairSampler`.

    positions: (N,) int, the images to draw from. batch_size: rows of one device, whose images are distinct.
    All rows are of distribution 0. `UserError` where there are fewer images than `batch_size`.
    """

    def __init__(self, positions: np.ndarray, batch_size: int, *, devices: int = 1, seed: int = 0):
        positions = np.asarray(positions)
        if len(positions) < batch_size:
            raise UserError(
                f"batch_size: expected at most {len(positions)}, the number of images, got {batch_size}; "
                f"lower it or give more images"
            )
        self.devices = devices
        self.rows = devices * batch_size
        self.steps_per_epoch = -(-len(positions) // self.rows)
        self._positions = positions
        self._passes = ShuffledPasses(len(positions), batch_size, (seed, _IMAGES))

    def batch(self, step: int) -> SampledBatch:
        """The batch of step `step` >= 0."""
        blocks = range(step * self.devices, (step + 1) * self.devices)
        items = np.concatenate([self._passes.take(block)[0] for block in blocks])
        return SampledBatch(self._positions[items].astype(np.int64), np.zeros(self.rows, np.int16))

    def spare(
        self, step: int, sampled: SampledBatch, row: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Another image in the place of `row`, none that the device has already."""
        size = self.rows // self.devices
        near = sampled.positions[row // size * size :][:size]
        item = _other(len(self._positions), lambda one: self._positions[one] in near, size, rng)
        return None if item is None else (np.array([row]), self._positions[[item]].astype(np.int64))
