"""`prepare pairs`: what it writes and says; resumed, shared out and merged; mistakes as one line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from ddl_plugin.data.attributes import AttributeTable
from ddl_plugin.data.pairs import build_pairs, load_pairs, origin_of_pairs
from ddl_plugin.data.partition import build_partition
from ddl_plugin.data.records import Records, RecordWriter
from ddl_plugin.evaluation.onnx_model import OnnxEmbedder
from ddl_plugin.files import sha256
from ddl_plugin.prepare.__main__ import main
from ddl_plugin.settings import DDLSettings

RECIPE = """
from easydict import EasyDict

config = EasyDict()
config.loss = "ddl"
config.dataset_path = "data"
config.attributes = "pose.npz"
config.pretrained = "model.onnx"
config.ddl = EasyDict(b=4, easy="abs(yaw) < 10", hard=[{"rule": "abs(yaw) > 45", "size": (8, 40)}])
config.max_pairs_per_identity = 7
config.seed = 3
"""
IDENTITIES, IMAGES = 12, 8


@pytest.fixture(scope="module")
def master(tmp_path_factory, save_pooling_model):
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    with RecordWriter(folder / "data") as writer:
        for label in range(IDENTITIES):
            base = rng.integers(60, 200, (14, 14, 3))
            for i in range(IMAGES):
                face = 255 - base if label < 3 and i == 2 else base  # another person's, as if by mistake
                noisy = np.clip(face + rng.normal(0, 60, base.shape), 0, 255).astype(np.uint8)
                writer.add(cv2.resize(noisy, (112, 112)), label)
    yaw = np.tile([0.0, 5.0, 3.0, -4.0, -50.0, 60.0, 70.0, 80.0], IDENTITIES)
    AttributeTable(np.arange(1, len(yaw) + 1), {"yaw": yaw}).save(folder / "data/pose.npz")
    save_pooling_model(folder / "model.onnx", 128.0)
    (folder / "recipe.py").write_text(RECIPE)
    return folder


@pytest.fixture
def place(master, tmp_path, monkeypatch):
    shutil.copytree(master, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


RULES = ["--easy", "abs(yaw) < 10", "--hard", "abs(yaw) > 45", "--attributes", "data/pose.npz"]


def expected_pairs(hard, most, seed):
    """What the trainer's own way gives, and what it wants a file to be made from."""
    records = Records("data")
    settings = DDLSettings(b=4, easy="abs(yaw) < 10", hard=(hard,))
    partition = build_partition(records, settings, AttributeTable.load("data/pose.npz"))
    embed = OnnxEmbedder("model.onnx")
    pairs = build_pairs(records, partition, embed, max_pairs_per_identity=most, seed=seed, b=4)
    return pairs, origin_of_pairs(records, partition, sha256("model.onnx")[:16], most, seed)


def assert_holds(path, hard, most, seed):
    expected, made_from = expected_pairs(hard, most, seed)
    pairs, reason = load_pairs(path, made_from)
    assert reason is None
    for one, other in zip(pairs, expected, strict=True):
        assert np.array_equal(one.first, other.first)
        assert np.array_equal(one.second, other.second)


def test_a_recipe_gives_the_pairs_that_its_run_wants(place, capsys):
    assert main(["pairs", "--recipe", "recipe.py", "--output", "out/pairs.npz"]) == 0
    assert_holds("out/pairs.npz", {"rule": "abs(yaw) > 45", "size": (8, 40)}, 7, 3)
    said = capsys.readouterr().out
    assert "positive pairs: building (out/pairs.npz is not there)" in said
    assert "images embedded in" in said
    assert sorted(p.name for p in (place / "out").iterdir()) == ["pairs.json", "pairs.npz", "pairs.png"]
    assert cv2.imread("out/pairs.png") is not None


