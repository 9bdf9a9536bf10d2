"""Attribute tables: joined by record number, holes and broken files named."""

import hashlib
import sys

import numpy as np
import pytest

from ddl_plugin import __version__
from ddl_plugin.data import attributes, delimited
from ddl_plugin.data.attributes import AttributeTable, made_by, source
from ddl_plugin.errors import UserError

KEYS = np.array([4, 1, 3, 2])
NAN = float("nan")


def table(**columns):
    return AttributeTable(KEYS, {name: np.array(values) for name, values in columns.items()})


def csv_file(tmp_path, text, **options):
    path = tmp_path / "attributes.csv"
    path.write_text(text, **options)
    return path


def test_columns_are_aligned_to_the_records():
    t = table(yaw=[40, 10, 30, 20], race=["d", "a", "c", "b"], frontal=[False, True, False, True])
    asked = np.array([2, 3, 2, 4])
    assert t.column("yaw", asked).tolist() == [20, 30, 20, 40] and t.column("yaw", asked).dtype == np.float64
    assert t.column("race", asked).tolist() == ["b", "c", "b", "d"]
    assert t.column("frontal", asked).tolist() == [True, False, True, False]
    assert t.column("yaw", np.array([], np.int64)).shape == (0,)


def test_unknown_column():
    with pytest.raises(UserError, match=r"no column 'jaw'; did you mean 'yaw'\?"):
        table(yaw=[1, 2, 3, 4], race=list("abcd")).column("jaw", KEYS)


def test_records_without_a_row():
    message = (
        r"column 'yaw': expected a value for each of 7 records, got no row for 5 of them "
        r"\(records 0, 5, 6, \.\.\.\); fill them in or use a rule without 'yaw'"
    )
    with pytest.raises(UserError, match=message):
        table(yaw=[1, 2, 3, 4]).column("yaw", np.array([0, 1, 2, 5, 6, 7, 2**40]))


@pytest.mark.parametrize("values", [[1, NAN, 2, NAN], [1, NAN, 2, float("inf")], ["a", "", "b", ""]])
def test_holes(values):
    t = table(yaw=values, other=[1, 2, 3, 4])
    with pytest.raises(UserError, match=r"'yaw': .* got no value for 2 of them \(records 1, 2\)"):
        t.column("yaw", np.array([1, 2, 3, 4]))
    with pytest.raises(UserError, match=r"got no value for 1 of them \(record 2\)"):
        t.column("yaw", np.array([2, 3]))
    # A hole matters only where it is used.
    assert len(t.column("yaw", np.array([3, 4]))) == 2
    assert t.column("other", np.array([2])).tolist() == [4]


def test_duplicated_records():
    with pytest.raises(UserError, match=r"one row per record, got more than one for records 2, 5;"):
        AttributeTable(np.array([5, 2, 5, 2, 2, 1]), {})


@pytest.mark.parametrize("keys", [[1.5, 2.0], [-1, 2], [NAN, 1.0], [1e300, 1.0]])
def test_record_numbers_that_are_none(keys):
    with pytest.raises(UserError, match=r"column 'record': expected record numbers as in the \.idx"):
        AttributeTable(np.array(keys), {})


@pytest.mark.parametrize("keys", [np.array(["1", "2"]), np.ones((2, 2)), np.array([True])])
def test_record_columns_of_another_kind(keys):
    with pytest.raises(UserError, match=r"column 'record': expected one-dimensional whole numbers"):
        AttributeTable(keys, {})


def test_table_without_rows():
    with pytest.raises(UserError, match=r"expected a row per record, got none"):
        AttributeTable(np.array([], np.int64), {})


def test_columns_of_another_shape_or_kind():
    with pytest.raises(UserError, match=r"'yaw': expected one value for each of 4 records, got shape \(3,\)"):
        table(yaw=[1, 2, 3])
    with pytest.raises(
        UserError, match=r"'yaw': expected numbers, booleans or unicode texts, got complex128"
    ):
        table(yaw=[1j, 2, 3, 4])


