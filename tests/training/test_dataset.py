import dataclasses
import re
import shutil
import tracemalloc

import numpy as np
import pytest

from ddl_plugin.data.attributes import AttributeTable
from ddl_plugin.data.records import Records
from ddl_plugin.errors import UserError
from ddl_plugin.settings import Degradation
from ddl_plugin.training import dataset as module
from ddl_plugin.training.dataset import dataset_folder, in_folder, open_dataset, open_partition, summary_rows

from_scratch = {"network": "tiny", "pretrained": "", "fc7_init": "random", "loss": "arcface"}


def pooled(images):
    n = len(images)
    return images.reshape(n, 14, 8, 14, 8, 3).mean(axis=(2, 4)).reshape(n, -1).astype(np.float32) - 100


class Opener:
    """open_dataset with one cache file; counts the images embedded and keeps what was said."""

    def __init__(self, cache):
        self.cache, self.said, self.embedded = cache, [], 0

    def __call__(self, settings, model="model 1"):
        self.said.clear()
        self.embedded = 0
        return open_dataset(settings, self._embed, model, self.cache, self.said.append, False)

    def _embed(self, images):
        self.embedded += len(images)
        return pooled(images)


@pytest.fixture
def opener(tmp_path):
    return Opener(tmp_path / "pairs.npz")


def test_pairs_are_made_once_and_reused(opener, settings_of):
    made = opener(settings_of())
    assert opener.embedded > 0
    assert opener.said == [f"positive pairs: building ({opener.cache} is not there)"]
    again = opener(settings_of())
    assert opener.embedded == 0
    assert opener.said == []
    for old, new in zip(made.pairs, again.pairs, strict=True):
        np.testing.assert_array_equal(old.first, new.first)
        np.testing.assert_array_equal(old.second, new.second)


@pytest.mark.parametrize(
    ("changes", "model", "reason"),
    [
        ({}, "model 2", "made with model 'model 1', now 'model 2'"),
        ({"seed": 1}, "model 1", "made with seed 0, now 1"),
        ({"max_pairs_per_identity": 3}, "model 1", "made with max_pairs_per_identity 100, now 3"),
        ({"ddl": {"hard": ("abs(yaw) > 40",)}}, "model 1", "made with partition"),
        ({"ddl": {"hard": ({"rule": "abs(yaw) > 30", "size": 14},)}}, "model 1", "made with partition"),
    ],
)
def test_pairs_that_no_longer_hold_are_made_anew_and_why_is_said(opener, settings_of, changes, model, reason):
    opener(settings_of())
    opener(settings_of(**changes), model)
    assert opener.embedded > 0
    assert reason in opener.said[0]


def test_what_does_not_change_the_pairs_keeps_them(opener, settings_of):
    opener(settings_of())
    opener(settings_of(lr=1.0, max_steps=9, ddl={"lambda_order": 0.1}, loss="arcface"))
    assert opener.embedded == 0


def test_summary_counts_what_is_there(opener, settings_of):
    dataset = opener(settings_of())
    rows = summary_rows(dataset)
    assert [row["name"] for row in rows] == ["easy", "hard"]
    for row, distribution, pairs in zip(rows, dataset.partition.distributions, dataset.pairs, strict=True):
        assert row["images"] == len(distribution.positions)
        assert row["identities"] == 10
        assert row["pairs"] == len(pairs.first)
        assert row["dropped (s < 0)"] == pairs.candidates - len(pairs.first)


def test_pairs_that_the_recipe_names_are_taken_or_refused(opener, settings_of, tmp_path):
    made = opener(settings_of())
    other = Opener(tmp_path / "other.npz")
    named = settings_of(positive_pairs=str(opener.cache))
    taken = other(named)
    assert (other.embedded, other.said, other.cache.exists()) == (0, [], False)
    np.testing.assert_array_equal(taken.pairs[1].first, made.pairs[1].first)
    with pytest.raises(UserError, match=r"positive_pairs: expected those of this run, .*now 'model 2'"):
        other(named, "model 2")


def test_images_need_no_pairs(opener, settings_of):
    settings = settings_of(sampler="images", per_batch_size=8, loss="arcface")
    dataset = opener(dataclasses.replace(settings, ddl=None))
    assert (dataset.partition, dataset.pairs, opener.embedded) == (None, (), 0)
    assert summary_rows(dataset) == []


def test_a_rule_selects_the_images(settings_of):
    settings = settings_of(
        sampler="images", per_batch_size=8, loss="arcface", sampler_options={"rule": "yaw > 30"}
    )
    _, records, partition = open_partition(settings)
    (only,) = partition.distributions
    assert 0 < len(only.positions) < len(records)
    assert only.degradation == Degradation()


def test_pairs_without_a_base_model_are_refused(settings_of, tmp_path):
    settings = settings_of(**from_scratch)
    with pytest.raises(
        UserError, match="pretrained: expected a checkpoint, with which positive pairs are built"
    ):
        open_dataset(settings, None, "", tmp_path / "pairs.npz", print, False)


def test_a_sampler_of_ones_own_may_do_without_pairs(settings_of, tmp_path):
    settings = settings_of(**from_scratch, sampler="own", per_batch_size=18)
    dataset = open_dataset(settings, None, "", tmp_path / "pairs.npz", print, False)
    assert len(dataset.partition.distributions) == 2
    assert dataset.pairs == ()


def test_a_missing_data_set_says_where_it_was_looked_for(settings_of, tmp_path):
    with pytest.raises(UserError, match=r"dataset_path: expected train\.rec and train\.idx in .*nowhere"):
        dataset_folder(settings_of(dataset_path=str(tmp_path / "nowhere")))


