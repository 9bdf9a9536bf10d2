"""Fairness of sampling, from labels to batches: who is drawn how often over an epoch, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from ddl_plugin.data.attributes import AttributeTable
from ddl_plugin.data.pairs import build_pairs
from ddl_plugin.data.partition import build_partition
from ddl_plugin.data.sampler import PairSampler, Share
from ddl_plugin.errors import UserError
from ddl_plugin.settings import DDLSettings

B = 4


class FakeRecords:
    path = Path("train.rec")

    def __init__(self, labels):
        self.labels = np.asarray(labels, np.int32)
        self.keys = np.arange(1, len(labels) + 1)

    def __len__(self):
        return len(self.labels)

    def image(self, i):
        image = np.zeros((112, 112, 3), np.uint8)
        image[0, 0] = i // 256, i % 256, 7
        return image


class Data:
    """Identities of 1 to 40 images; odd yaws are easy, high ones hard. Some pairs fall below 0."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        sizes = np.concatenate([[40, 25], rng.integers(1, 7, 33)])
        self.records = FakeRecords(np.repeat(np.arange(100, 100 + len(sizes)), sizes))
        self.yaw = rng.integers(0, 40, len(self.records)).astype(float)
        # The first image of the last identities alone is easy.
        for identity in range(125, 100 + len(sizes)):
            own = np.flatnonzero(self.records.labels == identity)
            self.yaw[own] = 30
            self.yaw[own[0]] = 1
        self.settings = DDLSettings(b=B, easy="yaw < 20", hard=("yaw >= 15",))
        table = AttributeTable(self.records.keys, {"yaw": self.yaw})
        self.partition = build_partition(self.records, self.settings, table)
        vectors = rng.normal(size=(len(self.records), 3)).astype(np.float32)

        def embed(images):
            return vectors[images[:, 0, 0, 0].astype(int) * 256 + images[:, 0, 0, 1]]

        self.pairs = build_pairs(self.records, self.partition, embed, max_pairs_per_identity=15, seed=seed)

    def sampler(self, **options):
        return PairSampler(self.records.labels, self.partition, self.pairs, self.settings, **options)


DATA = Data()


def drawn(sampler, k, steps):
    """(pairs (n, 2), singles (n,)) of distribution k in the order of these steps, over all devices."""
    pairs, singles = [], []
    for step in steps:
        blocks = sampler.batch(step).positions.reshape(-1, 2, 3, B)  # device, distribution, part, row
        for block in blocks:
            pairs.append(block[k, :2].T)
            singles.append(block[k, 2])
    return np.concatenate(pairs), np.concatenate(singles)


def counts(values, everything):
    """How often each of `everything` occurs among `values`, and that nothing else does."""
    found, number = np.unique(values, return_counts=True)
    assert np.isin(found, everything).all()
    result = np.zeros(len(everything), int)
    result[np.searchsorted(everything, found)] = number
    return result


WAYS = [{}, {"devices": 3}, {"devices": 3, "together": True}, {"seed": 5}]


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize("k", [0, 1])
def test_over_an_epoch_identities_are_singles_equally_often(options, k):
    sampler = DATA.sampler(**options)
    labels = DATA.records.labels
    identities = np.unique(labels[DATA.partition.distributions[k].positions])
    _, singles = drawn(sampler, k, range(2 * sampler.steps_per_epoch))
    per_epoch = len(singles) // 2
    for length in (per_epoch, 2 * per_epoch, B * 7 * sampler.devices):
        own = counts(labels[singles[:length]], identities)
        assert own.max() - own.min() <= 1
    assert counts(labels[singles[:per_epoch]], identities).min() >= 1


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize("k", [0, 1])
def test_over_an_epoch_each_pair_comes_once_before_any_comes_again(options, k):
    sampler = DATA.sampler(**options)
    own = DATA.pairs[k]
    everything = np.sort(own.first.astype(np.int64) * len(DATA.records) + own.second)
    assert len(np.unique(everything)) == len(everything)
    pairs, _ = drawn(sampler, k, range(sampler.steps_per_epoch))
    number = counts(pairs[:, 0] * len(DATA.records) + pairs[:, 1], everything)
    assert number.min() >= 1
    assert number.max() - number.min() <= 1
    first_pass = pairs[: len(everything)]
    assert len(np.unique(first_pass, axis=0)) == len(everything)


def test_the_longest_of_the_passes_is_the_epoch():
    sampler = DATA.sampler()
    longest = max(len(own.first) for own in DATA.pairs)
    assert B * (sampler.steps_per_epoch - 1) < longest <= B * sampler.steps_per_epoch


