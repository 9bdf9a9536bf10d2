"""The runs of a study: what counts as done, what is shared, which base model a row starts from."""

import copy
import json
import shutil
import signal
from types import SimpleNamespace

import pytest

from ddl_plugin.errors import UserError
from ddl_plugin.experiment import runner as module
from ddl_plugin.experiment.runner import Runner, estimate
from ddl_plugin.experiment.runs import base_run, planned
from ddl_plugin.experiment.study import load_study
from ddl_plugin.recipe import completed, describe

BASE = """config = dict(loss="softmax", dataset_path="x", network="tiny", emb_size=16, fc7_init="random",
    sampler="images", per_batch_size=8, max_steps=3)
"""


@pytest.fixture
def runs_of(write_study, tmp_path):
    """runs_of(text): the base and the runs of the study that `text` changes."""

    def made(text="", output=tmp_path / "out"):
        study = load_study(str(write_study(text)))
        base = base_run(study, output)
        return base, planned(study, study.rows, output, base)

    return made


def finish(run, **changes):
    """Leave what a run leaves, with its settings changed."""
    settings = {**json.loads(json.dumps(describe(run.settings))), **changes}
    run.folder.mkdir(parents=True, exist_ok=True)
    for name in ("recipe.json", "result.json"):
        (run.folder / name).write_text(json.dumps({"settings": settings, **settings}))


def test_what_an_older_version_left_has_the_defaults_of_newer_settings(runs_of):
    _, (_, run) = runs_of("study['common'] = {'train_identities': 1.0}")
    finish(run)
    whole = json.loads((run.folder / "result.json").read_text())
    older = copy.deepcopy(whole)
    del older["settings"]["train_identities"], older["settings"]["ddl"]["mixture"]
    del older["settings"]["ddl"]["hard"][0]["degradation"]["one_of"]
    assert completed(older["settings"]) == completed(whole["settings"])
    (run.folder / "result.json").write_text(json.dumps(older))
    assert run.result() == older
    _, (_, other) = runs_of("study['common'] = {'train_identities': 0.5}")
    with pytest.raises(UserError, match=r"expected a run with train_identities = 0\.5, .* got one with 1\.0"):
        other.result()


def test_a_changed_setting_is_named_by_its_own_key(runs_of):
    _, (_, run) = runs_of()
    finish(run)
    _, (_, other) = runs_of("study['rows'][1]['set'] = {'ddl.lambda_order': 0.5}")
    with pytest.raises(
        UserError, match=r"with ddl\.lambda_order = 0\.5, as .* got one with 0\.25; use another"
    ):
        other.result()


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_result_is_one_line(runs_of, content):
    _, (_, run) = runs_of()
    finish(run)
    (run.folder / "result.json").write_text(content)
    with pytest.raises(UserError, match=r"result\.json: is damaged.*; remove the folder"):
        run.result()


def test_a_study_with_its_base_model_may_be_moved(runs_of, tmp_path):
    (tmp_path / "base.py").write_text(BASE)
    text = "study['common'] = {'pretrained': 'base.py'}"
    base, (run, _) = runs_of(text)
    assert base.folder == tmp_path / "out/base"
    assert run.settings.pretrained == str(tmp_path / "out/base/softmax")
    finish(run)
    shutil.move(tmp_path / "out", tmp_path / "moved")
    _, (moved, _) = runs_of(text, tmp_path / "moved")
    assert moved.result() is not None
    finish(moved, pretrained="elsewhere/model,0")
    with pytest.raises(UserError, match=r"expected a run with pretrained = "):
        moved.result()


def test_a_row_may_have_a_base_model_of_its_own(runs_of, tmp_path):
    (tmp_path / "base.py").write_text(BASE)
    base, (arcface, ddl) = runs_of(
        "study['common'] = {'pretrained': 'base.py'}\nstudy['rows'][0]['set']['pretrained'] = 'other,0'"
    )
    assert base is not None
    assert (arcface.settings.pretrained, ddl.settings.pretrained) == ("other,0", str(base.folder / "softmax"))
    base, _ = runs_of("for row in study['rows']: row['set'] = {'pretrained': 'other,0'}")
    assert base is None


def test_pairs_are_taken_from_a_run_that_makes_the_same(runs_of):
    _, (first, second) = runs_of()
    finish(first)
    (first.folder / "pairs.npz").write_bytes(b"pairs")
    _, (_, other) = runs_of("study['rows'][1]['set'] = {'train_identities': 0.5}")
    other.share_pairs([first])
    assert not (other.folder / "pairs.npz").exists()
    second.share_pairs([first])
    assert (second.folder / "pairs.npz").read_bytes() == b"pairs"


def test_a_folder_that_cannot_be_written_fails_its_own_run_alone(runs_of, tmp_path, monkeypatch):
    _, runs = runs_of()
    runs[0].folder.parent.parent.mkdir(parents=True)
    runs[0].folder.parent.write_text("a file in the way")
    monkeypatch.setattr(Runner, "_wait", lambda *_: 0)
    failed = Runner("cpu", 2).carry_out(runs, print)
    assert list(failed) == [runs[0].name]
    assert "arcface" in failed[runs[0].name]


def test_nothing_is_started_after_an_interrupt(tmp_path):
    runner = Runner("cpu", 1)
    runner._stop()
    assert runner._wait(["touch", str(tmp_path / "started")], None) == 130
    assert not (tmp_path / "started").exists()


def test_the_ending_of_a_run_is_told_in_words():
    assert module._ending(2) == "exit code 2"
    assert module._ending(-signal.SIGKILL) == "killed by SIGKILL"


def test_the_estimate_counts_what_is_beside_the_training(monkeypatch):
    """Two finished runs of 10 images: 5 and 7 s of training and 4 s of evaluation each; three are left."""

    def run(seconds=None, images=10):
        settings = SimpleNamespace(
            max_steps=1, batch_rows=images, baseline=False, loss="ddl", identity="arcface"
        )
        result = None if seconds is None else {"runs": {"ddl": {"seconds": seconds}}}
        return SimpleNamespace(settings=settings, result=lambda: result, took=lambda: seconds + 4)

    runs = [run(5.0), run(7.0), run(), run(), run(images=20)]
    assert estimate(runs, None, "cpu", 1) == (0.6 * 40 + 4 * 3, "by the 2 finished run(s)")
    assert estimate(runs, None, "cpu", 2)[0] == 18
    # No more at once than there are.
    assert estimate(runs, None, "cpu", 9)[0] == 12
    assert estimate(runs[:2], None, "cpu", 1)[0] == 0
