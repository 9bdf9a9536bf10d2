"""Data sets written from folders, lists and other sets: their bytes, what is left out and why, and every interruption."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import cv2
import face_detector
import numpy as np
import pytest
from insightface.utils.face_align import arcface_dst, norm_crop

from ddl_plugin.data.attributes import AttributeTable
from ddl_plugin.data.records import Records, RecordWriter, image_record
from ddl_plugin.errors import UserError
from ddl_plugin.ingest import job as ingest
from ddl_plugin.ingest.job import write_records
from ddl_plugin.ingest.treatment import Treatment


def encoded(seed, side=112, height=None, suffix=".jpg", low=0):
    pixels = np.random.default_rng(seed).integers(low, 256, (4, 4, 3), dtype=np.uint8)
    return cv2.imencode(suffix, cv2.resize(pixels, (side, height or side)))[1].tobytes()


def jpeg(bgr):
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return data


def make_folder(folder, counts, **how):
    """Identities with so many images each; all images differ. Returns their bytes by relative path."""
    seeds = iter(range(10_000))
    return {
        f"{name}/{i}.jpg": write(folder / name / f"{i}.jpg", encoded(next(seeds), **how))
        for name, count in counts.items()
        for i in range(count)
    }


def payloads(output):
    records = Records(output)
    return [records.payload(i) for i in range(len(records))]


def contents(output):
    return {path.name: path.read_bytes() for path in Path(output).iterdir() if path.is_file()}


def set_files(output):
    """The bytes of a set without the report, which names its sources."""
    return {name: data for name, data in contents(output).items() if name != "report.json"}


def counts(report):
    return {reason: what["count"] for reason, what in report["skipped"].items()}


# -- sources ----------------------------------------------------------------------------------------


def test_a_folder_of_identities(tmp_path):
    images = make_folder(tmp_path / "in", {"b": 2, "a": 1, "c c": 3})
    report = write_records([tmp_path / "in"], tmp_path / "out", workers=1)
    order = ["a/0.jpg", "b/0.jpg", "b/1.jpg", "c c/0.jpg", "c c/1.jpg", "c c/2.jpg"]
    assert payloads(tmp_path / "out") == [images[name] for name in order]
    records = Records(tmp_path / "out")
    assert records.labels.tolist() == [0, 1, 1, 2, 2, 2] and records.num_classes == 3
    assert (tmp_path / "out" / "property").read_text() == "3,112,112\n"
    assert (tmp_path / "out" / "train_names.txt").read_text().splitlines()[:4] == [
        "1\t0\ta\ta/0.jpg", "2\t1\tb\tb/0.jpg", "3\t1\tb\tb/1.jpg", "4\t2\tc c\tc c/0.jpg",
    ]  # fmt: skip
    assert report["images"] == 6 and report["identities"] == 3 and report["skipped"] == {}
    assert report["images_per_identity"] == {"min": 1, "median": 2.0, "max": 3}
    assert report["stored"] == {"as they are": 6} and report["notes"] == {}
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert sorted(contents(tmp_path / "out")) == sorted(
        ["train.rec", "train.idx", "property", "train_names.txt", "report.json"]
    )
    assert not (tmp_path / "out" / "train.part").exists()


def test_the_files_are_those_that_the_writer_makes(tmp_path):
    images = make_folder(tmp_path / "in", {"1": 2, "10": 1, "9": 3})
    write_records([tmp_path / "in"], tmp_path / "out", workers=1)
    with RecordWriter(tmp_path / "expected") as writer:
        for label, name in enumerate(["1", "9", "10"]):  # by number, as all are numbers
            for path in sorted(path for path in images if path.startswith(f"{name}/")):
                writer.add(images[path], label)
    for name in ("train.rec", "train.idx", "property"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()


def test_hostile_names_and_empty_folders(tmp_path):
    folder = tmp_path / "a folder, with ä"
    names = ["two words/x y.jpg", "ünï/é.JPG", "tab\tnew\nline/a\tb\n.png", "deep/er/still/1.jpeg"]
    for seed, name in enumerate(names):
        write(folder / name, encoded(seed, suffix=".png" if name.endswith("png") else ".jpg"))
    write(Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9/\xff.jpg")), encoded(9))
    (folder / "empty").mkdir()
    (folder / "only notes" / "below").mkdir(parents=True)
    write(folder / "only notes" / "below" / "notes.txt", b"x")
    write(folder / "stray.jpg", encoded(8))
    write(folder / "README", b"x")
    write(folder / "two words" / "._x y.jpg", b"x")
    (folder / "deep" / "round").symlink_to(folder)  # must not be followed for ever
    report = write_records([folder], tmp_path / "out", workers=1)
    assert report["images"] == 5
    # Identities in the order of the names' bytes.
    lines = (tmp_path / "out" / "train_names.txt").read_text().splitlines()
    assert [line.split("\t")[2:] for line in lines] == [
        ["caf\\xe9", "caf\\xe9/\\xff.jpg"],
        ["deep", "deep/er/still/1.jpeg"],
        ["tab\\tnew\\nline", "tab\\tnew\\nline/a\\tb\\n.png"],
        ["two words", "two words/x y.jpg"],
        ["ünï", "ünï/é.JPG"],
    ]
    assert report["skipped"]["identity's folder without images"]["first"] == ["empty", "only notes"]
    assert report["skipped"]["outside an identity's folder"] == {"count": 1, "first": ["stray.jpg"]}
    assert counts(report)["not an image's name"] == 4  # notes.txt, README, ._x y.jpg and the link


@pytest.mark.parametrize(
    ("separator", "end"), [("\t", "\n"), (" ", "\n"), ("   ", "\r\n")], ids=["tab", "space", "crlf"]
)
def test_an_image_list(tmp_path, separator, end):
    images = make_folder(tmp_path / "in", {"x y": 2, "z": 2})
    lines = [f"x y/0.jpg{separator}10", f"./z/1.jpg{separator}9", f"x y/1.jpg{separator}10", ""]
    listed = tmp_path / "in" / "list.txt"
    listed.write_bytes(b"\xef\xbb\xbf" + end.join(lines).encode())
    write_records([listed], tmp_path / "out", workers=1)
    # Identity 9 before 10; images of one in the order of the list.
    assert payloads(tmp_path / "out") == [images["z/1.jpg"], images["x y/0.jpg"], images["x y/1.jpg"]]
    assert Records(tmp_path / "out").labels.tolist() == [0, 1, 1]


def test_a_list_of_names_with_spaces_elsewhere(tmp_path):
    images = make_folder(tmp_path / "in", {"a": 3})
    listed = tmp_path / "lists" / "list.txt"
    write(listed, b"a/0.jpg\tMary Ann\na/1.jpg\tBob\na/2.jpg\tMary Ann\n")
    write_records([listed], tmp_path / "out", root=tmp_path / "in", workers=1)
    assert payloads(tmp_path / "out") == [images["a/1.jpg"], images["a/0.jpg"], images["a/2.jpg"]]
    assert "1\t0\tBob\ta/1.jpg" in (tmp_path / "out" / "train_names.txt").read_text()


def test_mxnets_lst(tmp_path):
    images = make_folder(tmp_path / "in", {"a": 3})
    write(tmp_path / "in" / "x.lst", b"0\t1.000000\ta/0.jpg\n1\t0.000000\ta/1.jpg\n2\t1.000000\ta/2.jpg\n")
    write_records([tmp_path / "in" / "x.lst"], tmp_path / "out", workers=1)
    assert payloads(tmp_path / "out") == [images["a/1.jpg"], images["a/0.jpg"], images["a/2.jpg"]]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.txt", "a/0.jpg 1\nlonely\n", r"l\.txt: line 2: expected 'path<TAB>identity', .*got 'lonely'"),
        ("l.txt", "\n \n", r"l\.txt: expected a line for each image, got an empty file"),
        ("l.lst", "2\ta/0.jpg\t1\n", r"l\.lst: line 1: expected 'aligned<TAB>path<TAB>label'"),
        ("l.lst", "1\ta/0.jpg\tone\n", r"expected 'aligned<TAB>path<TAB>label'"),
        ("l.lst", "1\ta/0.jpg\t1\t2\t3\n", r"perhaps a box \(4 numbers\)"),
        ("l.lst", "0\t0.5\ta/0.jpg\n", r"line 1: expected 'number<TAB>label<TAB>path'"),
        ("l.txt", "x" * 70000, r"line 1: expected a line of text, got more than 65536 bytes"),
        ("l.txt", "a\0b 1\n", r"a\\x00b: expected a path, got one with a zero byte"),
    ],
)
def test_lists_that_cannot_be_understood(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        write_records([tmp_path / name], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def three_sets(tmp_path_factory):
    """A folder's set, and two .rec files whose labels mean different people; bytes by (set, label)."""
    folder = tmp_path_factory.mktemp("sets")
    with RecordWriter(folder / "one") as writer:
        for label, count in ((7, 2), (3, 1), (5, 3)):
            for i in range(count):
                writer.add(encoded(100 * label + i), label)
    with RecordWriter(folder / "two") as writer:
        for label in (3, 4):
            writer.add(encoded(5000 + label), label)
    make_folder(folder / "people", {"Ann": 1, "Bob": 2})
    write_records([folder / "people"], folder / "named", workers=1)
    return folder


