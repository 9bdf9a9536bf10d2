"""The .rec reader against files written here byte by byte, by MXNet, and by the writer; broken files by message."""

import os
import pickle
import struct
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from ddl_plugin.data.records import MAGIC, Records, RecordWriter
from ddl_plugin.errors import UserError

MAGIC_BYTES = struct.pack("<I", MAGIC)


def header(flag, label, id_=0):
    return struct.pack("<IfQQ", flag, label, id_, 0)


def many(*labels):
    """A record's header with several labels."""
    return header(len(labels), 0.0) + np.array(labels, "<f4").tobytes()


def write_set(folder: Path, records: dict[int, bytes], name="train") -> Path:
    """A .rec and .idx with `records` (number -> content), in the order given."""
    data, lines = b"", []
    for key, record in records.items():
        lines.append(f"{key}\t{len(data)}\n")
        data += struct.pack("<II", MAGIC, len(record)) + record + bytes(-len(record) % 4)
    (folder / f"{name}.rec").write_bytes(data)
    (folder / f"{name}.idx").write_text("".join(lines))
    return folder / f"{name}.rec"


def ranged_set(labels=(5, 5, 7, 2, 2, 2), ranges=((1, 3), (3, 4), (4, 7))) -> dict[int, bytes]:
    """Numbers and contents of an InsightFace set; image i is the text 'image i'."""
    n = len(labels)
    records = {0: many(n + 1, n + 1 + len(ranges))}
    records |= {i: header(0, label, i) + b"image %d" % i for i, label in enumerate(labels, 1)}
    records |= {n + 1 + k: many(*bounds) for k, bounds in enumerate(ranges)}
    return records


def picture(seed, side=16):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def png(pixels):
    return cv2.imencode(".png", pixels[:, :, ::-1])[1].tobytes()


def test_ranges_give_the_labels_of_their_first_images(tmp_path):
    records = Records(write_set(tmp_path, ranged_set()))
    assert len(records) == 6
    assert records.keys.dtype == np.int64 and records.keys.tolist() == [1, 2, 3, 4, 5, 6]
    assert records.labels.dtype == np.int32 and records.labels.tolist() == [5, 5, 7, 2, 2, 2]
    assert records.num_classes == 8
    assert [records.payload(i) for i in range(6)] == [b"image %d" % i for i in range(1, 7)]


def test_only_the_ends_of_ranges_are_read_at_open(tmp_path):
    # The second image of three says another label: a set of millions must open without reading it.
    records = Records(write_set(tmp_path, ranged_set(labels=(5, 9, 5), ranges=((1, 4),))))
    assert records.labels.tolist() == [5, 5, 5] and records.damaged.size == 0
    with pytest.raises(
        UserError, match=r"expected record 2 where train\.idx says, got a record of label 9 instead"
    ):
        records.payload(1)


def test_ranges_may_come_in_any_order_and_be_empty(tmp_path):
    content = ranged_set(ranges=((4, 7), (5, 5), (1, 3), (3, 4)))
    assert Records(write_set(tmp_path, content)).labels.tolist() == [5, 5, 7, 2, 2, 2]


def test_idx_lines_in_any_order(tmp_path):
    path = write_set(tmp_path, ranged_set())
    lines = path.with_suffix(".idx").read_text().splitlines()
    path.with_suffix(".idx").write_text("\r\n".join(reversed(lines)) + "\r\n\r\n")
    records = Records(path)
    assert records.keys.tolist() == [1, 2, 3, 4, 5, 6]
    assert records.payload(2) == b"image 3"


@pytest.mark.parametrize("first", [0, 1, 12])
def test_without_header_record_every_record_is_an_image(tmp_path, first):
    content = {first + i: header(0, label) + b"x%d" % i for i, label in enumerate([3, 0, 3])}
    records = Records(write_set(tmp_path, content))
    assert records.keys.tolist() == [first, first + 1, first + 2]
    assert records.labels.tolist() == [3, 0, 3]
    assert records.payload(1) == b"x1"


def test_label_is_the_first_of_several(tmp_path):
    content = {0: many(4, 9, 9) + b"abc", 1: header(0, 6) + b"de", 2: many(2) + b"f"}
    records = Records(write_set(tmp_path, content))
    assert records.labels.tolist() == [4, 6, 2]
    assert [records.payload(i) for i in range(3)] == [b"abc", b"de", b"f"]


