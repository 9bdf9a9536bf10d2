"""Who is searched for in whom: CSV files about records and image files, and the protocols of SCface and COX."""

import cv2
import numpy as np
import pytest

from ddl_plugin.annotation.importers import import_cox, import_scface
from ddl_plugin.annotation.names import Names
from ddl_plugin.data.attributes import AttributeTable
from ddl_plugin.data.records import Records, RecordWriter
from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.identification import identify
from ddl_plugin.evaluation.named_protocols import Split, Subjects, cox, group_texts, scface
from ddl_plugin.evaluation.protocols import Protocol, load_file_protocol, load_protocol, write_protocol


def colour(label, k=0):
    """Images of one identity: a block pattern of its own, image k a little brighter."""
    pattern = np.random.default_rng(label).integers(0, 200, (14, 14, 3), dtype=np.uint8)
    image = np.kron(pattern, np.ones((8, 8, 1), np.uint8)) + np.uint8(10 * k)
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def embed(images):
    return images[:, ::8, ::8].reshape(len(images), -1).astype(np.float32) - 100


@pytest.fixture
def records(tmp_path):
    """Identities 0..4 with 3, 1, 2, 2, 1 images: records 1-3, 4, 5-6, 7-8, 9."""
    with RecordWriter(tmp_path, "val") as writer:
        for label, count in enumerate((3, 1, 2, 2, 1)):
            for k in range(count):
                writer.add(colour(label, k), label)
    return Records(tmp_path / "val.rec")


def protocol_file(tmp_path, text):
    path = tmp_path / "protocol.csv"
    path.write_text(text)
    return path


def test_a_protocol_is_read_by_record_number(records, tmp_path):
    text = "record,role,condition\n1,gallery,\n7,gallery,\n2,probe,d1\n8,probe,d2\n3,probe,d1\n"
    protocol = load_protocol(protocol_file(tmp_path, text), records)
    assert protocol.gallery.tolist() == [0, 6]
    assert protocol.probes.tolist() == [1, 7, 2]
    assert protocol.conditions.tolist() == ["d1", "d2", "d1"]
    plain = load_protocol(protocol_file(tmp_path, "role,record\ngallery,1\ngallery,5\nprobe,6\n"), records)
    assert plain.conditions is None


