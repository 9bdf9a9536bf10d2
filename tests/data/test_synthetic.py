"""The drawn data set: layout, truth of its attributes, composition of its test sets, determinism, refusals."""

import csv
import json
import pickle
from dataclasses import replace

import cv2
import numpy as np
import pytest

from ddl_plugin.data import synthetic, synthetic_face
from ddl_plugin.data.attributes import AttributeTable
from ddl_plugin.data.records import Records
from ddl_plugin.data.synthetic_face import (
    TEMPLATE,
    Head,
    draw_conditions,
    project,
    rotation,
    similarity,
    splat,
)
from ddl_plugin.errors import UserError

IDENTITIES, IMAGES = 8, 8


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / "set"
    synthetic.generate(folder, identities=IDENTITIES, images=IMAGES, seed=3, processes=1, progress=False)
    return folder


@pytest.fixture(scope="module")
def head():
    return Head(np.random.default_rng(5))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def attributes(folder, name=""):
    records = Records(folder / ("val.rec" if name else "train.rec"))
    table = AttributeTable.load(folder / f"{name}attributes.npz")
    return records, {column: table.column(column, records.keys) for column in table.columns}


# -- files -------------------------------------------------------------------------------------------


def test_files_do_not_depend_on_the_number_of_processes(made, tmp_path):
    again = tmp_path / "set"
    synthetic.generate(again, identities=IDENTITIES, images=IMAGES, seed=3, processes=2, progress=False)
    assert contents(again) == contents(made)


def test_another_seed_draws_other_people():
    ours, theirs = (synthetic.draw_person((seed, 0, 8))[0] for seed in (3, 4))
    assert not set(ours) & set(theirs)


def test_layout_is_readable(made):
    for name, first_identity, people in (("", 0, IDENTITIES), ("val_", IDENTITIES, 8)):
        records, columns = attributes(made, name)
        assert records.labels.tolist() == np.repeat(np.arange(people), IMAGES).tolist()
        assert records.num_classes == people
        assert (columns["identity"] == records.labels + first_identity).all()
        assert records.images(np.arange(3)).shape == (3, 112, 112, 3)
    assert (made / "property").read_text() == f"{IDENTITIES},112,112\n"


def test_training_and_validation_share_no_identity_and_no_image(made):
    (train, ours), (val, theirs) = attributes(made), attributes(made, "val_")
    assert not set(ours["identity"]) & set(theirs["identity"])
    assert not {train.payload(i) for i in range(len(train))} & {val.payload(i) for i in range(len(val))}


def test_description_counts_what_is_there(made):
    description = json.loads((made / "dataset.json").read_text())
    assert description["train_images"] == len(Records(made / "train.rec"))
    assert description["validation_images"] == len(Records(made / "val.rec"))
    assert description["identities"] == IDENTITIES


def test_every_identity_has_easy_hard_and_other_yaws(made):
    records, columns = attributes(made)
    yaw = np.abs(columns["yaw"])
    for label in range(IDENTITIES):
        mine = yaw[records.labels == label]
        assert (mine < 10).sum() == IMAGES // 2
        assert (mine > 45).sum() == 3
    assert yaw.max() <= 75
    assert columns["resolution"].min() >= 24
    assert columns["resolution"].max() == 112


@pytest.mark.parametrize("images", [8, 9, 16, 17, 50])
def test_yaws_for_any_number_of_images(images):
    yaw = np.abs(synthetic.draw_yaws(np.random.default_rng(0), images))
    assert len(yaw) == images
    assert (yaw < 10).sum() == images // 2
    assert (yaw > 45).sum() == max(3, round(images * 5 / 16))


@pytest.mark.parametrize(("name", "low", "high"), [("easy", 0, 10), ("hard", 45, 90)])
def test_verification_sets(made, name, low, high):
    files, same = pickle.loads((made / f"{name}.bin").read_bytes())
    records, columns = attributes(made, "val_")
    place = {records.payload(i): i for i in range(len(records))}
    pairs = np.array([place[file] for file in files]).reshape(-1, 2)
    assert len(pairs) == len(same) == json.loads((made / "dataset.json").read_text())[f"{name}_pairs"]
    assert ((records.labels[pairs[:, 0]] == records.labels[pairs[:, 1]]) == np.array(same)).all()
    assert (pairs[:, 0] != pairs[:, 1]).all()
    yaw = np.abs(columns["yaw"])[pairs]
    assert (yaw >= low).all()
    assert (yaw < high).all()
    folds = np.array(same).reshape(10, 2, -1)
    assert folds[:, 0].all()
    assert not folds[:, 1].any()
    assert len(np.unique(np.sort(pairs, axis=1), axis=0)) == len(pairs)