def test_images_are_rgb(tmp_path):
    pixels = [picture(seed) for seed in range(3)]
    content = {i: header(0, i) + png(p) for i, p in enumerate(pixels)}
    records = Records(write_set(tmp_path, content))
    assert np.array_equal(records.image(1), pixels[1])
    assert np.array_equal(records.images(np.array([2, 0])), np.stack([pixels[2], pixels[0]]))


def test_images_of_different_sizes(tmp_path):
    content = {0: header(0, 0) + png(picture(0, 16)), 1: header(0, 0) + png(picture(1, 20))}
    records = Records(write_set(tmp_path, content))
    with pytest.raises(UserError, match=r"one size, got 16x16 in record 0 and 20x20 in record 1"):
        records.images(np.array([0, 1]))


def test_records_with_the_magic_inside_are_joined(tmp_path):
    content = header(0, 1) + b"abcd" + MAGIC_BYTES + b"efg"
    parts = [content[:28], b"efg"]
    data = struct.pack("<II", MAGIC, 1 << 29 | 28) + parts[0]
    data += struct.pack("<II", MAGIC, 3 << 29 | 3) + parts[1] + b"\0"
    (tmp_path / "train.rec").write_bytes(data)
    (tmp_path / "train.idx").write_text("1\t0\n")
    assert Records(tmp_path).payload(0) == b"abcd" + MAGIC_BYTES + b"efg"


def test_pickled_by_path(tmp_path, monkeypatch):
    path = write_set(tmp_path, ranged_set())
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps(Records("train.rec"))
    assert len(pickled) < 1000
    monkeypatch.chdir("/")
    copy = pickle.loads(pickled)
    assert copy.payload(3) == b"image 4" and copy.path == path


def test_threads_and_fork_read_the_same(tmp_path):
    records = Records(write_set(tmp_path, ranged_set()))
    wrong = []

    def read():
        wrong.extend(i for i in list(range(6)) * 50 if records.payload(i) != b"image %d" % (i + 1))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    child = os.fork()
    if child == 0:
        os._exit(0 if records.payload(5) == b"image 6" else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_arrays_are_read_only(tmp_path):
    records = Records(write_set(tmp_path, ranged_set()))
    with pytest.raises(ValueError, match="read-only"):
        records.labels[0] = 3


def test_fingerprint_tells_sets_apart(tmp_path):
    def made(name, **content):
        (tmp_path / name).mkdir()
        return Records(write_set(tmp_path / name, ranged_set(**content))).fingerprint()

    same = made("a")
    assert same == made("b") and same.startswith("train.rec:")
    assert same != made("c", labels=(5, 5, 7, 3, 3, 3))
    assert same != made("d", labels=(5, 5, 7, 2, 2, 2, 2), ranges=((1, 3), (3, 4), (4, 8)))


def test_property_counts_the_classes_of_the_training_set_only(tmp_path):
    for name in ("train", "val"):
        write_set(tmp_path, ranged_set(), name)
    (tmp_path / "property").write_text("20,112,112\n8\nlines of InsightFace's own\n")
    assert Records(tmp_path).num_classes == 20
    assert Records(tmp_path / "val.rec").num_classes == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4,112,112", r"property: expected at least 8 classes, .*reach 7, got 4; correct it"),
        ("many", r"property: expected 'classes,height,width' such as '8,112,112', got 'many'"),
        ("", r"got ''"),
    ],
)
def test_property_that_does_not_fit(tmp_path, text, message):
    write_set(tmp_path, ranged_set())
    (tmp_path / "property").write_text(text)
    with pytest.raises(UserError, match=message):
        Records(tmp_path)


def test_an_unreadable_property(tmp_path, unreadable):
    write_set(tmp_path, ranged_set())
    path = tmp_path / "property"
    path.write_text("8,112,112")
    with unreadable(path), pytest.raises(UserError, match=r"property: cannot be read \(Permission denied\)"):
        Records(tmp_path)


# -- files that are not there or not whole ----------------------------------------------------------


def test_missing_rec(tmp_path):
    with pytest.raises(
        UserError, match=r"none\.rec: expected a \.rec file.*nothing there; give .*'python -m ddl_plugin"
    ):
        Records(tmp_path / "none.rec")
    with pytest.raises(UserError, match=r"train\.rec: expected a \.rec file.*a folder without it"):
        Records(tmp_path)
    write_set(tmp_path, ranged_set(), "val")
    with pytest.raises(UserError, match=r"the folder with val\.rec: name the file"):
        Records(tmp_path)
    with pytest.raises(UserError, match=r"got a file named val\.idx"):
        Records(tmp_path / "val.idx")


