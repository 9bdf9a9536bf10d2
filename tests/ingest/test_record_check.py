"""Every fault that the check knows, on a set made for it; and damage at random, which must never end it."""

import os
import struct

import cv2
import numpy as np
import pytest

from ddl_plugin.data.records import MAGIC, header_record, image_record, range_record
from ddl_plugin.errors import UserError
from ddl_plugin.ingest.check import check_records


def face(seed, width=112, height=112, suffix=".jpg"):
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return cv2.imencode(suffix, cv2.resize(pixels, (width, height)))[1].tobytes()


FACES = [face(seed) for seed in range(6)]
LABELS = [0, 0, 1, 2, 2, 2]


def good():
    """Records of a set of six images of three identities, by number."""
    records = {0: header_record(6, 3)}
    records |= {i + 1: image_record(i + 1, LABELS[i], FACES[i]) for i in range(6)}
    bounds = ((1, 3), (3, 4), (4, 7))
    return records | {7 + i: range_record(7 + i, *bound) for i, bound in enumerate(bounds)}


def save(folder, records, property_text="3,112,112\n", name="train"):
    data, lines = b"", []
    for key, record in records.items():
        lines.append(f"{key}\t{len(data)}\n")
        data += record
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.rec").write_bytes(data)
    (folder / f"{name}.idx").write_text("".join(lines))
    if property_text is not None:
        (folder / "property").write_text(property_text)
    return folder / f"{name}.rec"


def found(path, **options):
    """kind -> (text, count, records) of what is wrong."""
    report = check_records(path, **{"decode": False, **options})
    return {finding.kind: (finding.text, finding.count, finding.records) for finding in report.findings}


def offset_of(path, key):
    lines = (line.split() for line in path.with_suffix(".idx").read_text().splitlines())
    return next(int(offset) for number, offset in lines if int(number) == key)


def test_a_good_set(tmp_path):
    report = check_records(save(tmp_path, good()), workers=1)
    assert report.findings == ()
    assert (report.images, report.identities, report.images_per_identity) == (6, 3, (1, 2.0, 3))
    assert report.decoded and report.path.name == "train.rec"
    assert check_records(tmp_path, decode=False).decoded is False


def test_upstreams_property_of_several_lines_and_sets_without_one(tmp_path):
    assert found(save(tmp_path, good(), "3,112,112\n6\nshuffled\n")) == {}
    assert found(save(tmp_path / "b", good(), None, name="val")) == {}


def test_index_lines_in_any_order(tmp_path):
    path = save(tmp_path, good())
    lines = path.with_suffix(".idx").read_text().splitlines()
    path.with_suffix(".idx").write_text("\n".join(reversed(lines)))
    assert found(path) == {}


def changed(**changes):
    """The good set with the records 'r3' = .. replaced, or left out where None."""
    records = good()
    for name, record in changes.items():
        records[int(name[1:])] = record
    return {key: record for key, record in records.items() if record is not None}


