"""Which images an embedding map shows, and the command."""

import numpy as np
import pytest

from ddl_plugin.analysis.embedding_map import choose, load, tsne
from ddl_plugin.analyze.__main__ import main
from ddl_plugin.data.attributes import AttributeTable
from ddl_plugin.data.records import Records, RecordWriter
from ddl_plugin.errors import UserError

LABELS = np.repeat(np.arange(6), [9, 8, 1, 7, 9, 8])
HARD = np.arange(len(LABELS)) % 3 == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory, save_pooling_model):
    """Six identities of block patterns, and two models."""
    folder = tmp_path_factory.mktemp("map")
    rng = np.random.default_rng(0)
    own = rng.integers(0, 256, (6, 14, 14, 3))
    with RecordWriter(folder) as writer:
        for label in LABELS:
            blocks = np.clip(own[label] + rng.integers(-40, 41, (14, 14, 3)), 0, 255).astype(np.uint8)
            writer.add(np.kron(blocks, np.ones((8, 8, 1), np.uint8)), int(label))
    AttributeTable(np.arange(1, len(LABELS) + 1), {"yaw": np.where(HARD, 60.0, 0.0)}).save(
        folder / "pose.npz"
    )
    save_pooling_model(folder / "base.onnx", 127.5)
    save_pooling_model(folder / "ddl.onnx", 100.0)
    return folder


def test_images_of_both_kinds_of_each_identity_are_chosen():
    positions = choose(LABELS, HARD, 3, 6, seed=1)
    assert (np.diff(positions) > 0).all()
    chosen = LABELS[positions]
    assert len(np.unique(chosen)) == 3
    for identity in np.unique(chosen):
        own = positions[chosen == identity]
        assert HARD[own].sum() in (2, 3)
        assert (~HARD[own]).sum() == 3
    np.testing.assert_array_equal(choose(LABELS, HARD, 3, 6, seed=1), positions)
    assert len(set(choose(LABELS, None, 5, 4, 0)) & set(np.flatnonzero(LABELS == 2))) == 0


def test_too_few_identities_are_refused_with_their_number():
    with pytest.raises(
        UserError, match=r"--identities: expected at most 5, .* two easy and two hard images .*, got 6"
    ):
        choose(LABELS, HARD, 6, 4, 0)


def test_with_a_size_every_image_is_there_twice(folder):
    records = Records(folder)
    shown = load(records, np.array([0, 3]), None, 14)
    assert shown.hard.tolist() == [False, False, True, True]
    assert shown.identity.tolist() == LABELS[[0, 3, 0, 3]].tolist()
    np.testing.assert_array_equal(shown.images[0], records.image(0))
    assert (shown.images[2] != shown.images[0]).any()


def test_a_map_keeps_apart_what_is_apart():
    rng = np.random.default_rng(0)
    centres = np.repeat(np.eye(8)[:3] * 5, 10, axis=0)
    points = tsne((centres + rng.normal(size=(30, 8)) * 0.1).astype(np.float32), seed=0)
    groups = points.reshape(3, 10, 2)
    within = max(np.linalg.norm(g - g.mean(axis=0), axis=1).max() for g in groups)
    between = min(np.linalg.norm(groups[i].mean(0) - groups[j].mean(0)) for i in range(3) for j in range(i))
    assert between > 2 * within


@pytest.mark.parametrize("kind", [["--size", "14"], ["--hard", "yaw > 45", "--attributes", "pose.npz"]])
def test_the_command_draws_a_panel_a_model(folder, monkeypatch, capsys, kind):
    monkeypatch.chdir(folder)
    line = [
        "embeddings",
        "--model",
        "base.onnx",
        "--model",
        "ddl.onnx",
        "--rec",
        ".",
        "--identities",
        "3",
        "--images",
        "6",
    ]
    assert main([*line, *kind, "--output", "map.svg"]) == 0
    assert "images of 3 identities" in capsys.readouterr().out
    text = (folder / "map.svg").read_text()
    for word in ("base.onnx", "ddl.onnx", "easy", "hard"):
        assert f">{word}<" in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--hard: expected it, or --size"),
        (["--size", "14", "--hard", "yaw > 4"], "give one of the two"),
        (["--hard", "yaw > 4"], "--attributes: expected it with --hard"),
        (["--size", "200"], "--size: expected pixels within 4..112, got 200"),
        (["--size", "14", "--identities", "1"], "--identities: expected a whole number >= 2, got 1"),
        (["--size", "14", "--identities", "9"], "--identities: expected at most 5"),
        (["--hard", "yaw >", "--attributes", "pose.npz"], "yaw >"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(folder, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(folder)
    assert main(["embeddings", "--model", "base.onnx", "--rec", ".", "--output", "x.png", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