def test_missing_idx(tmp_path):
    path = write_set(tmp_path, ranged_set())
    path.with_suffix(".idx").unlink()
    with pytest.raises(UserError, match=r"train\.idx: expected the index of train\.rec.*rec2idx\.py"):
        Records(path)


def test_empty_files(tmp_path):
    path = write_set(tmp_path, ranged_set())
    path.with_suffix(".idx").write_text("\n")
    with pytest.raises(UserError, match=r"train\.idx: expected 'number<TAB>offset' lines, got an empty file"):
        Records(path)
    path.with_suffix(".idx").write_text("0\t0\n")
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"train\.rec: expected records, got an empty file"):
        Records(path)


@pytest.mark.parametrize(
    "line",
    [
        "1",
        "1\t2\t3",
        "a\t2",
        "1\t-4",
        "-1\t4",
        "1\t2.5",
        "1,2",
        "1\t",
        "\t1",
        "1\t99999999999999999999",
        "1\t\xff",
    ],
)
def test_idx_line_that_is_not_two_whole_numbers(tmp_path, line):
    path = write_set(tmp_path, ranged_set())
    lines = path.with_suffix(".idx").read_text().splitlines()
    path.with_suffix(".idx").write_text("\n".join([*lines[:3], line, *lines[4:]]))
    with pytest.raises(
        UserError, match=r"train\.idx: line 4: expected 'number<TAB>offset', two whole numbers"
    ):
        Records(path)


def test_idx_lines_that_are_wrong_in_pairs(tmp_path):
    # Seven and one numbers: eight in all, as four good lines would have.
    path = write_set(tmp_path, ranged_set())
    path.with_suffix(".idx").write_text("0\t0\n1\t40\t2\n88\n")
    with pytest.raises(UserError, match="line 2"):
        Records(path)


def test_idx_with_a_record_twice(tmp_path):
    path = write_set(tmp_path, ranged_set())
    with path.with_suffix(".idx").open("a") as file:
        file.write("3\t0\n")
    with pytest.raises(UserError, match=r"got record 3 more than once"):
        Records(path)


@pytest.mark.parametrize(("kept", "record"), [(-4, 9), (-45, 8), (150, 3), (4, 0)])
def test_truncated_rec(tmp_path, kept, record):
    path = write_set(tmp_path, ranged_set())
    data = path.read_bytes()[:kept]
    path.write_bytes(data)
    with pytest.raises(
        UserError,
        match=rf"train\.rec: truncated: expected all of record {record}, got the end of the file "
        rf"\({len(data)} bytes\) before it; copy or make the file again",
    ):
        Records(path)


def test_truncation_inside_a_record_shows_when_it_is_read(tmp_path):
    path = write_set(tmp_path, {1: header(0, 0) + b"abc", 2: header(0, 1) + b"def"})
    data = bytearray(path.read_bytes())
    data[4:8] = struct.pack("<I", 5000)
    path.write_bytes(data)
    records = Records(path)
    assert records.payload(1) == b"def"
    with pytest.raises(UserError, match=r"truncated: expected all of record 1"):
        records.payload(0)


def test_index_of_another_rec(tmp_path):
    path = write_set(tmp_path, ranged_set())
    text = path.with_suffix(".idx").read_text()
    wrong = text.replace("\n2\t80\n", "\n2\t84\n")
    assert wrong != text
    path.with_suffix(".idx").write_text(wrong)
    with pytest.raises(
        UserError, match=r"expected record 2 where train\.idx says, got 0x.* instead of the magic"
    ):
        Records(path).payload(1)
    path.with_suffix(".idx").write_text(text.replace("\n2\t80\n", "\n2\t78\n"))
    with pytest.raises(UserError, match=r"record 2 where train\.idx says, got offset 78, no multiple of 4"):
        Records(path)


def test_file_that_is_no_recordio(tmp_path):
    path = write_set(tmp_path, ranged_set())
    path.write_bytes(b"PK\3\4" * 100)
    with pytest.raises(
        UserError, match=r"0x04034b50 instead of the magic; the two files do not belong together"
    ):
        Records(path)


