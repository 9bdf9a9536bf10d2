"""What a job refuses before it touches a folder, and the order of its runs."""

import json

import pytest

from ddl_plugin.errors import UserError
from ddl_plugin.recipe import describe
from ddl_plugin.training import job as module
from ddl_plugin.training import output
from ddl_plugin.training.job import Job, carry_out


@pytest.fixture
def job_of(settings_of, tmp_path):
    def make(**changes):
        return Job(
            settings_of(**changes), tmp_path / "small.py", tmp_path / "out", ["cpu(0)"], progress=False
        )

    return make


def leave(folder, name, content="{}"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content)


def test_the_baseline_comes_first_and_differs_in_the_loss_alone(job_of):
    baseline, own = module._runs(job_of(baseline=True, ddl={"identity": "cosface"}).settings)
    assert (baseline.loss, own.loss) == ("cosface", "ddl")
    assert {k for k, v in describe(own).items() if describe(baseline)[k] != v} == {"loss"}


@pytest.mark.parametrize("changes", [{}, {"baseline": True, "loss": "arcface"}])
def test_one_run_where_there_is_nothing_to_compare(job_of, changes):
    assert len(module._runs(job_of(**changes).settings)) == 1


@pytest.mark.parametrize(
    ("folder", "name", "what"),
    [
        ("ddl", "state.npz", "an unfinished run"),
        ("ddl", "done.json", "a finished run"),
        ("cosface", "done.json", "a finished run"),
    ],
)
def test_work_that_would_be_lost_is_refused(job_of, tmp_path, folder, name, what):
    leave(tmp_path / "out" / folder, name)
    with pytest.raises(UserError, match=f"--output: .*{folder} holds {what}; add --resume"):
        carry_out(job_of())
    assert [path.name for path in (tmp_path / "out").iterdir()] == [folder]


@pytest.mark.parametrize("other", [[], ["notes.txt", "pairs.npz", "base.onnx"]])
def test_nothing_to_resume(job_of, tmp_path, other):
    for name in other:
        leave(tmp_path / "out", name)
    with pytest.raises(UserError, match=r"--resume: expected a run to go on with in .*out, found none"):
        carry_out(job_of(), resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.5}, "--resume: lr is 0.5, but a run with 0.01 was begun in .*out; set it back"),
        ({"ddl": {"b": 2}}, "--resume: ddl is .*'b': 2.* but a run with .*'b': 3"),
        ({"loss": "arcface"}, "--resume: loss is 'arcface', but a run with 'ddl'"),
    ],
)
def test_other_settings_are_refused_before_anything_is_written(job_of, tmp_path, changes, message):
    leave(tmp_path / "out" / "ddl", "state.npz")
    leave(tmp_path / "out", "recipe.json", json.dumps(describe(job_of().settings)))
    before = sorted(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    with pytest.raises(UserError, match=message):
        carry_out(job_of(**changes), resume=True)
    assert before == sorted(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())


def test_a_run_of_other_settings_does_not_count_as_done(job_of, tmp_path):
    folder = tmp_path / "out" / "ddl"
    settings = job_of().settings
    assert not output.is_done(folder, settings)
    leave(folder, "done.json", json.dumps({"settings": describe(settings)}))
    assert output.is_done(folder, settings)
    with pytest.raises(
        UserError, match="seed is 7, but a run with 0 was finished here; use another --output"
    ):
        output.is_done(folder, job_of(seed=7).settings)


def test_labels_beyond_the_property_file_are_refused(dataset_of, settings_of, monkeypatch):
    dataset = dataset_of(settings_of())
    monkeypatch.setattr(type(dataset.records), "num_classes", 5)
    with pytest.raises(
        UserError, match=r"expected labels 0 to 4 \(the number of identities in 'property'\), got 0 to 9"
    ):
        module._require_labels(dataset)


def test_layout_names_the_rows_of_every_part(job_of):
    layout = module._batch_layout(job_of(ddl={"hard": ({"size": 24}, {"size": 14})}))
    assert layout.startswith("batch: 27 images a device, 27 a step on 1 device(s)\n")
    assert [line.split()[-3:] for line in layout.splitlines()[3:]] == [
        ["0-2", "3-5", "6-8"],
        ["9-11", "12-14", "15-17"],
        ["18-20", "21-23", "24-26"],
    ]


@pytest.mark.parametrize(
    ("done", "message"), [(False, ""), (True, "what is done is kept in .*; continue with --resume")]
)
def test_ctrl_c_between_the_runs_says_how_to_go_on(job_of, tmp_path, monkeypatch, done, message):
    def interrupted(job):
        if done:
            leave(tmp_path / "out" / "pretraining" / "softmax", "done.json")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_backbone", interrupted)
    with pytest.raises(KeyboardInterrupt, match=f"^{message}$"):
        carry_out(job_of())
