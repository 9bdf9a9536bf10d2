"""The sheet of faces: which ones, in what order, and that what is drawn is what training sees."""

import numpy as np
import pytest

from ddl_plugin.analysis import sheet as module
from ddl_plugin.analysis.sheet import COLUMNS, LINES, contact_sheet, sample, write_sheet
from ddl_plugin.data.attributes import AttributeTable
from ddl_plugin.data.embeddings import View
from ddl_plugin.data.partition import build_partition
from ddl_plugin.data.records import DamagedRecordError
from ddl_plugin.settings import DDLSettings, Degradation


class FakeRecords:
    """A face of one colour for each image: its position."""

    path = "train.rec"

    def __init__(self, labels, bad=()):
        self.labels = np.asarray(labels, np.int32)
        self.keys = np.arange(1, len(labels) + 1)
        self.bad = bad

    def __len__(self):
        return len(self.labels)

    def image(self, i):
        if i in self.bad:
            raise DamagedRecordError("no image", i + 1)
        return np.full((112, 112, 3), (i % 256, 40, i // 256), np.uint8)


LABELS = np.repeat(np.arange(50), 4)
RECORDS = FakeRecords(LABELS)
YAW = np.random.default_rng(0).permutation(200).astype(float)
TABLE = AttributeTable(RECORDS.keys, {"yaw": YAW, "camera": np.where(YAW % 2, "left", "right")})


def tiles(sheet, positions, top):
    """The position that each tile of a block spells, line by line."""
    found = []
    for place in range(len(positions)):
        y = top + module._TITLE + place // COLUMNS * (112 + module._GAP)
        found.append((y, module._GAP + place % COLUMNS * (112 + module._GAP)))
    return [int(sheet[y + 50, x + 50, 0]) for y, x in found]


def test_a_sample_has_as_many_identities_as_can_be():
    rng = np.random.default_rng(0)
    positions = np.arange(1000, 1200)
    chosen = sample(positions, LABELS, 24, rng)
    assert len(set(LABELS[chosen - 1000])) == 24
    assert (np.diff(chosen) > 0).all()
    few = sample(np.arange(12), np.repeat([0, 1, 2], [10, 1, 1]), 5, rng)
    assert len(set(few.tolist())) == 5
    assert {10, 11} <= set(few.tolist())
    assert sample(np.array([7, 9]), np.array([1, 1]), 24, rng).tolist() == [7, 9]


def test_samples_are_drawn_evenly_over_identities_and_their_images():
    labels = np.repeat([0, 1, 2], [40, 10, 2])
    drawn = np.concatenate(
        [sample(np.arange(52), labels, 1, np.random.default_rng(seed)) for seed in range(900)]
    )
    share = np.bincount(labels[drawn], minlength=3) / 900
    assert np.abs(share - 1 / 3).max() < 0.08  # five standard deviations
    assert len(set(drawn[labels[drawn] == 0].tolist())) == 40


def test_faces_are_of_the_set_sorted_by_the_attribute_and_seeded():
    partition = build_partition(RECORDS, DDLSettings(b=2, easy="yaw < 60", hard=("yaw > 100",)), TABLE)
    sheets = [contact_sheet(RECORDS, partition, TABLE, seed=seed) for seed in (0, 0, 1)]
    assert np.array_equal(sheets[0], sheets[1])
    assert not np.array_equal(sheets[0], sheets[2])
    height = module._TITLE + LINES * (112 + module._TEXT + module._GAP)
    assert sheets[0].shape == (3 * height, COLUMNS * (112 + module._GAP) + module._GAP, 3)
    for number, (low, high) in enumerate([(-1, 60), (100, 200), (59, 101)]):
        shown = []
        for place in range(COLUMNS * LINES):
            y = number * height + module._TITLE + place // COLUMNS * (112 + module._TEXT + module._GAP)
            x = module._GAP + place % COLUMNS * (112 + module._GAP)
            shown.append(int(sheets[0][y + 50, x + 50, 0]))
        values = YAW[shown]
        assert ((values > low) & (values < high)).all()
        assert (np.diff(values) > 0).all()
        assert len(set(LABELS[shown])) == len(shown)


def test_titles_and_attributes_are_written(monkeypatch):
    written = []
    monkeypatch.setattr(module, "_write", lambda image, text, *rest: written.append(text))
    rules = DDLSettings(
        b=2, easy="yaw < 60 and camera == 'left'", hard=({"rule": "abs(yaw) > 175", "size": 14},)
    )
    partition = build_partition(RECORDS, rules, TABLE)
    contact_sheet(RECORDS, partition, TABLE, seed=0)
    easy, hard = partition.distributions
    assert (
        f"easy: yaw < 60 and camera == 'left' - {len(easy.positions)} images of {easy.identities} identities"
        in written
    )
    assert f"hard: abs(yaw) > 175, size 14 - 24 images of {hard.identities} identities" in written
    rest = len(RECORDS) - len(easy.positions) - 24
    assert any(text.startswith(f"in no set - {rest} images of") for text in written)
    assert {f"yaw {value}" for value in range(176, 200)} <= set(written)
    assert {"camera left", "camera right"} <= set(written)


def test_degraded_sets_are_shown_degraded_as_pairs_see_them():
    degradation = Degradation(darken=(0.2, 0.8))
    partition = build_partition(RECORDS, DDLSettings(b=2, hard=({"darken": (0.2, 0.8)},)), None)
    sheet = contact_sheet(RECORDS, partition, None, seed=5)
    rng = np.random.default_rng((5, module._SAMPLES, 1))
    chosen = sample(np.arange(200), LABELS, COLUMNS * LINES, rng)
    view = View.of("hard", degradation, 1, 5)
    top = module._TITLE + LINES * (112 + module._GAP)
    assert len(sheet) == 2 * top  # everything is in a set
    assert tiles(sheet, chosen, top) == [int(view.image(RECORDS, i)[50, 50, 0]) for i in chosen]
    assert tiles(sheet, chosen, top) != chosen.tolist()


def test_few_images_make_a_short_block():
    records = FakeRecords([0, 0, 1, 1])
    partition = build_partition(records, DDLSettings(b=2, hard=({"size": 14},)), None)
    sheet = contact_sheet(records, partition, None)
    assert len(sheet) == 2 * (module._TITLE + 112 + module._GAP)
    assert tiles(sheet, [0, 1, 2, 3], 0) == [0, 1, 2, 3]


def test_a_damaged_image_is_a_grey_square():
    records = FakeRecords([0, 0, 1, 1], bad=[2])
    partition = build_partition(records, DDLSettings(b=2, hard=({"size": 14},)), None)
    sheet = contact_sheet(records, partition, None)
    left = module._GAP + 2 * (112 + module._GAP)
    assert (sheet[module._TITLE + 10, left : left + 112] == 200).all()
    assert tiles(sheet, [0, 1], 0) == [0, 1]


def test_long_titles_are_made_to_fit():
    image = np.full((40, 1422, 3), 255, np.uint8)
    module._write(image, "abs(yaw) > 45 and " * 15, 6, 20, 0.55, module._FACE)
    assert (image[:, -module._GAP :] == 255).all()
    assert (image < 255).any()


def test_letters_that_the_font_lacks_do_no_harm():
    image = np.full((40, 300, 3), 255, np.uint8)
    module._write(image, "größer", 6, 20, 0.55, module._FACE)
    assert (image < 255).any()


@pytest.mark.parametrize("name", ["sheet.png"])
def test_the_file_holds_the_sheet(tmp_path, name):
    import cv2

    partition = build_partition(RECORDS, DDLSettings(b=2, hard=({"size": 14},)), None)
    write_sheet(tmp_path / name, RECORDS, partition, None, seed=2)
    expected = contact_sheet(RECORDS, partition, None, seed=2)
    assert np.array_equal(cv2.imread(str(tmp_path / name))[..., ::-1], expected)