def test_record_starting_with_a_continuation(tmp_path):
    content = ranged_set()
    path = write_set(tmp_path, content)
    data = bytearray(path.read_bytes())
    data[44:48] = struct.pack("<I", 3 << 29 | len(content[1]))
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"record 1 where train\.idx says, got part flag 3"):
        Records(path).payload(0)


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (header(0, 1) + b"no image at all", "15 bytes that cannot be decoded"),
        (header(0, 1) + b"\xff\xd8\xff\xe0", "4 bytes that cannot be decoded"),
    ],
)
def test_record_that_is_no_image(tmp_path, content, got):
    records = Records(write_set(tmp_path, {4: header(0, 0) + png(picture(0)), 5: content}))
    records.image(0)
    with pytest.raises(
        UserError, match=rf"train\.rec: record 5 is no image: expected an encoded image, got {got}"
    ):
        records.image(1)


@pytest.mark.parametrize("content", [header(0, 1), many(1, 2)])
def test_record_without_an_image(tmp_path, content):
    message = r"record 2 is no image: expected an encoded image, got nothing after its header"
    with pytest.raises(UserError, match=message):
        Records(write_set(tmp_path, {1: header(0, 0) + b"x", 2: content}))
    # Not the first of its range: seen when it is read.
    records = Records(write_set(tmp_path, ranged_set() | {2: content}))
    with pytest.raises(UserError, match=message):
        records.payload(1)


def test_ranged_set_whose_header_record_is_missing(tmp_path):
    content = ranged_set()
    del content[0]
    with pytest.raises(UserError, match=r"record 7 is no image: .* nothing after its header"):
        Records(write_set(tmp_path, content))


@pytest.mark.parametrize("content", [b"", b"abc"])
def test_record_shorter_than_a_header(tmp_path, content):
    path = write_set(tmp_path, {1: header(0, 0) + b"x", 2: content, 3: header(0, 0) + b"y"})
    with pytest.raises(UserError, match=r"record 2 is no image: .* bytes, less than its header needs"):
        Records(path)


# -- headers that do not fit ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels", [(7,), (1, 3), (7, 7), (7, 3), (float("nan"), 9), (7, float("inf")), (6.5, 9)]
)
def test_header_record_with_wrong_labels(tmp_path, labels):
    content = ranged_set() | {0: many(*labels)}
    with pytest.raises(
        UserError, match=r"expected two labels \(images \+ 1, .*\) in the header record 0, got"
    ):
        Records(write_set(tmp_path, content))


@pytest.mark.parametrize("missing", [3, 8, 9])
def test_record_missing_from_the_idx(tmp_path, missing):
    content = ranged_set()
    del content[missing]
    with pytest.raises(
        UserError, match=rf"train\.idx: expected records 0\.\.9, .* got none with number {missing};"
    ):
        Records(write_set(tmp_path, content))


@pytest.mark.parametrize(
    ("ranges", "got"),
    [
        (((1, 3), (4, 7)), "no range for image 3"),
        (((2, 3), (3, 7)), "no range for image 1"),
        (((1, 3), (3, 6)), "no range for image 6"),
        (((1, 4), (3, 7)), "more than one range for image 3"),
        (((1, 7), (1, 7)), "more than one range for image 1"),
        (((1, 1), (3, 3)), "no range for image 1"),
        (((0, 3), (3, 7)), r"\(0, 3\) outside 1\.\.7 in record 7"),
        (((1, 3), (3, 8)), r"\(3, 8\) outside 1\.\.7 in record 8"),
        (((1, 3), (7, 3)), r"\(7, 3\) outside 1\.\.7 in record 8"),
        (((1, 3), (float("nan"), 7)), r"\(nan, 7\) outside"),
        (((1, 3), (3,)), "flag 1 instead of 2 in record 8"),
    ],
)
def test_ranges_that_do_not_cover_every_image_once(tmp_path, ranges, got):
    content = ranged_set(ranges=ranges)
    content[0] = many(7, 9)
    # A one-label record at the end would be too short for two: pad the file with a further image.
    content[50] = header(0, 0) + b"end"
    with pytest.raises(UserError, match=rf"expected one record per identity .*, got {got}"):
        Records(write_set(tmp_path, content))