def test_protocol_has_one_easy_gallery_image_per_identity(made):
    with (made / "identification.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    records, columns = attributes(made, "val_")
    at = np.searchsorted(records.keys, [int(row["record"]) for row in rows])
    role, condition = (np.array([row[name] for row in rows]) for name in ("role", "condition"))
    yaw = np.abs(columns["yaw"])[at]
    assert sorted(records.labels[at[role == "gallery"]]) == list(range(8))
    assert len(set(at)) == len(at)
    assert ((yaw < 10) == (condition == "easy")).all()
    assert (yaw[condition == "hard"] > 45).all()
    probes = role == "probe"
    assert (probes & (condition == "easy")).sum() == 8 * (IMAGES // 2 - 1)
    assert (probes & (condition == "hard")).sum() == 8 * 3


# -- the folder --------------------------------------------------------------------------------------


def small(folder, **changes):
    settings = {"identities": IDENTITIES, "images": IMAGES, "seed": 3, "processes": 1, "progress": False}
    return synthetic.generate(folder, **(settings | changes))


def test_the_same_settings_change_nothing(made):
    before = (made / "train.rec").stat().st_mtime_ns
    assert small(made) == json.loads((made / "dataset.json").read_text())
    assert (made / "train.rec").stat().st_mtime_ns == before


def test_other_settings_are_refused_and_named(made):
    with pytest.raises(UserError, match="images 8 instead of 9; use --force"):
        small(made, images=9)


def test_force_replaces_a_data_set_but_nothing_else(made, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps({"kind": "ddl_plugin synthetic faces", "seed": 99}))
    (folder / "stale").touch()
    small(folder, force=True)
    assert contents(folder) == contents(made)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="a folder with other files"):
        small(other, force=True)
    assert (other / "thesis.tex").read_text() == "years of work"
    with pytest.raises(UserError, match="got a file"):
        small(other / "thesis.tex")


@pytest.mark.parametrize(("name", "value"), [("identities", 7), ("images", 7), ("seed", -1)])
def test_too_small_numbers_are_refused(tmp_path, name, value):
    with pytest.raises(UserError, match=f"{name}: expected a whole number >= .*, got {value}"):
        small(tmp_path / "set", **{name: value})
    assert not any(tmp_path.iterdir())


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "draw_person", stop)
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path / "set")
    assert not any(tmp_path.iterdir())


def test_ensure_takes_any_size_and_makes_the_default(made, tmp_path, monkeypatch):
    assert synthetic.ensure(made)["identities"] == IDENTITIES
    monkeypatch.setattr(synthetic, "generate", lambda folder: {"generated": folder})
    assert synthetic.ensure(tmp_path / "set") == {"generated": tmp_path / "set"}


def test_contact_sheet_shows_one_identity_a_row_by_yaw(made):
    sheet = synthetic.contact_sheet(made, rows=2)
    assert sheet.shape == (2 * 112, IMAGES * 112, 3)
    records, columns = attributes(made)
    leftmost = np.argmin(columns["yaw"][:IMAGES])
    assert (sheet[:112, :112] == records.image(leftmost)).all()


# -- pairs -------------------------------------------------------------------------------------------


def test_pairs_are_as_many_as_there_are_of_one_person():
    identity = np.repeat(np.arange(5), 3)  # 15 pairs of one person: 1 a fold
    pairs, same = synthetic.choose_pairs(identity, np.random.default_rng(0))
    assert same.tolist() == [True, False] * 10
    assert ((identity[pairs[:, 0]] == identity[pairs[:, 1]]) == same).all()


# -- the pictures ------------------------------------------------------------------------------------


def test_nose_points_to_the_images_left_for_positive_yaw():
    nose = np.array([[0.0], [0.0], [1.0]])
    left, right, up = (rotation(*angles) @ nose for angles in ((30, 0, 0), (-30, 0, 0), (0, 20, 0)))
    assert project(left, 100.0)[0, 0] == pytest.approx(-0.5, rel=0.02)
    assert project(right, 100.0)[0, 0] == pytest.approx(0.5, rel=0.02)
    assert project(up, 100.0)[1, 0] < -0.3  # picture coordinates go down


