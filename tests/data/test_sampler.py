"""The sampler's invariants: balance, distinctness, layout, and that a step is a function of the seed alone."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from ddl_plugin.data.pairs import Pairs
from ddl_plugin.data.sampler import ImageSampler, PairSampler, Share, ShuffledPasses
from ddl_plugin.errors import UserError
from ddl_plugin.settings import DDLSettings


def make_labels(identities=23, seed=0):
    """Sorted labels 10, 13, 16, ... with 1 to 6 images each."""
    sizes = np.random.default_rng(seed).integers(1, 7, identities)
    return np.repeat(10 + 3 * np.arange(identities), sizes).astype(np.int32)


def all_pairs(positions, labels):
    """Every pair i < j of `positions` with one label, by a double loop."""
    chosen = [(i, j) for i in positions for j in positions if i < j and labels[i] == labels[j]]
    first, second = np.array(chosen, np.int32).T
    return Pairs(first, second, len(first), 0)


def make_sampler(b=4, devices=1, seed=0, labels=None, together=False):
    """Easy: all images; hard: those at two of three positions. Two distributions."""
    labels = make_labels() if labels is None else labels
    everything = np.arange(len(labels))
    chosen = [everything, everything[everything % 3 > 0]]
    names = ("easy", "hard")
    partition = SimpleNamespace(
        distributions=tuple(
            SimpleNamespace(name=n, label="all", positions=p) for n, p in zip(names, chosen, strict=True)
        )
    )
    pairs = tuple(all_pairs(positions, labels) for positions in chosen)
    settings = DDLSettings(b=b, hard=({"size": (12, 16)},))
    return (
        PairSampler(labels, partition, pairs, settings, devices=devices, seed=seed, together=together),
        labels,
        partition,
        pairs,
    )


def rows_of(sampled, b, k, block=0, distributions=2):
    """(first, second, singles) of distribution k in a block."""
    start = 3 * b * (block * distributions + k)
    return np.split(sampled.positions[start : start + 3 * b], 3)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 8, 9, 12, 13, 16, 31])
def test_blocks_are_distinct_and_every_pass_holds_each_item_once(count):
    for block in range(1, count + 1):
        passes = ShuffledPasses(count, block, (3,))
        taken = [passes.take(i) for i in range(-(-6 * count // block))]
        assert all(len(set(items)) == block for items, _ in taken), (count, block)
        items = np.concatenate([t[0] for t in taken])[: 6 * count].reshape(6, count)
        numbers = np.concatenate([t[1] for t in taken])[: 6 * count].reshape(6, count)
        assert (np.sort(items, axis=1) == np.arange(count)).all()
        assert (numbers == np.arange(6)[:, None]).all()


@pytest.mark.parametrize(("count", "block"), [(50, 7), (13, 8), (16, 8), (5, 5), (9, 4)])
def test_blocks_in_any_order_equal_those_in_sequence(count, block):
    for seed in range(10):
        passes = ShuffledPasses(count, block, (seed, 2))
        expected = [passes.take(i)[0] for i in range(40)]
        again = ShuffledPasses(count, block, (seed, 2))
        for i in np.random.default_rng(0).permutation(40):
            assert np.array_equal(again.take(i)[0], expected[i])


def test_passes_are_shuffled_anew_and_by_key():
    def order(key, number):
        return ShuffledPasses(64, 64, key).take(number)[0].tolist()

    orders = [order((0,), 0), order((0,), 1), order((1,), 0)]
    assert len({tuple(o) for o in orders}) == 3
    assert list(range(64)) not in orders


def test_order_is_computed_once_a_pass(monkeypatch):
    passes = ShuffledPasses(100, 8, (0,))
    calls = []
    shuffled = passes._shuffled
    monkeypatch.setattr(passes, "_shuffled", lambda number: calls.append(number) or shuffled(number))
    for i in range(50):  # exactly four passes
        passes.take(i)
    assert calls == [0, 1, 2, 3]


def test_threads_get_the_blocks_of_one_thread():
    expected = [ShuffledPasses(50, 7, (5,)).take(i)[0] for i in range(200)]
    passes = ShuffledPasses(50, 7, (5,))
    with ThreadPoolExecutor(8) as pool:
        for (items, _), wanted in zip(pool.map(passes.take, range(200)), expected, strict=True):
            assert np.array_equal(items, wanted)


def test_every_item_is_as_likely_at_every_place_as_any_other():
    # The repair of blocks that straddle two passes must not favour items: 3000 orders of a pass after one.
    counts = np.zeros((9, 9))
    for seed in range(3000):
        passes = ShuffledPasses(9, 4, (seed,))
        items = np.concatenate([passes.take(i)[0] for i in range(5)])[9:18]
        counts[np.arange(9), items] += 1
    assert np.abs(counts / 3000 - 1 / 9).max() < 0.03  # five standard deviations


def test_layout_and_identities():
    b = 4
    sampler, labels, partition, pairs = make_sampler(b)
    sampled = sampler.batch(0)
    assert sampler.rows == 3 * b * 2 == len(sampled.positions)
    assert sampled.positions.dtype == np.int64
    assert sampled.distribution.dtype == np.int16
    assert sampled.distribution.tolist() == [0] * 3 * b + [1] * 3 * b
    for step in range(60):
        sampled = sampler.batch(step)
        for k in range(2):
            first, second, singles = rows_of(sampled, b, k)
            known = set(zip(pairs[k].first.tolist(), pairs[k].second.tolist(), strict=True))
            got = set(zip(first.tolist(), second.tolist(), strict=True))
            assert got <= known
            assert len(got) == b
            assert (labels[first] == labels[second]).all()
            assert len(set(labels[singles])) == b
            assert np.isin(singles, partition.distributions[k].positions).all()


def test_every_pair_once_a_pass():
    b = 4
    sampler, _, _, pairs = make_sampler(b)
    for k in range(2):
        count = len(pairs[k].first)
        steps = [rows_of(sampler.batch(s), b, k) for s in range(-(-3 * count // b))]
        drawn = np.stack([np.concatenate([s[i] for s in steps]) for i in (0, 1)])[:, : 3 * count]
        expected = sorted(zip(pairs[k].first.tolist(), pairs[k].second.tolist(), strict=True))
        for number in range(3):
            part = drawn[:, number * count : (number + 1) * count]
            assert sorted(zip(*part.tolist(), strict=True)) == expected


def test_singles_are_even_over_identities_and_over_their_images():
    b, passes = 4, 60
    sampler, labels, partition, _ = make_sampler(b)
    for k in range(2):
        positions = partition.distributions[k].positions
        identities, sizes = np.unique(labels[positions], return_counts=True)
        steps = -(-passes * len(identities) // b)
        singles = np.concatenate([rows_of(sampler.batch(s), b, k)[2] for s in range(steps)])
        singles = singles[: passes * len(identities)]
        drawn = np.array([(labels[singles] == identity).sum() for identity in identities])
        assert (drawn == passes).all()
        per_image = np.array([(singles == position).sum() for position in positions])
        expected = passes / np.repeat(sizes, sizes)
        assert (np.abs(per_image - expected) < 1).all()  # 60 is a multiple of every size: all but equal


def test_unsorted_labels():
    labels = np.random.default_rng(0).permutation(make_labels())
    sampler, *_ = make_sampler(4, labels=labels)
    for step in range(30):
        for k in range(2):
            first, second, singles = rows_of(sampler.batch(step), 4, k)
            assert (labels[first] == labels[second]).all()
            assert len(set(labels[singles])) == 4


def test_step_is_a_pure_function_of_seed_and_step():
    sequential = [make_sampler(4, seed=7)[0].batch(step).positions for step in (0, 25, 3)]
    one = make_sampler(4, seed=7)[0]
    for step in range(30):
        one.batch(step)
    for step, expected in zip((0, 25, 3), sequential, strict=True):
        assert np.array_equal(one.batch(step).positions, expected)
    assert not np.array_equal(make_sampler(4, seed=8)[0].batch(0).positions, sequential[0])


def test_distributions_have_streams_of_their_own():
    labels = make_labels()
    same = np.arange(len(labels))
    partition = SimpleNamespace(
        distributions=tuple(SimpleNamespace(name=n, label="all", positions=same) for n in ("easy", "hard"))
    )
    pairs = all_pairs(same, labels)
    sampler = PairSampler(labels, partition, (pairs, pairs), DDLSettings(b=8, hard=({"size": 14},)))
    easy, hard = np.split(sampler.batch(0).positions, 2)
    assert not np.array_equal(easy[:8], hard[:8])  # first images
    assert not np.array_equal(labels[easy[16:]], labels[hard[16:]])  # identities of the singles


@pytest.mark.parametrize("devices", [2, 3])
def test_devices_take_consecutive_blocks(devices):
    one, *_ = make_sampler(4)
    several, *_ = make_sampler(4, devices=devices)
    assert several.rows == devices * one.rows
    for step in range(20):
        blocks = [one.batch(step * devices + d) for d in range(devices)]
        sampled = several.batch(step)
        assert np.array_equal(sampled.positions, np.concatenate([block.positions for block in blocks]))
        assert np.array_equal(sampled.distribution, np.concatenate([block.distribution for block in blocks]))


def test_steps_per_epoch_cover_the_longest_pass():
    sampler, _, partition, pairs = make_sampler(4, devices=3)
    longest = max(len(p.first) for p in pairs)
    assert longest > 23  # identities
    assert 12 * (sampler.steps_per_epoch - 1) < longest <= 12 * sampler.steps_per_epoch

    # More identities than pairs: 20 identities, of which only the first has pairs.
    labels = np.concatenate([[0] * 3, np.arange(1, 20)]).astype(np.int32)
    positions = np.arange(len(labels))
    for distribution in partition.distributions:
        distribution.positions = positions
    pairs = all_pairs(positions, labels)
    sampler = PairSampler(labels, partition, (pairs, pairs), DDLSettings(b=3, hard=({"size": 14},)))
    assert sampler.steps_per_epoch == 7


def test_as_many_pairs_and_identities_as_b_is_enough():
    labels = np.repeat(np.arange(4), 2).astype(np.int32)
    positions = np.arange(8)
    partition = SimpleNamespace(
        distributions=tuple(
            SimpleNamespace(name=n, label="all", positions=positions) for n in ("easy", "hard")
        )
    )
    pairs = all_pairs(positions, labels)
    sampler = PairSampler(labels, partition, (pairs, pairs), DDLSettings(b=4, hard=({"size": 14},)))
    assert sampler.steps_per_epoch == 1
    for step in range(5):
        first, _, singles = rows_of(sampler.batch(step), 4, 1)
        assert sorted(labels[first]) == sorted(labels[singles]) == [0, 1, 2, 3]


def test_too_few_identities_or_pairs_for_b():
    labels = np.repeat(np.arange(3), 4).astype(np.int32)
    with pytest.raises(
        UserError, match=r"ddl: easy \(all\): expected at least b = 4 identities, got 3; lower ddl.b"
    ):
        make_sampler(4, labels=labels)
    labels = np.concatenate([[0, 0, 0], np.arange(1, 20)]).astype(np.int32)
    with pytest.raises(UserError, match=r"ddl: easy \(all\): expected at least b = 4 positive pairs, got 3;"):
        make_sampler(4, labels=labels)


def test_pairs_must_match_the_settings():
    _, labels, partition, pairs = make_sampler(4)
    with pytest.raises(ValueError, match="expected 3 distributions"):
        PairSampler(labels, partition, pairs, DDLSettings(b=4, hard=({"size": 14}, {"size": 24})))


def test_images_once_a_pass_in_blocks_of_the_devices():
    positions = np.arange(5, 25)
    sampler = ImageSampler(positions, 3, devices=2, seed=1)
    assert (sampler.rows, sampler.steps_per_epoch) == (6, 4)
    batches = [sampler.batch(step) for step in range(10)]  # three passes
    drawn = np.concatenate([batch.positions for batch in batches]).reshape(3, 20)
    assert (np.sort(drawn, axis=1) == positions).all()
    assert (batches[0].distribution == np.zeros(6, np.int16)).all()
    assert np.array_equal(
        ImageSampler(positions, 3, devices=2, seed=1).batch(7).positions, batches[7].positions
    )


def test_more_rows_than_images():
    with pytest.raises(UserError, match="batch_size: expected at most 5, the number of images, got 6"):
        ImageSampler(np.arange(5), 6)


def test_shares_of_machines_are_the_rows_of_the_whole():
    whole = make_sampler(devices=6, seed=3, b=3)[0]
    one = whole.rows // 6
    shares = [Share(whole, rank, 3) for rank in range(3)]
    for step in (0, 1, 7):
        expected = whole.batch(step)
        drawn = [share.batch(step) for share in shares]
        assert np.array_equal(np.concatenate([d.positions for d in drawn]), expected.positions)
        assert np.array_equal(np.concatenate([d.distribution for d in drawn]), expected.distribution)
    assert [share.first_row for share in shares] == [0, 2 * one, 4 * one]
    assert {share.rows for share in shares} == {2 * one}
    assert {share.steps_per_epoch for share in shares} == {whole.steps_per_epoch}
    for rank, workers in ((3, 3), (-1, 3), (0, 5)):
        with pytest.raises(ValueError, match="expected a share of"):
            Share(whole, rank, workers)


def test_together_no_identity_is_single_twice_in_a_step():
    """A global scope takes singles of different devices for different people."""
    b, devices = 3, 4
    sampler, labels, partition, pairs = make_sampler(b=b, devices=devices, seed=1, together=True)
    repeated = 0
    for step in range(60):
        sampled = sampler.batch(step)
        for k in range(2):
            blocks = [rows_of(sampled, b, k, block) for block in range(devices)]
            singles = np.concatenate([block[2] for block in blocks])
            assert len(set(labels[singles])) == b * devices
            drawn = {(f, s) for first, second, _ in blocks for f, s in zip(first, second, strict=True)}
            assert len(drawn) == b * devices
            assert drawn <= set(zip(pairs[k].first.tolist(), pairs[k].second.tolist(), strict=True))
            assert np.isin(singles, partition.distributions[k].positions).all()
        apart = make_sampler(b=b, devices=devices, seed=1)[0].batch(step)
        singles = np.concatenate([rows_of(apart, b, 0, block)[2] for block in range(devices)])
        repeated += len(set(labels[singles])) < b * devices
    assert repeated > 0  # apart, it does happen


def test_together_asks_for_enough_for_all_devices():
    make_sampler(b=5, devices=6)
    with pytest.raises(UserError, match=r"at least b = 5 on 6 devices, 30 identities, got 23"):
        make_sampler(b=5, devices=6, together=True)