def test_a_rec_is_sorted_and_relabelled(three_sets, tmp_path):
    write_records([three_sets / "one" / "train.rec"], tmp_path / "out", workers=1)
    expected = [encoded(300), encoded(500), encoded(501), encoded(502), encoded(700), encoded(701)]
    assert payloads(tmp_path / "out") == expected
    assert Records(tmp_path / "out").labels.tolist() == [0, 1, 1, 1, 2, 2]
    # The third image of the source is label 3's.
    assert (tmp_path / "out" / "train_names.txt").read_text().startswith("1\t0\t3\ttrain.rec:3\n")


def test_a_rec_without_header_record_whose_labels_are_mixed(tmp_path):
    data, lines = b"", ""
    for key, label in enumerate([1, 0, 1, 0]):
        lines += f"{key}\t{len(data)}\n"
        data += image_record(key, label, encoded(key))
    write(tmp_path / "in" / "train.rec", data)
    (tmp_path / "in" / "train.idx").write_text(lines)
    write_records([tmp_path / "in"], tmp_path / "out", workers=1)
    assert payloads(tmp_path / "out") == [encoded(1), encoded(3), encoded(0), encoded(2)]
    assert Records(tmp_path / "out").labels.tolist() == [0, 0, 1, 1]


def test_sets_are_joined_and_their_identities_stay_apart(three_sets, tmp_path):
    (tmp_path / "drop.txt").write_text("1/7\n2/4\n")
    report = write_records(
        [three_sets / "one", three_sets / "two", three_sets / "people"],
        tmp_path / "out",
        drop=tmp_path / "drop.txt",
        workers=1,
    )
    names = (tmp_path / "out" / "train_names.txt").read_text().splitlines()
    assert [line.split("\t")[1:3] for line in names] == [
        ["0", "1/3"], *[["1", "1/5"]] * 3, ["2", "2/3"], ["3", "3/Ann"], *[["4", "3/Bob"]] * 2,
    ]  # fmt: skip
    assert counts(report) == {"identity not chosen": 3}
    assert payloads(tmp_path / "out")[4] == encoded(5003)


