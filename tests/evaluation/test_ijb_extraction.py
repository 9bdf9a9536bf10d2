import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from ijb_sets import small_set

from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.ijb.alignment import aligned
from ddl_plugin.evaluation.ijb.extraction import Extraction
from ddl_plugin.evaluation.ijb.layout import find_layout
from ddl_plugin.evaluation.ijb.lists import read_images
from ddl_plugin.evaluation.ijb.problems import Problems


class Embedder:
    """Means of 16x16 squares; counts the images, and ends the work after `most` calls."""

    def __init__(self, most=None, wrong=()):
        self.most, self.calls, self.wrong = most, 0, wrong

    def __call__(self, images):
        assert images.dtype == np.uint8
        assert images.shape[1:] == (112, 112, 3)
        assert images.flags.c_contiguous
        self.calls += 1
        if self.most is not None and self.calls > self.most:
            raise KeyboardInterrupt
        return embedded(images)


def embedded(images):
    return (
        images.reshape(len(images), 7, 16, 7, 16, 3)
        .mean(axis=(2, 4))
        .reshape(len(images), -1)
        .astype(np.float32)
    )


class Bar:
    def __init__(self):
        self.started, self.steps, self.closed = None, 0, False

    def __call__(self, done, total):
        self.started = done, total
        return self

    def update(self, count):
        self.steps += count

    def close(self):
        self.closed = True


@pytest.fixture
def made(tmp_path):
    return small_set().write(tmp_path / "IJBC")


def lists(root, limit=1.0):
    layout = find_layout(root, "IJBC")
    return layout, read_images(layout, Problems(limit))


def extraction(root, kept, *, flip=True, model="m", batch=8, workers=2):
    layout, images = lists(root)
    return Extraction(
        images, layout.images, kept=kept, model=model, flip=flip, batch=batch, workers=workers
    ), images


def expected(root, images, mirrored=False):
    faces = []
    for row in range(len(images)):
        picture = cv2.imread(str(root / "loose_crop" / images.name(row)))[:, :, ::-1]
        face = aligned(np.ascontiguousarray(picture), images.landmarks[row])
        faces.append(face[:, ::-1] if mirrored else face)
    return embedded(np.stack(faces))


def test_rows_are_the_aligned_images_in_their_order(made, tmp_path):
    work, images = extraction(made, tmp_path / "kept")
    problems, bar = Problems(), Bar()
    usable = work.run(Embedder(), problems, bar)
    assert usable.all()
    assert problems.found == []
    plain, mirrored = work.read(0, len(images))
    np.testing.assert_array_equal(plain, expected(made, images))
    np.testing.assert_array_equal(mirrored, expected(made, images, mirrored=True))
    np.testing.assert_array_equal(work.read(3, 7)[1], mirrored[3:7])
    assert (bar.started, bar.steps, bar.closed) == ((0, len(images)), len(images), True)
    np.testing.assert_array_equal(np.load(work.folder / "images.npy"), plain)


