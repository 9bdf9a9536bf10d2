"""`prepare pose`: its words, its exit codes and what it leaves behind."""

import json

import numpy as np
import pytest
from pose_networks import WEIGHTS, save_fsanet

from ddl_plugin.data.attributes import AttributeTable
from ddl_plugin.data.records import RecordWriter
from ddl_plugin.prepare.__main__ import main


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(3)
    with RecordWriter(tmp_path / "set") as writer:
        for i in range(20):
            writer.add(b"nothing" if i == 7 else rng.integers(0, 256, (112, 112, 3), np.uint8), i // 5)
    save_fsanet(tmp_path / "a.onnx")
    save_fsanet(tmp_path / "b.onnx", weights=WEIGHTS * 2)
    return tmp_path


def call(data, *arguments):
    return main(["pose", *(str(argument).replace("@", f"{data}/") for argument in arguments)])


def test_table_summary_and_json(data, capsys):
    done = call(
        data, "@set", "--model", "@a.onnx", "--model", "@b.onnx", "--output", "@pose.npz", "--json", "@p.json"
    )
    printed = capsys.readouterr()
    assert done == 0, printed.err
    table = AttributeTable.load(data / "pose.npz")
    yaw = np.abs(table.columns["yaw"])
    assert "without a value: 1 image (record 8) cannot be decoded" in printed.out
    assert f"{data}/pose.npz: yaw, pitch and roll of 19 of 20 images" in printed.out
    below_10 = int((yaw < 10).sum())
    assert f"0 to 10 {below_10} {5 * below_10:.1f} %" in " ".join(printed.out.split())
    result = json.loads((data / "p.json").read_text())
    assert result["images"] == 20 and result["unreadable"] == [8] and result["without_pose"] == []
    assert result["yaw_edges"] == [0, 10, 20, 30, 45, 60, 90, 180]
    assert result["yaw_counts"][0] == below_10 and sum(result["yaw_counts"]) == 19
    assert result["records"].startswith("train.rec:") and result["images_per_second"] > 0


def test_parts_and_merge(data, capsys, monkeypatch):
    monkeypatch.setattr("ddl_plugin.annotation.pose.UNIT", 4)
    for i in range(3):
        assert call(data, "@set", "--model", "@a.onnx", "--output", "@pose.npz", "--shard", f"{i}/3") == 0
    assert f"{data}/pose.2-of-3.npz: yaw, pitch and roll of 8 images" in capsys.readouterr().out
    assert call(data, "--merge", "--output", "@pose.npz", "--json", "@p.json") == 0
    assert f"{data}/pose.npz: yaw, pitch and roll of 19 of 20 images" in capsys.readouterr().out
    assert json.loads((data / "p.json").read_text())["images"] == 20
    assert call(data, "@set", "--model", "@a.onnx", "--output", "@whole.npz") == 0
    assert (data / "whole.npz").read_bytes() == (data / "pose.npz").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("@set --output @p.npz", "pose: expected REC and at least one --model"),
        ("--model @a.onnx --output @p.npz", "pose: expected REC and at least one --model"),
        (
            "@set --model @a.onnx --output @p.npz --threads 0",
            "--threads: expected a whole number >= 1, got 0",
        ),
        ("@set --model @a.onnx --output @p.npz --shard 3/3", "--shard: expected i/n"),
        (
            "@set --model @a.onnx --output @p.csv",
            "--output: expected a file named .npz or .parquet, got 'p.csv'",
        ),
        ("@set --model @c.onnx --output @p.npz", "c.onnx: no such ONNX file"),
        ("@set --model @a.onnx --output @p.npz --json @a.onnx", "--json: expected a file of its own"),
        ("@none --model @a.onnx --output @p.npz", "expected a .rec file"),
        ("@none.bin --model @a.onnx --output @p.npz", "none.bin: cannot be read as a verification set"),
        ("@set --merge --output @p.npz", "--merge: expected --output alone, got REC or --model too"),
        ("--merge --output @p.npz", "--merge: expected the parts p.0-of-4.npz"),
        (
            "@set --model @a.onnx --shard 0/2 --output @p.npz --json @p.0-of-2.npz",
            "--json: expected a file of its own",
        ),
        ("@set --model @a.onnx --output @p.npz --json @set/property", "--json: expected a file of its own"),
        ("--merge --shard 0/2 --output @p.npz", "not allowed with argument"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing_behind(data, capsys, arguments, message):
    before = sorted(data.iterdir())
    assert call(data, *arguments.split()) == 2
    stderr = capsys.readouterr().err
    assert message in stderr and stderr.count("\n") == 1
    assert sorted(data.iterdir()) == before


def test_a_table_with_other_columns_is_not_replaced(data, capsys):
    keys = np.arange(1, 21)
    AttributeTable(keys, {"yaw": np.zeros(20), "race": np.ones(20)}).save(data / "own.npz")
    before = (data / "own.npz").read_bytes()
    assert call(data, "@set", "--model", "@a.onnx", "--output", "@own.npz") == 2
    assert "own.npz, which holds race too" in capsys.readouterr().err
    assert (data / "own.npz").read_bytes() == before
    AttributeTable(keys, {"yaw": np.zeros(20)}).save(data / "own.npz")
    assert call(data, "@set", "--model", "@a.onnx", "--output", "@own.npz") == 0
