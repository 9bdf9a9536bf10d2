"""Frames of damaged .rec files: what is read of them, and that nothing in one raises or takes for ever."""

import struct
import time

import numpy as np
import pytest

from ddl_plugin.data.records import MAGIC, header_record, image_record, range_record
from ddl_plugin.errors import UserError
from ddl_plugin.ingest.frames import BAD_PARTS, CUT, NO_MAGIC, OK, SHORT, FrameFile, read_index

MAGIC_BYTES = struct.pack("<I", MAGIC)


def frame(part, content):
    return struct.pack("<II", MAGIC, part << 29 | len(content)) + content + bytes(-len(content) % 4)


def content(flag, label, more=(), image=b""):
    return struct.pack("<IfQQ", flag, label, 0, 0) + np.array(more, "<f4").tobytes() + image


def opened(tmp_path, *pieces):
    """A file of these pieces, and their offsets."""
    (tmp_path / "x.rec").write_bytes(b"".join(pieces))
    return FrameFile(tmp_path / "x.rec"), np.cumsum([0, *map(len, pieces[:-1])])


def test_heads_of_whole_records(tmp_path):
    pieces = [
        header_record(2, 1),
        image_record(1, 7, b"abcde"),
        frame(0, content(1, 0.5, [9], b"x")),
        frame(0, content(3, 0.5, [4, 5, 6], b"image")),
        range_record(3, 1, 3),
    ]
    file, offsets = opened(tmp_path, *pieces)
    heads = file.heads(offsets)
    assert heads["state"].tolist() == [OK] * 5
    assert heads["end"].tolist() == [*offsets[1:].tolist(), file.size]
    assert heads["length"].tolist() == [32, 29, 29, 41, 32]
    assert heads["flag"].tolist() == [2, 0, 1, 3, 2]
    assert heads["label"].tolist() == [0, 7, 0.5, 0.5, 0]
    expected = [[3, 4], [np.nan, np.nan], [9, np.nan], [4, 5], [1, 3]]
    assert np.array_equal(heads["more"], np.float32(expected), equal_nan=True)
    assert [file.image(offset) for offset in offsets.tolist()] == [
        None,
        (7, b"abcde"),
        (9, b"x"),
        (4, b"image"),
        None,
    ]
    assert file.scan(0, file.size).tolist() == offsets.tolist()


def test_records_in_parts(tmp_path):
    image = b"abcd" + MAGIC_BYTES + b"ef" + MAGIC_BYTES + MAGIC_BYTES
    file, offsets = opened(tmp_path, image_record(1, 2, image), image_record(2, 3, b"next"))
    heads = file.heads(offsets)
    assert heads["state"].tolist() == [OK, OK]
    assert heads["length"].tolist() == [24 + len(image), 28]
    assert heads["end"].tolist() == [offsets[1], file.size]
    assert heads["label"].tolist() == [2, 3]
    assert file.image(0) == (2, image)
    assert file.scan(0, file.size).tolist() == offsets.tolist()


def test_a_header_that_lies_across_parts(tmp_path):
    first = struct.pack("<If", 0, 5.0)
    file, _ = opened(tmp_path, frame(1, first), frame(3, bytes(12) + b"image"))
    (head,) = file.heads(np.array([0]))
    assert head["state"] == OK and head["label"] == 5 and head["length"] == 8 + 4 + 17
    assert file.image(0) == (5, b"image")


@pytest.mark.parametrize(
    ("piece", "state"),
    [
        (b"\0" * 40, NO_MAGIC),
        (frame(0, b"short"), SHORT),
        (frame(0, b""), SHORT),
        (frame(0, content(9, 0.0, [1])), SHORT),
        (frame(0, struct.pack("<IfQQ", 2**32 - 1, 0, 0, 0)), SHORT),
        (struct.pack("<II", MAGIC, 4000) + content(0, 1), CUT),
        (struct.pack("<II", MAGIC, (1 << 29) - 1), CUT),
        (MAGIC_BYTES, CUT),
        (frame(2, content(0, 1, image=b"x")), BAD_PARTS),
        (frame(3, content(0, 1, image=b"x")), BAD_PARTS),
        (frame(5, content(0, 1, image=b"x")), BAD_PARTS),
        (frame(1, content(0, 1, image=b"x")), BAD_PARTS),  # no part follows
        (frame(1, content(0, 1)) + frame(0, content(0, 1)), BAD_PARTS),
        (frame(1, content(0, 1)) + frame(2, b"") * 100 + frame(3, b"x"), BAD_PARTS),  # too many parts
    ],
)
def test_heads_of_broken_records(tmp_path, piece, state):
    file, offsets = opened(tmp_path, image_record(1, 1, b"good"), piece)
    assert file.heads(offsets)["state"].tolist() == [OK, state]
    if state != NO_MAGIC:
        assert file.image(int(offsets[1])) is None


