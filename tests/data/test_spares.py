"""What the samplers offer in the place of an image that cannot be read."""

import numpy as np
import pytest

from ddl_plugin.data.pairs import Pairs
from ddl_plugin.data.partition import Distribution, Partition
from ddl_plugin.data.sampler import ImageSampler, PairSampler, SampledBatch, Share
from ddl_plugin.settings import DDLSettings, Degradation

B = 4


def rng(seed=0):
    return np.random.default_rng(seed)


def pair_sampler(identities, devices=1, hard_from=0, **options):
    """Two images of each identity, one pair; the hard images are those of identities `hard_from` on."""
    positions = np.arange(2 * identities)
    labels = positions // 2
    parts, pairs = [], []
    for name, start in (("easy", 0), ("hard", 2 * hard_from)):
        own = positions[start:]
        parts.append(Distribution(name, name, own, Degradation()))
        first = own[::2].astype(np.int32)
        pairs.append(Pairs(first, first + 1, len(first), 0))
    settings = DDLSettings(b=B, hard=("abs(yaw) > 5",))
    return PairSampler(labels, Partition(tuple(parts)), pairs, settings, devices=devices, seed=1, **options)


def shaped(positions, devices=1):
    return positions.reshape(devices, 2, 3, B)


def changed(sampler, step, row, generator):
    """The batch after a change of `row`, and the rows that changed with it."""
    sampled = sampler.batch(step)
    before = sampled.positions.copy()
    rows, positions = sampler.spare(step, sampled, row, generator)
    assert np.array_equal(sampled.positions, before)
    assert rows.shape == positions.shape and row in rows
    after = before.copy()
    after[rows] = positions
    return before, after, rows


@pytest.mark.parametrize("row", range(6 * B))
def test_a_row_keeps_its_part(row):
    sampler = pair_sampler(9, hard_from=3)
    for step in range(5):
        before, after, rows = changed(sampler, step, row, rng(step))
        part = row % (3 * B) // B
        assert len(rows) == (1 if part == 2 else 2)
        assert (before[rows] != after[rows]).all()
        first, second, singles = shaped(after)[0].swapaxes(0, 1)
        assert np.array_equal(second, first + 1)  # pairs
        for one in (first, singles // 2):
            assert all(len(np.unique(own)) == B for own in one)
        assert (after[3 * B :] >= 6).all()  # still hard ones


def test_the_last_that_is_free_is_found():
    # Five identities and pairs, of which the block has four.
    sampler = pair_sampler(5)
    for seed in range(10):
        for row in (0, B, 2 * B):
            before, after, rows = changed(sampler, 0, row, rng(seed))
            part = shaped(before)[0, 0]
            taken = part[0] // 2 if row < 2 * B else part[2] // 2
            assert set(after[rows] // 2) == set(range(5)) - set(taken.tolist())


def test_nothing_is_free():
    sampler = pair_sampler(4)
    for row in range(6 * B):
        assert sampler.spare(0, sampler.batch(0), row, rng()) is None


def test_every_free_identity_and_image_may_come():
    sampler = pair_sampler(7)
    drawn = {int(changed(sampler, 0, 2 * B, rng(seed))[1][2 * B]) for seed in range(100)}
    taken = set((shaped(sampler.batch(0).positions)[0, 0, 2] // 2).tolist())
    assert drawn == {i for i in range(14) if i // 2 not in taken}


def test_together_the_devices_do_not_share():
    # Nine identities and pairs, of which the two devices' blocks have eight.
    together = pair_sampler(9, devices=2, together=True)
    for row in (0, B, 2 * B, 6 * B + 2 * B):
        before, after, rows = changed(together, 3, row, rng(row))
        number = row % (6 * B) // (3 * B)
        parts = shaped(before, 2)[:, number]
        taken = parts[:, 2] if row % (3 * B) >= 2 * B else parts[:, 0]
        assert not set((after[rows] // 2).tolist()) & set((taken.ravel() // 2).tolist())
        assert len(np.unique(taken // 2)) == 2 * B


def test_a_share_offers_what_the_whole_does():
    whole = pair_sampler(30, devices=4)
    share = Share(whole, 1, 2)
    for row in (0, 3 * B - 1, 6 * B + 1):
        rows, positions = share.spare(5, share.batch(5), row, rng(row))
        of_whole = whole.spare(5, whole.batch(5), share.first_row + row, rng(row))
        assert np.array_equal(rows + share.first_row, of_whole[0]) and np.array_equal(positions, of_whole[1])


def test_a_share_knows_its_own_changes():
    whole = pair_sampler(9, devices=2, together=True)  # one identity is free
    share = Share(whole, 1, 2)
    sampled = share.batch(0)
    rows, positions = share.spare(0, sampled, 2 * B, rng())
    after = sampled.positions.copy()
    after[rows] = positions
    given_up = sampled.positions[2 * B] // 2
    rows, positions = share.spare(0, SampledBatch(after, sampled.distribution), 2 * B + 1, rng())
    assert (positions // 2).tolist() == [given_up]  # the only one that is free now


def test_images():
    sampler = ImageSampler(np.arange(100, 109), 4, devices=2)
    for row in range(8):
        before, after, rows = changed(sampler, 0, row, rng(row))
        assert rows.tolist() == [row] and 100 <= after[row] < 109
        own = slice(0, 4) if row < 4 else slice(4, 8)
        assert after[row] not in before[own]
    full = ImageSampler(np.arange(4), 4)
    assert full.spare(0, full.batch(0), 2, rng()) is None