def test_saved_and_loaded(tmp_path):
    # 'file' would collide with a parameter of np.savez.
    t = table(
        yaw=[1.5, NAN, 3, 4], race=["ä", "", "b", "b"], frontal=[True, False, True, True], file=list("abcd")
    )
    t.save(tmp_path / "new" / "a.npz")
    t.save(tmp_path / "b.npz")
    assert (tmp_path / "new" / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    loaded = AttributeTable.load(tmp_path / "b.npz")
    assert np.array_equal(loaded.keys, KEYS) and list(loaded.columns) == ["yaw", "race", "frontal", "file"]
    for name, column in t.columns.items():
        assert loaded.columns[name].dtype == column.dtype
        np.testing.assert_array_equal(loaded.columns[name], column)
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".part"] == []


def test_csv(tmp_path):
    path = csv_file(
        tmp_path,
        'record, yaw,race,note\n2,-3.5,"a, b",\n\n1,,c,x\r\n3, 1e1 ,"ö ",y\n',
        encoding="utf-8-sig",
        newline="",
    )
    t = AttributeTable.load(path)
    assert t.keys.tolist() == [2, 1, 3]
    np.testing.assert_array_equal(t.columns["yaw"], [-3.5, NAN, 10])
    assert t.columns["race"].tolist() == ["a, b", "c", "ö"]
    assert t.columns["note"].tolist() == ["", "x", "y"]


def test_long_csv_whose_column_turns_to_text_late(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "_BLOCK", 30)
    cells = ["123456", "2", "3", "4", "5", "x", "7", "8"]
    text = "record,a,b\n" + "".join(f"{i},{cell},{i}\n" for i, cell in enumerate(cells))
    t = AttributeTable.load(csv_file(tmp_path, text))
    assert t.columns["a"].tolist() == cells
    assert t.columns["b"].tolist() == list(range(8))


def test_a_name_column_of_digits_is_text_where_asked_for(tmp_path):
    path = csv_file(tmp_path, "name,yaw\n0012,1\n7,2\n")
    columns, provenance = attributes.read_columns(path, one_of=("record", "name"), texts=("name",))
    assert columns["name"].tolist() == ["0012", "7"] and provenance is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"expected a column named 'record' .*, got nothing; a \.csv needs a header line"),
        ("1,2\n3,4\n", r"expected a column named 'record' .*, got '1', '2'; a \.csv needs a header line"),
        ("record;yaw\n1;2\n", r"expected a column named 'record' .*, got 'record;yaw'"),
        ("record,yaw,yaw\n1,2,3\n", r"distinct columns, got 'yaw' more than once"),
        ("record,yaw\n1,2\n3\n", r"line 3: expected 2 cells \(record, yaw\), got 1"),
        ("record,yaw\n1,2\n3,4,5\n", r"line 3: expected 2 cells \(record, yaw\), got 3"),
        ("record,yaw\n1,2\nx,4\n", r"line 3: column 'record': expected a record number.*, got 'x'"),
        ("record,yaw\n1,2\n-3,4\n", r"line 3: .*got '-3'"),
        ("record,yaw\n1,2\n,4\n", r"line 3: .*got ''"),
        ("record,yaw\n1,2\n1,4\n", r"one row per record, got more than one for record 1"),
        ("record,yaw\n", r"expected a row per record, got none"),
    ],
)
def test_broken_csv(tmp_path, text, message):
    with pytest.raises(UserError, match=r"attributes\.csv: .*" + message):
        AttributeTable.load(csv_file(tmp_path, text))


def test_csv_that_is_no_text(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"record,yaw\n1,\xff\xfe\n")
    with pytest.raises(UserError, match=r"a\.csv: expected comma-separated text in UTF-8"):
        AttributeTable.load(path)
    path.write_bytes(b"record,yaw\n1,\0\n" + b"x" * 200_000)
    with pytest.raises(UserError, match=r"a\.csv"):
        AttributeTable.load(path)