def test_rules_model_bound_and_seed_on_the_command_line(place, capsys):
    arguments = ["pairs", "data", *RULES, "--model", "model.onnx", "--max-pairs", "4", "--seed", "9"]
    assert main([*arguments, "--output", "pairs.npz"]) == 0
    assert_holds("pairs.npz", "abs(yaw) > 45", 4, 9)
    # They also come before the recipe's.
    recipe = ["pairs", "--recipe", "recipe.py", "ddl.hard=abs(yaw) > 45", "--max-pairs", "4", "--seed", "9"]
    assert main([*recipe, "--output", "pairs.npz"]) == 0
    assert "pairs.npz: nothing to do" in capsys.readouterr().out


def test_the_report_says_what_was_kept_dropped_and_who_has_no_pair(place, capsys):
    assert main(["pairs", "data", *RULES, "--model", "model.onnx", "--output", "pairs.npz"]) == 0
    said = capsys.readouterr().out
    rows = json.loads((place / "pairs.json").read_text())["distributions"]
    expected, _ = expected_pairs("abs(yaw) > 45", 100, 0)
    for row, own in zip(rows, expected, strict=True):
        assert row["candidates"] == IDENTITIES * 6
        assert (row["kept"], row["dropped"]) == (len(own.first), own.dropped)
        assert row["kept"] + row["dropped"] == row["candidates"]
        assert row["identities_without_a_pair"] == {"one_image": 0, "all_dropped": own.emptied}
        assert sum(row["histogram"]["counts"]) == row["candidates"]
        (line,) = [line for line in said.splitlines() if line.startswith(f"{row['name']}  ")]
        assert f" {row['candidates']} " in line
        assert f" {row['kept']} " in line
    assert sum(row["dropped"] for row in rows) > 0


def test_a_second_time_there_is_nothing_to_do_and_other_data_say_why(place, capsys):
    arguments = ["pairs", "data", *RULES, "--model", "model.onnx", "--output", "pairs.npz"]
    assert main(arguments) == 0
    before = (place / "pairs.npz").stat().st_mtime_ns
    capsys.readouterr()
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "nothing to do" in said
    assert "embedded" not in said
    assert (place / "pairs.npz").stat().st_mtime_ns == before
    assert main([*arguments, "--seed", "1"]) == 0
    assert "pairs.npz: made with seed 0, now 1" in capsys.readouterr().out


def test_kept_embeddings_serve_other_rules(place, capsys):
    arguments = ["pairs", "data", "--model", "model.onnx", "--output", "pairs.npz", "--embeddings", "kept"]
    assert main([*arguments, *RULES]) == 0
    assert "96 images embedded" in capsys.readouterr().out
    other = ["--easy", "abs(yaw) < 4", "--hard", "abs(yaw) > 20", "--attributes", "data/pose.npz"]
    assert main([*arguments, *other]) == 0
    assert "embedded" not in capsys.readouterr().out
    assert len(list((place / "kept").glob("clean-*.npy"))) == 1


@pytest.mark.parametrize("n", [2, 3])
def test_parts_merged_are_the_whole(place, n, capsys):
    arguments = ["pairs", "--recipe", "recipe.py", "--output"]
    assert main([*arguments, "whole.npz"]) == 0
    for i in range(n):
        assert main([*arguments, "merged.npz", "--shard", f"{i}/{n}"]) == 0
    assert f"merged.{n - 1}-of-{n}.npz: part {n - 1} of {n}" in capsys.readouterr().out
    assert not (place / "merged.npz").exists()
    for name in ("data", "model.onnx", "recipe.py"):
        (place / name).rename(place / f"not-{name}")
    assert main(["pairs", "--merge", "--output", "merged.npz"]) == 0
    for suffix in (".npz", ".json", ".png"):
        assert (place / f"merged{suffix}").read_bytes() == (place / f"whole{suffix}").read_bytes()


