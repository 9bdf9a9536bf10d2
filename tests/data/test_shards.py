"""Shares of work: they cover the whole once, and files that are missing are named."""

import itertools
from pathlib import Path

import pytest

from ddl_plugin.data.shards import parse_shard, shard_path, shard_paths, shard_range
from ddl_plugin.errors import UserError


@pytest.mark.parametrize(("text", "expected"), [("0/1", (0, 1)), ("3/4", (3, 4)), (" 11/12 ", (11, 12))])
def test_a_share_is_i_of_n(text, expected):
    assert parse_shard(text) == expected


@pytest.mark.parametrize("text", ["4/4", "0/0", "-1/4", "1", "1/2/3", "a/b", "", "1.0/2", "0/1000001", "٣/٤"])
def test_other_texts_are_refused(text):
    with pytest.raises(UserError, match=r"--shard: expected i/n with i from 0 to n - 1, .* got "):
        parse_shard(text)


@pytest.mark.parametrize("count", [0, 1, 3, 10, 11, 5_800_001])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 16])
def test_shares_cover_the_whole_once_and_evenly(count, n):
    ranges = [shard_range(count, i, n) for i in range(n)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == count
    assert all(one[1] == other[0] for one, other in itertools.pairwise(ranges))
    sizes = [end - begin for begin, end in ranges]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("a/pose.npz", "a/pose.2-of-16.npz"),
        ("v1.2/pose.v3.csv", "v1.2/pose.v3.2-of-16.csv"),
        ("pose", "pose.2-of-16"),
    ],
)
def test_the_number_stands_before_the_suffix(output, expected):
    assert shard_path(output, 2, 16) == Path(expected)


@pytest.mark.parametrize("name", ["pose.npz", "pose[1].a.npz", "pose"])
def test_all_parts_are_found_in_the_order_of_their_numbers(tmp_path, name):
    output = tmp_path / name
    for i in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9):
        shard_path(output, i, 11).touch()
    # What only looks like a part of it.
    for other in ("xpose.0-of-3.npz", "pose.0-of-3.csv", "pose.0-of-3.npz.part", "pose.x-of-3.npz"):
        (tmp_path / other).touch()
    assert shard_paths(output) == [shard_path(output, i, 11) for i in range(11)]


def test_missing_parts_are_named(tmp_path):
    output = tmp_path / "pose.npz"
    for i in (0, 3):
        shard_path(output, i, 4).touch()
    with pytest.raises(
        UserError, match=r"expected 4 parts of .*pose\.npz, got 2; .* --shard 1/4, 2/4, or copy"
    ):
        shard_paths(output)


def test_no_part_and_parts_of_two_kinds_are_refused(tmp_path):
    output = tmp_path / "pose.npz"
    with pytest.raises(UserError, match=r"--merge: expected the parts pose\.0-of-4\.npz, .*, got none; make"):
        shard_paths(output)
    with pytest.raises(UserError, match="got none"):
        shard_paths(tmp_path / "nowhere" / "pose.npz")
    shard_path(output, 0, 1).touch()
    shard_path(output, 0, 2).touch()
    with pytest.raises(UserError, match="got parts of 1 and of 2; delete those that are not meant"):
        shard_paths(output)
