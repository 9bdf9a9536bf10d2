"""Partition into easy and hard distributions: which records, and what is refused with the numbers."""

from dataclasses import dataclass

import numpy as np
import pytest

from ddl_plugin.data.attributes import AttributeTable
from ddl_plugin.data.partition import build_partition
from ddl_plugin.data.records import Records
from ddl_plugin.errors import UserError
from ddl_plugin.settings import DDLSettings, Degradation


@dataclass
class FakeRecords:
    """What a partition needs of Records: 12 images, keys 1..12, of 4 identities with 3 images each."""

    keys: np.ndarray
    labels: np.ndarray

    def __len__(self):
        return len(self.keys)


@pytest.fixture
def records():
    return FakeRecords(np.arange(1, 13), np.repeat(np.arange(4, dtype=np.int32), 3))


@pytest.fixture
def table():
    # Rows in another order than the records.
    keys = np.arange(12, 0, -1)
    yaw = np.tile([0.0, 5.0, -50.0], 4)[::-1]
    return AttributeTable(keys, {"yaw": yaw, "race": np.repeat(list("dcba"), 3)})


def test_rules(records, table):
    settings = DDLSettings(
        b=2,
        easy="abs(yaw) < 10",
        hard=["abs(yaw) > 45 or yaw == 0", {"rule": "race in ['a', 'c']", "size": 14}],
    )
    partition = build_partition(records, settings, table)
    easy, hard1, hard2 = partition.distributions
    assert easy.positions.tolist() == [0, 1, 3, 4, 6, 7, 9, 10] and easy.positions.dtype == np.int64
    assert hard1.positions.tolist() == [0, 2, 3, 5, 6, 8, 9, 11]
    assert hard2.positions.tolist() == [0, 1, 2, 6, 7, 8]
    assert [d.name for d in partition.distributions] == ["easy", "hard1", "hard2"]
    assert easy.degradation == Degradation() and hard2.degradation == Degradation(size=14)
    assert partition.summary() == [
        {"name": "easy", "label": "abs(yaw) < 10", "images": 8, "identities": 4},
        {"name": "hard1", "label": "abs(yaw) > 45 or yaw == 0", "images": 8, "identities": 4},
        {"name": "hard2", "label": "race in ['a', 'c'], size 14", "images": 6, "identities": 2},
    ]


def test_groups_have_teachers_and_students_of_their_own(records, table):
    groups = [
        {"name": "pose", "easy": "abs(yaw) < 10", "hard": ["abs(yaw) > 45 or yaw == 0"]},
        {"name": "size", "easy": "race in ['a', 'c']", "hard": [{"size": 14}]},
    ]
    partition = build_partition(records, DDLSettings(b=2, groups=groups), table)
    names = [d.name for d in partition.distributions]
    assert names == ["pose_easy", "pose_hard", "size_easy", "size_hard"]
    positions = [d.positions.tolist() for d in partition.distributions]
    assert positions[0] == [0, 1, 3, 4, 6, 7, 9, 10]
    assert positions[2] == positions[3] == [0, 1, 2, 6, 7, 8]
    assert partition.distributions[3].degradation == Degradation(size=14)


def test_online_the_images_are_not_divided(records, table):
    everything = build_partition(records, DDLSettings(online={"identities": 2, "images": 4}))
    assert [d.positions.tolist() for d in everything.distributions] == [list(range(len(records)))]
    some = DDLSettings(online={"identities": 2, "images": 4}, easy="race in ['a', 'c']")
    assert build_partition(records, some, table).distributions[0].positions.tolist() == [0, 1, 2, 6, 7, 8]


def test_a_part_of_the_identities_is_drawn_by_the_seed(records, table):
    everything = build_partition(records, DDLSettings(b=2, easy="abs(yaw) < 10", hard={"blur": 2}), table)
    whole = set(records.labels)
    kept = {}
    for part in (0.25, 0.5, 0.75, 1.0):
        some = everything.of_identities(records.labels, part, seed=3)
        for one, of in zip(some.distributions, everything.distributions, strict=True):
            own = set(records.labels[one.positions])
            assert one.identities == len(own) == round(part * len(whole))
            expected = [i for i in of.positions if records.labels[i] in own]
            assert one.positions.tolist() == expected
        kept[part] = own
    assert kept[0.25] < kept[0.5] < kept[0.75] < kept[1.0] == whole
    others = [everything.of_identities(records.labels, 0.5, seed) for seed in range(10)]
    assert len({tuple(one.distributions[0].positions) for one in others}) > 2


