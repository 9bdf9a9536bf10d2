"""Counts of sets against plain loops, and the table that gives the same sets again."""

import json

import numpy as np
import pytest

from ddl_plugin.analysis.partition_report import save_partition, set_counts, shared_counts
from ddl_plugin.data.attributes import AttributeTable
from ddl_plugin.data.partition import build_partition
from ddl_plugin.settings import DDLSettings


class FakeRecords:
    def __init__(self, labels):
        self.labels = np.asarray(labels, np.int32)
        self.keys = np.arange(1, len(labels) + 1) * 2  # not position + 1

    def __len__(self):
        return len(self.labels)


RNG = np.random.default_rng(0)
RECORDS = FakeRecords(RNG.permutation(np.repeat(np.arange(10, 40), RNG.integers(1, 9, 30))))
TABLE = AttributeTable(RECORDS.keys, {"yaw": RNG.integers(-60, 60, len(RECORDS)).astype(float)})
SETTINGS = DDLSettings(b=2, easy="abs(yaw) < 20", hard=("abs(yaw) > 40", "yaw > 10", {"size": 14}))
PARTITION = build_partition(RECORDS, SETTINGS, TABLE)


def test_counts_of_a_set_are_those_of_a_loop():
    for row, distribution in zip(set_counts(RECORDS, PARTITION), PARTITION.distributions, strict=True):
        sizes = {}
        for position in distribution.positions.tolist():
            label = int(RECORDS.labels[position])
            sizes[label] = sizes.get(label, 0) + 1
        values = list(sizes.values())
        assert row["images"] == sum(values)
        assert row["identities"] == len(values)
        assert row["with_one_image"] == values.count(1)
        assert row["images_per_identity"] == {"median": float(np.median(values)), "most": max(values)}
        assert row["possible_pairs"] == sum(n * (n - 1) // 2 for n in values)
        assert (row["name"], row["label"]) == (distribution.name, distribution.label)


def test_large_identities_do_not_overflow():
    records = FakeRecords(np.repeat([0, 1, 2], [100_000, 90_000, 2]))
    partition = build_partition(records, DDLSettings(b=2, hard=({"size": 14},)), None)
    assert (
        set_counts(records, partition)[0]["possible_pairs"]
        == 100_000 * 99_999 // 2 + 90_000 * 89_999 // 2 + 1
    )


def test_what_is_in_none_and_in_several_is_counted():
    rules = {
        "easy": lambda yaw: abs(yaw) < 20,
        "hard1": lambda yaw: abs(yaw) > 40,
        "hard2": lambda yaw: yaw > 10,
        "hard3": lambda yaw: abs(yaw) < 20,  # the easy ones, degraded
    }
    expected = {}
    for yaw, label in zip(TABLE.columns["yaw"], RECORDS.labels.tolist(), strict=True):
        sets = tuple(name for name, rule in rules.items() if rule(yaw))
        expected.setdefault(sets, []).append(label)
    found = {tuple(row["sets"]): row for row in shared_counts(RECORDS, PARTITION)}
    assert set(found) == {sets for sets in expected if len(sets) != 1}
    assert {(), ("easy", "hard3"), ("hard1", "hard2"), ("easy", "hard2", "hard3")} == set(found)
    for sets, row in found.items():
        assert (row["images"], row["identities"]) == (len(expected[sets]), len(set(expected[sets])))


def test_nothing_in_no_set_is_said_too():
    partition = build_partition(RECORDS, DDLSettings(b=2, hard=({"size": 14},)), None)
    rows = shared_counts(RECORDS, partition)
    assert rows[0] == {"sets": [], "images": 0, "identities": 0}
    assert rows[1]["sets"] == ["easy", "hard"]


@pytest.mark.parametrize("name", ["partition.npz"])
def test_the_table_gives_the_same_sets_again(tmp_path, name):
    path = tmp_path / "new" / name
    save_partition(path, RECORDS, PARTITION, {"seed": 3})
    first = path.read_bytes()
    save_partition(path, RECORDS, PARTITION, {"seed": 3})
    assert path.read_bytes() == first
    with np.load(path) as file:
        assert json.loads(str(file["provenance"])) == {"seed": 3}
    table = AttributeTable.load(path)
    rules = DDLSettings(b=2, easy="easy", hard=("hard1", "hard2", {"rule": "hard3", "size": 14}))
    again = build_partition(RECORDS, rules, table)
    for old, new in zip(PARTITION.distributions, again.distributions, strict=True):
        assert np.array_equal(old.positions, new.positions)
