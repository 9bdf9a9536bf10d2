"""What data sets ship: samples in their own format, and what is wrong with them by line."""

import hashlib

import numpy as np
import pytest

from ddl_plugin.annotation.importers import import_cox, import_scface, import_tables, import_vggface2
from ddl_plugin.annotation.names import Names
from ddl_plugin.data.attributes import AttributeTable, made_by
from ddl_plugin.errors import UserError

NAN = float("nan")


def names_file(tmp_path, *names, labels=None, identities=None):
    lines = []
    for i, name in enumerate(names):
        cells = [i + 1, labels[i] if labels else 0, *([identities[i]] if identities else []), name]
        lines.append("\t".join(map(str, cells)) + "\n")
    path = tmp_path / "train_names.txt"
    path.write_text("".join(lines), encoding="utf-8")
    return Names.load(path)


def source_of(path):
    return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


# -- VGGFace2 ------------------------------------------------------------------------------------------------


def vgg_list(tmp_path, *identities, lines=30):
    path = tmp_path / "test_posetemp_imglist.txt"
    path.write_text("".join(f"{name}/{i:04d}_01.jpg\n" for name in identities for i in range(1, lines + 1)))
    return path


def test_vggface2_pose_templates(tmp_path):
    path = vgg_list(tmp_path, "n000001", "n000009")
    # In another order, with other images, and one image of the list left out.
    kept = [f"n{k:06d}/{i:04d}_01.jpg" for k in (9, 1, 2) for i in range(40, 0, -1) if (k, i) != (9, 15)]
    names = names_file(tmp_path, *kept)
    imported = import_vggface2(path, names)
    assert imported.listed == 60 and imported.missing == 1
    table = imported.table
    assert len(table.keys) == 59
    for name, pose, template in [
        ("n000001/0001_01.jpg", "frontal", 1),
        ("n000001/0005_01.jpg", "frontal", 1),
        ("n000001/0006_01.jpg", "frontal", 2),
        ("n000001/0010_01.jpg", "frontal", 2),
        ("n000001/0011_01.jpg", "three-quarter", 1),
        ("n000009/0020_01.jpg", "three-quarter", 2),
        ("n000009/0021_01.jpg", "profile", 1),
        ("n000009/0030_01.jpg", "profile", 2),
    ]:
        key = np.array([kept.index(name) + 1])
        assert table.column("pose", key).tolist() == [pose], name
        assert table.column("template", key).tolist() == [template], name
    not_listed = np.array([kept.index("n000002/0001_01.jpg") + 1])
    with pytest.raises(UserError, match="got no row for 1 of them"):
        table.column("pose", not_listed)
    assert table.provenance == made_by(
        "prepare attributes vggface2", sources=[source_of(path), source_of(names.path)]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda lines: [*lines[:3], "", "n00001/1.jpg", *lines[4:]],
            r"line 5: expected an image such as .*got 'n00001/1",
        ),
        (lambda lines: lines[:29], r"line 1: expected 30 lines of one identity .*, got 29;"),
        (lambda lines: [*lines, *lines[:1]], r"line 1: expected 30 lines of one identity .*, got 31;"),
        (
            lambda lines: [*lines, "n000002/0001_01.jpg"],
            r"line 31: expected 30 lines of one identity .*, got 1;",
        ),
        (
            lambda lines: lines[:20],
            r".*got 20; give test_posetemp_imglist\.txt; 20 lines are those of the list of ages",
        ),
        (lambda lines: [], r"expected lines such as 'n000001/0019_01\.jpg', got an empty file"),
    ],
)
def test_wrong_vggface2_lists(tmp_path, change, message):
    path = vgg_list(tmp_path, "n000001")
    names = names_file(tmp_path, "n000001/0001_01.jpg")
    path.write_text("\n".join(change(path.read_text().split())) + "\n")
    with pytest.raises(UserError, match=r"posetemp_imglist\.txt: " + message):
        import_vggface2(path, names)


def test_a_vggface2_list_of_another_data_set(tmp_path):
    names = names_file(tmp_path, "n000002/0001_01.jpg")
    with pytest.raises(UserError, match=r"imglist\.txt: expected names of images in .*none of them"):
        import_vggface2(vgg_list(tmp_path, "n000001"), names)


# -- SCface --------------------------------------------------------------------------------------------------


