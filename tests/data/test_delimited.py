"""Text tables: what the csv module reads, at another speed; mistakes by line."""

import csv
import io
import random

import numpy as np
import pytest

from ddl_plugin.data import delimited
from ddl_plugin.data.delimited import as_str, read_header, read_table
from ddl_plugin.errors import UserError


def write(tmp_path, text, name="a.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def oracle(text):
    """Columns of str, stripped, by the csv module alone."""
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), skipinitialspace=True) if row]
    rows = [[cell.strip() for cell in row] for row in rows if [cell.strip() for cell in row] != [""]]
    return {name: [row[i] for row in rows[1:]] for i, name in enumerate(rows[0])}


def compare(path, text):
    columns = read_table(path)
    expected = oracle(text)
    assert list(columns) == list(expected)
    for name, cells in expected.items():
        values = columns[name]
        try:
            numbers = [float(cell) if cell else np.nan for cell in cells]
        except ValueError:
            assert as_str(values).tolist() == cells
        else:
            assert values.dtype == np.float64
            np.testing.assert_array_equal(values, numbers)


@pytest.mark.parametrize("block", [1 << 20, 64, 7])
@pytest.mark.parametrize("seed", range(6))
def test_random_tables_as_the_csv_module_reads_them(tmp_path, monkeypatch, block, seed):
    monkeypatch.setattr(delimited, "_BLOCK", block)
    monkeypatch.setattr(delimited, "_ROWS_AT_A_TIME", 3)
    draw = random.Random(seed)
    numbers = ["1", "-2.5", "1e3", "0.1", "", " 7 ", "nan", "-inf", "12345678.25", "+4", ".5", "5."]
    texts = [
        "a",
        "ö ß",
        "",
        " b ",
        "x y",
        "n000001/0001_01.jpg",
        "1.5.2",
        "1e",
        "0x10",
        "1_000",
        "--1",
        "1 2",
    ]
    quoted = ['"a, b"', '"say ""yes"""', '"two\nlines"', '"1"', '""']
    use_quotes, line_end = seed % 3 == 2, ("\n", "\r\n")[seed % 2]
    rows = ["n,t,q,m"]
    for i in range(60):
        cells = [draw.choice(numbers), draw.choice(texts), draw.choice(texts), draw.choice(numbers)]
        if use_quotes and i > 20:
            cells[2] = draw.choice(quoted)
        if i < 40:
            cells[2] = cells[2] if use_quotes and i > 20 else draw.choice(numbers)  # a text late
        rows.append(",".join(cells))
        if draw.random() < 0.1:
            rows.append(draw.choice(["", "   "]))
    text = line_end.join(rows) + (line_end if seed % 2 else "")
    compare(write(tmp_path, text), text)


def test_widths_and_types_are_those_of_the_whole_file(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "_BLOCK", 16)
    text = "record,a,b\n" + "".join(f"{i},{'x' * (i % 30)},{i / 3!r}\n" for i in range(1, 200))
    columns = read_table(write(tmp_path, text), whole=("record",))
    assert columns["record"].dtype == np.int64 and columns["record"].tolist() == list(range(1, 200))
    assert [len(cell) for cell in columns["a"].tolist()] == [i % 30 for i in range(1, 200)]
    assert columns["b"].tolist() == [i / 3 for i in range(1, 200)]  # to the last bit


def test_columns_asked_for_as_texts_keep_their_zeros(tmp_path):
    path = write(tmp_path, "name,yaw\n0012,1\n7,\n")
    assert read_table(path)["name"].tolist() == [12, 7]
    columns = read_table(path, texts=("name",))
    assert columns["name"].tolist() == [b"0012", b"7"]
    np.testing.assert_array_equal(columns["yaw"], [1, np.nan])


def test_without_a_header_and_quotes(tmp_path):
    path = write(tmp_path, '1\t0\tsay "yes".jpg\n\n2\t0\t"half\n', "a.txt")
    columns = read_table(
        path, names=("record", "label", "name"), delimiter="\t", quotes=False, whole=("record",)
    )
    assert columns["record"].tolist() == [1, 2]
    assert columns["name"].tolist() == [b'say "yes".jpg', b'"half']


def test_header(tmp_path):
    assert read_header(write(tmp_path, b'\xef\xbb\xbf record ,"a, b",c\r\n1,2,3\n')) == [
        "record",
        "a, b",
        "c",
    ]
    assert read_header(write(tmp_path, "")) == []