@pytest.mark.parametrize("label", [-1.0, 0.5, float("nan"), float("inf")])
def test_labels_that_are_no_identity(tmp_path, label):
    content = {0: header(0, 1) + b"x", 1: header(0, label) + b"y"}
    with pytest.raises(
        UserError, match=rf"whole numbers >= 0 as labels, got {label:g} in record 1 and 1 such"
    ):
        Records(write_set(tmp_path, content))


def test_sets_too_large_for_ranges_in_float32_use_the_images_own_labels(tmp_path, monkeypatch):
    # Above 2**24 the stored ranges are rounded; the limit is lowered here instead of writing 17 M images.
    monkeypatch.setattr("ddl_plugin.data.records._EXACT", 8)
    content = ranged_set(ranges=((1, 4), (4, 6), (6, 6)))
    records = Records(write_set(tmp_path, content))
    assert records.labels.tolist() == [5, 5, 7, 2, 2, 2]
    content[0] = many(9, 12)
    with pytest.raises(UserError, match=r"expected 8 images, as its header record says, got 6"):
        Records(write_set(tmp_path, content))


# -- writing ----------------------------------------------------------------------------------------


def write_pictures(folder, labels, **options):
    with RecordWriter(folder, **options) as writer:
        for i, label in enumerate(labels):
            writer.add(picture(i, 112), label)


def test_written_set_is_read_back(tmp_path):
    with RecordWriter(tmp_path / "new" / "folder") as writer:
        writer.add(png(picture(0)), 3)
        writer.add(png(picture(1)), np.int32(3))
        writer.add(memoryview(png(picture(2))), 0)
    records = Records(tmp_path / "new" / "folder")
    assert records.labels.tolist() == [3, 3, 0]
    assert records.payload(2) == png(picture(2))
    assert np.array_equal(records.image(1), picture(1))
    assert (records.path.with_name("property")).read_text() == "4,112,112\n"