def test_identities_are_kept_by_name_through_a_set(three_sets, tmp_path):
    (tmp_path / "keep.txt").write_text("Bob\n")
    write_records([three_sets / "named"], tmp_path / "out", keep=tmp_path / "keep.txt", workers=1)
    lines = (tmp_path / "out" / "train_names.txt").read_text()
    assert lines == "1\t0\tBob\tBob/0.jpg\n2\t0\tBob\tBob/1.jpg\n"
    (tmp_path / "keep.txt").write_text("\n")
    with pytest.raises(UserError, match=r"keep\.txt: expected names of identities, one a line, got none$"):
        write_records([three_sets / "named"], tmp_path / "none", keep=tmp_path / "keep.txt")


@pytest.mark.parametrize("option", ["keep", "drop"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Bob\nAnnn\n", "got 'Annn', which none of the 2 is called; did you mean 'Ann'?"),
        ("Zoe\nBob\nYves\n", "got 'Yves' and 1 more, which none of the 2 is called; known: Ann, Bob"),
    ],
)
def test_a_misspelt_identity_is_named(three_sets, tmp_path, option, content, message):
    (tmp_path / "names.txt").write_text(content)
    with pytest.raises(UserError) as refused:
        write_records([three_sets / "named"], tmp_path / "none", **{option: tmp_path / "names.txt"})
    text = f"{tmp_path / 'names.txt'}: expected names of identities, one a line, {message}"
    assert str(refused.value) == text
    assert not (tmp_path / "none" / "train.rec").exists()


def test_names_beside_a_rec_of_another_tool(three_sets, tmp_path):
    """Three columns name images alone; lines that are not their record's name nothing."""
    source = tmp_path / "in"
    shutil.copytree(three_sets / "one", source)
    lines = [f"{i}\t{label}\timage {i}" for i, label in enumerate([7, 7, 3, 5, 5], 1)]
    lines[1] = "9\t7\timage 9"
    (source / "train_names.txt").write_text("\n".join(lines) + "\n")
    write_records([source], tmp_path / "out", workers=1)
    assert (tmp_path / "out" / "train_names.txt").read_text().splitlines() == [
        "1\t0\t3\timage 3", "2\t1\t5\timage 4", "3\t1\t5\timage 5", "4\t1\t5\ttrain.rec:6",
        "5\t2\t7\timage 1", "6\t2\t7\ttrain.rec:2",
    ]  # fmt: skip


# -- what is done with an image ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A list with everything that can be wrong with an image."""
    folder = tmp_path_factory.mktemp("mixed")
    good = encoded(1)
    files = {
        "good.jpg": good, "good.png": encoded(2, suffix=".png"), "good.bmp": encoded(3, suffix=".bmp"),
        "small.jpg": encoded(4, 40), "large.jpg": encoded(5, 200), "wide.jpg": encoded(6, 120, 60),
        "empty.jpg": b"", "text.jpg": b"no image at all", "cut.jpg": good[: len(good) // 2],
        "noisy.jpg": good[:-2] + bytes(40) + good[-2:], "fat.jpg": encoded(7) + bytes(2 << 20),
    }  # fmt: skip
    for name, data in files.items():
        write(folder / name, data)
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / "large.jpg"), noise)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.jpg").mkdir()
    with (folder / "huge.jpg").open("wb") as file:
        file.truncate((1 << 26) + 1)
    names = [*files, "pipe.jpg", "folder.jpg", "huge.jpg", "gone.jpg", "good.jpg", "./good.png"]
    (folder / "list.txt").write_text("".join(f"{name} {i % 3}\n" for i, name in enumerate(names)))
    return folder