def test_two_numbers_in_a_cell_are_a_text(tmp_path):
    assert read_table(write(tmp_path, "a,b\n1 2,3\n4,5\n"))["a"].tolist() == [b"1 2", b"4"]
    assert read_table(write(tmp_path, 'a,b\n"1 2",3\n4,5\n'))["a"].tolist() == [b"1 2", b"4"]


def test_a_quote_after_a_space_begins_a_cell(tmp_path):
    assert read_table(write(tmp_path, 'a,b\n1, "x, y"\n'))["b"].tolist() == [b"x, y"]


def test_one_column_with_blank_lines(tmp_path):
    columns = read_table(write(tmp_path, "a\n1\n\n  \n2\n"))
    assert columns["a"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("record,yaw\n1,2\n\n3\n", r"line 4: expected 2 cells \(record, yaw\), got 1"),
        ("record,yaw\n1,2\n3,4,5\n6,7\n", r"line 3: expected 2 cells \(record, yaw\), got 3"),
        # As many cells in all as there should be.
        ("record,yaw\n1,2,3\n4\n", r"line 2: expected 2 cells \(record, yaw\), got 3"),
        ('record,yaw\n1,"2"\n\n3\n', r"line 4: expected 2 cells \(record, yaw\), got 1"),
        ("record,yaw\n1,2\n\nx,4\n", r"line 4: column 'record': expected a record number, .*, got 'x'"),
        ("record,yaw\n1,2\n1.0,4\n", r"line 3: .*got '1\.0'"),
        ("record,yaw\n1,2\n-3,4\n", r"line 3: .*got '-3'"),
        ("record,yaw\n1,2\n,4\n", r"line 3: .*got ''"),
        ("record,yaw\n1 2,2\n", r"line 2: .*got '1 2'"),
        ("record,yaw\n9999999999999999,2\n", r"line 2: .*got '9999999999999999'"),
        (
            "record,yaw\n1,2\n3," + "x" * 1001 + "\n",
            r"cells of at most 1000 bytes, got a longer one in line 2",
        ),
        ('record,yaw\n1,"' + "x" * 1001 + '"\n', r"cells of at most 1000 bytes, got a longer one"),
    ],
)
def test_mistakes_by_line(tmp_path, text, message):
    with pytest.raises(UserError, match=r"a\.csv: .*" + message):
        read_table(write(tmp_path, text), whole=("record",))


def test_mistakes_by_line_in_later_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "_BLOCK", 50)
    lines = ["record,yaw", *(f"{i},{i}" for i in range(2, 500))]
    for number, line, message in [
        (321, "x,1", "column 'record': expected a record number"),
        (452, "1,2,3", r"expected 2 cells \(record, yaw\), got 3"),
    ]:
        wrong = [*lines[: number - 1], line, *lines[number:]]
        for blank in ("", "\n"):
            text = "\n".join(wrong[:100]) + "\n" + blank + "\n".join(wrong[100:])
            with pytest.raises(UserError, match=rf"a\.csv: line {number + len(blank)}: {message}"):
                read_table(write(tmp_path, text), whole=("record",))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b"record,yaw\n1,2\n3,\xff\n",
            r"a\.csv: expected comma-separated text in UTF-8, .* in line 3 or after",
        ),
        (b"record,yaw\n1,2\n3,\0\n", r"a zero byte in line 3 or after"),
        (b"record,yaw\n" + b"1" * 500, r"a line of more than"),
        (b'record,yaw\n1,"' + b"x,\n" * 50_000, r"another or damaged file: field larger than"),
    ],
)
def test_what_is_no_text(tmp_path, monkeypatch, data, message):
    if b"1" * 99 in data:
        monkeypatch.setattr(delimited, "_BLOCK", 20)
    with pytest.raises(UserError, match=message):
        read_table(write(tmp_path, data))


def test_unreadable(tmp_path, unreadable):
    path = write(tmp_path, "a\n1\n")
    with unreadable(path), pytest.raises(UserError, match=r"a\.csv: cannot be read \(Permission denied\)"):
        read_table(path)


def test_str_of_bytes():
    for texts in (["abc", "", "d"], ["ä", "", "日本"], []):
        cells = np.array([text.encode() for text in texts], "S9")
        assert as_str(cells).tolist() == texts
        assert as_str(cells).dtype.kind == "U"