def test_what_is_there_is_not_made_again(made, tmp_path):
    first, images = extraction(made, tmp_path / "kept", flip=False)
    first.run(Embedder(), Problems(), Bar())
    again, _ = extraction(made, tmp_path / "kept", flip=False)
    again.run(Embedder(most=0), Problems(), Bar())
    assert again.read(0, 5)[1] is None
    both, _ = extraction(made, tmp_path / "kept", flip=True)
    counted = Embedder()
    both.run(counted, Problems(), Bar())
    assert counted.calls == -(-len(images) // 8)  # the mirror images alone
    np.testing.assert_array_equal(both.read(0, len(images))[1], expected(made, images, mirrored=True))


def test_another_model_and_other_landmarks_are_other_embeddings(made, tmp_path):
    kept = tmp_path / "kept"
    folders = {extraction(made, kept)[0].folder, extraction(made, kept, model="other")[0].folder}
    path = made / "meta" / "ijbc_name_5pts_score.txt"
    lines = path.read_text().splitlines()
    cells = lines[0].split()
    cells[1] = str(float(cells[1]) + 1)
    path.write_text("\n".join([" ".join(cells), *lines[1:]]) + "\n")
    folders.add(extraction(made, kept)[0].folder)
    cells[-1] = "0.123"  # the detector's score is applied later
    path.write_text("\n".join([" ".join(cells), *lines[1:]]) + "\n")
    folders.add(extraction(made, kept)[0].folder)
    assert len(folders) == 3


@pytest.mark.parametrize("calls", [0, 1, 3, 4])
def test_an_interrupted_run_goes_on(made, tmp_path, calls):
    kept = tmp_path / "kept"
    with pytest.raises(KeyboardInterrupt):
        extraction(made, kept)[0].run(Embedder(most=calls), Problems(), Bar())
    work, images = extraction(made, kept)
    embedder, bar = Embedder(), Bar()
    work.run(embedder, Problems(), bar)
    assert bar.started == (calls // 2 * 8, len(images))
    assert embedder.calls == 2 * -(-len(images) // 8) - calls // 2 * 2
    np.testing.assert_array_equal(work.read(0, len(images))[0], expected(made, images))
    np.testing.assert_array_equal(work.read(0, len(images))[1], expected(made, images, mirrored=True))


@pytest.mark.parametrize("stamps", [5, 20])
def test_a_row_that_was_cut_is_written_again(made, tmp_path, stamps):
    kept = tmp_path / "kept"
    work, images = extraction(made, kept)
    work.run(Embedder(), Problems(), Bar())
    for name, cut in (
        ("images.npy", 4 * 147 * 11 + 13),
        ("mirrored.npy", 4 * 147 * 3),
        ("stamps.npy", 16 * stamps),
    ):
        path = work.folder / name
        os.truncate(path, path.stat().st_size - cut)
    work, _ = extraction(made, kept)
    bar = Bar()
    work.run(Embedder(), Problems(), bar)
    assert bar.started[0] == len(images) - max(12, stamps)
    np.testing.assert_array_equal(work.read(0, len(images))[0], expected(made, images))
    np.testing.assert_array_equal(work.read(0, len(images))[1], expected(made, images, mirrored=True))
    extraction(made, tmp_path / "kept")[0].run(Embedder(most=0), Problems(), Bar())


def test_a_killed_process_leaves_what_it_has_done(made, tmp_path):
    """SIGKILL at the third call of the network, from within it."""
    code = (
        "import os, signal, sys; sys.path[:0] = sys.argv[3:]\n"
        "from pathlib import Path\n"
        "import test_ijb_extraction as t\n"
        "class Killed(t.Embedder):\n"
        "    def __call__(self, images):\n"
        "        if self.calls == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().__call__(images)\n"
        "t.extraction(Path(sys.argv[1]), Path(sys.argv[2]))[0].run(Killed(), t.Problems(), t.Bar())\n"
    )
    here = Path(__file__).parent
    arguments = [sys.executable, "-c", code, made, tmp_path / "kept", here, here.parent]
    assert subprocess.run(arguments, check=False).returncode == -signal.SIGKILL
    work, images = extraction(made, tmp_path / "kept")
    bar = Bar()
    work.run(Embedder(), Problems(), bar)
    assert bar.started == (8, len(images))
    np.testing.assert_array_equal(work.read(0, len(images))[0], expected(made, images))


@pytest.mark.parametrize(("batch", "workers"), [(1, 1), (7, 3), (64, 5), (1000, 2)])
def test_batches_and_workers_change_nothing(made, tmp_path, batch, workers):
    work, images = extraction(made, tmp_path / "kept", batch=batch, workers=workers)
    work.run(Embedder(), Problems(), Bar())
    np.testing.assert_array_equal(work.read(0, len(images))[0], expected(made, images))


def test_every_call_of_the_network_has_a_full_batch(made, tmp_path):
    work, _ = extraction(made, tmp_path / "kept", batch=16)
    sizes = []
    work.run(lambda images: (sizes.append(len(images)), embedded(images))[1], Problems(), Bar())
    assert set(sizes) == {16}


# -- what is wrong ---------------------------------------------------------------------------------------


def counts(problems):
    return {problem.kind: (problem.count, problem.first) for problem in problems.found}


def test_images_that_cannot_be_used_are_counted_named_and_left_out(made, tmp_path):
    layout, images = lists(made)
    names = [images.name(row) for row in range(len(images))]
    (layout.images / names[2]).unlink()
    (layout.images / names[5]).write_bytes(b"no image")
    (layout.images / names[6]).write_bytes(b"")
    black = np.zeros((140, 136, 3), np.uint8)
    cv2.imwrite(str(layout.images / names[9]), black)

    def network(faces):
        values = embedded(faces)
        values[values.max(axis=1) == 0] = np.nan
        return values

    for _ in range(2):  # made, and found in the files
        work, _ = extraction(made, tmp_path / "kept")
        problems = Problems(1.0)
        usable = work.run(network, problems, Bar())
        assert np.flatnonzero(~usable).tolist() == [2, 5, 6, 9]
        assert counts(problems) == {
            "images without a file": (1, (names[2],)),
            "images that cannot be decoded": (2, (names[5], names[6])),
            "images whose embedding is not finite": (1, (names[9],)),
        }
        assert np.isnan(work.read(0, len(images))[0][[2, 5, 6, 9]]).all()
        assert work.face(2) is None
        assert work.face(3).shape == (112, 112, 3)


def test_landmarks_far_outside_are_counted_and_used(made, tmp_path):
    path = made / "meta" / "ijbc_name_5pts_score.txt"
    lines = path.read_text().splitlines()
    cells = lines[4].split()
    cells[1] = "-36"  # a quarter of the longer side, 140 pixels, is allowed
    path.write_text("\n".join([*lines[:4], " ".join(cells), *lines[5:]]) + "\n")
    work, images = extraction(made, tmp_path / "kept")
    problems = Problems(1.0)
    assert work.run(Embedder(), problems, Bar()).all()
    assert counts(problems) == {"images with landmarks far outside": (1, (cells[0],))}
    np.testing.assert_array_equal(work.read(0, len(images))[0], expected(made, images))
    cells[1] = "-34"
    path.write_text("\n".join([*lines[:4], " ".join(cells), *lines[5:]]) + "\n")
    work, images = extraction(made, tmp_path / "kept")
    problems = Problems(0.0)
    work.run(Embedder(), problems, Bar())
    assert problems.found == []


def test_images_without_landmarks_are_not_embedded(made, tmp_path):
    path = made / "meta" / "ijbc_name_5pts_score.txt"
    lines = path.read_text().splitlines()
    cells = lines[4].split()
    cells[2] = "nan"
    path.write_text("\n".join([*lines[:4], " ".join(cells), *lines[5:]]) + "\n")
    work, images = extraction(made, tmp_path / "kept")
    problems = Problems(0.0)  # counted where the lists are read
    usable = work.run(Embedder(), problems, Bar())
    assert [images.name(row) for row in np.flatnonzero(~usable)] == [cells[0]]


def test_too_many_end_the_work_at_once_and_mended_ones_are_tried_again(made, tmp_path):
    layout, images = lists(made)
    held = {}
    for row in (0, 1, 2, 20):
        path = layout.images / images.name(row)
        held[path] = path.read_bytes()
        path.unlink()
    embedder = Embedder()
    with pytest.raises(
        UserError, match=rf"at most 3.00% images without a file of {len(images)}.*{images.name(0)}"
    ):
        extraction(made, tmp_path / "kept")[0].run(embedder, Problems(0.03), Bar())
    assert embedder.calls <= 2
    work, _ = extraction(made, tmp_path / "kept")
    assert np.flatnonzero(~work.run(Embedder(), Problems(1.0), Bar())).tolist() == [0, 1, 2, 20]
    for path, data in held.items():
        path.write_bytes(data)
    work, _ = extraction(made, tmp_path / "kept")
    embedder, problems = Embedder(), Problems(0.0)
    assert work.run(embedder, problems, Bar()).all()
    assert embedder.calls == 2  # the four, and their mirror images
    assert problems.found == []
    work, _ = extraction(made, tmp_path / "kept")
    assert work.run(Embedder(most=0), problems, Bar()).all()
    assert problems.found == []
    np.testing.assert_array_equal(work.read(0, len(images))[0], expected(made, images))
    np.testing.assert_array_equal(work.read(0, len(images))[1], expected(made, images, mirrored=True))


def test_images_that_were_replaced_are_embedded_again(made, tmp_path):
    work, images = extraction(made, tmp_path / "kept", flip=False)
    work.run(Embedder(), Problems(), Bar())
    before = expected(made, images)
    extraction(made, tmp_path / "kept")[0].run(Embedder(), Problems(), Bar())
    folder = find_layout(made, "IJBC").images
    for row in (0, 8, 9):
        (folder / images.name(row)).write_bytes((folder / images.name(30)).read_bytes())
    os.utime(folder / images.name(12), ns=(1, 1))  # the same size
    (folder / images.name(3)).write_bytes(b"no image")
    (folder / images.name(4)).unlink()  # what was made of it is kept
    work, _ = extraction(made, tmp_path / "kept")
    embedder, problems, bar = Embedder(), Problems(1.0), Bar()
    assert np.flatnonzero(~work.run(embedder, problems, bar)).tolist() == [3]
    assert (bar.started, bar.steps, bar.closed) == ((0, 5), 5, True)
    assert embedder.calls == 2
    assert counts(problems) == {"images that cannot be decoded": (1, (images.name(3),))}
    cv2.imwrite(str(folder / images.name(4)), np.zeros((140, 136, 3), np.uint8))
    extraction(made, tmp_path / "kept")[0].run(Embedder(), Problems(1.0), Bar())
    for mirrored in (False, True):
        rows = [row for row in range(len(images)) if row != 3]
        (folder / images.name(3)).write_bytes((folder / images.name(2)).read_bytes())
        now, kept = expected(made, images, mirrored), work.read(0, len(images))[mirrored]
        np.testing.assert_array_equal(kept[rows], now[rows])
        assert np.isnan(kept[3]).all()
    assert (before[[0, 8, 9]] != expected(made, images)[[0, 8, 9]]).any(axis=1).all()
    extraction(made, tmp_path / "kept")[0].run(Embedder(), Problems(), Bar())
    work, _ = extraction(made, tmp_path / "kept")
    assert work.run(Embedder(most=0), Problems(0.0), Bar()).all()
    np.testing.assert_array_equal(work.read(0, len(images))[0], expected(made, images))


def test_a_note_of_a_row_that_was_not_written_any_more(made, tmp_path):
    work, images = extraction(made, tmp_path / "kept")
    work.folder.mkdir(parents=True)
    (work.folder / "notes.txt").write_text("3 images without a file\n9 images that cannot be deco")
    problems = Problems(1.0)
    assert work.run(Embedder(), problems, Bar()).all()
    assert problems.found == []
    np.testing.assert_array_equal(work.read(0, len(images))[0], expected(made, images))


def test_what_is_complete_is_only_read(made, tmp_path):
    layout, images = lists(made)
    (layout.images / images.name(2)).unlink()
    work, _ = extraction(made, tmp_path / "kept")
    work.run(Embedder(), Problems(1.0), Bar())
    before = {path: path.stat().st_mtime_ns for path in (work.folder, *work.folder.iterdir())}
    again, _ = extraction(made, tmp_path / "kept")
    assert np.flatnonzero(~again.run(Embedder(most=0), Problems(1.0), Bar())).tolist() == [2]
    assert {path: path.stat().st_mtime_ns for path in (work.folder, *work.folder.iterdir())} == before


def test_one_process_at_a_time(made, tmp_path):
    work, _ = extraction(made, tmp_path / "kept")
    other, _ = extraction(made, tmp_path / "kept")

    def network(images):
        with pytest.raises(UserError, match="another process"):
            other.run(Embedder(), Problems(), Bar())
        return embedded(images)

    work.run(network, Problems(), Bar())


def test_a_damaged_file_is_made_again(made, tmp_path):
    work, images = extraction(made, tmp_path / "kept")
    work.run(Embedder(), Problems(), Bar())
    (work.folder / "images.npy").write_bytes(b"nonsense")
    work, _ = extraction(made, tmp_path / "kept")
    work.run(Embedder(), Problems(), Bar())
    np.testing.assert_array_equal(work.read(0, len(images))[0], expected(made, images))
