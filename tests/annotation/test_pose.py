"""Poses of a data set: the same table whoever does the work, however often it is stopped."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import cv2
import numpy as np
import pytest
from pose_networks import WEIGHTS, expected_angles, save_fsanet

from ddl_plugin.annotation import pose
from ddl_plugin.annotation.bin_images import BinImages
from ddl_plugin.annotation.pose import estimate_pose, merge_poses, yaw_counts
from ddl_plugin.annotation.pose_models import open_models
from ddl_plugin.data.attributes import AttributeTable
from ddl_plugin.data.records import Records, RecordWriter
from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.bins import write_bin

IMAGES = 23
NO_IMAGES = (4, 17)  # positions


def write_records(folder, no_images=()):
    rng = np.random.default_rng(1)
    with RecordWriter(folder) as writer:
        for i in range(IMAGES):
            image = rng.integers(0, 256, (112, 112, 3), np.uint8)
            writer.add(b"no image, only some bytes" if i in no_images else image, i // 4)
    return Records(folder)


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(pose, "UNIT", 4)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("set"), NO_IMAGES)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return open_models(
        [save_fsanet(folder / "a.onnx"), save_fsanet(folder / "b.onnx", weights=WEIGHTS[:, ::-1].copy())]
    )


class Counting:
    """A model that counts its images, and stops the work after some."""

    def __init__(self, model, stop_after=None):
        self.source = model.source
        self.images = 0
        self._model, self._stop_after = model, stop_after

    def __call__(self, images):
        if self._stop_after is not None and self.images >= self._stop_after:
            raise KeyboardInterrupt
        self.images += len(images)
        return self._model(images)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_mean_of_the_models_by_record_and_nan_where_there_is_no_image(tmp_path, records, models):
    result = estimate_pose(records, models, tmp_path / "pose.npz", threads=3)
    table = AttributeTable.load(tmp_path / "pose.npz")
    assert table.keys.tolist() == records.keys.tolist() == list(range(1, IMAGES + 1))
    readable = [i for i in range(IMAGES) if i not in NO_IMAGES]
    images = [records.image(i) for i in readable]
    expected = (expected_angles(images) + expected_angles(images, WEIGHTS[:, ::-1])) / 2
    for i, name in enumerate(("yaw", "pitch", "roll")):
        np.testing.assert_allclose(table.columns[name][readable], expected[:, i], atol=2e-3)
        assert np.isnan(table.columns[name][list(NO_IMAGES)]).all()
    assert result.unreadable.tolist() == [5, 18] and result.without_pose.tolist() == []
    assert result.found == 0 and result.images_per_second > 0
    assert files(tmp_path) == ["pose.npz"]


def test_records_that_opening_leaves_out_have_a_row_without_values(tmp_path, models):
    write_records(tmp_path / "set")
    rec = tmp_path / "set" / "train.rec"
    index = dict(line.split("\t") for line in rec.with_suffix(".idx").read_text().splitlines())
    index["5"] = str(rec.stat().st_size + 400)  # past the end
    rec.with_suffix(".idx").write_text("".join(f"{key}\t{offset}\n" for key, offset in index.items()))
    records = Records(rec, max_damaged=0.1)
    assert records.damaged.tolist() == [5]
    result = estimate_pose(records, models, tmp_path / "pose.npz")
    assert result.table.keys.tolist() == list(range(1, IMAGES + 1))
    assert result.unreadable.tolist() == [5]
    assert np.flatnonzero(np.isnan(result.table.columns["yaw"])).tolist() == [4]
    whole = estimate_pose(write_records(tmp_path / "whole"), models, tmp_path / "whole.npz").table
    at = np.arange(IMAGES) != 4
    np.testing.assert_allclose(
        result.table.columns["yaw"][at], whole.columns["yaw"][at], atol=1e-4
    )  # every other record has its own pose


def test_provenance(tmp_path, records, models):
    table = estimate_pose(records, models, tmp_path / "pose.npz").table
    assert AttributeTable.load(tmp_path / "pose.npz").provenance == table.provenance
    assert table.provenance["command"] == "prepare pose"
    assert table.provenance["records"] == records.fingerprint()
    assert table.provenance["images"] == IMAGES
    assert sorted(model["file"] for model in table.provenance["models"]) == ["a.onnx", "b.onnx"]
    text = json.dumps(table.provenance)
    assert str(tmp_path) not in text and all(model.source["sha256"] in text for model in models)


def test_equal_work_gives_equal_files(tmp_path, records, models):
    estimate_pose(records, models, tmp_path / "a.npz", threads=1)
    estimate_pose(records, models[::-1], tmp_path / "b.npz", threads=4)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_model_that_gives_nan(tmp_path, records, models):
    class Broken(Counting):
        def __call__(self, images):
            angles = super().__call__(images)
            angles[0, 2] = np.inf
            return angles

    result = estimate_pose(records, [models[0], Broken(models[1])], tmp_path / "pose.npz")
    assert result.without_pose.tolist() == [1, 6, 9, 13, 17, 21]  # the first readable one of each unit
    assert np.isnan(result.table.columns["yaw"][[0, 5, 8]]).all()
    assert result.unreadable.tolist() == [5, 18]


@pytest.mark.parametrize("threads", [1, 3])
def test_stopped_and_started_again_it_goes_on_and_ends_in_the_same_bytes(tmp_path, records, models, threads):
    whole = estimate_pose(records, models, tmp_path / "whole.npz", threads=threads)
    output = tmp_path / "pose.npz"
    with pytest.raises(KeyboardInterrupt):
        estimate_pose(records, [Counting(models[0], 10), models[1]], output, threads=threads)
    assert files(tmp_path) == ["pose.npz.part", "pose.npz.part.json", "whole.npz"]
    again = Counting(models[0])
    result = estimate_pose(records, [again, models[1]], output, threads=threads)
    assert 0 < result.found < IMAGES
    assert again.images <= IMAGES - result.found
    assert output.read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert result.unreadable.tolist() == whole.unreadable.tolist()  # also those of the first run
    assert files(tmp_path) == ["pose.npz", "whole.npz"]


def test_killed_and_started_again(tmp_path, models):
    """SIGKILL, in a process of its own."""
    write_records(tmp_path / "set", NO_IMAGES)
    code = f"""
        import os, signal
        from pathlib import Path
        from ddl_plugin.annotation import pose
        from ddl_plugin.annotation.pose_models import open_models
        from ddl_plugin.data.records import Records

        pose.UNIT = 4
        folder = Path({str(tmp_path)!r})
        [model] = open_models([folder / "a.onnx"])
        runs = 0

        class Killer:
            source = model.source
            def __call__(self, images):
                global runs
                runs += 1
                if runs == 5:
                    os.kill(os.getpid(), signal.SIGKILL)
                return model(images)

        pose.estimate_pose(Records(folder / "set"), [Killer()], folder / "pose.npz")
    """
    save_fsanet(tmp_path / "a.onnx")
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "pose.npz").exists()
    records, own = Records(tmp_path / "set"), open_models([tmp_path / "a.onnx"])
    result = estimate_pose(records, own, tmp_path / "pose.npz")
    assert result.found in (12, 16)  # whether the fourth unit was written when the fifth killed the process
    estimate_pose(records, own, tmp_path / "whole.npz")
    assert (tmp_path / "pose.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_killed_between_the_table_and_the_end(tmp_path, records, models, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pose._WorkFile, "remove", lambda self: None)
        estimate_pose(records, models, tmp_path / "pose.npz")
    first = (tmp_path / "pose.npz").read_bytes()
    counting = [Counting(model) for model in models]
    result = estimate_pose(records, counting, tmp_path / "pose.npz")
    assert result.found == IMAGES and counting[0].images == 0
    assert (tmp_path / "pose.npz").read_bytes() == first
    assert files(tmp_path) == ["pose.npz"]


def test_work_of_other_models_or_records_is_not_gone_on_with(tmp_path, records, models):
    output = tmp_path / "pose.npz"
    with pytest.raises(KeyboardInterrupt):
        estimate_pose(records, [Counting(models[0], 8)], output)
    part = (tmp_path / "pose.npz.part").read_bytes()
    message = r"--output: .*pose\.npz\.part holds unfinished work from other records or models; delete it"
    with pytest.raises(UserError, match=message):
        estimate_pose(records, models, output)
    with pytest.raises(UserError, match=message):
        estimate_pose(write_records(tmp_path / "other"), models[:1], output)
    (tmp_path / "pose.npz.part.json").write_text("{")
    with pytest.raises(UserError, match=message):
        estimate_pose(records, models[:1], output)
    assert (tmp_path / "pose.npz.part").read_bytes() == part


def test_one_run_at_a_time(tmp_path, records, models):
    class Meanwhile(Counting):
        def __call__(self, images):
            with pytest.raises(UserError, match=r"another run is working on .*pose\.npz\.part; wait for it"):
                estimate_pose(records, models, tmp_path / "pose.npz")
            return super().__call__(images)

    assert len(estimate_pose(records, [Meanwhile(models[0])], tmp_path / "pose.npz").table.keys) == IMAGES


def test_full_disk(tmp_path, records, models, monkeypatch):
    output = tmp_path / "pose.npz"
    estimate_pose(records, models[1:], output)
    before = output.read_bytes()
    usual, written = os.pwrite, []

    def full(*arguments):
        written.append(1)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        return usual(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(
            UserError, match=r"part: cannot be written \(No space left on device\); what is don"
        ):
            estimate_pose(records, models, output)
    assert output.read_bytes() == before
    assert estimate_pose(records, models, output).found == 8
    assert output.read_bytes() != before


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_parts_joined_are_the_whole(tmp_path, records, models, n):
    whole = tmp_path / "whole.npz"
    estimate_pose(records, models, whole)
    output = tmp_path / "parts" / "pose.npz"
    parts = [estimate_pose(records, models, output, shard=(i, n)) for i in range(n)]
    assert sum(len(part.table.keys) for part in parts) == IMAGES
    assert files(output.parent) == [f"pose.{i}-of-{n}.npz" for i in range(n)]
    merge_poses(output)
    assert output.read_bytes() == whole.read_bytes()


def test_a_part_goes_on_too(tmp_path, records, models):
    output = tmp_path / "pose.npz"
    with pytest.raises(KeyboardInterrupt):
        estimate_pose(records, [Counting(models[0], 4), models[1]], output, shard=(1, 2))
    result = estimate_pose(records, models, output, shard=(1, 2))
    assert result.found == 4 and result.table.keys.tolist() == list(range(13, IMAGES + 1))
    assert result.unreadable.tolist() == [18]


def test_parts_that_do_not_belong_together(tmp_path, records, models):
    output = tmp_path / "pose.npz"
    for i in range(2):
        estimate_pose(records, models, output, shard=(i, 3))
    with pytest.raises(UserError, match=r"--merge: expected 3 parts of .*, got 2; .*--shard 2/3"):
        merge_poses(output)
    estimate_pose(records, models[:1], output, shard=(2, 3))
    with pytest.raises(UserError, match=r"from the same records and models, got another in .*pose\.2-of-3"):
        merge_poses(output)
    (tmp_path / "pose.1-of-3.npz").replace(tmp_path / "pose.2-of-3.npz")
    estimate_pose(records, models, output, shard=(1, 3))
    with pytest.raises(
        UserError, match=r"got another in .*pose\.2-of-3\.npz; make it again with --shard 2/3"
    ):
        merge_poses(output)
    AttributeTable(np.arange(3), {"yaw": np.zeros(3)}).save(tmp_path / "pose.0-of-3.npz")
    with pytest.raises(UserError, match=r"got another in .*pose\.0-of-3\.npz"):
        merge_poses(output)
    assert not output.exists()


def test_more_parts_than_work(tmp_path, records, models):
    with pytest.raises(
        UserError, match=r"--shard: expected at most 6 parts of 23 images \(4 at a time\), got 7"
    ):
        estimate_pose(records, models, tmp_path / "pose.npz", shard=(0, 7))


def test_output_is_checked_before_the_work(tmp_path, records):
    with pytest.raises(
        UserError, match=r"--output: expected a file named \.npz or \.parquet, got 'pose\.csv'"
    ):
        estimate_pose(records, [], tmp_path / "pose.csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written"):
        estimate_pose(records, [], tmp_path / "file" / "pose.npz")


def test_images_of_a_verification_set_by_their_number(tmp_path, models):
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 256, (6, 112, 112, 3), np.uint8)
    encoded = [cv2.imencode(".png", image[..., ::-1])[1].tobytes() for image in pixels]
    encoded[4] = b"no image"
    encoded[1] = cv2.imencode(".png", pixels[1, :56])[1].tobytes()
    write_bin(tmp_path / "set.bin", encoded, [True, False, True])
    images = BinImages(tmp_path / "set.bin")
    result = estimate_pose(images, models, tmp_path / "pose.npz")
    assert result.table.keys.tolist() == [0, 1, 2, 3, 4, 5]
    assert result.unreadable.tolist() == [1, 4]
    angles = np.stack([result.table.columns[name] for name in pose.COLUMNS], axis=1)
    assert np.isnan(angles[[1, 4]]).all()
    for i in (0, 2, 3, 5):
        one = np.mean([model([pixels[i, ..., ::-1]])[0] for model in models], axis=0)
        np.testing.assert_allclose(angles[i], one, rtol=0, atol=1e-3)
    assert result.table.provenance["records"] == images.fingerprint()
    assert images.fingerprint().startswith("set.bin:")
    (tmp_path / "other.bin").write_bytes((tmp_path / "set.bin").read_bytes() + b" ")
    assert BinImages(tmp_path / "other.bin").fingerprint() != images.fingerprint().replace("set", "other")


def test_counts_by_yaw():
    yaw = np.array([0, -9.99, 10, -20, 29, 31, -45, 59, 60, 89, -90, 180, np.nan])
    assert yaw_counts(yaw).tolist() == [2, 1, 2, 1, 2, 2, 2]


def test_lfw_by_yaw(tmp_path, shared_data, monkeypatch):
    """Of FSA-Net's |yaw| on LFW 58 % are below 10 degrees and 6.5 % above 20, which is what our crop must keep."""
    monkeypatch.setattr(pose, "UNIT", 256)
    lfw = Records(shared_data / "lfw112_dev")
    with RecordWriter(tmp_path / "set") as writer:
        for i in range(0, len(lfw), 6):
            writer.add(lfw.payload(i), i)
    models = open_models(sorted((shared_data / "pose_fsanet").glob("*.onnx")))
    table = estimate_pose(Records(tmp_path / "set"), models, tmp_path / "pose.npz").table
    yaw = np.abs(table.columns["yaw"])
    assert len(yaw) == 1098
    assert 0.54 < (yaw < 10).mean() < 0.66
    assert 0.05 < (yaw > 20).mean() < 0.115
    assert (yaw > 45).mean() < 0.01