def test_scface(tmp_path):
    expected = {
        # name: subject, kind, camera, distance, infrared, turn
        "001_cam1_1.jpg": (1, "surveillance", 1, 1, False, NAN),
        "surveillance_cameras_all/130_cam5_3.jpg": (130, "surveillance", 5, 3, False, NAN),
        "x/014_cam3_2": (14, "surveillance", 3, 2, False, NAN),
        "014_cam6_1.jpg": (14, "surveillance", 6, 1, True, NAN),
        "014_cam7_3.jpg": (14, "surveillance", 7, 3, True, NAN),
        "014_cam8.jpg": (14, "frontal", 8, 0, True, 0),
        "mugshot_frontal_cropped_all/001_frontal.JPG": (1, "frontal", 0, 0, False, 0),
        "mugshot_rotation_all/001_L1.jpg": (1, "rotated", 0, 0, False, 22.5),
        "mugshot_rotation_all/001_R4.jpg": (1, "rotated", 0, 0, False, 90),
    }
    names = names_file(tmp_path, *expected)
    imported = import_scface(names)
    table = imported.table
    assert (imported.listed, imported.missing) == (9, 0)
    assert list(table.columns) == ["subject", "kind", "camera", "distance", "infrared", "turn"]
    for row, values in enumerate(expected.values()):
        for column, value in zip(table.columns.values(), values, strict=True):
            assert column[row] == value or (value != value and np.isnan(column[row])), values
    assert table.keys.tolist() == list(range(1, 10))
    assert table.provenance == made_by("prepare attributes scface", sources=[source_of(names.path)])
    # A rule on the distance may meet mug shots: they are at none of the three.
    assert (table.column("distance", table.keys) == [1, 3, 2, 1, 3, 0, 0, 0, 0]).all()


@pytest.mark.parametrize(
    "name",
    ["001_cam1.jpg", "001_cam9_1.jpg", "001_cam1_4.jpg", "1_cam1_1.jpg", "001_L5.jpg", "001_cam8_1.jpg", "x"],
)
def test_other_names_than_scfaces(tmp_path, name):
    names = names_file(tmp_path, "001_cam1_1.jpg", name)
    with pytest.raises(
        UserError, match=r"train_names\.txt: record 2: expected a name such as 001_cam1_1\.jpg.*, got '"
    ):
        import_scface(names)


# -- COX -----------------------------------------------------------------------------------------------------


def test_cox(tmp_path):
    expected = {
        "data/video/cam1/201109260012/0001.jpg": ("201109260012", "video", 1),
        "video/cam3/201109260012/25.jpg": ("201109260012", "video", 3),
        "COX-S2V-Video/video4/20110926_0012/20110926_0012_0044.jpg": ("20110926_0012", "video", 4),
        "COX-S2V-Still/20110926_0012_0000.jpg": ("20110926_0012", "still", 0),
        "data/still/201109260012.jpg": ("201109260012", "still", 0),
        "201109260013_still.jpg": ("201109260013", "still", 0),
    }
    names = names_file(tmp_path, *expected)
    table = import_cox(names).table
    assert list(table.columns) == ["subject", "source", "camera"]
    rows = list(zip(*(column.tolist() for column in table.columns.values()), strict=True))
    assert rows == list(expected.values())
    assert table.provenance["command"] == "prepare attributes cox"


@pytest.mark.parametrize(
    "name",
    [
        "video/cam1/0001.jpg",
        "video/cam5/2011/1.jpg",
        "x/20110926.jpg",
        "still/abc.jpg",
        "video/cam1/me/1.jpg",
    ],
)
def test_other_names_than_coxs(tmp_path, name):
    names = names_file(tmp_path, name)
    with pytest.raises(
        UserError, match=r"record 1: expected a name such as video/cam1/SUBJECT/FRAME\.jpg.*, got '"
    ):
        import_cox(names)


# -- tables of the user --------------------------------------------------------------------------------------


