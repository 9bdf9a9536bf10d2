"""The pair files of the benchmarks as their authors distribute them, in small."""

import numpy as np
import pytest

from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.pair_lists import (
    LAYOUTS,
    read_agedb,
    read_cfp,
    read_cross,
    read_lfw,
    read_list,
    repeated,
)


def named(pairs):
    """(first, second, same) by name, in order."""
    return [
        (pairs.images[a], pairs.images[b], bool(same))
        for a, b, same in zip(pairs.first, pairs.second, pairs.issame, strict=True)
    ]


LFW = """2\t2
Ann_Lee\t1\t2
Bob\t1\t10
Ann_Lee\t1\tBob\t2
Bob\t1\tCid\t1
Cid\t1\t2
Cid\t1\t3
Ann_Lee\t2\tCid\t3
Bob\t2\tCid\t2
"""


def test_lfw_is_read_fold_by_fold(tmp_path):
    (tmp_path / "pairs.txt").write_text(LFW)
    pairs = read_lfw(tmp_path)
    assert pairs.root == tmp_path
    assert named(pairs) == [
        ("Ann_Lee/Ann_Lee_0001.jpg", "Ann_Lee/Ann_Lee_0002.jpg", True),
        ("Bob/Bob_0001.jpg", "Bob/Bob_0010.jpg", True),
        ("Ann_Lee/Ann_Lee_0001.jpg", "Bob/Bob_0002.jpg", False),
        ("Bob/Bob_0001.jpg", "Cid/Cid_0001.jpg", False),
        ("Cid/Cid_0001.jpg", "Cid/Cid_0002.jpg", True),
        ("Cid/Cid_0001.jpg", "Cid/Cid_0003.jpg", True),
        ("Ann_Lee/Ann_Lee_0002.jpg", "Cid/Cid_0003.jpg", False),
        ("Bob/Bob_0002.jpg", "Cid/Cid_0002.jpg", False),
    ]
    assert len(set(pairs.images)) == len(pairs.images)


def test_lfw_pairs_may_lie_beside_the_folder_or_anywhere_and_images_be_png(tmp_path):
    (tmp_path / "lfw" / "Bob").mkdir(parents=True)
    (tmp_path / "lfw" / "Bob" / "Bob_0001.png").touch()
    (tmp_path / "pairs.txt").write_text(LFW)
    assert named(read_lfw(tmp_path / "lfw"))[1][:2] == ("Bob/Bob_0001.png", "Bob/Bob_0010.png")
    (tmp_path / "mine.txt").write_text(LFW)
    (tmp_path / "pairs.txt").unlink()
    assert len(read_lfw(tmp_path / "lfw", tmp_path / "mine.txt").issame) == 8
    with pytest.raises(
        UserError, match=r"pairs\.txt or .*pairs\.txt: expected the file of the pairs, got nothing"
    ):
        read_lfw(tmp_path / "lfw")
    with pytest.raises(UserError, match=r"--pairs: expected the file of the pairs, got .*none\.txt"):
        read_lfw(tmp_path / "lfw", tmp_path / "none.txt")


def test_lfw_list_of_one_block_is_put_into_ten_folds(tmp_path):
    lines = ["10"] + [f"A\t{i}\t{i + 1}" for i in range(10)] + [f"A\t{i}\tB\t{i}" for i in range(10)]
    (tmp_path / "pairs.txt").write_text("\n".join(lines))
    pairs = read_lfw(tmp_path)
    assert pairs.issame.tolist() == [True, False] * 10
    assert named(pairs)[2:4] == [
        ("A/A_0001.jpg", "A/A_0002.jpg", True),
        ("A/A_0001.jpg", "B/B_0001.jpg", False),
    ]