def test_synthetic_is_drawn_where_it_is_not_there(settings_of, monkeypatch):
    drawn = []
    monkeypatch.setattr("ddl_plugin.data.synthetic.ensure", drawn.append)
    assert dataset_folder(settings_of(dataset_path="synthetic")) == module.SYNTHETIC_FOLDER
    assert drawn == [module.SYNTHETIC_FOLDER]


def test_names_in_the_folder_come_first(tmp_path):
    (tmp_path / "table.csv").touch()
    assert in_folder(tmp_path, "table.csv") == tmp_path / "table.csv"
    assert str(in_folder(tmp_path, "elsewhere/table.csv")) == "elsewhere/table.csv"


def test_a_data_set_costs_little_memory_an_image(opener, settings_of, small_synthetic):
    """No Python object per image: 80 images of the real size would be 2 MB, their numbers a few KB."""
    settings = settings_of()
    opener(settings)
    tracemalloc.start()
    dataset = opener(settings)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 200_000
    arrays = [dataset.records.keys, dataset.records.labels, *(p.first for p in dataset.pairs)]
    assert all(isinstance(array, np.ndarray) for array in arrays)
    assert all(isinstance(d.positions, np.ndarray) for d in dataset.partition.distributions)
    assert isinstance(dataset.records, Records)


# -- several machines ------------------------------------------------------------------------------------


def test_worker_0s_pairs_are_everywheres(everywhere, opener, settings_of, tmp_path):
    """The others need neither the base model nor a cache."""

    def opened(machines):
        if machines.rank == 0:
            return open_dataset(
                settings_of(), pooled, "model 1", opener.cache, opener.said.append, False, machines
            )
        return open_dataset(settings_of(), None, "", tmp_path / "other.npz", pytest.fail, False, machines)

    datasets = everywhere(opened)
    alone = opener(settings_of())
    assert opener.said == []  # the pairs worker 0 has written are those of one machine
    assert not (tmp_path / "other.npz").exists()
    for dataset in datasets:
        assert len(dataset.pairs) == 2
        for own, expected in zip(dataset.pairs, alone.pairs, strict=True):
            np.testing.assert_array_equal(own.first, expected.first)
            np.testing.assert_array_equal(own.second, expected.second)
            assert own.first.dtype == own.second.dtype == np.int32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.5}, "lr: expected 0.01 as worker 0 has, got 0.5 in worker 2"),
        ({"seed": 9}, "seed: expected 0 as worker 0 has, got 9 in worker 2"),
        ({"ddl": {"scope": "global"}}, "ddl: expected .*'scope': 'device'.* as worker 0 has, got .*'scope': 'global'"),
    ],
)  # fmt: skip
def test_a_worker_with_other_settings_is_refused(everywhere, settings_of, tmp_path, changes, message):
    def opened(machines):
        settings = settings_of(**changes) if machines.rank == 2 else settings_of()
        with machines:
            open_dataset(settings, pooled, "m", tmp_path / "pairs.npz", print, False, machines)

    assert_refused_in_worker_2(everywhere(opened, linked=True), message)


def test_a_worker_with_other_data_is_refused(everywhere, settings_of, small_synthetic, tmp_path):
    """Other records, or a table by which other images are in a distribution."""
    shutil.copytree(small_synthetic, tmp_path / "data")
    table = AttributeTable.load(tmp_path / "data" / "attributes.npz")
    yaw = np.array(table.columns["yaw"])
    yaw[np.flatnonzero(np.abs(yaw) > 30)[0]] = 0
    AttributeTable(columns={**table.columns, "yaw": yaw}, keys=table.keys).save(
        tmp_path / "data/attributes.npz"
    )

    def opened(machines):
        here = {"dataset_path": str(tmp_path / "data"), "num_threads": 1} if machines.rank == 2 else {}
        with machines:
            open_dataset(settings_of(**here), pooled, "m", tmp_path / "pairs.npz", print, False, machines)

    assert_refused_in_worker_2(
        everywhere(opened, linked=True), "the images of easy: expected .* in worker 2; start all"
    )


def assert_refused_in_worker_2(results, message):
    assert isinstance(results[2], UserError)
    assert re.match(message, str(results[2]))


def test_a_table_of_other_records_is_refused(settings_of, tmp_path):
    settings = settings_of()
    folder = tmp_path / "data"
    shutil.copytree(dataset_folder(settings), folder)
    table, own = AttributeTable.load(folder / "attributes.npz"), Records(folder).fingerprint()
    settings = dataclasses.replace(settings, dataset_path=str(folder), attributes="of.npz")
    with pytest.raises(
        UserError, match=r"^the recipe's 'attributes': of\.npz: expected an attribute table, got noth"
    ):
        open_partition(settings)
    AttributeTable(table.keys, table.columns, provenance={"records": own}).save(folder / "of.npz")
    open_partition(settings)
    AttributeTable(table.keys, table.columns, provenance={"records": own[:-1] + "x"}).save(folder / "of.npz")
    with pytest.raises(
        UserError, match=r"of\.npz: expected a table of train\.rec as it is now, .* from other records"
    ):
        open_partition(settings)


def test_a_part_of_the_identities_is_trained_on(settings_of, small_synthetic):
    for changes in ({}, {"sampler": "images", "per_batch_size": 4, "ddl": None, **from_scratch}):
        settings = dataclasses.replace(settings_of(), **changes, train_identities=0.4)
        _, records, partition = open_partition(settings)
        for distribution in partition.distributions:
            assert len(set(records.labels[distribution.positions])) == distribution.identities == 4