def test_npz_is_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path / "sprung").touch, ()

    np.savez(tmp_path / "a.npz", record=np.arange(2), race=np.array([Trap(), Trap()], object))
    with pytest.raises(
        UserError, match=r"a\.npz: column 'race': expected numbers or unicode texts, got Python obj"
    ):
        AttributeTable.load(tmp_path / "a.npz")
    assert not (tmp_path / "sprung").exists()


def test_broken_npz(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, yaw=np.arange(3))
    with pytest.raises(UserError, match=r"a\.npz: expected a column named 'record' .*, got 'yaw'$"):
        AttributeTable.load(path)
    np.savez_compressed(path, record=np.arange(1000), yaw=np.arange(1000))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"a\.npz: expected a \.npz of arrays, got another or damaged file"):
        AttributeTable.load(path)
    middle = data.index(b"yaw.npy") + 100
    path.write_bytes(data[:middle] + bytes(20) + data[middle + 20 :])
    with pytest.raises(UserError, match=r"a\.npz: column 'yaw': expected .* a damaged array"):
        AttributeTable.load(path)
    with path.open("wb") as file:
        np.save(file, np.arange(3))
    with pytest.raises(UserError, match=r"a\.npz: expected a \.npz of arrays, got another"):
        AttributeTable.load(path)


def test_missing_table(tmp_path):
    with pytest.raises(
        UserError, match=r"none\.csv: expected an attribute table, got nothing there; give a \.csv"
    ):
        AttributeTable.load(tmp_path / "none.csv")
    with pytest.raises(UserError, match=r"named \.npz, \.parquet or \.csv, got '\.xlsx'"):
        AttributeTable.load(tmp_path / "table.xlsx")


def test_other_columns_for_the_key(tmp_path):
    path = csv_file(tmp_path, "file,yaw\na,1\n")
    message = (
        r"expected a column named 'record' or 'name' with the record numbers of the \.idx, got 'file', 'yaw';"
    )
    with pytest.raises(UserError, match=message):
        attributes.read_columns(path, one_of=("record", "name"))


# -- provenance ----------------------------------------------------------------------------------------------


def test_provenance_travels_with_the_table_and_is_no_column(tmp_path):
    listed = tmp_path / "place" / "list.txt"
    listed.parent.mkdir()
    listed.write_text("a")
    about = made_by("prepare x", sources=[source(listed)], seed=3)
    assert about == {
        "made_by": f"ddl_plugin {__version__}",
        "command": "prepare x",
        "sources": [{"file": "list.txt", "sha256": hashlib.sha256(b"a").hexdigest()}],
        "seed": 3,
    }
    AttributeTable(KEYS, {"yaw": np.zeros(4)}, provenance=about).save(tmp_path / "a.npz")
    loaded = AttributeTable.load(tmp_path / "a.npz")
    assert loaded.provenance == about and list(loaded.columns) == ["yaw"]
    # Not of the place, nor of the day: equal work gives equal files.
    again = AttributeTable(KEYS, {"yaw": np.zeros(4)}, provenance=dict(reversed(about.items())))
    again.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_tables_without_provenance(tmp_path):
    table(yaw=[1, 2, 3, 4]).save(tmp_path / "a.npz")
    assert AttributeTable.load(tmp_path / "a.npz").provenance is None
    with np.load(tmp_path / "a.npz") as archive:
        assert archive.files == ["record", "yaw"]


def test_a_column_named_provenance(tmp_path):
    np.savez(tmp_path / "a.npz", record=KEYS, provenance=np.array(list("abcd")))
    t = AttributeTable.load(tmp_path / "a.npz")
    assert t.columns["provenance"].tolist() == list("abcd") and t.provenance is None
    with pytest.raises(UserError, match=r"'provenance' cannot be the name of a column"):
        t.save(tmp_path / "b.npz")
    assert not (tmp_path / "b.npz").exists()