def csv_file(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_tables_by_record_are_joined(tmp_path):
    about = made_by("prepare pose", records="x")
    AttributeTable(np.array([3, 1, 2]), {"yaw": np.array([30.0, 10, 20])}, provenance=about).save(
        tmp_path / "p.npz"
    )
    race = csv_file(tmp_path, "race.csv", "record,race,age\n2,b,40\n4,d,\n")
    imported = import_tables([tmp_path / "p.npz", race])
    table = imported.table
    assert table.keys.tolist() == [1, 2, 3, 4] and imported.listed == 5 and imported.missing == 0
    np.testing.assert_array_equal(table.columns["yaw"], [10, 20, 30, NAN])
    assert table.columns["race"].tolist() == ["", "b", "", "d"]
    np.testing.assert_array_equal(table.columns["age"], [NAN, 40, NAN, NAN])
    sources = [{**source_of(tmp_path / "p.npz"), "provenance": about}, source_of(race)]
    assert table.provenance == made_by("prepare attributes table", records="x", sources=sources)


def test_a_table_by_name(tmp_path):
    names = names_file(tmp_path, "n1/a.jpg", "n1/b.jpg", "n2/a.jpg")
    path = csv_file(tmp_path, "yaw.csv", "yaw,name\n-3,n2/a\n5,n1/b.jpg\n7,n9/z\n")
    imported = import_tables([path], names)
    assert (imported.listed, imported.missing) == (3, 1)
    assert dict(zip(imported.table.keys.tolist(), imported.table.columns["yaw"].tolist(), strict=True)) == {
        2: 5,
        3: -3,
    }
    assert list(imported.table.columns) == ["yaw"]
    assert imported.table.provenance["sources"] == [source_of(path), source_of(names.path)]


def test_names_of_digits(tmp_path):
    names = names_file(tmp_path, "0001", "1", "01")
    path = csv_file(tmp_path, "yaw.csv", "name,yaw\n01,3\n0001,1\n1,2\n")
    assert import_tables([path], names).table.column("yaw", np.array([1, 2, 3])).tolist() == [1, 2, 3]


@pytest.mark.parametrize("way", ["label", "identity"])
def test_a_table_by_person(tmp_path, way):
    people = ["Ann", "Ann", "Bob", "007", "Bob"]
    names = names_file(tmp_path, *"abcde", labels=[4, 4, 2, 7, 2], identities=people)
    key = {"label": "2,4,9", "identity": "Bob,Ann,Eve"}[way].split(",")
    rows = zip(key, ["mongolian", "caucasian", "other"], strict=True)
    path = csv_file(tmp_path, "race.csv", f"{way},race\n" + "".join(f"{a},{b}\n" for a, b in rows))
    imported = import_tables([path], names)
    assert (imported.listed, imported.missing) == (3, 1)
    assert imported.table.keys.tolist() == [1, 2, 3, 5]
    assert imported.table.columns["race"].tolist() == ["caucasian", "caucasian", "mongolian", "mongolian"]


def test_tables_that_cannot_be_joined(tmp_path):
    names = names_file(tmp_path, "a.jpg", "b.jpg", labels=[0, 1])
    yaw = csv_file(tmp_path, "yaw.csv", "record,yaw\n1,2\n")
    cases = [
        ([yaw, csv_file(tmp_path, "b.csv", "record,pitch,yaw\n1,2,3\n")], None,
         r"b\.csv: column 'yaw': expected it in one of the tables alone"),
        ([csv_file(tmp_path, "c.csv", "name,race\na,b\n")], None,
         r"c\.csv: expected a column 'record', got 'name': .*; add --names"),
        ([csv_file(tmp_path, "d.csv", "file,race\na,b\n")], names,
         r"d\.csv: expected a column named 'record' or 'name' or 'label' or 'identity' .*, got 'file', 'race'"),
        ([csv_file(tmp_path, "e.csv", "label,race\n0,b\n1,c\n0,b\n")], names,
         r"e\.csv: column 'label': expected each person once, got 0 again"),
        ([csv_file(tmp_path, "f.csv", "label,race\nx,b\n")], names,
         r"f\.csv: column 'label': expected whole numbers, got texts; join by identity"),
        ([csv_file(tmp_path, "g.csv", "label,race\n8,b\n")], names,
         r"g\.csv: column 'label': expected those of .*names\.txt, such as 0, got none"),
        ([csv_file(tmp_path, "h.csv", "identity,race\nAnn,b\n")], names,
         r"train_names\.txt: expected an identity for each record .*; join .*h\.csv by label"),
        ([csv_file(tmp_path, "i.csv", "name,race\na.jpg,b\na.png,c\n")], names,
         r"i\.csv: expected one row per record, got more than one for record 1"),
    ]  # fmt: skip
    for paths, given, message in cases:
        with pytest.raises(UserError, match=message):
            import_tables(paths, given)


def test_true_and_false_have_no_holes(tmp_path):
    AttributeTable(np.array([1]), {"frontal": np.array([True])}).save(tmp_path / "a.npz")
    yaw = csv_file(tmp_path, "yaw.csv", "record,yaw\n1,2\n")
    assert import_tables([tmp_path / "a.npz", yaw]).table.columns["frontal"].tolist() == [True]
    yaw.write_text("record,yaw\n1,2\n5,2\n")
    with pytest.raises(
        UserError, match=r"a\.npz: column 'frontal': expected True or False .*, got none for 1;"
    ):
        import_tables([tmp_path / "a.npz", yaw])


def test_a_joined_table_says_of_which_records_it_is(tmp_path):
    keys = np.arange(1, 4)
    for name, about in (
        ("a", {"records": "train.rec:77"}),
        ("b", {"records": "renamed.rec:77"}),
        ("c", None),
    ):
        AttributeTable(keys, {name: keys * 1.0}, provenance=about).save(tmp_path / f"{name}.npz")
    AttributeTable(keys, {"d": keys * 1.0}, provenance={"records": "train.rec:78"}).save(tmp_path / "d.npz")
    paths = {name: tmp_path / f"{name}.npz" for name in "abcd"}
    assert import_tables([paths["c"]]).table.provenance.get("records") is None
    joined = import_tables([paths["c"], paths["a"], paths["b"]]).table
    assert joined.provenance["records"] == "train.rec:77"
    with pytest.raises(
        UserError, match=r"d\.npz: expected a table of the same records as .*a\.npz, got one that was"
    ):
        import_tables([paths["a"], paths["c"], paths["d"]])


def test_a_table_by_name_is_of_the_records_that_the_names_are_of(tmp_path):
    (tmp_path / "train_names.txt").write_text("1\t0\tx\n2\t0\ty\n")
    columns = {"name": np.array(["y", "x"]), "yaw": np.array([2.0, 1.0])}
    np.savez(tmp_path / "a.npz", **columns, provenance=np.array('{"records": "other.rec:5"}'))
    table = import_tables([tmp_path / "a.npz"], Names.load(tmp_path / "train_names.txt")).table
    assert table.columns["yaw"].tolist() == [1.0, 2.0]
    assert "records" not in table.provenance
