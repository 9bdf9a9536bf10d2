import json
import math

import numpy as np
import pytest

from ddl_plugin.errors import UserError
from ddl_plugin.training.state import RunState, load_state, save_state

SETTINGS = {"lr": 0.1, "ddl": {"b": 3, "hard": [{"rule": None}]}, "lr_steps": [4]}


def state(step=7, best=0.5):
    rng = np.random.default_rng(0)
    arg = {"fc7_weight": rng.normal(size=(3, 2)).astype(np.float32), "a:b": np.ones(2, np.float32)}
    return RunState(step, arg, {"bn_moving_mean": np.zeros(2, np.float32)}, b"\x00momenta\xff", best)


@pytest.mark.parametrize("best", [0.75, -math.inf])
def test_a_state_comes_back_as_it_was(tmp_path, best):
    path = tmp_path / "run" / "state.npz"
    save_state(path, state(best=best), SETTINGS)
    back = load_state(path, SETTINGS)
    assert (back.step, back.optimizer, back.best) == (7, b"\x00momenta\xff", best)
    for mine, theirs in ((state().arg, back.arg), (state().aux, back.aux)):
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert mine[name].dtype == theirs[name].dtype
            np.testing.assert_array_equal(mine[name], theirs[name])
    assert [p.name for p in path.parent.iterdir()] == ["state.npz"]  # no temporary file is left


def test_no_state(tmp_path):
    with pytest.raises(UserError, match=r"--resume: no unfinished run in .*state\.npz.*run without --resume"):
        load_state(tmp_path / "state.npz", SETTINGS)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lr": 0.2}, "--resume: lr was 0.1 in the unfinished run of .*, is 0.2 now; set it back"),
        ({"lr_steps": [5]}, r"lr_steps was \[4\]"),
        ({"ddl": {"b": 4, "hard": [{"rule": None}]}}, "ddl was .*'b': 3.*, is .*'b': 4"),
        ({"number of devices": 2}, "number of devices was None"),
    ],
)
def test_another_run_is_refused_by_the_key(tmp_path, changed, message):
    path = tmp_path / "state.npz"
    save_state(path, state(), SETTINGS)
    with pytest.raises(UserError, match=message):
        load_state(path, {**SETTINGS, **changed})


def truncated(data):
    return data[: len(data) // 2]


def flipped(data):
    at = data.index(b"momenta")
    return data[:at] + b"MOMENTA" + data[at + 7 :]


@pytest.mark.parametrize("damage", [truncated, flipped, lambda data: b"", lambda data: b"no archive"])
def test_a_damaged_state_is_refused(tmp_path, damage):
    path = tmp_path / "state.npz"
    save_state(path, state(), SETTINGS)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        UserError, match=r"--resume: .*state\.npz is damaged .*delete it and run without --resume"
    ):
        load_state(path, SETTINGS)


@pytest.mark.parametrize("meta", [{"format": 99}, {}, []])
def test_a_file_of_another_kind_is_refused(tmp_path, meta):
    path = tmp_path / "state.npz"
    np.savez(path, meta=json.dumps(meta), optimizer=np.zeros(1, np.uint8))
    with pytest.raises(UserError, match="is damaged"):
        load_state(path, SETTINGS)


def test_a_save_that_fails_keeps_the_state_before(tmp_path, monkeypatch):
    path = tmp_path / "state.npz"
    save_state(path, state(step=1), SETTINGS)

    def full(file, **arrays):
        file.write(b"half a state")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match="No space left on device"):
        save_state(path, state(step=2), SETTINGS)
    assert load_state(path, SETTINGS).step == 1
