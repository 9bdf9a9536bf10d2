"""Verification sets made of pair lists: which images get in, how, and what happens where one cannot be used."""

import pickle
from dataclasses import replace

import cv2
import numpy as np
import pytest

from ddl_plugin.data.attributes import AttributeTable
from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.bins import fingerprint, load_bin
from ddl_plugin.evaluation.packing import Packing, pack, table_path
from ddl_plugin.evaluation.pair_lists import PairList
from ddl_plugin.prepare.__main__ import main


def bar(results, total):
    return results


def face(seed, side=112):
    """A smooth picture of its own."""
    noise = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def faces(tmp_path):
    """Files 0.jpg .. 4.jpg, aligned, and pairs of them; file 1 is in two."""
    folder = tmp_path / "faces"
    folder.mkdir()
    names = [f"{i}.jpg" for i in range(5)]
    for i, name in enumerate(names):
        cv2.imwrite(str(folder / name), face(i))
    first, second = np.array([0, 2, 3]), np.array([1, 1, 4])
    return PairList(folder, names, first, second, np.array([True, False, True]), {"age": np.arange(5) * 10.0})


ALIGNED = Packing(workers=1)


def test_aligned_images_get_in_byte_for_byte_in_the_order_of_the_pairs(faces, tmp_path):
    report = pack(faces, tmp_path / "set.bin", Packing(workers=2), bar)
    wanted = [(faces.root / f"{i}.jpg").read_bytes() for i in (0, 1, 2, 1, 3, 4)]
    loaded = load_bin(tmp_path / "set.bin")
    assert list(loaded.encoded) == wanted
    assert loaded.issame.tolist() == [True, False, True]
    with (tmp_path / "set.bin").open("rb") as file:  # as InsightFace's own reader does
        bins, issame_list = pickle.load(file, encoding="bytes")
    assert (bins, issame_list) == (wanted, [True, False, True])
    assert (report["pairs"], report["images"], report["stored"]) == (3, 5, {"as they are": 5})
    table = AttributeTable.load(table_path(tmp_path / "set.bin"))
    assert table.keys.tolist() == list(range(6))
    assert {name: values.tolist() for name, values in table.columns.items()} == {
        "age": [0, 10, 20, 10, 30, 40]
    }


def test_the_table_is_that_of_the_set_beside_it(faces, tmp_path):
    pack(faces, tmp_path / "set.bin", ALIGNED, bar)
    table = AttributeTable.load(table_path(tmp_path / "set.bin"))
    assert table.provenance["records"] == fingerprint(tmp_path / "set.bin")
    pack(replace(faces, columns={}), tmp_path / "set.bin", ALIGNED, bar)
    assert not table_path(tmp_path / "set.bin").exists()


def test_images_that_cannot_be_used_are_counted_and_named_and_nothing_is_written(faces, tmp_path):
    (faces.root / "1.jpg").unlink()
    (faces.root / "2.jpg").write_bytes(b"nothing")
    cv2.imwrite(str(faces.root / "4.jpg"), face(4, 250))
    message = (
        r"expected every image of the pairs, got 1 no such file \(1\.jpg\), 1 cannot be decoded \(2\.jpg\), "
        r"1 not 112x112 \(4\.jpg\); align them with --detector or --landmarks; .*nothing is written$"
    )
    with pytest.raises(UserError, match=message):
        pack(faces, tmp_path / "set.bin", Packing(workers=1, max_fallback=9), bar)
    assert not (tmp_path / "set.bin").exists()
    assert not table_path(tmp_path / "set.bin").exists()


POINTS = np.array(
    [[38.3, 51.7], [73.5, 51.5], [56.0, 71.7], [41.5, 92.4], [70.7, 92.2]]
)  # of an aligned face


def landmarks_file(path, points):
    lines = [f"{name}," + ",".join(f"{v:.3f}" for v in values.ravel()) for name, values in points.items()]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture
def pictures(faces, tmp_path):
    """The faces within pictures of 300x260, shifted by 90 and 60 pixels; no landmarks for 2.jpg."""
    pytest.importorskip("insightface")
    for i, name in enumerate(faces.images):
        picture = np.full((260, 300, 3), 40, np.uint8)
        picture[60:172, 90:202] = face(i)
        cv2.imwrite(str(faces.root / name), picture, [cv2.IMWRITE_JPEG_QUALITY, 100])
    points = {name: np.add(POINTS, (90, 60)) for name in faces.images if name != "2.jpg"}
    return landmarks_file(tmp_path / "points.csv", points)