def test_what_is_left_out_and_why(mixed, tmp_path):
    report = write_records([mixed / "list.txt"], tmp_path / "out", workers=1)
    assert {reason: sorted(what["first"]) for reason, what in report["skipped"].items()} == {
        "no such file": ["gone.jpg"],
        "cannot be read": ["folder.jpg", "pipe.jpg"],
        "more than 64 MiB": ["huge.jpg"],
        "cannot be decoded": ["cut.jpg", "empty.jpg", "text.jpg"],
        "not 112x112": ["large.jpg", "small.jpg", "wide.jpg"],
        "listed more than once": ["./good.png", "good.jpg"],
    }
    assert report["stored"] == {"as they are": 3, "as JPEG": 2}
    assert report["notes"] == {"JPEG data damaged, stored all the same": {"count": 1, "first": ["noisy.jpg"]}}
    stored = payloads(tmp_path / "out")
    kept = {name: (mixed / name).read_bytes() for name in ("good.jpg", "good.png", "noisy.jpg")}
    assert all(data in stored for data in kept.values())
    names = [line.split("\t")[3] for line in (tmp_path / "out" / "train_names.txt").read_text().splitlines()]
    for name in ("good.bmp", "fat.jpg"):  # what is no image is not stored
        converted = stored[names.index(name)]
        assert converted[:2] == b"\xff\xd8" and len(converted) < 10_000
        original = cv2.imread(str(mixed / name)).astype(int)
        assert np.abs(cv2.imdecode(np.frombuffer(converted, np.uint8), 1) - original).mean() < 2
    assert not (tmp_path / "out" / "train_size.npz").exists()


def test_resizing_is_asked_for(mixed, tmp_path):
    report = write_records(
        [mixed / "list.txt"], tmp_path / "out", treatment=Treatment(resize=True, min_face=50), workers=1
    )
    assert report["skipped"]["not square: --resize would distort it"]["first"] == ["wide.jpg"]
    assert report["skipped"]["face smaller than --min-face"]["first"] == ["small.jpg"]
    assert report["stored"] == {"as they are": 3, "as JPEG": 2, "resized to 112x112": 1}
    names = [line.split("\t")[3] for line in (tmp_path / "out" / "train_names.txt").read_text().splitlines()]
    i = names.index("large.jpg")
    expected = cv2.resize(cv2.imread(str(mixed / "large.jpg")), (112, 112), interpolation=cv2.INTER_AREA)
    assert payloads(tmp_path / "out")[i] == jpeg(expected)
    sizes = AttributeTable.load(tmp_path / "out" / "train_size.npz").columns["face_size"]
    assert sizes[i] == 200 and np.isnan(sizes[names.index("good.jpg")])


