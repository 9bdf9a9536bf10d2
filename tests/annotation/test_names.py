"""The names file: which record is which image file."""

import numpy as np
import pytest

from ddl_plugin.annotation import names
from ddl_plugin.annotation.names import Names
from ddl_plugin.errors import UserError


def load(tmp_path, *lines):
    path = tmp_path / "train_names.txt"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return Names.load(path)


def asked(*texts):
    return np.array([text.encode() for text in texts])


def test_three_columns(tmp_path):
    n = load(tmp_path, "1\t0\tAbba_Eban_0001", "2\t0\tAbba_Eban_0002", "7\t3\tÄnne_0001")
    assert n.keys.tolist() == [1, 2, 7] and n.labels.tolist() == [0, 0, 3]
    assert n.names.tolist()[2] == "Änne_0001".encode() and n.identities is None


def test_identities_from_the_fourth_column_or_the_folder(tmp_path):
    n = load(tmp_path, "1\t0\tAbba Eban\tx/1.jpg", "2\t1\tÄnne\tx/2.jpg")
    assert n.identities.tolist() == [b"Abba Eban", "Änne".encode()]
    assert n.names.tolist() == [b"x/1.jpg", b"x/2.jpg"]
    n = load(tmp_path, "1\t0\ttrain/n000001/0001_01.jpg", "2\t1\tn000002/0001_01.jpg")
    assert n.identities.tolist() == [b"n000001", b"n000002"]
    assert load(tmp_path, "1\t0\ta/b.jpg", "2\t1\tc.jpg").identities is None


def test_names_of_digits_and_quotes_stay_as_they_are(tmp_path):
    n = load(tmp_path, "1\t0\t0001", '2\t1\t"0002"')
    assert n.names.tolist() == [b"0001", b'"0002"']
    assert n.find(asked("0001", '"0002"', "1"), "list").tolist() == [0, 1, -1]


@pytest.mark.parametrize(
    ("own", "wanted"),
    [
        ("n000001/0001_01.jpg", "n000001/0001_01.jpg"),
        ("n000001/0001_01.jpg", "n000001/0001_01"),
        ("train/n000001/0001_01.JPG", "n000001/0001_01.png"),
        ("n000001/0001_01", "/data/vgg/train/n000001/0001_01.jpg"),
        ("0001_01", "n000001/0001_01.jpg"),
    ],
)
def test_names_are_compared_by_the_folders_that_both_have(tmp_path, own, wanted):
    n = load(tmp_path, "5\t0\tn000001/0002_01.jpg".replace("n000001/", own.rpartition("/")[0] + "/" if "/" in own else ""),
             f"6\t0\t{own}")  # fmt: skip
    other = wanted.replace("0001_01", "0009_01")
    assert n.find(asked(wanted, other), "list").tolist() == [1, -1]


def test_a_dot_in_a_name_is_no_suffix(tmp_path):
    n = load(tmp_path, "1\t0\tA.b", "2\t0\tA.c")
    assert n.find(asked("A.c", "A.b.jpg", "A"), "list").tolist() == [1, 0, -1]


def test_folders_tell_images_of_one_name_apart(tmp_path):
    n = load(tmp_path, *(f"{i + 1}\t{i}\tn{i:06d}/0001_01.jpg" for i in range(4)))
    assert n.find(asked("n000002/0001_01", "n000000/0001_01"), "list").tolist() == [2, 0]
    with pytest.raises(
        UserError, match=r"list: '0001_01' stands for more than one record of .*names\.txt \(1 and 2\)"
    ):
        n.find(asked("0001_01", "0002_01"), "list")


def test_all_images_are_found_in_parts_too(tmp_path, monkeypatch):
    monkeypatch.setattr(names, "_AT_A_TIME", 3)
    n = load(tmp_path, *(f"{i}\t0\tx/{'y' * (i % 5)}{i}.jpg" for i in range(1, 20)))
    order = np.random.default_rng(0).permutation(19)
    assert n.find(n.names[order], "list").tolist() == order.tolist()
    assert n.find(np.empty(0, "S1"), "list").tolist() == []


def test_none_found(tmp_path):
    n = load(tmp_path, "1\t0\ta/b.jpg")
    with pytest.raises(
        UserError, match=r"list\.txt: expected names of images in .*, such as 'a/b\.jpg', got none of "
    ):
        n.find(asked("c/d.jpg"), "list.txt")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["1\t0\ta", "2\t0"], r"line 2: expected 3 cells \(record, label, name\), got 2"),
        (["1\t0\ti\ta", "2\t0\ta"], r"line 2: expected 4 cells \(record, label, identity, name\), got 3"),
        (["1\t0\ta", "x\t0\tb"], r"line 2: column 'record': expected a record number, .*, got 'x'"),
        (["1\t0\ta", "2\tb\tb"], r"line 2: column 'label': expected a label number, .*, got 'b'"),
        ([], r"expected a line for each record, got an empty file"),
    ],
)
def test_mistakes(tmp_path, lines, message):
    with pytest.raises(UserError, match=r"train_names\.txt: " + message):
        load(tmp_path, *lines)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match=r"none\.txt: cannot be read \(No such file"):
        Names.load(tmp_path / "none.txt")


def test_the_real_one(shared_data):
    n = Names.load(shared_data / "lfw112_dev" / "train_names.txt")
    assert len(n.keys) == 6586
    rows = n.find(asked("Zico_0002.jpg", "Aaron_Nobody_0001.jpg", "AJ_Lamas_0001.jpg"), "list")
    assert rows[1] == -1 and n.names[rows[[0, 2]]].tolist() == [b"Zico_0002", b"AJ_Lamas_0001"]
