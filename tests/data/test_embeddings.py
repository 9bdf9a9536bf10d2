"""Embeddings kept in files: made once, right row for right image, whatever ends the process in between."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from ddl_plugin.data import embeddings as module
from ddl_plugin.data.embeddings import Embeddings, View, difference
from ddl_plugin.data.records import DamagedRecordError
from ddl_plugin.errors import UserError
from ddl_plugin.settings import Degradation

CLEAN = View.of("easy", Degradation(), 0, 0)
SIZE = 6


class FakeRecords:
    """Images that spell their position; those at `bad` cannot be read."""

    path = Path("train.rec")

    def __init__(self, labels, bad=()):
        self.labels = np.asarray(labels, np.int32)
        self.keys = np.arange(1, len(labels) + 1)
        self.bad = set(bad)

    def __len__(self):
        return len(self.labels)

    def fingerprint(self):
        return f"train.rec:{len(self.labels)}"

    def image(self, i):
        if i in self.bad:
            raise DamagedRecordError(f"record {i + 1} is no image", i + 1)
        image = np.full((112, 112, 3), 100, np.uint8)
        image[0, 0] = i // 256, i % 256, 7
        return image


class Table:
    """An embedder that looks up rows of a table, and keeps which."""

    def __init__(self, n, seed=0):
        self.rows = np.random.default_rng(seed).normal(size=(n, SIZE)).astype(np.float32)
        self.unit = self.rows / np.linalg.norm(self.rows, axis=1, keepdims=True)
        self.seen = []

    def __call__(self, images):
        positions = images[:, 0, 0, 0].astype(int) * 256 + images[:, 0, 0, 1]
        self.seen += positions.tolist()
        return self.rows[positions]


def no_step(count):
    pass


def open_embeddings(records, embed, folder, **options):
    return Embeddings(records, embed, folder=folder, model=options.pop("model", "model 1"), **options)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_each_image_gets_its_own_unit_embedding(tmp_path, kept, grouped, monkeypatch):
    monkeypatch.setattr(module, "_BATCH", 5)
    labels = np.random.default_rng(0).integers(0, 20, 300)
    records, table = FakeRecords(np.sort(labels) if grouped else labels), Table(300)
    with open_embeddings(records, table, tmp_path / "work" if kept else None) as embeddings:
        for positions in (np.array([7, 3, 299]), np.arange(0, 300, 3), np.arange(300)):
            np.testing.assert_allclose(
                embeddings.of(CLEAN, positions, no_step), table.unit[positions], atol=1e-6
            )


def test_what_is_there_is_not_made_again_and_reads_the_same(tmp_path):
    records, table = FakeRecords(np.zeros(50)), Table(50)
    with open_embeddings(records, table, tmp_path) as embeddings:
        made = embeddings.of(CLEAN, np.arange(10, 30), no_step)
        again = embeddings.of(CLEAN, np.arange(5, 30), no_step)
    assert sorted(table.seen) == list(range(5, 30))
    with open_embeddings(records, table, tmp_path) as embeddings:
        steps = []
        later = embeddings.of(CLEAN, np.arange(10, 31), steps.append)
        assert embeddings.made == 1
    assert table.seen[25:] == [30]
    assert sum(steps) == 21
    assert np.array_equal(made, again[5:])
    assert np.array_equal(made, later[:20])


def test_only_what_was_asked_for_is_written(tmp_path):
    """Rows of an image that was never asked for are zeros: a hole in the file."""
    records, table = FakeRecords(np.zeros(40)), Table(40)
    with open_embeddings(records, table, tmp_path) as embeddings:
        embeddings.of(CLEAN, np.array([3, 4, 20]), no_step)
    (file,) = tmp_path.glob("*.npy")
    array = np.load(file)
    assert array.shape == (40, SIZE)
    assert np.flatnonzero(array.any(axis=1)).tolist() == [3, 4, 20]


def test_images_of_an_identity_stand_together(tmp_path):
    labels = np.array([2, 0, 1, 0, 2, 1])
    records, table = FakeRecords(labels), Table(6)
    with open_embeddings(records, table, tmp_path) as embeddings:
        embeddings.of(CLEAN, np.arange(6), no_step)
    (file,) = tmp_path.glob("*.npy")
    np.testing.assert_allclose(np.load(file), table.unit[[1, 3, 2, 5, 0, 4]], atol=1e-6)


def test_other_models_data_and_views_have_files_of_their_own(tmp_path):
    records, table = FakeRecords(np.zeros(9)), Table(9)
    dark = Degradation(darken=0.5)
    views = [CLEAN, View.of("hard", dark, 1, 0), View.of("hard", dark, 1, 1), View.of("hard", dark, 2, 0)]
    for view in views:
        with open_embeddings(records, table, tmp_path) as embeddings:
            embeddings.of(view, np.arange(9), no_step)
            assert embeddings.made == 9
    said = []
    with open_embeddings(records, table, tmp_path, model="model 2", say=said.append) as embeddings:
        embeddings.of(CLEAN, np.arange(9), no_step)
        assert embeddings.made == 9
    assert len(said) == 1
    assert "clean-" in said[0]
    assert "made with model 'model 1', now 'model 2'" in said[0]
    with open_embeddings(
        FakeRecords(np.zeros(8)), table, tmp_path, model="model 2", say=said.append
    ) as embeddings:
        embeddings.of(CLEAN, np.arange(8), no_step)
        assert embeddings.made == 8
    assert "made with records 'train.rec:9', now 'train.rec:8'" in said[-1]


def test_sets_that_degrade_nothing_share_a_view():
    assert View.of("easy", Degradation(), 0, 5) == View.of("hard1", Degradation(), 1, 6) == CLEAN
    assert View.of("hard", Degradation(jpeg=20), 1, 0) != View.of("hard", Degradation(jpeg=20), 2, 0)


def test_a_view_shows_an_image_always_alike_and_degraded():
    records = FakeRecords(np.zeros(4))
    view = View.of("hard", Degradation(darken=(0.1, 0.9)), 1, 3)
    shown = [view.image(records, i) for i in (0, 1, 0)]
    assert np.array_equal(shown[0], shown[2])
    assert shown[0].mean() < 95
    assert shown[0].mean() != shown[1].mean()
    assert np.array_equal(CLEAN.image(records, 2), records.image(2))


@pytest.mark.parametrize("damage", ["cut", "longer", "other type", "no header"])
def test_damaged_files_are_made_again(tmp_path, damage):
    records, table = FakeRecords(np.zeros(9)), Table(9)
    with open_embeddings(records, table, tmp_path) as embeddings:
        embeddings.of(CLEAN, np.arange(9), no_step)
    (file,) = tmp_path.glob("*.npy")
    data = file.read_bytes()
    if damage == "other type":
        np.save(file, np.zeros((9, SIZE)))
    else:
        file.write_bytes({"cut": data[:-40], "longer": data + bytes(8), "no header": b"x" * 200}[damage])
    said = []
    with open_embeddings(records, table, tmp_path, say=said.append) as embeddings:
        np.testing.assert_allclose(embeddings.of(CLEAN, np.arange(9), no_step), table.unit, atol=1e-6)
        assert embeddings.made == 9
    assert "damaged" in said[0]
    assert np.load(file).shape == (9, SIZE)


def test_a_row_written_in_part_is_made_again(tmp_path):
    records, table = FakeRecords(np.zeros(9)), Table(9)
    with open_embeddings(records, table, tmp_path) as embeddings:
        embeddings.of(CLEAN, np.arange(9), no_step)
    (file,) = tmp_path.glob("*.npy")
    array = np.load(file, mmap_mode="r+")
    array[4, SIZE // 2 :] = 0
    array.flush()
    table.seen.clear()
    with open_embeddings(records, table, tmp_path) as embeddings:
        np.testing.assert_allclose(embeddings.of(CLEAN, np.arange(9), no_step), table.unit, atol=1e-6)
    assert table.seen == [4]


def test_an_embedding_of_zeros_stays_zeros(tmp_path):
    records, table = FakeRecords(np.zeros(3)), Table(3)
    table.rows[1] = 0
    for _ in range(2):
        with open_embeddings(records, table, tmp_path) as embeddings:
            assert embeddings.of(CLEAN, np.arange(3), no_step)[1].tolist() == [0.0] * SIZE


def test_one_process_at_a_time(tmp_path):
    records, table = FakeRecords(np.zeros(3)), Table(3)
    with (
        open_embeddings(records, table, tmp_path),
        pytest.raises(UserError, match=r"another process is writing embeddings there; wait for it"),
        open_embeddings(records, table, tmp_path),
    ):
        pass
    with open_embeddings(records, table, tmp_path):
        pass


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"file/work: cannot be written \(Not a directory\)"),
        open_embeddings(FakeRecords([0]), Table(1), tmp_path / "file" / "work"),
    ):
        pass


def test_a_full_disk_is_one_line_and_what_is_done_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BATCH", 4)
    records, table = FakeRecords(np.zeros(20)), Table(20)
    usual, calls = os.pwrite, []

    def full(handle, data, at):
        calls.append(at)
        if len(calls) > 2:
            return usual(handle, data[: len(data) // 2], at)  # as a full disk does
        return usual(handle, data, at)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with (
            pytest.raises(
                UserError, match=r"cannot be written \(No space left on device\); what is done is kept"
            ),
            open_embeddings(records, table, tmp_path) as embeddings,
        ):
            embeddings.of(CLEAN, np.arange(20), no_step)
    table.seen.clear()
    with open_embeddings(records, table, tmp_path) as embeddings:
        np.testing.assert_allclose(embeddings.of(CLEAN, np.arange(20), no_step), table.unit, atol=1e-6)
    assert 0 not in table.seen
    assert set(range(12, 20)) <= set(table.seen)


def test_unreadable_images_are_skipped_up_to_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BATCH", 8)
    records, table = FakeRecords(np.zeros(100), bad=[0, 1, 2, 3, 4, 5, 6, 7, 50]), Table(100)
    with open_embeddings(records, table, tmp_path, max_damaged=0.09) as embeddings:
        steps = []
        unit = embeddings.of(CLEAN, np.arange(100), steps.append)  # of the first batch none can be read
        assert sum(steps) == 100
        assert np.flatnonzero(np.isnan(unit).any(axis=1)).tolist() == sorted(records.bad)
        good = ~np.isnan(unit[:, 0])
        np.testing.assert_allclose(unit[good], table.unit[good], atol=1e-6)
        assert sorted(embeddings.unreadable) == [1, 2, 3, 4, 5, 6, 7, 8, 51]
        assert "9 of 100 records are damaged (1, 2, 3" in embeddings.said_unreadable()
    with (
        open_embeddings(records, table, None, max_damaged=0.08) as embeddings,
        pytest.raises(
            UserError, match=r"record 1 is no image; 9 of 100 records are damaged .* max_damaged = 0.08"
        ),
    ):
        embeddings.of(CLEAN, np.arange(100), no_step)


def test_all_images_of_a_call_unreadable():
    with open_embeddings(FakeRecords(np.zeros(9), bad=[3, 4]), Table(9), None, max_damaged=0.5) as embeddings:
        assert np.isnan(embeddings.of(CLEAN, np.array([3, 4]), no_step)).all()


def test_nan_names_the_record(tmp_path):
    records, table = FakeRecords(np.zeros(200)), Table(200)
    table.rows[130, 2] = np.inf
    with (
        open_embeddings(records, table, tmp_path) as embeddings,
        pytest.raises(UserError, match=r"the base model gives NaN .* for record 131 of train.rec"),
    ):
        embeddings.of(CLEAN, np.arange(200), no_step)


def test_difference_names_the_first_entry():
    assert difference({"a": 1, "b": [1, 2]}, {"a": 1, "b": (1, 2)}) is None
    assert difference({"a": 1}, {"a": 2}) == "made with a 1, now 2"
    assert difference({"b": 1}, {"a": 2, "b": 1}) == "made with a None, now 2"


KILLED = """
    import os, signal, sys
    sys.path.insert(0, sys.argv[1])
    import numpy as np
    from test_embeddings import CLEAN, FakeRecords, Table, no_step, open_embeddings
    from ddl_plugin.data import embeddings as module

    module._BATCH = 4
    table = Table(200)

    def embed(images):
        if len(table.seen) >= 60:
            os.kill(os.getpid(), signal.SIGKILL)
        return table(images)

    with open_embeddings(FakeRecords(np.arange(200) // 7), embed, sys.argv[2]) as embeddings:
        embeddings.of(CLEAN, np.arange(200), no_step)
"""


def test_a_killed_process_loses_what_it_was_at_and_no_more(tmp_path, monkeypatch):
    code = (
        textwrap.dedent(KILLED)
        .replace("sys.argv[2])", "Path(sys.argv[2]))")
        .replace("import os,", "from pathlib import Path\nimport os,")
    )
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    done = subprocess.run([sys.executable, "-c", code, Path(__file__).parent, killed], check=False)
    assert done.returncode == -signal.SIGKILL
    monkeypatch.setattr(module, "_BATCH", 4)
    records = FakeRecords(np.arange(200) // 7)
    table = Table(200)
    for folder in (killed, whole):
        table.seen.clear()
        with open_embeddings(records, table, folder) as embeddings:
            embeddings.of(CLEAN, np.arange(200), no_step)
        if folder == killed:
            assert table.seen == list(range(60, 200))
    (one,), (other,) = killed.glob("*.npy"), whole.glob("*.npy")
    assert one.name == other.name
    assert one.read_bytes() == other.read_bytes()
    assert json.loads(one.with_suffix(".json").read_text()) == json.loads(
        other.with_suffix(".json").read_text()
    )


def test_either_file_alone_does_no_harm(tmp_path):
    records, table = FakeRecords(np.zeros(9)), Table(9)
    for suffix, made in ((".json", 0), (".npy", 9)):
        with open_embeddings(records, table, tmp_path) as embeddings:
            embeddings.of(CLEAN, np.arange(9), no_step)
        (file,) = tmp_path.glob(f"*{suffix}")
        file.unlink()
        said = []
        with open_embeddings(records, table, tmp_path, say=said.append) as embeddings:
            np.testing.assert_allclose(embeddings.of(CLEAN, np.arange(9), no_step), table.unit, atol=1e-6)
            assert embeddings.made == made
        assert said == []
        for path in tmp_path.iterdir():
            path.unlink()


def test_reading_a_part_of_a_large_file_holds_that_part_alone(tmp_path):
    """41 MB in a file of 400,000 rows, of which 64 are read at a time."""
    code = """
        import resource, sys
        from pathlib import Path
        import numpy as np
        from ddl_plugin.data.embeddings import _Store

        store = _Store(Path(sys.argv[1]), "clean", {}, 400_000, print)
        rng = np.random.default_rng(0)
        rows = rng.normal(size=(20_000, 512)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        places = np.arange(0, 400_000, 20)
        for start in range(0, len(places), 1000):
            store.write(places[start : start + 1000], rows[start : start + 1000])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for start in range(0, len(places), 64):
            part = slice(start, start + 64)
            assert np.array_equal(store.read(places[part]), rows[part])
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 8_000  # KB
