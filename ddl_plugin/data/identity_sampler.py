"""Batches of whole identities, for online DDL (the supplement's section 6): P identities with n images each.

The block of one device has the n images of its first identity, then those of the second, and so on.
"""

from __future__ import annotations

import numpy as np

from ddl_plugin.data.sampler import SampledBatch, ShuffledPasses
from ddl_plugin.errors import UserError
from ddl_plugin.settings import OnlineSettings

# What a stream of random numbers is for; beside those of `sampler`.
_IDENTITIES, _CHOSEN = 10, 11


class IdentitySampler:
    """Shuffled passes over the identities, `online.identities` distinct ones a device's block; of each
    `online.images` of its images, drawn at random and distinct.

    labels: (N,) int, identity of each position. positions: (n,) int, the images to draw from. Block i, and so every
    batch, depends on the seed and i alone. All rows are of distribution 0.

    `UserError` where there are too few identities, or one has too few images and `online.repeat` is not set; with it,
    all its images are drawn as equally often as can be.
    """

    def __init__(
        self,
        labels: np.ndarray,
        positions: np.ndarray,
        online: OnlineSettings,
        *,
        devices: int = 1,
        seed: int = 0,
    ):
        positions = np.asarray(positions)
        self._labels = np.asarray(labels)
        own = self._labels[positions]
        by_identity = np.argsort(own, kind="stable")
        self._identities, self._starts, self._sizes = np.unique(
            own[by_identity], return_index=True, return_counts=True
        )
        self._positions = positions[by_identity].astype(np.int32)
        self._online = online
        self._require_enough()
        self.devices = devices
        self.rows = devices * online.identities * online.images
        self.steps_per_epoch = -(-len(self._identities) // (online.identities * devices))
        self._passes = ShuffledPasses(len(self._identities), online.identities, (seed, _IDENTITIES))
        self._seed = seed

    def _require_enough(self) -> None:
        online, identities = self._online, self._identities
        if len(identities) < online.identities:
            raise UserError(
                f"ddl.online.identities: expected at most {len(identities)}, the number of identities, got "
                f"{online.identities}; lower it"
            )
        few = self._sizes < online.images
        if few.any() and not online.repeat:
            raise UserError(
                f"ddl.online: expected {online.images} images or more of every identity, got fewer of {few.sum()} of "
                f"{len(identities)} (identity {identities[few.argmax()]} has {self._sizes[few.argmax()]}); leave those "
                f"out with prepare records --min-images {online.images}, lower ddl.online.images, or set "
                f"ddl.online.repeat=True"
            )

    def batch(self, step: int) -> SampledBatch:
        """The batch of step `step` >= 0."""
        blocks = range(step * self.devices, (step + 1) * self.devices)
        positions = np.concatenate([self._block(block) for block in blocks])
        return SampledBatch(positions, np.zeros(self.rows, np.int16))

    def _block(self, index: int) -> np.ndarray:
        identities, _ = self._passes.take(index)
        rng = np.random.default_rng((self._seed, _CHOSEN, index))
        return np.concatenate([self._some(identity, rng) for identity in identities])

    def _some(self, identity: int, rng: np.random.Generator) -> np.ndarray:
        """Positions of `online.images` images of an identity, int64."""
        size, wanted = int(self._sizes[identity]), self._online.images
        rounds = -(-wanted // size)
        chosen = np.concatenate([rng.permutation(size) for _ in range(rounds)])[:wanted]
        return self._positions[self._starts[identity] + chosen].astype(np.int64)

    def spare(
        self, step: int, sampled: SampledBatch, row: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Another image of the same identity, one that is not there yet if it has one; None if it has one image."""
        images = self._online.images
        near = sampled.positions[row // images * images :][:images]
        identity = int(np.searchsorted(self._identities, self._labels[sampled.positions[row]]))
        start = self._starts[identity]
        own = self._positions[start : start + self._sizes[identity]]
        others = own[~np.isin(own, near)]
        if not others.size:
            others = own[own != sampled.positions[row]]
        if not others.size:
            return None
        return np.array([row]), rng.choice(others, 1).astype(np.int64)