def test_damaged_provenance(tmp_path):
    for text in ("{", "[1]"):
        np.savez(tmp_path / "a.npz", record=KEYS, provenance=np.array(text))
        with pytest.raises(UserError, match=r"a\.npz: expected its provenance as a JSON object, got '"):
            AttributeTable.load(tmp_path / "a.npz")


def test_names_of_outputs(tmp_path):
    with pytest.raises(UserError, match=r"--output: expected a file named \.npz or \.parquet, got 'a\.csv'"):
        table(yaw=[1, 2, 3, 4]).save(tmp_path / "a.csv")


# -- Parquet -------------------------------------------------------------------------------------------------


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = tmp_path / "a.parquet"
    with pytest.raises(
        UserError, match=r"/a\.parquet: Parquet needs pyarrow.*pip install 'ddl_plugin\[parquet\]'"
    ):
        table(yaw=[1, 2, 3, 4]).save(path)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"a\.parquet: Parquet needs pyarrow.*or use \.npz or \.csv$"):
        AttributeTable.load(path)


@pytest.fixture
def arrow():
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow, the extra 'parquet'")
    import pyarrow

    return pyarrow


def test_parquet_saved_and_loaded(tmp_path, arrow):
    about = made_by("prepare x")
    columns = {"yaw": [1.5, NAN, 3, 4], "race": ["ä", "", "b", "b"], "frontal": [True, False, True, True]}
    t = AttributeTable(KEYS, {name: np.array(values) for name, values in columns.items()}, provenance=about)
    t.save(tmp_path / "a.parquet")
    t.save(tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    loaded = AttributeTable.load(tmp_path / "a.parquet")
    assert loaded.provenance == about and np.array_equal(loaded.keys, KEYS)
    for name, column in t.columns.items():
        assert loaded.columns[name].dtype.kind == column.dtype.kind
        np.testing.assert_array_equal(loaded.columns[name], column)


def test_parquet_of_others(tmp_path, arrow):
    import pyarrow.parquet

    columns = {
        "record": arrow.array([1, 2, 3], arrow.int32()),
        "yaw": arrow.array([1.5, None, 3.0], arrow.float32()),
        "age": arrow.array([None, 20, 30], arrow.int64()),
        "race": arrow.array(["a", None, "c"]).dictionary_encode(),
        "note": arrow.array(["x", "y", None], arrow.large_string()),
    }
    pyarrow.parquet.write_table(arrow.table(columns), tmp_path / "a.parquet", row_group_size=2)
    t = AttributeTable.load(tmp_path / "a.parquet")
    assert t.keys.tolist() == [1, 2, 3] and t.provenance is None
    np.testing.assert_array_equal(t.columns["yaw"], [1.5, NAN, 3])
    np.testing.assert_array_equal(t.columns["age"], [NAN, 20, 30])
    assert t.columns["race"].tolist() == ["a", "", "c"] and t.columns["note"].tolist() == ["x", "y", ""]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1], [2]], r"column 'x': expected numbers, booleans or texts, got list"),
        ([True, None], r"column 'x': expected True or False in every row, got an empty one"),
    ],
)
def test_parquet_that_cannot_be_used(tmp_path, arrow, values, message):
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(arrow.table({"record": [1, 2], "x": values}), path)
    with pytest.raises(UserError, match=r"a\.parquet: " + message):
        AttributeTable.load(path)
    pyarrow.parquet.write_table(arrow.table({"x": [1, 2]}), path)
    with pytest.raises(UserError, match=r"a\.parquet: expected a column named 'record' .*, got 'x'$"):
        AttributeTable.load(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"a\.parquet: expected a Parquet file, got another or damaged file"):
        AttributeTable.load(path)