def test_pixels_are_stored_as_jpeg_of_quality_95(tmp_path):
    smooth = cv2.GaussianBlur(picture(0, 112), (0, 0), 5)
    with RecordWriter(tmp_path) as writer:
        writer.add(smooth, 0)
    records = Records(tmp_path)
    expected = cv2.imencode(".jpg", smooth[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    assert records.payload(0) == expected
    assert np.abs(records.image(0).astype(int) - smooth).mean() < 2


def test_writing_is_deterministic(tmp_path):
    for folder in ("a", "b"):
        write_pictures(tmp_path / folder, [0, 0, 1])
    for name in ("train.rec", "train.idx", "property"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_property_is_the_training_sets(tmp_path):
    write_pictures(tmp_path, [0, 1], name="val")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["val.idx", "val.rec"]


@pytest.mark.parametrize(("gap", "splits"), [(0, 3), (1, 0), (2, 0), (3, 1)])
def test_images_that_hold_the_magic_are_split_and_joined(tmp_path, gap, splits):
    payload = bytes(gap) + MAGIC_BYTES * 3 + b"x" + MAGIC_BYTES
    with RecordWriter(tmp_path) as writer:
        writer.add(payload, 0)
        writer.add(b"next", 0)
    records = Records(tmp_path)
    assert records.payload(0) == payload and records.payload(1) == b"next"
    # Between frames no aligned word but their own may be the magic: readers resynchronise there.
    words = np.frombuffer(records.path.read_bytes(), "<u4")
    at, frames = 0, set()
    while at < len(words):
        frames.add(at)
        at += 2 + (int(words[at + 1] & ((1 << 29) - 1)) + 3) // 4
    assert set(np.flatnonzero(words == MAGIC)) == frames
    assert len(frames) == 4 + splits


def test_mxnet_reads_what_is_written(tmp_path, mx):
    labels = [4, 4, 1, 0, 0, 0]
    write_pictures(tmp_path, labels)
    file = mx.recordio.MXIndexedRecordIO(str(tmp_path / "train.idx"), str(tmp_path / "train.rec"), "r")
    head, content = mx.recordio.unpack(file.read_idx(0))
    assert head.flag == 2 and head.label.tolist() == [7, 10] and content == b""
    assert sorted(file.keys) == list(range(10))
    records = Records(tmp_path)
    found = []
    for identity in range(int(head.label[0]), int(head.label[1])):
        bounds, _ = mx.recordio.unpack(file.read_idx(identity))
        found += [(key, identity) for key in range(*bounds.label.astype(int))]
    assert [key for key, _ in found] == [1, 2, 3, 4, 5, 6]
    assert [identity for _, identity in found] == [7, 7, 8, 9, 9, 9]
    for i, label in enumerate(labels):
        head, content = mx.recordio.unpack(file.read_idx(i + 1))
        assert (head.flag, head.label, head.id) == (0, label, i + 1)
        assert content == records.payload(i)
        assert np.array_equal(mx.image.imdecode(content).asnumpy(), records.image(i))


def test_reads_what_mxnet_writes(tmp_path, mx):
    names = [str(tmp_path / f"train.{suffix}") for suffix in ("idx", "rec")]
    file = mx.recordio.MXIndexedRecordIO(*names, "w")
    payloads = [b"abc", b"abcd" * 2 + MAGIC_BYTES + b"tail", png(picture(0))]
    for key, payload in enumerate(payloads):
        label = float(key) if key else [8.0, 1.0]
        file.write_idx(key, mx.recordio.pack(mx.recordio.IRHeader(0, label, key, 0), payload))
    file.close()
    records = Records(tmp_path)
    assert records.labels.tolist() == [8, 1, 2]
    assert [records.payload(i) for i in range(3)] == payloads


@pytest.mark.parametrize("label", [-1, 1 << 24, 0.5])
def test_writer_refuses_labels_that_are_no_identity(tmp_path, label):
    with pytest.raises(ValueError, match=r"whole number, 0 <= label"), RecordWriter(tmp_path) as writer:
        writer.add(b"x", label)


def test_writer_refuses_ungrouped_labels_and_keeps_the_previous_set(tmp_path):
    write_pictures(tmp_path, [0, 0])
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"grouped by label: 0 came before 1"):
        write_pictures(tmp_path, [0, 1, 0])
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("pixels", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_writer_refuses_what_is_no_picture(tmp_path, pixels):
    with (
        pytest.raises(ValueError, match=r"expected uint8 \(H, W, 3\) pixels"),
        RecordWriter(tmp_path) as writer,
    ):
        writer.add(pixels, 0)
    assert not list(tmp_path.iterdir())


def test_writer_of_nothing(tmp_path):
    with pytest.raises(ValueError, match="at least one image"):
        RecordWriter(tmp_path).close()
    assert not list(tmp_path.iterdir())


def test_nothing_is_seen_before_close(tmp_path):
    writer = RecordWriter(tmp_path)
    writer.add(b"x", 0)
    assert all(p.suffix == ".part" for p in tmp_path.iterdir())
    writer.close()
    writer.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["property", "train.idx", "train.rec"]


def test_interruption_between_the_files_is_noticed(tmp_path, monkeypatch):
    write_pictures(tmp_path, [0, 0])
    writer = RecordWriter(tmp_path)
    writer.add(b"x", 0)
    replace = Path.replace

    def interrupted(self, target):
        if Path(target).name != "train.rec":
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        writer.close()
    # The new .rec never stands beside the old .idx.
    with pytest.raises(UserError, match=r"train\.idx: expected the index"):
        Records(tmp_path)


@pytest.mark.parametrize("full_at", [1, 2, 3])
def test_a_disk_that_is_full_at_the_end_keeps_the_previous_set(tmp_path, monkeypatch, full_at):
    write_pictures(tmp_path, [0, 0])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    writer = RecordWriter(tmp_path)
    writer.add(b"x", 0)
    calls = []

    def full(handle):
        calls.append(handle)
        if len(calls) == full_at:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"cannot be written: No space left on device"):
        writer.close()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_writer_of_an_unusable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.train\.rec: cannot be written: .*; give another folder"):
        RecordWriter(tmp_path / "file")


# -- real data --------------------------------------------------------------------------------------


def test_real_training_set(shared_data):
    records = Records(shared_data / "lfw112_dev")
    assert len(records) == 6586 and records.num_classes == 2623
    identities, counts = np.unique(records.labels, return_counts=True)
    assert len(identities) == 2623 and (counts >= 2).sum() == 804
    # Labels by ranges must be the labels that the images carry.
    content = records.path.read_bytes()
    offsets = np.loadtxt(records.path.with_suffix(".idx"), np.int64)[1:6587, 1]
    own = [struct.unpack_from("<f", content, offset + 12)[0] for offset in offsets]
    assert np.array_equal(own, records.labels)
    assert records.images(np.array([0, 3000, 6585])).shape == (3, 112, 112, 3)