def test_degradation_needs_no_table(records):
    partition = build_partition(records, DDLSettings(b=4, hard={"size": (12, 16)}))
    easy, hard = partition.distributions
    assert easy.positions.tolist() == hard.positions.tolist() == list(range(12))
    assert (easy.name, easy.label, hard.name, hard.label) == ("easy", "all", "hard", "size 12-16")
    assert hard.degradation.size == (12, 16) and not easy.degradation.active


def test_degradation_is_of_the_easy_records(records, table):
    partition = build_partition(records, DDLSettings(b=2, easy="abs(yaw) < 10", hard={"blur": 2}), table)
    assert np.array_equal(partition.distributions[1].positions, partition.distributions[0].positions)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"easy": "abs(yaw) < 10", "hard": {"blur": 2}}, "easy"),
        ({"hard": [{"blur": 2}, "abs(yaw) < 10"]}, "hard2"),
    ],
)
def test_rule_without_a_table(records, settings, name):
    with pytest.raises(
        UserError, match=rf"ddl: {name}: rule 'abs\(yaw\) < 10' needs an attribute table, .*'attributes'"
    ):
        build_partition(records, DDLSettings(b=2, **settings))


@pytest.mark.parametrize(
    ("hard", "message"),
    [
        (
            "abs(yaw) > 90",
            r"ddl: hard: rule 'abs\(yaw\) > 90': expected some of the 12 records, got none: yaw is -50 to 5; widen",
        ),
        ("race == 'e' and yaw > 1", r"got none: race is a, b, c, d; yaw is -50 to 5; widen"),
        ("abs(jaw) > 4", r"ddl: hard: rule 'abs\(jaw\) > 4': .*no column 'jaw'; did you mean 'yaw'\?"),
        ("yaw >", r"ddl: hard: rule 'yaw >': expected an expression"),
    ],
)
def test_rules_that_do_not_work(records, table, hard, message):
    with pytest.raises(UserError, match=message):
        build_partition(records, DDLSettings(b=2, hard=hard), table)


def test_empty_easy_set(records, table):
    with pytest.raises(UserError, match=r"ddl: easy: rule 'yaw > 90': expected some"):
        build_partition(records, DDLSettings(b=2, easy="yaw > 90", hard={"blur": 2}), table)


def test_many_kinds_are_not_all_listed(records):
    table = AttributeTable(records.keys, {"camera": np.array([f"c{i:02}" for i in range(12)])})
    with pytest.raises(UserError, match=r"camera is c00, c01, c02, c03, c04, \.\.\.; widen"):
        build_partition(records, DDLSettings(b=2, hard="camera == 'x'"), table)


def test_table_with_holes(records):
    table = AttributeTable(np.arange(1, 10), {"yaw": np.array([1.0, np.nan, *range(7)])})
    with pytest.raises(
        UserError, match=r"ddl: hard: .*'yaw': .* got no row for 3 of them \(records 10, 11, 12\)"
    ):
        build_partition(records, DDLSettings(b=2, hard="yaw > 3"), table)
    records.keys, records.labels = records.keys[:9], records.labels[:9]
    with pytest.raises(UserError, match=r"'yaw': .* got no value for 1 of them \(record 2\)"):
        build_partition(records, DDLSettings(b=2, hard="yaw > 3"), table)


def test_too_few_identities(records, table):
    message = (
        r"ddl: hard \(race in \['a', 'b'\]\): too few identities for b: expected at least b = 3 of them for the "
        r"singles of a batch, got 2 \(6 images\); lower ddl\.b or widen the rule"
    )
    with pytest.raises(UserError, match=message):
        build_partition(records, DDLSettings(b=3, hard="race in ['a', 'b']"), table)
    with pytest.raises(UserError, match=r"ddl: easy \(all\): too few identities for b: .* b = 5 .* got 4"):
        build_partition(records, DDLSettings(b=5, hard={"blur": 2}), table)
    build_partition(records, DDLSettings(b=4, hard={"blur": 2}), table)


def test_identities_with_one_image_only(records, table):
    with pytest.raises(
        UserError,
        match=r"ddl: hard \(yaw == 5\): expected identities with two images or more .*, got one image of each of its 4",
    ):
        build_partition(records, DDLSettings(b=2, hard="yaw == 5"), table)


def test_real_training_set(shared_data):
    records = Records(shared_data / "lfw112_dev")
    partition = build_partition(records, DDLSettings(b=16, hard=[{"size": (22, 26)}, {"size": (12, 16)}]))
    assert [(row["name"], row["images"], row["identities"]) for row in partition.summary()] == [
        ("easy", 6586, 2623), ("hard1", 6586, 2623), ("hard2", 6586, 2623),
    ]  # fmt: skip