@pytest.mark.parametrize(
    "text, message",
    [
        (LFW.replace("2\t2\n", "", 1), r"line 1: expected the numbers of folds and of pairs, '10 300'"),
        (LFW.replace("Cid\t1\t3\n", ""), "expected 2 x 2 x 2 pairs, as its first line says, got 7 lines"),
        (LFW.replace("Bob\t1\t10", "Bob\t1\tten"), r"line 3: expected a pair 'NAME 1 2', got 'Bob"),
        (LFW.replace("Bob\t1\tCid\t1", "Bob\t1\t3"), "line 5: expected a pair 'NAME 1 OTHER 2'"),
        ("", "expected pairs of images, got an empty file"),
    ],
)
def test_mistakes_in_pairs_of_lfw_are_named(tmp_path, text, message):
    (tmp_path / "pairs.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_lfw(tmp_path)


def cfp(root):
    """Three persons with 2 frontal and 1 profile image each, two folds of each kind."""
    protocol = root / "Protocol"
    frontal = [
        f"{3 * p + k + 1} ../Data/Images/{p + 1:03d}/frontal/0{k + 1}.jpg" for p in range(3) for k in range(2)
    ]
    frontal = [f"{i + 1} {line.split()[1]}" for i, line in enumerate(frontal)]
    profile = [f"{p + 1} ../Data/Images/{p + 1:03d}/profile/01.jpg" for p in range(3)]
    files = {
        "Pair_list_F.txt": frontal,
        "Pair_list_P.txt": profile,
        "Split/FF/01/same.txt": ["1,2", "3,4"],
        "Split/FF/01/diff.txt": ["1,3", "2,5"],
        "Split/FF/02/same.txt": ["5,6"],
        "Split/FF/02/diff.txt": ["6,1"],
        "Split/FP/01/same.txt": ["1,1", "3,2"],
        "Split/FP/01/diff.txt": ["1,2", "2,3"],
        "Split/FP/02/same.txt": ["5,3"],
        "Split/FP/02/diff.txt": ["6,1"],
    }
    for name, lines in files.items():
        (protocol / name).parent.mkdir(parents=True, exist_ok=True)
        (protocol / name).write_text("\r\n".join(lines) + "\r\n")


def image(person, view, k):
    return f"Data/Images/{person:03d}/{view}/0{k}.jpg"


def test_cfp_is_read_fold_by_fold(tmp_path):
    cfp(tmp_path)
    pairs = read_cfp(tmp_path, "FP")
    assert pairs.issame.tolist() == [True, True, False, False, True, False]
    assert named(pairs)[0][:2] == (image(1, "frontal", 1), image(1, "profile", 1))
    assert named(pairs)[3][:2] == (image(1, "frontal", 2), image(3, "profile", 1))
    assert named(pairs)[5][:2] == (image(3, "frontal", 2), image(1, "profile", 1))
    views = dict(zip(pairs.images, pairs.columns["view"].tolist(), strict=True))
    assert (views[image(1, "frontal", 1)], views[image(3, "profile", 1)]) == ("frontal", "profile")
    frontal = read_cfp(tmp_path, "FF")
    assert named(frontal)[1] == (image(2, "frontal", 1), image(2, "frontal", 2), True)
    assert named(frontal)[3] == (image(1, "frontal", 2), image(3, "frontal", 1), False)
    assert set(frontal.columns["view"].tolist()) == {"frontal"}


def test_mistakes_in_cfp_are_named(tmp_path):
    cfp(tmp_path)
    same = tmp_path / "Protocol" / "Split" / "FP" / "02" / "same.txt"
    same.write_text("5,3\n7,1\n")
    with pytest.raises(UserError, match=r"same\.txt, line 2: expected numbers of Pair_list_F\.txt, got 7"):
        read_cfp(tmp_path, "FP")
    same.write_text("5 3\n")
    with pytest.raises(UserError, match=r"same\.txt, line 1: expected two numbers '12,34', got '5 3'"):
        read_cfp(tmp_path, "FP")
    same.unlink()
    with pytest.raises(UserError, match=r"02/same\.txt: cannot be read"):
        read_cfp(tmp_path, "FP")
    with pytest.raises(UserError, match=r"Pair_list_F\.txt: cannot be read"):
        read_cfp(tmp_path / "Protocol", "FF")


def cross(labels):
    """Twenty pairs of the same person, then twenty of different ones, as CPLFW and CALFW list them."""
    lines = []
    for i, label in enumerate(labels):
        lines += [f"P_{i}_1.jpg {label}", f"P_{i}_2.jpg {label}"]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "name, labels",
    [
        ("pairs_CPLFW.txt", [1] * 20 + [0] * 20),
        ("pairs_CALFW.txt", [1 + i // 2 for i in range(20)] + [0] * 20),
    ],
)
def test_cplfw_and_calfw_are_put_into_ten_folds(tmp_path, name, labels):
    (tmp_path / name).write_text(cross(labels))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "P_0_1.jpg").touch()
    pairs = read_cross(tmp_path, None, name)
    assert pairs.root == tmp_path / "images"
    assert pairs.issame.tolist() == [True, True, False, False] * 10
    assert named(pairs)[:5] == [
        ("P_0_1.jpg", "P_0_2.jpg", True),
        ("P_1_1.jpg", "P_1_2.jpg", True),
        ("P_20_1.jpg", "P_20_2.jpg", False),
        ("P_21_1.jpg", "P_21_2.jpg", False),
        ("P_2_1.jpg", "P_2_2.jpg", True),
    ]


def test_the_pictures_of_calfw_come_before_the_funnelled_ones(tmp_path):
    (tmp_path / "pairs_CALFW.txt").write_text(cross([1 + i // 2 for i in range(20)] + [0] * 20))
    for name in ("aligned images", "images&landmarks/images", "images&landmarks/images&landmarks/images"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "P_0_1.jpg").touch()
        assert read_cross(tmp_path, None, "pairs_CALFW.txt").root == tmp_path / name
    (tmp_path / "P_0_1.jpg").touch()
    assert read_cross(tmp_path, None, "pairs_CALFW.txt").root == tmp_path


@pytest.mark.parametrize(
    "text, message",
    [
        (
            cross([1] * 20 + [0] * 20).replace("P_3_1.jpg 1\n", ""),
            "expected two lines for each pair, got 79 lines",
        ),
        (
            cross([1] * 20 + [0] * 18),
            "expected 10 folds of as many pairs of the same as of different persons, got 20 and 18",
        ),
        ("a.jpg 1\nb.jpg 0\n", "line 1: expected one label for both images of a pair, got 1 and 0"),
        ("a.jpg\nb.jpg\n", "line 1: expected two lines 'FILE.jpg LABEL'"),
    ],
)
def test_mistakes_in_cplfw_are_named(tmp_path, text, message):
    (tmp_path / "pairs_CPLFW.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_cross(tmp_path, None, "pairs_CPLFW.txt")


def agedb_cell(name, age):
    item = np.zeros((1, 1), [("name", object), ("age", object)])
    item[0, 0] = (np.array([name]), np.array([[age]]))
    return item


def test_agedb_is_read_as_insightface_packed_it(tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    splits = np.empty((2, 1), object)
    wanted = []
    for k in range(2):
        matrix = np.empty((2, 3), object)
        for c, (first, second) in enumerate(((5, 5), (5, 7), (9, 9))):
            names = [f"{first}_1_Ann_{20 + c}_f", f"{second}_{2 + k}_Bob_{50 + c}_m"]
            for r, name in enumerate(names):
                matrix[r, c] = agedb_cell(name, int(name.split("_")[3]))
            wanted.append((f"{names[0]}.jpg", f"{names[1]}.jpg", first == second))
        split = np.zeros((1, 1), [("pairs", object)])
        split[0, 0]["pairs"] = matrix
        splits[k, 0] = split
    path = tmp_path / "04_FINAL_protocol_30_years.mat"
    scipy_io.savemat(path, {"splits": splits})
    with pytest.raises(UserError, match=r"03_Protocol_Images: expected the images of AgeDB's protocols"):
        read_agedb(tmp_path)
    (tmp_path / "03_Protocol_Images").mkdir()
    pairs = read_agedb(tmp_path)
    assert named(pairs) == wanted
    assert pairs.root == tmp_path / "03_Protocol_Images"
    ages = dict(zip(pairs.images, pairs.columns["age"].tolist(), strict=True))
    assert (ages["5_1_Ann_20_f.jpg"], ages["7_3_Bob_51_m.jpg"]) == (20, 51)
    path.write_bytes(b"no mat")
    with pytest.raises(UserError, match=r"expected AgeDB's protocol with `splits`, got another file"):
        read_agedb(tmp_path)
    scipy_io.savemat(path, {"splits": np.arange(4)})
    with pytest.raises(UserError, match=r"expected AgeDB's protocol with `splits`, got another file"):
        read_agedb(tmp_path)


@pytest.mark.parametrize("mark", [" ", "\t", ",", ", "])
def test_a_list_of_ones_own_keeps_its_order(tmp_path, mark):
    rows = [("a.jpg", "b.jpg", "1"), ("b.jpg", "c/d.jpg", "0"), ("a.jpg", "./c/d.jpg", "1")]
    (tmp_path / "mine.txt").write_text("\n".join(mark.join(row) for row in rows))
    pairs = read_list(tmp_path, tmp_path / "mine.txt")
    assert named(pairs) == [("a.jpg", "b.jpg", True), ("b.jpg", "c/d.jpg", False), ("a.jpg", "c/d.jpg", True)]


@pytest.mark.parametrize(
    "text, message",
    [
        ("a b 1\na b\n", "line 2: expected 'PATH PATH 0' or 'PATH PATH 1', got 'a b'"),
        ("a b 1\na b 2\n", "line 2: expected 'PATH PATH 0'"),
        ("a b 1\n", "expected pairs of different persons, got none among 1"),
        ("a b 0\n", "expected pairs of the same person, got none among 1"),
    ],
)
def test_mistakes_in_a_list_are_named(tmp_path, text, message):
    (tmp_path / "mine.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_list(tmp_path, tmp_path / "mine.txt")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(UserError, match="expected a text file in UTF-8"):
        read_list(tmp_path, tmp_path / "mine.txt")


def test_repeated_pairs_are_counted_and_named(tmp_path):
    (tmp_path / "mine.txt").write_text("a b 1\nb a 1\nc d 0\na b 1\nc c 1\n")
    pairs = read_list(tmp_path, tmp_path / "mine.txt")
    assert repeated(pairs) == [
        "2 pairs are listed again: a and b",
        "1 pairs are of an image with itself: c and c",
    ]
    (tmp_path / "mine.txt").write_text("a b 1\nc d 0\n")
    assert repeated(read_list(tmp_path, tmp_path / "mine.txt")) == []


def test_every_layout_has_a_reader():
    assert list(LAYOUTS) == ["lfw", "cfp_ff", "cfp_fp", "cplfw", "calfw", "agedb_30", "list"]