FAULTS = {
    "no header record (image)": (
        {i: image_record(i, label, FACES[i]) for i, label in enumerate(LABELS)},
        {"no header record": (1, (), "record 0 should give (images + 1, images + 1 + identities), got an image there")},
    ),
    "no header record (none)": (
        changed(r0=None),
        {
            "no header record": (1, (), "got none; identities are known from"),
            "ranges without a header": (3, (7, 8, 9), "records 7, 8, 9: range of an identity, though no header"),
        },
    ),
    "header counts fewer identities": (
        changed(r0=header_record(6, 2)),
        {"header counts": (1, (), "says (7, 9)"), "labels beyond the header": (3, (4, 5, 6), "counts 2 identities")},
    ),
    "header counts": (
        changed(r0=header_record(5, 4)),
        {"header counts": (1, (), "says (6, 10), the file holds 6 images and 3 ranges of identities, for which it should say (7, 10)")},
    ),
    "header of nonsense": (
        changed(r0=header_record(6, 3).replace(np.float32(7).tobytes(), np.float32(np.nan).tobytes())),
        {"header counts": (1, (), "says (nan, 10)")},
    ),
    "an image is missing": (
        changed(r3=None),
        {
            "header counts": (1, (), "for which it should say (6, 9)"),
            "missing keys": (1, (3,), "train.idx has no record 3 of the 0..9 that there should be"),
            "identities without images": (1, (8,), "record 8: range of an identity without an image"),
        },
    ),
    "the last range is missing": (
        changed(r9=None),
        {
            "header counts": (1, (), "2 ranges of identities"),
            "images in no range": (3, (4, 5, 6), "records 4, 5, 6: image that is in no identity's range"),
        },
    ),
    "an image after the ranges": (
        changed() | {10: image_record(10, 1, FACES[0])},
        {
            "header counts": (1, (), "7 images and 3 ranges"),
            "images after ranges": (1, (10,), "record 10: image among or after the ranges"),
            "images in no range": (1, (10,), ""),
        },
    ),
    "an image among the ranges": (
        changed(r8=image_record(8, 1, FACES[0])),
        {
            "header counts": (1, (), "7 images and 2 ranges"),
            "images after ranges": (1, (8,), ""),
            "images in no range": (2, (3, 8), ""),
        },
    ),
    "ranges beyond the images": (
        changed(r8=range_record(8, 3, 400), r9=range_record(9, 0, 7)),
        {
            "bad ranges": (2, (8, 9), "records 8, 9: range of an identity that is not within the images 1..6"),
            "images in no range": (4, (3, 4, 5, 6), ""),
        },
    ),
    "ranges that overlap": (
        changed(r8=range_record(8, 2, 4)),
        {
            "images in several ranges": (1, (2,), "record 2: image that is in several identities' ranges"),
            "labels mixed in a range": (1, (8,), "record 8: range of one identity over images of different labels"),
            "identities not grouped": (2, (7, 8), ""),
        },
    ),
    "a range backwards": (
        changed(r7=range_record(7, 3, 1)),
        {"bad ranges": (1, (7,), ""), "images in no range": (2, (1, 2), "")},
    ),
    "one identity in two ranges": (
        changed(r3=image_record(3, 0, FACES[2])),
        {"identities not grouped": (2, (7, 8), "records 7, 8: ranges that share their label with another: an identity's images lie apart")},
    ),
    "labels that are none": (
        changed(r1=image_record(1, 0.5, FACES[0]), r2=image_record(2, -1, FACES[1]), r3=image_record(3, float("nan"), FACES[2])),
        {"bad labels": (3, (1, 2, 3), "records 1, 2, 3: label that is no whole number >= 0"), "labels mixed in a range": (1, (7,), "")},
    ),
    "a label beyond everything": (
        changed(r3=image_record(3, 77, FACES[2])),
        {
            "labels beyond the header": (1, (3,), "record 3: label of 3 or more, though the header record counts 3 identities"),
            "labels beyond property": (1, (3,), "record 3: label of 3 or more, though 'property' says 3 classes"),
        },
    ),
    "an empty record": (
        changed(r2=image_record(2, 0, b"")),
        {
            "empty records": (1, (2,), "record 2: neither an image nor the range of an identity"),
            "header counts": (1, (), "the file holds 5 images"),
        },
    ),
    "a zero length": (
        changed(r2=struct.pack("<II", MAGIC, 0)),
        {"too short": (1, (2,), "record 2: shorter than its own header says"), "header counts": (1, (), "")},
    ),
    "parts that do not fit": (
        changed(r2=struct.pack("<II", MAGIC, 2 << 29 | 28) + bytes(28)),
        {"broken parts": (1, (2,), "record 2: parts of a split record that do not fit together"), "header counts": (1, (), "")},
    ),
    "no images at all": (
        {0: header_record(0, 0)},
        {"no images": (1, (), "there is no image in it")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_records(tmp_path, name):
    records, expected = FAULTS[name]
    result = found(save(tmp_path, records))
    assert {kind: what[1:] for kind, what in result.items()} == {
        kind: what[:2] for kind, what in expected.items()
    }
    for kind, (_, _, text) in expected.items():
        assert text in result[kind][0]
        assert "\n" not in result[kind][0]


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (None, "no property file", "no file 'property' beside it"),
        ("", "bad property file", "should begin with 'classes,112,112', got ''"),
        ("three\n", "bad property file", "got 'three'"),
        ("{x},112,112\n", "bad property file", "got '{x},112,112'"),
        ("2,112,112\n", "labels beyond property", "records 4, 5, 6: label of 2 or more"),
        ("3,112,96\n", "size in property", "the file 'property' says images of 96x112, not 112x112"),
    ],
)
def test_faults_of_property(tmp_path, text, kind, message):
    result = found(save(tmp_path, good(), text))
    assert list(result) == [kind] and message in result[kind][0]


def test_no_index(tmp_path):
    path = save(tmp_path, good())
    path.with_suffix(".idx").unlink()
    result = found(path)
    assert list(result) == ["no index"] and "no train.idx beside it" in result["no index"][0]
    assert check_records(path, decode=False).images == 6


def test_index_that_does_not_fit(tmp_path):
    path = save(tmp_path, good())
    idx = path.with_suffix(".idx")
    lines = idx.read_text().splitlines()
    size = path.stat().st_size

    def with_lines(*changed):
        idx.write_text("\n".join(changed) + "\n")
        return found(path)

    result = with_lines(*lines, "six\t7")
    assert result == {
        "bad index lines": (
            "train.idx: 1 lines are not 'number<TAB>offset', the first is line 11",
            1,
            (),
        )
    }
    result = with_lines(*lines, lines[3])
    assert result["duplicate keys"][1:] == (1, (3,)) and list(result) == ["duplicate keys"]
    assert "lists record 3 more than once" in result["duplicate keys"][0]
    result = with_lines(*lines, f"10\t{lines[2].split()[1]}")
    assert result["one place twice"][1:] == (1, (10,))
    result = with_lines(*lines[:9], f"9\t{size + 4}")
    assert f"places record 9 past the end of the .rec ({size} bytes)" in result["index past the end"][0]
    result = with_lines(*lines[:4], f"4\t{int(lines[4].split()[1]) + 4}", *lines[5:])
    assert result["no record there"] == ("record 4: no record begins where train.idx says", 1, (4,))
    result = with_lines(*lines[:4], *lines[6:])
    assert result["missing keys"][1:] == (2, (4, 5))
    place = lines[4].split()[1]
    text = f"2 whole records lie between the others or after them that train.idx does not list, the first at offset {place}"
    assert result["records without a key"] == (text, 2, ())
    result = with_lines(*lines[:4], f"{10**17}\t{lines[4].split()[1]}", *lines[5:])
    assert result["missing keys"][2] == (4, 10, 11, 12, 13)


def test_bytes_between_records(tmp_path):
    records = good()
    records[4] += b"\0" * 20
    records[9] += b"rubbish!"
    path = save(tmp_path, records)
    first = offset_of(path, 5) - 20
    assert found(path) == {
        "gaps": (
            f"28 bytes between the records or after them belong to none, the first at offset {first}",
            28,
            (),
        )
    }


def test_overlapping_records(tmp_path):
    records = good()
    inner = [records.pop(3), records.pop(4)]
    content = struct.pack("<IfQQ", 0, 0, 2, 0) + b"".join(inner)
    records[2] = struct.pack("<II", MAGIC, len(content)) + content
    path = save(tmp_path, records)
    with path.with_suffix(".idx").open("a") as index:
        at = offset_of(path, 2) + 32
        index.write(f"3\t{at}\n4\t{at + len(inner[0])}\n")
    result = found(path)
    assert result["overlapping records"] == ("records 3, 4: begins within another record", 2, (3, 4))
    assert "the file holds 4 images" in result["header counts"][0]


@pytest.mark.parametrize("left", [1, 9, 60])
def test_a_truncated_tail(tmp_path, left):
    records = {key: good()[key] for key in (0, 7, 8, 9, 1, 2, 3, 4, 5, 6)}  # an image is the last
    path = save(tmp_path, records)
    start = offset_of(path, 6)
    os.truncate(path, start + left)
    result = found(path)
    if left < 8:
        assert result["index past the end"][1:] == (1, (6,))
    else:
        text = f"record 6: the .rec ends ({start + left} bytes) before the record does"
        assert result["truncated tail"] == (text, 1, (6,))
    assert "gaps" not in result or left < 8


def test_an_empty_file(tmp_path):
    path = save(tmp_path, good())
    path.write_bytes(b"")
    result = found(path)
    assert result["index past the end"][1:] == (10, (0, 1, 2, 3, 4))
    assert "records 0, 1, 2, 3, 4 and 5 more past the end" in result["index past the end"][0]
    assert {"no images", "no header record"} <= set(result)


def test_images_with_several_labels(tmp_path):
    """The first of them is the identity's; the field in the header means nothing then."""
    records = good()
    for i, label in enumerate(LABELS):
        content = struct.pack("<IfQQ2f", 2, 99.5, i + 1, 0, label, 99.5) + FACES[i]
        records[i + 1] = struct.pack("<II", MAGIC, len(content)) + content + bytes(-len(content) % 4)
    assert found(save(tmp_path, records)) == {}


def test_a_set_that_float32_cannot_count(tmp_path):
    """From 2^24 images on the header's counts are rounded: no fault of the set."""
    from ddl_plugin.ingest.check import _Check

    check = _Check(save(tmp_path, good()))
    check.index()
    check.records()
    check.header()
    images = 20_000_000
    check.is_image, check.is_range = np.ones(images, bool), np.zeros(0, bool)
    check.keys = np.arange(1, images + 1)
    check.listed = np.arange(images + 1)
    check._counts(np.array([20_000_001, 20_000_001], np.float32).astype(np.float64))
    assert check.found == []
    check._counts(np.array([20_000_010, 20_000_010], np.float32).astype(np.float64))
    assert [finding.kind for finding in check.found] == ["header counts"]


# -- pixels -----------------------------------------------------------------------------------------


def test_faults_of_images(tmp_path):
    records = good()
    noisy = FACES[0][:-2] + bytes(40) + FACES[0][-2:]
    images = [
        noisy,
        b"no image",
        FACES[2][:300],
        face(3, 96, 112),
        face(4, 128, 128, ".png"),
        face(5, 96, 112),
    ]
    records |= {i + 1: image_record(i + 1, LABELS[i], image) for i, image in enumerate(images)}
    path = save(tmp_path, records)
    assert found(path, decode=True, workers=2) == {
        "undecodable images": ("records 2, 3: image that cannot be decoded", 2, (2, 3)),
        "damaged images": (
            "record 1: JPEG data that is damaged: it can be decoded, but part of the picture may be wrong",
            1,
            (1,),
        ),
        "other sizes": (
            "records 4, 5, 6: image that is not 112x112 but 96x112 (2), 128x128 (1)",
            3,
            (4, 5, 6),
        ),
    }
    assert found(path) == {}


def test_nothing_there(tmp_path):
    with pytest.raises(
        UserError, match=r"train\.rec: expected a \.rec file, or a folder with train\.rec, got"
    ):
        check_records(tmp_path)
    with pytest.raises(UserError, match=r"--workers: expected a whole number >= 1, got 0"):
        check_records(save(tmp_path, good()), workers=0)


# -- anything ---------------------------------------------------------------------------------------


def damaged(rng, data):
    """One to four things that happen to files."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        if not data:
            break
        at, count = int(rng.integers(len(data))), int(rng.integers(1, 200))
        kind = rng.integers(6)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at : at + count] = bytes(count)
        elif kind == 2:
            del data[at : at + count]
        elif kind == 3:
            data[at:at] = rng.integers(0, 256, count, np.uint8).tobytes()
        elif kind == 4:
            del data[at:]
        else:
            at = at // 4 * 4
            data[at : at + 4] = struct.pack("<I", MAGIC)
    return bytes(data)


def test_random_damage_is_survived_and_noticed(tmp_path):
    """Headers and index alone: images are decoded elsewhere. No damage to these may pass unseen."""
    path = save(tmp_path, good())
    rec, idx = path.read_bytes(), path.with_suffix(".idx").read_bytes()
    heads = np.zeros(len(rec), bool)  # bytes that are no image's
    for record, key in zip(good().values(), good(), strict=True):
        start = offset_of(path, key)
        heads[start : start + (16 if 1 <= key <= 6 else len(record))] = True
    rng = np.random.default_rng(0)
    unnoticed = 0
    for _ in range(1500):
        which = rng.integers(3)
        new_rec = damaged(rng, rec) if which != 1 else rec
        new_idx = damaged(rng, idx) if which != 0 else idx
        path.write_bytes(new_rec)
        path.with_suffix(".idx").write_bytes(new_idx)
        report = check_records(path, decode=False)
        assert all(finding.count > 0 and "\n" not in finding.text for finding in report.findings)
        if len(new_rec) == len(rec) and new_idx == idx and not report.findings:
            differ = np.frombuffer(new_rec, np.uint8) != np.frombuffer(rec, np.uint8)
            unnoticed += bool((differ & heads).any())
    # Identifiers and paddings of ranges mean nothing; labels may turn into others that fit.
    assert unnoticed < 40


def test_random_damage_to_images_is_survived(tmp_path):
    rng = np.random.default_rng(1)
    records = good()
    count = 400
    images = [damaged(rng, FACES[i % 6]) for i in range(count)]
    records = {0: header_record(count, 1)}
    records |= {i + 1: image_record(i + 1, 0, image) for i, image in enumerate(images)}
    records[count + 1] = range_record(count + 1, 1, count + 1)
    result = found(save(tmp_path, records), decode=True, workers=2)
    assert result["undecodable images"][1] > 100
    assert set(result) <= {"undecodable images", "damaged images", "other sizes", "empty records", "header counts", "images in no range"}  # fmt: skip


# -- real data --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "images", "identities"), [("train", 6586, 2623), ("val", 2008, 867)])
def test_real_sets(shared_data, name, images, identities):
    report = check_records(shared_data / "lfw112_dev" / f"{name}.rec", workers=2)
    assert (report.images, report.identities, report.findings) == (images, identities, ())