def test_faces_are_aligned_by_landmarks_and_the_middle_stands_for_those_without(faces, pictures, tmp_path):
    packing = Packing(landmarks=pictures, max_fallback=1, workers=1)
    report = pack(faces, tmp_path / "set.bin", packing, bar)
    assert report["fallback"] == ["2.jpg"]
    assert report["stored"] == {"aligned to 112x112": 4}
    images = load_bin(tmp_path / "set.bin").images(0, 6)
    for place, i in enumerate((0, 1, None, 1, 3, 4)):
        if i is None:
            continue
        difference = images[place].astype(float) - face(i)[..., ::-1]
        assert np.abs(difference[5:-5, 5:-5]).mean() < 4
    picture = cv2.imread(str(faces.root / "2.jpg"))
    side = int(7 / 8 * 260)
    middle = picture[(260 - side) // 2 :, (300 - side) // 2 :][:side, :side]
    expected = cv2.resize(middle, (112, 112), interpolation=cv2.INTER_AREA)[..., ::-1]
    assert np.abs(images[2].astype(float) - expected).mean() < 3
    table = AttributeTable.load(table_path(tmp_path / "set.bin"))
    assert table.columns["fallback"].tolist() == [False, False, True, False, False, False]
    sizes = table.columns["face_size"]
    assert np.isnan(sizes[2])
    assert sizes[[0, 1, 3, 4, 5]] == pytest.approx([112] * 5, abs=1)


def test_faces_that_were_not_found_are_named_beyond_the_limit(faces, pictures, tmp_path):
    message = r"expected a face in every image, got 1 no landmarks given \(2\.jpg\); .*--max-fallback 1$"
    with pytest.raises(UserError, match=message):
        pack(faces, tmp_path / "set.bin", Packing(landmarks=pictures, workers=1), bar)
    assert not (tmp_path / "set.bin").exists()


# -- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def lfw(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for s, person in enumerate(("Ann", "Bob")):
        (tmp_path / "lfw" / person).mkdir(parents=True)
        for k in (1, 2):
            cv2.imwrite(str(tmp_path / "lfw" / person / f"{person}_000{k}.jpg"), face(10 * s + k))
    (tmp_path / "lfw" / "pairs.txt").write_text(
        "1\t2\nAnn\t1\t2\nBob\t1\t2\nAnn\t1\tBob\t1\nAnn\t2\tBob\t1\n"
    )
    return tmp_path


def test_the_command_makes_a_set_and_says_what_it_did(lfw, capsys):
    assert (
        main(["bin", "lfw", "lfw", "--output", "lfw.bin", "--aligned", "--workers", "1", "--json", "r.json"])
        == 0
    )
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "lfw.bin: 4 pairs, 2 of the same person and 2 of different persons, of 4 images",
        "4 images as they are",
    ]
    assert load_bin("lfw.bin").issame.tolist() == [True, True, False, False]
    assert (lfw / "r.json").is_file()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["lfv", "lfw", "--output", "a.bin", "--aligned"], "LAYOUT: expected one of lfw, cfp_ff,"),
        (["lfv", "lfw", "--output", "a.bin", "--aligned"], "did you mean 'lfw'?"),
        (["lfw", "lfw", "--output", "a.bin"], "expected one of them to say where the faces are, got none"),
        (["lfw", "lfw", "--output", "a.bin", "--aligned", "--detector", "d"], "are, got several"),
        (["lfw", "lfw", "--output", "a.txt", "--aligned"], "--output: expected a file named .bin, got a.txt"),
        (["lfw", "none", "--output", "a.bin", "--aligned"], "none: expected the folder of the distribution"),
        (["lfw", "lfw", "--output", "a.bin", "--aligned", "--json", "a.bin"], "--json: expected a file of its own"),
        (["lfw", "lfw", "--output", "a.bin", "--aligned", "--max-fallback", "-1"], "--max-fallback: expected"),
        (["lfw", "lfw", "--output", "a.bin", "--aligned", "--workers", "0"], "--workers: expected"),
        (["cfp_fp", "lfw", "--output", "a.bin", "--aligned", "--pairs", "x"], "leave --pairs out"),
        (["cfp_fp", "lfw", "--output", "a.bin", "--aligned"], "Pair_list_F.txt: cannot be read"),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line(lfw, capsys, arguments, message):
    assert main(["bin", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (lfw / "a.bin").exists()
