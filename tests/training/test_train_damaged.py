"""Records that cannot be read: skipped and named up to `max_damaged`, then the run stops and can go on."""

import shutil

import pytest

from ddl_plugin.data.records import Records

SPOILT = (3, 20)


@pytest.fixture
def spoilt(small_synthetic, tmp_path):
    """A copy of the data set in which the images of two records are garbage of the same length."""
    folder = tmp_path / "spoilt"
    shutil.copytree(small_synthetic, folder)
    records = Records(folder)
    content = (folder / "train.rec").read_bytes()
    for key in SPOILT:
        image = records.payload(int((records.keys == key).argmax()))
        assert content.count(image) == 1
        content = content.replace(image, b"\0" * len(image))
    (folder / "train.rec").write_bytes(content)
    return folder


def test_they_are_skipped_up_to_a_limit_and_named(spoilt, write_recipe, train_command, tmp_path):
    recipe = write_recipe(tmp_path, "config.val_targets = []", dataset=spoilt)
    out = tmp_path / "out"
    stopped = train_command(recipe, "--output", out)
    assert stopped.returncode == 2
    assert stopped.stderr.count("\n") == 1
    assert "1 of 80 records is damaged (3), more than max_damaged = 0.001 allows\n" in stopped.stderr

    done = train_command(recipe, "max_damaged=0.05", "--output", tmp_path / "other")
    assert done.returncode == 0, done.stderr
    assert "ddl: 2 of 80 records are damaged (3, 20), skipped\n" in done.stdout