def test_killed_and_run_again_gives_the_same_bytes(place):
    """The process is killed while it embeds; the next one goes on, and leaves nothing of the work behind."""
    command = [sys.executable, "-m", "ddl_plugin.prepare", "pairs", "--recipe", "recipe.py", "--output"]
    slow = place / "sitecustomize.py"
    slow.write_text(
        "import time\nfrom ddl_plugin.data import embeddings\nembeddings._BATCH = 8\n"
        "usual = embeddings._Store.write\n"
        "def write(self, *arguments):\n    usual(self, *arguments)\n    time.sleep(0.3)\n"
        "embeddings._Store.write = write\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(place)}
    process = subprocess.Popen([*command, "killed.npz"], env=environment, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(place.glob("killed.npz.part/*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.7)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (place / "killed.npz.part").is_dir()
    assert not (place / "killed.npz").exists()
    slow.unlink()
    done = subprocess.run([*command, "killed.npz"], capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if "images embedded" in line]
    assert 0 < int(line.split()[0]) < IDENTITIES * IMAGES
    assert main(["pairs", "--recipe", "recipe.py", "--output", "whole.npz"]) == 0
    assert (place / "killed.npz").read_bytes() == (place / "whole.npz").read_bytes()
    assert not list(place.glob("*.part"))


def test_without_matplotlib_everything_else_is_there(place, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.lines", None)
    assert main(["pairs", "--recipe", "recipe.py", "--output", "pairs.npz"]) == 0
    assert "no figure: figures need Matplotlib" in capsys.readouterr().out
    assert (place / "pairs.json").is_file()
    assert not (place / "pairs.png").exists()


MODEL = ["--model", "model.onnx"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["data", *RULES],
            "--model: expected the base model, a checkpoint PREFIX,EPOCH or an .onnx file, got none",
        ),
        (["data", *RULES, "--model", "no.onnx"], "no.onnx: no such ONNX file"),
        (["data", *RULES, "--model", "model,0"], "model-symbol.json: no such symbol file"),
        (
            ["--recipe", "recipe.py", "pretrained=base.py"],
            "--model: the recipe's base model is trained by base.py",
        ),
        (["data", *RULES, *MODEL, "--max-pairs", "0"], "--max-pairs: expected a whole number >= 1, got 0"),
        (["data", *RULES, *MODEL, "--seed", "-1"], "--seed: expected a whole number >= 0, got -1"),
        (["data", *RULES, *MODEL, "--shard", "2/2"], "--shard: expected i/n with i from 0 to n - 1"),
        (["data", *RULES, *MODEL, "--shard", "0/2", "--merge"], "not allowed with argument"),
        (["--merge"], "--merge: expected the parts pairs.0-of-4.npz"),
        (["data", "--merge"], "--merge: expected --output alone"),
        (["--merge", "--seed", "0"], "--merge: expected --output alone"),
        (["--recipe", "recipe.py", "ddl.b=13"], "at least b = 13"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(place, arguments, message, capsys):
    before = sorted(place.rglob("*"))
    assert main(["pairs", *arguments, "--output", "pairs.npz"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert message in said
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("pairs.json", "--output: expected a file named .npz, got pairs.json"),
        ("data/pose.npz", "--output: expected a file of its own, got data/pose.npz"),
        ("other.npz", "--output: expected pairs or nothing at other.npz, got other arrays"),
    ],
)
def test_outputs_that_cannot_be(place, output, message, capsys):
    shutil.copy("data/pose.npz", "other.npz")
    before = (place / "data/pose.npz").read_bytes()
    assert main(["pairs", "data", *RULES, *MODEL, "--output", output]) == 2
    assert message in capsys.readouterr().err
    assert (place / "data/pose.npz").read_bytes() == (place / "other.npz").read_bytes() == before


def test_interrupted_says_that_it_can_go_on(place, monkeypatch, capsys):
    monkeypatch.setattr(
        OnnxEmbedder, "__call__", lambda self, images: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    assert main(["pairs", "data", *RULES, *MODEL, "--output", "pairs.npz"]) == 130
    assert "the same command goes on from there" in capsys.readouterr().err


def test_the_trainer_takes_pairs_that_were_prepared(place, backend, save_new_model):
    """Built with a checkpoint, under the recipe that the run has."""
    from ddl_plugin.recipe import load_recipe
    from ddl_plugin.training.backends import get_backend
    from ddl_plugin.training.dataset import open_dataset

    save_new_model(place / "base", 0)
    assert main(["pairs", "--recipe", "recipe.py", "pretrained=base,0", "--output", "pairs.npz"]) == 0
    settings = load_recipe("recipe.py", ["pretrained=base,0"])
    reader = get_backend(backend)
    model = reader.fingerprint(reader.load_backbone("base,0"))

    def embed(images):
        raise AssertionError("the pairs are there")

    said = []
    dataset = open_dataset(settings, embed, model, place / "pairs.npz", said.append, False)
    assert said == []
    assert [len(own.first) for own in dataset.pairs] == [
        row["kept"] for row in json.loads((place / "pairs.json").read_text())["distributions"]
    ]
    assert not (place / "pairs.npz.part").exists()


@pytest.mark.usefixtures("backend")
def test_on_real_faces_parts_are_the_whole_and_few_pairs_are_dropped(
    shared_data, tmp_path, monkeypatch, capsys
):
    """LFW with InsightFace's MobileFaceNet: 12 identities with three images or more."""
    monkeypatch.chdir(tmp_path)
    records = Records(shared_data / "lfw112_dev")
    labels, sizes = np.unique(records.labels, return_counts=True)
    several = labels[(sizes >= 3) & (sizes <= 5)][:12]
    AttributeTable(records.keys, {"chosen": np.isin(records.labels, several)}).save("chosen.npz")
    arguments = [
        "pairs", str(records.path), "--easy", "chosen", "--hard", "{'rule': 'chosen', 'size': (20, 28)}",
        "--attributes", "chosen.npz", "--model", f"{shared_data / 'y1_ms1m' / 'model'},0", "--max-pairs", "3",
        "--output",
    ]  # fmt: skip
    assert main([*arguments, "whole.npz"]) == 0
    for i in range(2):
        assert main([*arguments, "merged.npz", "--shard", f"{i}/2"]) == 0
    assert main(["pairs", "--merge", "--output", "merged.npz"]) == 0
    assert (tmp_path / "merged.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    easy, hard = json.loads((tmp_path / "whole.json").read_text())["distributions"]
    assert easy["candidates"] == hard["candidates"] == 36
    assert easy["dropped"] + hard["dropped"] <= 2
    assert easy["quantiles"]["0.5"] > hard["quantiles"]["0.5"] > 0.3


def test_pairs_with_a_damaged_image_are_left_out_and_counted(place, capsys):
    """Record 5, the first hard image of the first identity: three of its six pairs."""
    arguments = ["pairs", "data", *RULES, "--model", "model.onnx", "--output", "pairs.npz"]
    lines = (place / "data/train.idx").read_text().splitlines()
    offset = dict(map(int, line.split()) for line in lines)[5]
    with (place / "data/train.rec").open("r+b") as file:
        file.seek(offset + 8 + 24)  # behind the frame and the header
        file.write(bytes(200))
    assert main(arguments) == 2
    assert "record 5" in capsys.readouterr().err
    recipe = [
        "--recipe",
        "recipe.py",
        "max_damaged=0.02",
        "ddl.hard=abs(yaw) > 45",
        "max_pairs_per_identity=100",
    ]
    assert main(["pairs", *recipe, "--output", "pairs.npz"]) == 0
    said = capsys.readouterr().out
    assert "1 of 96 records is damaged (5); their pairs are left out" in said
    assert "not compared:" in said
    rows = json.loads((place / "pairs.json").read_text())["distributions"]
    assert [row["unreadable"] for row in rows] == [0, 3]
    assert [row["candidates"] for row in rows] == [IDENTITIES * 6, IDENTITIES * 6 - 3]