@pytest.mark.parametrize(
    "text, message",
    [
        ("record,rolle\n1,gallery\n", "unknown key 'rolle'; did you mean 'role'"),
        ("record,condition\n1,a\n", "got no 'role'"),
        ("", "got no 'record'"),
        ("record,role\n1,gallery\n2,prob\n", "line 3: role: expected gallery or probe, got 'prob'"),
        ("record,role\nx,gallery\n", "line 2: record: expected a record number, got 'x'"),
        ("record,role\n-1,gallery\n", "got '-1'"),
        ("record,role\n1\n", "role: expected gallery or probe, got ''"),
        (
            "record,role\n1,gallery\n99,probe\n98,probe\n",
            r"record numbers of val\.rec .* got 2 others, the first is 99",
        ),
        (
            "record,role\n1,gallery\n5,gallery\n\n1,probe\n",
            r"got record 1 2 times \(lines 2 and 5\), and 0 others",
        ),
        ("record,role\n1,gallery\n2,gallery\n3,probe\n", "two gallery identities or more .* got 1 and 1"),
        ("record,role\n1,gallery\n5,gallery\n", "got 2 and 0"),
    ],
)
def test_mistakes_in_a_protocol_are_named(records, tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        load_protocol(protocol_file(tmp_path, text), records)


def test_a_protocol_that_is_not_there(records, tmp_path):
    with pytest.raises(UserError, match="cannot be read as a protocol"):
        load_protocol(tmp_path / "none.csv", records)


def names_file(tmp_path):
    lines = ["1\t0\tann/1.jpg", "2\t0\tann/2.jpg", "3\t0\tann/3.jpg", "4\t1\tbob/1.jpg", "5\t2\tcid/1.jpg"]
    lines += ["6\t2\tcid/2.jpg", "7\t3\tdot/1.jpg", "8\t3\tdot/2.jpg", "9\t4\teve/1.jpg"]
    path = tmp_path / "val_names.txt"
    path.write_text("\n".join(lines) + "\n")
    return Names.load(path)


def test_a_protocol_by_file_names_is_joined_by_the_names_file(records, tmp_path):
    text = "file,role,condition\nann/1,gallery,\ncid/1.jpg,gallery,\nann/3.jpg,probe,a\nzed/7.jpg,probe,b\ncid/2.jpg,probe,b\n"
    path = protocol_file(tmp_path, text)
    with pytest.raises(
        UserError,
        match=r"protocol\.csv: expected every probe, got 1 \(zed/7\.jpg\) missing;.*--max-missing 1$",
    ):
        load_protocol(path, records, names_file(tmp_path))
    protocol = load_protocol(path, records, names_file(tmp_path), max_missing=1)
    assert protocol.gallery.tolist() == [0, 4]
    assert protocol.probes.tolist() == [2, 5]
    assert protocol.missing == (("b", ""),)
    with pytest.raises(
        UserError, match="got 'file': which records these are the names file says; add --names"
    ):
        load_protocol(path, records)


def test_a_missing_gallery_image_is_never_passed_over(records, tmp_path):
    text = "file,role\nann/1,gallery\ncid/1,gallery\nzed/7,gallery\nann/3,probe\n"
    with pytest.raises(UserError, match=r"expected every gallery image, got 1 \(zed/7\) missing"):
        load_protocol(protocol_file(tmp_path, text), records, names_file(tmp_path), max_missing=9)


def test_groups_of_a_protocol(records, tmp_path):
    text = "record,role,group\n1,gallery,x\n4,gallery,x\n5,gallery,y\n7,gallery,y\n2,probe,x\n6,probe,y\n"
    protocol = load_protocol(protocol_file(tmp_path, text), records)
    assert protocol.conditions is None
    assert [part.tolist() for part in protocol.groups] == [["x", "x", "y", "y"], ["x", "y"]]


def test_what_is_written_is_read_again(records, tmp_path):
    protocol = Protocol(
        np.array([0, 4, 6]),
        np.array([7, 1]),
        np.array(["d1", "d2"]),
        (np.array(["x", "y", "y"]), np.array(["y", "x"])),
    )
    write_protocol(tmp_path / "p.csv", protocol, records)
    again = load_protocol(tmp_path / "p.csv", records)
    assert again.gallery.tolist() == [0, 4, 6]
    assert again.probes.tolist() == [7, 1]
    assert again.conditions.tolist() == ["d1", "d2"]
    assert [part.tolist() for part in again.groups] == [["x", "y", "y"], ["y", "x"]]


@pytest.fixture
def pictures(tmp_path):
    for name, label, k in (("a1", 0, 0), ("a2", 0, 1), ("b1", 1, 0), ("b2", 1, 1)):
        (tmp_path / f"{name}.png").write_bytes(colour(label, k))
    return tmp_path


PICTURES = "file,identity,role\na1.png,ann,gallery\nb1.png,bob,gallery\na2.png,ann,probe\nb2.png,bob,probe\n"


def test_image_files_need_no_records(pictures):
    faces, protocol = load_file_protocol(protocol_file(pictures, PICTURES))
    result = identify(embed, faces, protocol, (None,))
    assert (result["set"], result["gallery"], result["results"][0]["rank1"]) == ("protocol", 2, 1.0)
    assert faces.describe(2) == "a2.png"


@pytest.mark.parametrize(
    "text, message",
    [
        (PICTURES.replace("b2.png", "b9.png"), r"expected every probe, got 1 \(b9\.png\) missing"),
        (PICTURES.replace("b1.png", "b9.png"), r"expected every gallery image, got 1 \(b9\.png\) missing"),
        (
            PICTURES.replace("b2.png", "./a2.png"),
            r"every file once, .* got file a2\.png 2 times \(lines 4 and 5\)",
        ),
        (PICTURES.replace("bob,probe", ",probe"), "line 5: identity: expected a name, got none"),
        (PICTURES.replace("identity", "name"), "unknown key 'name'"),
        (PICTURES.replace("file", "record"), "expected a column 'file' where there is no --rec, got none"),
        ("file,role\na1.png,gallery\n", "expected a column 'identity' where there is no --rec, got none"),
        ("record,file,role\n", "got both columns"),
        ("file,identity,role\n", "expected a line for each image below the header, got none"),
        (
            PICTURES.replace("probe\n", "probe,all\n").replace("role", "role,condition"),
            "line [45]: expected a condition of another name than 'all'",
        ),
        (
            PICTURES.replace("probe\n", "probe,x\n").replace("role", "role,group"),
            r"line 2: expected a group of every image, got '' \(2 such lines\)",
        ),
    ],
)
def test_mistakes_in_a_protocol_of_files_are_named(pictures, text, message):
    with pytest.raises(UserError, match=message):
        load_file_protocol(protocol_file(pictures, text))


def test_files_that_are_no_aligned_faces_are_named(pictures):
    (pictures / "b2.png").write_bytes(b"no image")
    faces, protocol = load_file_protocol(protocol_file(pictures, PICTURES))
    with pytest.raises(UserError, match=r"b2\.png: expected an image, got 8 bytes that cannot be decoded"):
        identify(embed, faces, protocol, (None,))
    cv2.imwrite(str(pictures / "b2.png"), np.zeros((100, 90, 3), np.uint8))
    with pytest.raises(
        UserError, match=r"^b2\.png: expected 112x112 pixels, got 90x100; align the faces first"
    ):
        identify(embed, faces, protocol, (None,))


# -- SCface and COX ------------------------------------------------------------------------------------------------


def data_set(folder, names, import_):
    """Records of images with these names (identity by the first part), and the attribute table of the names."""
    tiny = colour(0)
    with RecordWriter(folder, "all") as writer:
        for i, name in enumerate(names):
            writer.add(
                tiny if len(names) > 300 else colour(int(name.split("_")[0]), i % 7), int(name.split("_")[0])
            )
    lines = [f"{i}\t{int(name.split('_')[0])}\t{name}" for i, name in enumerate(names, 1)]
    path = folder / "all_names.txt"
    path.write_text("\n".join(lines) + "\n")
    return Records(folder / "all.rec"), import_(Names.load(path)).table


def scface_names(subjects):
    names = []
    for s in subjects:
        names += [f"{s:03d}_frontal.jpg", f"{s:03d}_cam8.jpg", f"{s:03d}_L1.jpg"]
        names += [f"{s:03d}_cam{camera}_{distance}.jpg" for camera in range(1, 8) for distance in (1, 2, 3)]
    return names


def names_of(records, folder):
    lines = (folder / "all_names.txt").read_text().splitlines()
    return [line.split("\t")[2] for line in lines]


def test_scface_is_frontal_mug_shots_against_visible_cameras_of_80_subjects(tmp_path):
    records, table = data_set(tmp_path, scface_names(range(1, 131)), import_scface)
    protocol, split = scface(records, table, Subjects())
    names = names_of(records, tmp_path)
    assert (len(split.train), len(split.test)) == (50, 80)
    assert len(protocol.gallery) == 80
    assert [int((protocol.conditions == d).sum()) for d in ("d1", "d2", "d3")] == [400, 400, 400]
    test = set(split.test)
    assert sorted(names[i] for i in protocol.gallery) == sorted(f"{s}_frontal.jpg" for s in test)
    for i, condition in zip(protocol.probes, protocol.conditions, strict=True):
        subject, camera, distance = names[i].removesuffix(".jpg").split("_")
        assert subject in test
        assert camera in ("cam1", "cam2", "cam3", "cam4", "cam5")
        assert condition == f"d{distance}"
    assert scface(records, table, Subjects())[1] == split
    assert set(scface(records, table, Subjects(seed=1))[1].test) != test
    (tmp_path / "test.txt").write_text("7\n009\n130\n")
    given = scface(records, table, Subjects(tmp_path / "test.txt"))[1]
    assert given == Split(
        tuple(sorted({f"{s:03d}" for s in range(1, 131)} - {"007", "009", "130"})),
        ("007", "009", "130"),
        "test.txt",
    )


def test_scface_counts_what_is_missing(tmp_path):
    names = [name for name in scface_names((1, 2, 3)) if name not in ("001_cam2_1.jpg", "003_cam5_3.jpg")]
    records, table = data_set(tmp_path, names, import_scface)
    everyone = Subjects(train=0)
    with pytest.raises(
        UserError, match=r"expected every probe, got 2 \(001_cam2_1, 003_cam5_3\) missing.*--max-missing 2$"
    ):
        scface(records, table, everyone)
    protocol, split = scface(records, table, everyone, max_missing=2)
    assert split.test == ("001", "002", "003")
    assert protocol.missing == (("d1", ""), ("d3", ""))
    entries = identify(embed, records, protocol, (None,))["results"]
    assert [(e["condition"], e["probes"], e["missing"]) for e in entries] == [
        ("all", 43, 2), ("d1", 14, 1), ("d2", 15, 0), ("d3", 14, 1),
    ]  # fmt: skip


def test_scface_needs_every_mug_shot(tmp_path):
    names = [name for name in scface_names((1, 2, 3)) if name != "002_frontal.jpg"]
    records, table = data_set(tmp_path, names, import_scface)
    with pytest.raises(UserError, match=r"expected every gallery image, got 1 \(002_frontal\) missing"):
        scface(records, table, Subjects(train=0), max_missing=99)


@pytest.mark.parametrize(
    "subjects, message",
    [
        (
            Subjects(),
            r"expected SCface's 130 subjects, of which 50 are for training, got 3;.*--train-subjects N",
        ),
        (Subjects(train=2), "--train-subjects: expected at most 1 of 3 subjects"),
        (Subjects(train=0.9), "expected two test subjects or more, got 1 of 3"),
        (Subjects("none.txt"), r"none\.txt: cannot be read"),
    ],
)
def test_splits_that_cannot_be_made(tmp_path, subjects, message):
    records, table = data_set(tmp_path, scface_names((1, 2, 3)), import_scface)
    with pytest.raises(UserError, match=message):
        scface(records, table, subjects)


@pytest.mark.parametrize(
    "text, message",
    [
        ("001\n004\n", r"subjects such as '001', one a line, got 1 others of 2, the first is '004'"),
        ("", "got 0 others of 0"),
        ("001\n001\n", "expected every subject once, got '001' more than once"),
    ],
)
def test_mistakes_in_a_file_of_subjects(tmp_path, text, message):
    records, table = data_set(tmp_path, scface_names((1, 2, 3)), import_scface)
    (tmp_path / "test.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        scface(records, table, Subjects(tmp_path / "test.txt"))


def test_subjects_must_be_the_identities_of_the_records(tmp_path):
    with RecordWriter(tmp_path, "all") as writer:
        for label in (0, 1, 2):
            writer.add(colour(label), label)
    names = ["001_frontal.jpg", "001_cam1_1.jpg", "002_frontal.jpg"]
    path = tmp_path / "all_names.txt"
    path.write_text("".join(f"{i}\t{i - 1}\t{name}\n" for i, name in enumerate(names, 1)))
    table = import_scface(Names.load(path)).table
    with pytest.raises(
        UserError, match="expected one identity for each subject, got subject 001 with 2 labels"
    ):
        scface(Records(tmp_path / "all.rec"), table, Subjects(train=0), max_missing=99)


def test_another_table_is_not_scfaces(records, tmp_path):
    table = AttributeTable(records.keys, {"subject": np.arange(9.0)})
    with pytest.raises(UserError, match=r"columns that 'prepare attributes scface' writes .* got no 'kind'"):
        scface(records, table, Subjects())


@pytest.fixture
def cox_set(tmp_path):
    """8 subjects: a still and 2 frames of each of 2 cameras; even subjects are of group e, the others of group o."""
    with RecordWriter(tmp_path, "all") as writer:
        for s in range(8):
            for k in range(5):
                writer.add(colour(s, k), s)
    lines = []
    for s in range(8):
        files = [f"still/{s}_0000.jpg"] + [f"video/cam{c}/{s}/{f}.jpg" for c in (1, 2) for f in (1, 2)]
        lines += [f"{5 * s + k + 1}\t{s}\t{file}" for k, file in enumerate(files)]
    path = tmp_path / "all_names.txt"
    path.write_text("\n".join(lines) + "\n")
    table = import_cox(Names.load(path)).table
    columns = {**table.columns, "race": np.array([("e", "o")[s % 2] for s in range(8) for _ in range(5)])}
    return Records(tmp_path / "all.rec"), AttributeTable(table.keys, columns)


def test_cox_is_stills_against_frames_within_each_group_of_half_the_subjects(cox_set):
    records, table = cox_set
    protocol, split = cox(records, table, Subjects(), "race")
    assert (len(split.train), len(split.test)) == (4, 4)
    assert [sum(int(s) % 2 for s in part) for part in (split.train, split.test)] == [2, 2]
    assert sorted(records.labels[protocol.gallery].tolist()) == sorted(int(s) for s in split.test)
    assert (protocol.gallery % 5 == 0).all()
    assert len(protocol.probes) == 16
    assert sorted(set(protocol.conditions.tolist())) == ["cam1", "cam2"]
    for positions, groups in zip((protocol.gallery, protocol.probes), protocol.groups, strict=True):
        assert groups.tolist() == [("e", "o")[label % 2] for label in records.labels[positions]]
    result = identify(embed, records, protocol, (None,))
    assert [e["condition"] for e in result["results"]] == [
        "e",
        "e, cam1",
        "e, cam2",
        "o",
        "o, cam1",
        "o, cam2",
    ]
    assert [(e["probes"], e["negatives"], e["positives"]) for e in result["results"][:2]] == [
        (8, 8, 8),
        (4, 4, 4),
    ]
    assert [average["group"] for average in result["averages"]] == ["e", "o"]


def test_cox_without_a_still_is_refused(cox_set):
    records, table = cox_set
    columns = {name: values.copy() for name, values in table.columns.items()}
    columns["source"] = np.where(np.arange(40) == 10, "video", columns["source"])
    with pytest.raises(UserError, match=r"expected every gallery image, got 1 \(the still of 2\) missing"):
        cox(records, AttributeTable(table.keys, columns), Subjects(train=0))


def test_a_subject_of_two_groups_is_refused(cox_set):
    records, table = cox_set
    columns = {**table.columns, "race": np.where(np.arange(40) == 3, "o", table.columns["race"])}
    with pytest.raises(UserError, match="--group: expected one group for each subject, got e, o for 0"):
        cox(records, AttributeTable(table.keys, columns), Subjects(), "race")
    with pytest.raises(UserError, match="--train-subjects: expected a share below 1 with --group"):
        cox(records, table, Subjects(train=4), "race")


def test_groups_may_be_numbers():
    table = AttributeTable(np.array([1, 2]), {"size": np.array([0.5, 3.0])})
    assert group_texts(table, "size", np.array([2, 1])).tolist() == ["3", "0.5"]