def test_workers_do_not_change_a_byte(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(ingest, "_ROWS_A_JOB", 2)
    for workers in (1, 3):
        write_records(
            [mixed / "list.txt"], tmp_path / str(workers), treatment=Treatment(resize=True), workers=workers
        )
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def test_identities_with_too_few_images_left(tmp_path, monkeypatch):
    """b has two images listed and one that can be decoded: it is taken out again; d is not even looked at."""
    monkeypatch.setattr(ingest, "_ROWS_A_JOB", 2)
    monkeypatch.setattr(ingest, "_CHECKPOINT_SECONDS", 0)
    images = make_folder(tmp_path / "in", {"a": 2, "b": 2, "c": 3, "d": 1, "e": 2})
    for name in ("b/1.jpg", "c/0.jpg", "e/1.jpg"):
        write(tmp_path / "in" / name, b"broken")
    report = write_records([tmp_path / "in"], tmp_path / "out", min_images=2, workers=1)
    few = report["skipped"]["identity with fewer than --min-images"]
    assert few == {"count": 3, "first": ["b/0.jpg", "d/0.jpg", "e/0.jpg"]}
    assert report["skipped"]["cannot be decoded"]["first"] == ["b/1.jpg", "c/0.jpg", "e/1.jpg"]
    kept = ["a/0.jpg", "a/1.jpg", "c/1.jpg", "c/2.jpg"]
    with RecordWriter(tmp_path / "expected") as writer:
        for name in kept:
            writer.add(images[name], 0 if name < "b" else 1)
    for name in ("train.rec", "train.idx", "property"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()


# -- alignment --------------------------------------------------------------------------------------

PHOTO = 256


def photo(seed):
    noise = np.random.default_rng(seed).integers(0, 120, (PHOTO, PHOTO, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


def landmarks_of(seed):
    scale, shift = 0.8 + seed / 4, np.array([40 + seed, 50 - seed])
    return (arcface_dst * scale + shift).astype(np.float32)


def save_photos(folder, count):
    for seed in range(count):
        cv2.imwrite(str(folder / f"{seed}.png"), photo(seed))


def aligned(seed):
    return jpeg(norm_crop(photo(seed), landmarks_of(seed)))


def test_landmarks_of_an_insightface_lst(tmp_path):
    save_photos(tmp_path, 4)
    ready = write(tmp_path / "ready.jpg", encoded(1))

    def line(image, label, flag=0, points=None):
        fields = [flag, image, label]
        if points is not None:
            fields += [0, 0, 9, 9, *points.T.ravel()]  # x1..x5, y1..y5
        return "\t".join(map(str, fields)) + "\n"

    listed = tmp_path / "faces.lst"
    listed.write_text(
        line("0.png", 0, points=landmarks_of(0))
        + line("1.png", 0)
        + line("ready.jpg", 0, 1)
        + line("2.png", 1, points=landmarks_of(2))
        + line("3.png", 1, points=np.zeros((5, 2)))
    )
    report = write_records([listed], tmp_path / "out", treatment=Treatment(align=True), workers=1)
    assert payloads(tmp_path / "out") == [aligned(0), ready, aligned(2)]
    assert report["stored"] == {"as they are": 1, "aligned to 112x112": 2}
    assert report["skipped"]["no landmarks given"]["first"] == ["1.png"]
    assert report["skipped"]["landmarks of no face"]["first"] == ["3.png"]
    sizes = AttributeTable.load(tmp_path / "out" / "train_size.npz")
    assert sizes.keys.tolist() == [1, 2, 3]
    assert sizes.columns["face_size"] == pytest.approx([112 * 0.8, np.nan, 112 * 1.3], rel=1e-3, nan_ok=True)

    report = write_records(
        [listed], tmp_path / "large", treatment=Treatment(align=True, min_face=100), workers=1
    )
    assert report["skipped"]["face smaller than --min-face"]["first"] == ["0.png"]

    # Without --align the photos are what they are: not 112x112.
    report = write_records([listed], tmp_path / "plain", workers=1)
    assert report["stored"] == {"as they are": 1} and counts(report) == {"not 112x112": 4}


@pytest.mark.parametrize("style", ["csv", "text"])
def test_landmarks_of_a_file(tmp_path, style):
    (tmp_path / "in" / "n 1").mkdir(parents=True)
    save_photos(tmp_path / "in" / "n 1", 3)
    cv2.imwrite(str(tmp_path / "in" / "n 1" / "2.jpg"), photo(2))  # the same name but for its suffix
    text = "NAME_ID,P1X,P1Y,P2X,P2Y\n" if style == "csv" else ""
    for seed in (1, 0, 2):
        points = [f"{value:.6f}" for value in landmarks_of(seed).ravel()]  # x1, y1, x2, y2, ..
        text += (
            f'"n 1/{seed}",{",".join(points)}\n'
            if style == "csv"
            else f"./n 1/{seed}.png {' '.join(points)}\n"
        )
    (tmp_path / "points").write_text(text)
    report = write_records(
        [tmp_path / "in"],
        tmp_path / "out",
        treatment=Treatment(align=True),
        landmarks=tmp_path / "points",
        workers=1,
    )
    assert payloads(tmp_path / "out") == [aligned(0), aligned(1)]
    assert report["skipped"]["no landmarks given"] == {"count": 2, "first": ["n 1/2.jpg", "n 1/2.png"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.png 1 2 3\n1.png 1 2 3\n", r"points: line 2: expected 'path, x1, y1, \.\., x5, y5', got '1\.png"),
        ("header\n", r"points: expected lines 'path, x1, y1, \.\., x5, y5', got none"),
        ("z.png 1 2 3 4 5 6 7 8 9 0\n", r"expected landmarks of the images listed, got those of 1 others"),
    ],
)
def test_landmark_files_that_do_not_fit(tmp_path, text, message):
    make_folder(tmp_path / "in", {"a": 1})
    (tmp_path / "points").write_text(text)
    with pytest.raises(UserError, match=message):
        write_records(
            [tmp_path / "in"],
            tmp_path / "out",
            treatment=Treatment(align=True),
            landmarks=tmp_path / "points",
        )


def test_a_detector_finds_the_faces(tmp_path):
    """Through insightface's own code, around a network that takes bright spots for faces."""
    folder = tmp_path / "in" / "a"
    folder.mkdir(parents=True)
    spots = {"0": [], "1": [(3, 3)], "2": [(0, 0), (4, 3)]}
    images = {}
    for name, cells in spots.items():
        images[name] = photo(int(name))
        for x, y in cells:
            images[name][32 * y : 32 * y + 32, 32 * x : 32 * x + 32] = 255
        cv2.imwrite(str(folder / f"{name}.png"), images[name])
    detector = str(face_detector.save(tmp_path / "spots.onnx"))
    report = write_records(
        [tmp_path / "in"], tmp_path / "out", treatment=Treatment(align=True, detector=detector), workers=2
    )
    assert report["skipped"]["no face found"]["first"] == ["a/0.png"]
    assert report["notes"] == {
        "several faces, the largest and most central taken": {"count": 1, "first": ["a/2.png"]}
    }
    found = [Records(tmp_path / "out").image(i)[:, :, ::-1].astype(int) for i in range(2)]
    for image, name, spot in ((found[0], "1", (3, 3)), (found[1], "2", (4, 3))):
        points = np.array(spot) * 32 + face_detector.TEMPLATE * PHOTO / face_detector.SIDE
        assert np.abs(image - norm_crop(images[name], points.astype(np.float32))).mean() < 2
    assert report["made_from"]["detector"] != detector  # its hash


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"treatment": Treatment(align=True)},
            r"--align: expected --detector MODEL\.onnx or --landmarks FILE",
        ),
        ({"treatment": Treatment(detector="x.onnx")}, r"--detector, --landmarks: expected --align with it"),
        ({"landmarks": "x"}, r"expected --align with it, got none; add --align"),
        (
            {"treatment": Treatment(align=True, detector="x.onnx"), "landmarks": "x"},
            r"expected one of the two, got both",
        ),
        ({"treatment": Treatment(align=True, detector="x.onnx")}, r"--detector: expected the \.onnx of"),
        ({"treatment": Treatment(min_face=-1)}, r"--min-face: expected a number of pixels >= 0, got -1"),
        ({"treatment": Treatment(min_face=float("nan"))}, r"--min-face: .* got nan"),
        ({"min_images": 0}, r"--min-images: expected a whole number >= 1, got 0"),
        ({"workers": 0}, r"--workers: expected a whole number >= 1, got 0"),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, message):
    make_folder(tmp_path / "in", {"a": 1})
    with pytest.raises(UserError, match=message):
        write_records([tmp_path / "in"], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_outputs_that_would_destroy_the_source(tmp_path):
    make_folder(tmp_path / "in", {"a": 1})
    for output in (tmp_path / "in", tmp_path / "in" / "out"):
        with pytest.raises(UserError, match=r"--output: expected a folder of its own"):
            write_records([tmp_path / "in"], output)
    write_records([tmp_path / "in"], tmp_path / "out", workers=1)
    with pytest.raises(UserError, match=r"--output: expected a folder of its own"):
        write_records([tmp_path / "out" / "train.rec"], tmp_path / "out", force=True)
    with pytest.raises(UserError, match=r"SOURCE: expected each source once"):
        write_records([tmp_path / "in", tmp_path / "x" / ".." / "in"], tmp_path / "twice")
    with pytest.raises(UserError, match=r"gone: expected a folder of identity folders, .*got nothing there"):
        write_records([tmp_path / "gone"], tmp_path / "none")


def test_nothing_to_store(tmp_path):
    make_folder(tmp_path / "in", {"a": 2}, side=50)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"expected images to store, got none \(not 112x112: 2\)"):
        write_records([tmp_path / "in"], tmp_path / "out", workers=1)
    with pytest.raises(UserError, match=r"expected images to store, got none \(no image at all\)"):
        write_records([tmp_path / "empty"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- interruptions ----------------------------------------------------------------------------------


def test_a_finished_set_is_left_as_it_is(tmp_path):
    make_folder(tmp_path / "in", {"a": 2, "b": 1})
    report = write_records([tmp_path / "in"], tmp_path / "out", workers=1)
    stamp = (tmp_path / "out" / "train.rec").stat().st_mtime_ns
    said = []
    assert write_records([tmp_path / "in"], tmp_path / "out", say=said.append) == report
    assert said == [f"{tmp_path}/out/train.rec is there already, made from the same: nothing to do"]
    assert (tmp_path / "out" / "train.rec").stat().st_mtime_ns == stamp
    with pytest.raises(
        UserError, match=r"out holds another data set \(min_images 1 instead of 2\); use --force"
    ):
        write_records([tmp_path / "in"], tmp_path / "out", min_images=2)
    assert not (tmp_path / "out" / "train.part").exists()
    write_records([tmp_path / "in"], tmp_path / "out", min_images=2, force=True, workers=1)
    assert len(Records(tmp_path / "out")) == 2
    with RecordWriter(tmp_path / "other") as writer:
        writer.add(encoded(0), 0)
    with pytest.raises(UserError, match=r"another data set \(not made by this command\)"):
        write_records([tmp_path / "in"], tmp_path / "other")


@pytest.fixture
def stopping(monkeypatch):
    """stopping(n): from then on a run checkpoints after every job and is interrupted before its n-th result."""
    usual = ingest.in_order
    seen = []

    def stop(after):
        def cut(make, arguments, jobs, workers):
            for i, result in enumerate(usual(make, arguments, jobs, workers)):
                if i == after:
                    raise KeyboardInterrupt
                seen.append(i)
                yield result

        monkeypatch.setattr(ingest, "in_order", cut)
        return seen

    monkeypatch.setattr(ingest, "_ROWS_A_JOB", 2)
    monkeypatch.setattr(ingest, "_CHECKPOINT_SECONDS", 0)
    return stop


@pytest.mark.parametrize(("min_images", "stops"), [(1, (0, 5)), (3, (2, 3, 4, 7))])
def test_an_interrupted_run_goes_on(tmp_path, stopping, min_images, stops):
    make_folder(tmp_path / "in", {"a": 4, "b": 3, "c": 5, "d": 4})
    for name in ("b/2.jpg", "c/0.jpg"):
        write(tmp_path / "in" / name, b"broken")
    options = {"min_images": min_images, "workers": 1}
    write_records([tmp_path / "in"], tmp_path / "whole", **options)
    expected = set_files(tmp_path / "whole")
    for after in stops:
        output = tmp_path / f"out{after}"
        stopping(after)
        with pytest.raises(KeyboardInterrupt):
            write_records([tmp_path / "in"], output, **options)
        assert [path.name for path in output.iterdir()] == ["train.part"]
        seen = stopping(99)
        seen.clear()
        said = []
        write_records([tmp_path / "in"], output, **options, say=said.append)
        assert set_files(output) == expected
        if min_images == 1:
            assert len(seen) == 8 - after  # nothing is done twice
            assert bool(said) == bool(after) and all(
                f"after {2 * after} of 16 images" in line for line in said
            )


def test_unfinished_work_of_another_kind(tmp_path, stopping):
    make_folder(tmp_path / "in", {"a": 4, "b": 3})
    stopping(2)
    with pytest.raises(KeyboardInterrupt):
        write_records([tmp_path / "in"], tmp_path / "out", workers=1)
    stopping(99)
    with pytest.raises(
        UserError, match=r"train\.part holds unfinished work \(resize False instead of True\)"
    ):
        write_records([tmp_path / "in"], tmp_path / "out", treatment=Treatment(resize=True), workers=1)
    write(tmp_path / "in" / "a" / "9.jpg", encoded(77))
    with pytest.raises(
        UserError, match=r"unfinished work \(images 7 instead of 8\); use --force to begin anew"
    ):
        write_records([tmp_path / "in"], tmp_path / "out", workers=1)
    write_records([tmp_path / "in"], tmp_path / "out", workers=1, force=True)
    assert len(Records(tmp_path / "out")) == 8


def test_a_run_that_is_ended_while_the_files_get_their_names(tmp_path, monkeypatch):
    make_folder(tmp_path / "in", {"a": 4, "b": 3})
    write_records([tmp_path / "in"], tmp_path / "whole", workers=1)
    replace = Path.replace
    for stop in (0, 1, 4):
        output = tmp_path / f"out{stop}"
        make_folder(tmp_path / "old", {"x": 1})
        write_records([tmp_path / "old"], output, workers=1)
        moved = []

        def interrupted(self, target, moved=moved, stop=stop, output=output):
            if target.parent == output:
                if len(moved) == stop:
                    raise KeyboardInterrupt
                moved.append(self.name)
            return replace(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(ingest.Path, "replace", interrupted)
            with pytest.raises(KeyboardInterrupt):
                write_records([tmp_path / "in"], output, workers=1, force=True)
        # A new .rec never stands beside the old .idx.
        assert not (output / "train.idx").exists()
        write_records([tmp_path / "in"], output, workers=1)
        assert set_files(output) == set_files(tmp_path / "whole")
        assert not (output / "train.part").exists()


def test_work_files_that_were_cut(tmp_path, stopping):
    make_folder(tmp_path / "in", {"a": 4, "b": 3})
    stopping(2)
    with pytest.raises(KeyboardInterrupt):
        write_records([tmp_path / "in"], tmp_path / "out", workers=1)
    os.truncate(tmp_path / "out" / "train.part" / "train.rec", 100)
    with pytest.raises(
        UserError, match=r"train\.part: expected a train\.rec of \d+ bytes, got 100; delete the folder"
    ):
        write_records([tmp_path / "in"], tmp_path / "out", workers=1)


def test_two_runs_at_once(tmp_path):
    import fcntl

    make_folder(tmp_path / "in", {"a": 1})
    work = tmp_path / "out" / "train.part"
    work.mkdir(parents=True)
    other = os.open(work, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(UserError, match=r"--output: another run is writing .*out; wait for it"):
        write_records([tmp_path / "in"], tmp_path / "out")
    assert work.is_dir()
    os.close(other)


_KILLED = """
    import sys
    from ddl_plugin.ingest import job as ingest

    ingest._ROWS_A_JOB = 4
    ingest._CHECKPOINT_SECONDS = 0
    if __name__ == "__main__":
        ingest.write_records([sys.argv[1]], sys.argv[2], workers=2, min_images=2, force=True)
"""


def test_a_killed_run_goes_on_and_writes_the_same_bytes(tmp_path):
    make_folder(tmp_path / "in", {f"id{i:03d}": 1 + i % 4 for i in range(300)})
    make_folder(tmp_path / "old", {"x": 2})
    write_records([tmp_path / "in"], tmp_path / "whole", workers=1, min_images=2)
    write_records([tmp_path / "old"], tmp_path / "out", workers=1)
    before = contents(tmp_path / "out")
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(_KILLED))
    state = tmp_path / "out" / "train.part" / "state.json"
    run = subprocess.Popen([sys.executable, script, tmp_path / "in", tmp_path / "out"])
    try:
        _wait_for_rows(state, 100)
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    assert 100 <= json.loads(state.read_text())["rows"] < 750
    assert contents(tmp_path / "out") == before  # the previous set is as it was
    # A part of a record that no checkpoint knows, as after a kill within a write.
    with (tmp_path / "out" / "train.part" / "train.rec").open("ab") as file:
        file.write(b"half a record")
    write_records([tmp_path / "in"], tmp_path / "out", workers=2, min_images=2, force=True)
    assert set_files(tmp_path / "out") == set_files(tmp_path / "whole")


def _wait_for_rows(state, rows):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if json.loads(state.read_text()).get("rows", 0) >= rows:
                return
        except (OSError, ValueError):
            pass
        time.sleep(0.002)
    raise AssertionError("no checkpoint came")


_LIMITED = """
    import resource, sys
    from ddl_plugin.prepare.__main__ import main

    if __name__ == "__main__":
        limit = int(sys.argv[3])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        sys.exit(main(["records", sys.argv[1], "--output", sys.argv[2], "--force", "--workers", "1"]))
"""


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_full_disk_keeps_the_previous_set(tmp_path, share):
    """A limit on the size of files stands for it: the kernel refuses the write with an error, as a full disk does."""
    make_folder(tmp_path / "in", {f"id{i}": 4 for i in range(60)})
    make_folder(tmp_path / "old", {"x": 2})
    write_records([tmp_path / "in"], tmp_path / "whole", workers=1)
    write_records([tmp_path / "old"], tmp_path / "out", workers=1)
    before = contents(tmp_path / "out")
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(_LIMITED))
    limit = int((tmp_path / "whole" / "train.rec").stat().st_size * share)
    done = subprocess.run(
        [sys.executable, script, tmp_path / "in", tmp_path / "out", str(limit)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/out/train.part")
    assert "cannot be written (File too large)" in done.stderr
    assert contents(tmp_path / "out") == before
    write_records([tmp_path / "in"], tmp_path / "out", workers=1, force=True)
    assert set_files(tmp_path / "out") == set_files(tmp_path / "whole")


def test_a_source_that_is_damaged(tmp_path):
    """Images with a broken frame, and one with another identity's label: found at the start or when it is read."""
    make_folder(tmp_path / "in", {"a": 3, "b": 2, "c": 3})
    write_records([tmp_path / "in"], tmp_path / "one", workers=1)
    rec = tmp_path / "one" / "train.rec"
    data = bytearray(rec.read_bytes())
    offsets = [int(line.split()[1]) for line in (tmp_path / "one" / "train.idx").read_text().splitlines()]
    data[offsets[2]] ^= 1  # magic of the second image
    data[offsets[4]] ^= 1  # of b's first image
    data[offsets[7] + 12 : offsets[7] + 16] = np.float32(1).tobytes()  # label of c's second image
    rec.write_bytes(data)
    report = write_records([tmp_path / "one"], tmp_path / "out", workers=1)
    assert report["skipped"] == {
        "cannot be read": {"count": 2, "first": ["a/1.jpg", "b/0.jpg"]},
        "label is not that of its identity": {"count": 1, "first": ["c/1.jpg"]},
    }
    assert report["images"] == 5


def test_a_source_without_header_record_that_is_damaged(tmp_path):
    """Every label is read at the start there, so damage shows then; however much it is, the rest is stored."""
    data, lines = b"", ""
    for key in range(1, 9):
        lines += f"{key}\t{len(data)}\n"
        record = image_record(key, key // 5, encoded(key))
        data += record if key in (2, 7) else b"\0" * 8 + record[8:]
    write(tmp_path / "in" / "train.rec", data)
    (tmp_path / "in" / "train.idx").write_text(lines)
    report = write_records([tmp_path / "in"], tmp_path / "out", workers=1)
    assert report["skipped"] == {
        "damaged record": {"count": 6, "first": [f"train.rec:{key}" for key in (1, 3, 4, 5, 6)]}
    }
    assert payloads(tmp_path / "out") == [encoded(2), encoded(7)]


# -- real data --------------------------------------------------------------------------------------


def test_a_real_set_through_a_folder_is_the_same(shared_data, tmp_path):
    """LFW's validation set taken apart into files and put together again, byte for byte."""
    source = shared_data / "lfw112_dev"
    records = Records(source / "val.rec")
    for line, i in zip((source / "val_names.txt").read_text().splitlines(), range(300), strict=False):
        name = line.split("\t")[2]
        write(tmp_path / "in" / name.rpartition("_")[0] / f"{name}.jpg", records.payload(i))
    report = write_records([tmp_path / "in"], tmp_path / "out", workers=2)
    assert report["images"] == 300 and report["skipped"] == {} and report["notes"] == {}
    found = Records(tmp_path / "out")
    assert found.labels.tolist() == records.labels[:300].tolist()
    assert all(found.payload(i) == records.payload(i) for i in range(300))