def test_the_head_is_behind_the_nose(head, monkeypatch):
    """A head that looks to the image's left (yaw > 0) fills the right of the picture, and the other way round."""
    monkeypatch.setattr(
        synthetic_face, "over_background", lambda canvas, rng: canvas[::2, ::2, 3:].repeat(3, axis=2)
    )
    plain = draw_conditions(np.random.default_rng(2), 0)

    def right_half(yaw):
        picture = head.render(replace(plain, yaw=yaw, noise=0.0, blur=0.0, resolution=112))
        return picture[:, 56:].mean() - picture[:, :56].mean()

    assert right_half(60) > 40
    assert abs(right_half(0)) < 20
    assert right_half(-60) < -40


def test_similarity_is_recovered():
    angle, scale, shift = 0.3, 2.5, np.array([4.0, -7.0])
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = similarity(TEMPLATE, TEMPLATE @ linear.T + shift)
    np.testing.assert_allclose(matrix, np.column_stack([linear, shift]), atol=1e-9)


def test_nearer_points_hide_farther_ones():
    colours = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], np.float32)  # red, green
    for depth in ([0.0, 5.0], [5.0, 0.0]):
        canvas = splat(np.array([100, 100]), colours, np.array(depth, np.float32), 16)
        assert canvas[6, 4].tolist() == ([0, 255, 0, 255] if depth[1] > depth[0] else [255, 0, 0, 255])
        assert canvas[..., 3].sum() == 4 * 255


def test_features_lie_where_insightface_puts_them(head):
    """Of a frontal face in even light the pupils are darker than the cheeks below them."""
    c = replace(
        draw_conditions(np.random.default_rng(0), 0), pitch=0.0, roll=0.0, resolution=112, eyes=1.0, gaze=(0.0, 0.0),
        light=(0.0, 0.0, 1.0), noise=0.0, blur=0.0, mouth=0.0, smile=0.0, distance=120.0,
    )  # fmt: skip
    picture = np.mean([head.render(replace(c, seed=s)).astype(float) for s in range(6)], axis=0).mean(axis=2)
    for x, y in TEMPLATE[:2].round().astype(int):
        assert (
            picture[y - 2 : y + 3, x - 2 : x + 3].mean()
            < 0.75 * picture[y + 12 : y + 18, x - 3 : x + 4].mean()
        )


def test_pictures_of_one_person_are_nearer_than_of_two_and_less_so_in_profile(made):
    """A crude measure (grey 16x16, mean and contrast removed), but it must see the effect that DDL is about."""

    def signature(picture):
        grey = cv2.resize(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), (16, 16), interpolation=cv2.INTER_AREA)
        flat = grey.astype(float).ravel() - grey.mean()
        return flat / np.linalg.norm(flat)

    records, columns = attributes(made)
    yaw, labels = np.abs(columns["yaw"]), records.labels
    signatures = np.stack([signature(records.image(i)) for i in range(len(records))])
    scores = signatures @ signatures.T
    other = ~np.eye(len(records), dtype=bool)

    def gap(chosen):
        both = np.outer(chosen, chosen) & other
        same = labels[:, None] == labels[None]
        return scores[both & same].mean() - scores[both & ~same].mean()

    assert gap(yaw < 10) > 0.1
    assert gap(yaw > 45) < 0.6 * gap(yaw < 10)


def test_a_pose_network_sees_the_yaw_that_was_drawn(made, shared_data):
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    network = runtime.InferenceSession(
        str(shared_data / "pose_fsanet" / "fsanet-1x1-iter-688590.onnx"), options
    )
    records, columns = attributes(made)
    seen = []
    for i in range(len(records)):
        small_bgr = cv2.resize(records.image(i)[..., ::-1], (64, 64)).astype(np.float32)
        pixels = ((small_bgr - 127.5) / 128).transpose(2, 0, 1)[None]
        seen.append(network.run(None, {"input": pixels})[0][0, 0])
    slope = np.polyfit(columns["yaw"], seen, 1)[0]
    assert np.corrcoef(columns["yaw"], seen)[0, 1] > 0.95
    assert 0.7 < slope < 1.2