def test_offsets_that_point_anywhere(tmp_path):
    file, _ = opened(tmp_path, image_record(1, 1, b"good"))
    offsets = np.array([2, file.size - 4, file.size, 10**17])
    assert (file.heads(offsets)["state"] == NO_MAGIC).all()
    assert [file.image(offset) for offset in offsets.tolist()] == [None] * 4


def test_scanning_finds_records_between_rubbish(tmp_path):
    record = image_record(1, 1, b"image!")
    pieces = [b"\1" * 12, record, MAGIC_BYTES + b"\xff" * 8, record, struct.pack("<II", MAGIC, 2000), record]
    file, offsets = opened(tmp_path, *pieces)
    found = file.scan(0, file.size)
    assert set(offsets[[1, 3, 5]]) <= set(found.tolist())
    whole = found[file.heads(found)["state"] == OK]
    assert whole.tolist() == offsets[[1, 3, 5]].tolist()
    assert file.scan(int(offsets[2]), int(offsets[4])).tolist() == [offsets[3]]


@pytest.mark.parametrize("gap", [(1 << 20) - 8, (1 << 20) - 4, 1 << 20, 3 << 20])
def test_records_far_apart_are_found(tmp_path, gap):
    """About the ends of the blocks in which the file is read."""
    record = image_record(1, 1, b"image!")
    file, offsets = opened(tmp_path, record, b"\0" * (gap - len(record)), record, b"\0" * 5000, record)
    assert file.scan(0, file.size).tolist() == offsets[[0, 2, 4]].tolist()


def test_records_begin_at_multiples_of_four(tmp_path):
    record = image_record(1, 1, b"image!")
    file, offsets = opened(tmp_path, b"\0" * 6, record, b"\0" * 2, record)
    assert file.scan(0, file.size).tolist() == [offsets[3]]


@pytest.mark.parametrize("piece", [MAGIC_BYTES, struct.pack("<II", MAGIC, 1 << 29), b"\0" * 8])
def test_scanning_takes_time_in_proportion(tmp_path, piece):
    """A megabyte of nothing but the magic, or of parts that never end."""
    file, _ = opened(tmp_path, piece * ((1 << 20) // len(piece)))
    start = time.process_time()
    file.scan(0, file.size)
    assert time.process_time() - start < 20


def test_a_file_that_is_cut_while_it_is_read(tmp_path):
    file, offsets = opened(tmp_path, image_record(1, 1, b"good"), image_record(2, 1, b"gone"))
    with (tmp_path / "x.rec").open("r+b") as other:
        other.truncate(20)
    assert file.image(int(offsets[0])) is None and file.image(int(offsets[1])) is None
    assert file.heads(offsets)["state"].tolist()[1] == NO_MAGIC


def test_index_lines(tmp_path):
    (tmp_path / "x.idx").write_bytes(b"0\t0\n2\t40\n1\t100\n")
    index = read_index(tmp_path / "x.idx")
    assert index.keys.tolist() == [0, 2, 1] and index.offsets.tolist() == [0, 40, 100]
    assert (index.bad_lines, index.first_bad_line) == (0, 0)


def test_index_lines_that_are_none(tmp_path):
    lines = [b"0\t0", b"", b" 1  40 \r", b"x", b"2\t-8", b"3\t1\t2", b"4\t99999999999999999999", b"5\t48"]
    (tmp_path / "x.idx").write_bytes(b"\n".join(lines))
    index = read_index(tmp_path / "x.idx")
    assert index.keys.tolist() == [0, 1, 5] and index.offsets.tolist() == [0, 40, 48]
    assert (index.bad_lines, index.first_bad_line) == (4, 4)


def test_a_long_index_and_one_without_lines(tmp_path):
    count = 200_000  # a few of the reader's blocks
    text = "".join(f"{i}\t{8 * i}\n" for i in range(count))
    (tmp_path / "x.idx").write_text(text + "bad\n")
    index = read_index(tmp_path / "x.idx")
    assert np.array_equal(index.keys, np.arange(count)) and np.array_equal(
        index.offsets, 8 * np.arange(count)
    )
    assert (index.bad_lines, index.first_bad_line) == (1, count + 1)
    (tmp_path / "x.idx").write_bytes(b"\0" * 5_000_000)
    assert len(read_index(tmp_path / "x.idx").keys) == 0
    with pytest.raises(UserError, match=r"none\.idx: cannot be read"):
        read_index(tmp_path / "none.idx")