def test_identities_with_one_easy_image_are_singles_and_never_pairs():
    positions = DATA.partition.distributions[0].positions
    identities, sizes = np.unique(DATA.records.labels[positions], return_counts=True)
    alone = identities[sizes == 1]
    assert len(alone) >= 10
    sampler = DATA.sampler()
    pairs, singles = drawn(sampler, 0, range(sampler.steps_per_epoch))
    own = counts(DATA.records.labels[singles], identities)
    assert own[sizes == 1].min() >= own.max() - 1
    assert not np.isin(DATA.records.labels[pairs], alone).any()


def test_identities_whose_pairs_were_all_dropped_are_singles():
    labels = DATA.records.labels
    for k, distribution in enumerate(DATA.partition.distributions):
        several = [i for i in np.unique(labels[distribution.positions])
                   if (labels[distribution.positions] == i).sum() > 1]  # fmt: skip
        emptied = np.setdiff1d(several, labels[DATA.pairs[k].first])
        assert len(emptied) == DATA.pairs[k].emptied
        if k == 1:
            assert len(emptied) > 0
        sampler = DATA.sampler()
        _, singles = drawn(sampler, k, range(sampler.steps_per_epoch))
        assert np.isin(emptied, labels[singles]).all()


def test_a_large_identity_is_no_more_often_a_single_than_a_small_one():
    """40 images of one identity: each of them is drawn less, the identity as often as any."""
    sampler = DATA.sampler()
    _, singles = drawn(sampler, 0, range(6 * sampler.steps_per_epoch))
    own = singles[DATA.records.labels[singles] == 100]
    images = np.flatnonzero((DATA.records.labels == 100) & (DATA.yaw < 20))
    number = counts(own, images)
    assert number.max() - number.min() <= 1


def test_a_large_identity_has_no_more_pairs_than_the_bound():
    for own in DATA.pairs:
        number = np.unique(DATA.records.labels[own.first], return_counts=True)[1]
        assert number.max() <= 15
        # Up to the bound an identity has what it has: 15 candidates, of which some are below 0.
        assert DATA.records.labels[own.first].tolist().count(100) >= 5


@pytest.mark.parametrize("workers", [2, 4])
def test_machines_together_are_as_fair_as_one(workers):
    whole = DATA.sampler(devices=workers)
    shares = [Share(DATA.sampler(devices=workers), rank, workers) for rank in range(workers)]
    labels = DATA.records.labels
    identities = np.unique(labels[DATA.partition.distributions[1].positions])
    singles = []
    for step in range(whole.steps_per_epoch):
        for share in shares:
            singles.append(share.batch(step).positions.reshape(2, 3, B)[1, 2])
    own = counts(labels[np.concatenate(singles)], identities)
    assert own.max() - own.min() <= 1


def small(identities, images=2):
    """`identities` hard ones, of `images` images each, among 20 easy ones."""
    records = FakeRecords(np.repeat(np.arange(20), 4))
    hard = (records.labels < identities) & (np.arange(len(records)) % 4 < images)
    return records, AttributeTable(records.keys, {"yaw": np.where(hard, 60.0, 0.0)})


RULES = {"easy": "yaw < 10", "hard": ("yaw > 45",)}


def test_a_hard_set_too_small_for_b_is_refused_with_the_numbers():
    records, table = small(5)
    with pytest.raises(
        UserError,
        match=r"ddl: hard \(yaw > 45\): too few identities for b: expected at least b = 6 .*got 5 \(10 images\); "
        r"lower ddl.b or widen the rule",
    ):
        build_partition(records, DDLSettings(b=6, **RULES), table)
    assert len(build_partition(records, DDLSettings(b=5, **RULES), table).distributions) == 2


def test_a_hard_set_without_two_images_of_anyone_is_refused_with_the_numbers():
    records, table = small(5, images=1)
    with pytest.raises(
        UserError, match=r"ddl: hard .* two images or more .*got one image of each of its 5 identities; widen"
    ):
        build_partition(records, DDLSettings(b=5, **RULES), table)


@pytest.mark.parametrize("together", [False, True])
def test_a_hard_set_too_small_for_all_devices_together_is_refused_with_the_numbers(together):
    records, table = small(5)
    settings = DDLSettings(b=3, **RULES)
    partition = build_partition(records, settings, table)
    pairs = build_pairs(records, partition, lambda images: np.ones((len(images), 2), np.float32))

    def sampler():
        return PairSampler(records.labels, partition, pairs, settings, devices=2, together=together)

    if not together:
        assert len(sampler().batch(0).positions) == 2 * settings.rows
        return
    with pytest.raises(
        UserError, match=r"ddl: hard .*at least b = 3 on 2 devices, 6 positive pairs, got 5; lower"
    ):
        sampler()
