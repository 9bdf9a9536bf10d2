"""Steps, devices, saving and resuming, against updates computed in NumPy."""

import dataclasses
import json
import os
import re
import signal
import types

import numpy as np
import pytest
from small_runs import assert_same, parameters

from ddl_plugin import registry
from ddl_plugin.data.iterator import planes
from ddl_plugin.data.record_file import RecordFile
from ddl_plugin.errors import CheckError, UserError
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.settings import IDENTITY_LOSSES
from ddl_plugin.training import mxnet_engine
from ddl_plugin.training import trainer as module
from ddl_plugin.training.graph import training_graph
from ddl_plugin.training.machines import END_THE_REST
from ddl_plugin.training.trainer import STATE_FILE, Trainer
from ddl_plugin.training.workers import WorkerLostError

ONE, TWO = [mx.cpu(0)], [mx.cpu(0), mx.cpu(1)]


@pytest.fixture(scope="session")
def dataset(dataset_of, settings_of):
    return dataset_of(settings_of())


@pytest.fixture
def train(backbone, dataset, fc7, tmp_path):
    """train(settings, ...) -> the trained backbone; keyword arguments of Trainer, and `resume`."""

    def run(settings, contexts=ONE, folder="run", data=None, validate=None, resume=False):
        trainer = Trainer(
            settings, backbone, fc7, data or dataset, contexts, tmp_path / folder, validate, progress=False
        )
        return trainer.run(resume=resume)

    return run


@pytest.fixture
def batches(monkeypatch):
    """What the trainer's iterator gave; `batches.before[step]` is called before the batch of that step."""
    seen = types.SimpleNamespace(data=[], labels=[], steps=[], before={})

    class Recording(mxnet_engine.BatchIterator):
        def next(self):
            batch = super().next()
            seen.before.get(batch.step, lambda: None)()
            seen.steps.append(batch.step)
            seen.data.append(planes(mx.nd, batch.data[0]).asnumpy())
            seen.labels.append(batch.label[0].asnumpy())
            return batch

    monkeypatch.setattr(mxnet_engine, "BatchIterator", Recording)
    return seen


def rows(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def trained_rows(folder):
    return [row for row in rows(folder) if row["kind"] == "train"]


def gradients(settings, backbone, arrays, data, label, contexts=ONE):
    """Of the training graph on each device, by name: what a Module would sum. One list a device."""
    graph = training_graph(settings, backbone, len(arrays["fc7_weight"]), contexts)
    own = mx.mod.Module(graph.symbol, context=contexts)
    own.bind([("data", data.shape)], [("softmax_label", label.shape)])
    wrapped = {name: mx.nd.array(array) for name, array in arrays.items()}
    own.init_params(arg_params=wrapped, aux_params={n: mx.nd.array(a) for n, a in backbone.aux.items()})
    own.forward_backward(mx.io.DataBatch([mx.nd.array(data)], [mx.nd.array(label)]))
    names = own._exec_group.param_names
    return [
        {
            name: grads[device].asnumpy()
            for name, grads in zip(names, own._exec_group.grad_arrays, strict=True)
        }
        for device in range(len(contexts))
    ]


# -- several devices, and the update ---------------------------------------------------------------------


def test_gradient_of_two_devices_is_the_mean_of_their_blocks(settings_of, backbone, train, batches, fc7):
    settings = settings_of(max_steps=1)
    train(settings, TWO)
    data, label = batches.data[0], batches.labels[0]
    assert len(data) == 36
    arrays = {**backbone.arg, "fc7_weight": fc7}
    both = gradients(settings, backbone, arrays, data, label, TWO)
    for device, block in enumerate((slice(0, 18), slice(18, 36))):
        (alone,) = gradients(settings, backbone, arrays, data[block], label[block])
        for name in alone:
            np.testing.assert_allclose(both[device][name], alone[name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("contexts", [ONE, TWO], ids=["one device", "two devices"])
def test_steps_equal_momentum_sgd_in_numpy(settings_of, backbone, train, batches, fc7, tmp_path, contexts):
    """lr divided by 10 at step 2, momentum, weight decay, and 1/devices as the scale of the summed gradient."""
    settings = settings_of(max_steps=3, lr=0.02, lr_steps=(2,), mom=0.8, wd=0.5, fc7_lr_mult=3.0)
    after = train(settings, contexts)
    arrays = {**backbone.arg, "fc7_weight": fc7}
    start = dict(arrays)
    momenta = {name: np.zeros_like(array) for name, array in arrays.items()}
    n = len(contexts)
    for step in range(3):
        blocks = np.split(batches.data[step], n), np.split(batches.labels[step], n)
        each = [gradients(settings, backbone, arrays, *block)[0] for block in zip(*blocks, strict=True)]
        lr = 0.02 if step < 2 else 0.002
        for name in arrays:
            own_lr = lr * (3.0 if name == "fc7_weight" else 1.0)
            wd = 0.5 if name.endswith(("_weight", "_gamma")) else 0.0
            gradient = sum(g[name] for g in each) / n
            momenta[name] = 0.8 * momenta[name] - own_lr * (gradient + wd * arrays[name])
            arrays[name] = arrays[name] + momenta[name]
    trained = parameters(after)
    arrays["fc1_gamma"][:] = 1  # what MXNet takes it for, because of fix_gamma
    for name, array in arrays.items():
        change = array - start[name]
        # Single values differ where rounding moved them over a kink; those of a beta before another
        # BatchNorm are nothing but rounding.
        error = np.linalg.norm(trained[name] - array)
        assert error < 0.01 * np.linalg.norm(change) + 1e-7 * np.sqrt(array.size), name
    assert np.abs(trained["fc7_weight"] - fc7).max() > 1e-3
    assert [row["lr"] for row in rows(tmp_path / "run")] == pytest.approx([0.02, 0.02, 0.002])


def test_lr_is_divided_at_half_by_default_as_the_log_says(settings_of, train, tmp_path, monkeypatch):
    used = []
    original = mx.optimizer.SGD._get_lrs

    def spy(self, indices):
        used.append(self.lr_scheduler(self.num_update))
        return original(self, indices)

    monkeypatch.setattr(mx.optimizer.SGD, "_get_lrs", spy)
    train(settings_of(max_steps=4, lr=0.05))
    logged = [row["lr"] for row in rows(tmp_path / "run")]
    assert logged == pytest.approx([0.05, 0.05, 0.005, 0.005])
    per_step = len(used) // 4
    assert used[::per_step][:4] == pytest.approx(logged)


# -- losses and samplers --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IDENTITY_LOSSES)
def test_every_identity_loss_trains(settings_of, train, tmp_path, fc7, name):
    settings = settings_of(loss=name, max_steps=2, verbose=1, loss_s=None)
    trained = train(settings)
    assert all(
        set(row) == {"kind", "step", "ce_loss", "lr", "images_per_second"} for row in rows(tmp_path / "run")
    )
    assert np.abs(trained.fc7 - fc7).max() > 0
    with np.load(tmp_path / "run" / STATE_FILE) as state:
        assert ("arg:fc7_bias" in state.files) == (name == "softmax")
        if name == "softmax":
            assert np.abs(state["arg:fc7_bias"]).max() > 0


def test_ddl_and_its_baseline_see_the_same_batches(settings_of, train, batches):
    settings = settings_of(max_steps=2, ddl={"hard": ({"rule": "abs(yaw) > 30", "size": (12, 20)},)})
    train(settings, folder="ddl")
    train(settings.without_distributions_loss(), folder="arcface")
    assert batches.steps == [0, 1, 0, 1]
    for step in (0, 1):
        np.testing.assert_array_equal(batches.data[step], batches.data[step + 2])
        np.testing.assert_array_equal(batches.labels[step], batches.labels[step + 2])
    assert not np.array_equal(batches.data[0], batches.data[1])


def test_two_hard_distributions_by_degradation(settings_of, dataset_of, train, batches, tmp_path):
    settings = settings_of(max_steps=2, ddl={"hard": ({"size": 24}, {"size": 14, "jpeg": (30, 60)})})
    train(settings, data=dataset_of(settings))
    assert batches.data[0].shape == (27, 3, 112, 112)
    names = rows(tmp_path / "run")[1]
    assert {"margin_easy", "margin_hard1", "margin_hard2", "ddl", "kl_pos", "kl_neg", "order"} <= set(names)
    detail = [np.abs(np.diff(batches.data[0][block], axis=-1)).mean() for block in np.split(np.arange(27), 3)]
    assert detail[0] > detail[1] > detail[2]


def test_bn_frozen_keeps_the_statistics(settings_of, train, backbone):
    frozen = train(settings_of(max_steps=2, bn_frozen=True), folder="frozen")
    free = train(settings_of(max_steps=2), folder="free")
    for name, array in backbone.aux.items():
        np.testing.assert_array_equal(frozen.aux[name], array)
    assert any(np.abs(free.aux[name] - array).max() > 0 for name, array in backbone.aux.items())
    assert np.isfinite(frozen.fc7).all()


def test_a_parameter_without_a_start_is_an_error(settings_of, backbone, dataset, fc7, tmp_path):
    """Nothing is drawn at random behind the user's back."""
    arg = {name: array for name, array in backbone.arg.items() if name != "pre_fc1_weight"}
    trainer = Trainer(
        settings_of(), dataclasses.replace(backbone, arg=arg), fc7, dataset, ONE, tmp_path, None, False
    )
    with pytest.raises(RuntimeError, match="pre_fc1_weight"):
        trainer.run()


def test_first_terms_train_nothing(settings_of, backbone, dataset, fc7, train, tmp_path):
    folder = tmp_path / "dry"
    trainer = Trainer(settings_of(), backbone, fc7, dataset, ONE, folder, None, False)
    terms = trainer.first_terms()
    assert re.fullmatch(r"[1-9]\d* MB planned by MXNet for the graph of all devices", trainer.memory())
    assert not folder.exists()
    train(settings_of(max_steps=1))
    (logged,) = rows(tmp_path / "run")
    assert terms == pytest.approx({name: logged[name] for name in terms}, rel=1e-5)
    assert len(terms) > 10


# -- scope ----------------------------------------------------------------------------------------------


def test_on_one_device_the_scopes_are_one(settings_of, backbone, fc7, train, tmp_path):
    device, everything = (
        train(settings_of(ddl={"scope": scope}, max_steps=2), folder=scope) for scope in ("device", "global")
    )
    start = {**backbone.arg, "fc7_weight": fc7}
    for name, array in start.items():
        one, other = parameters(device)[name], parameters(everything)[name]
        # Single values differ where rounding moved them over a kink.
        assert np.linalg.norm(one - other) < 0.01 * np.linalg.norm(one - array) + 1e-7 * array.size, name
    for row, same in zip(rows(tmp_path / "device"), rows(tmp_path / "global"), strict=True):
        shown = set(row) - {"kind", "images_per_second"}
        assert {n: same[n] for n in shown} == pytest.approx({n: row[n] for n in shown}, rel=1e-3, abs=1e-4)


def test_scope_global_is_of_all_devices(settings_of, backbone, dataset, fc7, train, batches, tmp_path):
    """What is logged is the loss of all rows together, and what --dry-run shows is the first of it."""
    settings = settings_of(ddl={"scope": "global"}, max_steps=2)
    trained = train(settings, TWO)
    terms = Trainer(settings, backbone, fc7, dataset, TWO, tmp_path, None, False).first_terms()
    (first, second) = trained_rows(tmp_path / "run")
    assert terms == pytest.approx({name: first[name] for name in terms}, rel=1e-5)
    assert len(terms) > 10
    assert np.isfinite([second[name] for name in terms]).all()
    labels = batches.labels[0].reshape(2, 2, 3, 3)[:, :, 2]  # device, distribution, part, place
    for k in (0, 1):
        assert len(np.unique(labels[:, k])) == 6  # no identity is its own negative
    other = train(settings_of(max_steps=2), TWO, folder="device")
    assert np.abs(parameters(other)["fc7_weight"] - parameters(trained)["fc7_weight"]).max() > 1e-6


def test_scope_global_resumes(settings_of, train, batches):
    settings = settings_of(ddl={"scope": "global"})
    whole = train(settings, TWO, folder="whole")
    batches.before[1] = interrupt
    with pytest.raises(KeyboardInterrupt):
        train(settings, TWO)
    batches.before.clear()
    with pytest.raises(UserError, match=r"ddl was .*'scope': 'global'.*'scope': 'device'"):
        train(settings_of(), TWO, resume=True)
    resumed = train(settings, TWO, resume=True)
    for name, array in whole.arg.items():
        np.testing.assert_allclose(resumed.arg[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


# -- one worker of several ------------------------------------------------------------------------------


class Fellows:
    """Machines whose other workers have nothing to add; one is lost in the step `lose_in`."""

    kind, stops_together, remedy = "machines", False, END_THE_REST

    def __init__(self, rank=0, start=0, optimizer=b"", lose_in=None, workers=1):
        self.rank, self.workers = rank, workers
        self._worker_0 = iter([start, optimizer])
        self._left = None if lose_in is None else lose_in + 1

    def publish(self, value):
        return next(self._worker_0) if self.rank else value

    publish_bytes = publish

    def broadcast(self, arrays):
        return dict(arrays)

    def mean(self, values):
        return {name: float(value) for name, value in values.items()}

    def sum_gradients(self, names, gradients):
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                raise WorkerLostError("worker 1 on there was lost")


def one_of_several(settings, backbone, fc7, dataset, folder, machines, resume=False):
    trainer = Trainer(settings, backbone, fc7, dataset, ONE, folder, None, False, machines=machines)
    return trainer.run(resume=resume)


@pytest.mark.parametrize("step", [1, 2])
def test_a_lost_worker_leaves_the_state_of_the_last_whole_step(
    settings_of, backbone, fc7, dataset, train, tmp_path, step
):
    """With BatchNorm's statistics as they were before the step that failed."""
    whole = train(settings_of(), folder="whole")
    given = backbone, fc7, dataset, tmp_path / "run"
    with pytest.raises(
        WorkerLostError,
        match=rf"^worker 1 on there was lost, in step {step}; stopped, the state before step {step} is in .*state\.npz; "
        r"end the scheduler and the servers by hand, and start all again with --resume$",
    ):
        one_of_several(settings_of(), *given, Fellows(lose_in=step))
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(step))
    assert_same(one_of_several(settings_of(), *given, Fellows(), resume=True), whole)


def test_a_worker_lost_in_the_first_step_leaves_nothing(settings_of, backbone, fc7, dataset, tmp_path):
    with pytest.raises(
        WorkerLostError, match=r"in step 0; stopped, no state .* saved; .*, and start all again$"
    ):
        one_of_several(settings_of(), backbone, fc7, dataset, tmp_path, Fellows(lose_in=0))
    assert not (tmp_path / STATE_FILE).exists()


def test_another_worker_starts_where_worker_0_is_and_writes_nothing(
    settings_of, backbone, fc7, dataset, train, batches, tmp_path
):
    settings = settings_of(verbose=1)
    batches.before[0] = interrupt
    with pytest.raises(KeyboardInterrupt):
        train(settings)
    batches.before.clear()
    batches.steps.clear()
    with np.load(tmp_path / "run" / STATE_FILE) as state:
        arrays = {name[4:]: state[name] for name in state.files if name.startswith(("arg:", "aux:"))}
        optimizer = state["optimizer"].tobytes()
    fellow = Fellows(rank=1, start=1, optimizer=optimizer, workers=2)
    fellow.broadcast = lambda own: {name: mx.nd.array(arrays[name]) for name in own}
    given = backbone, fc7, dataset, tmp_path / "fellow"
    trained = one_of_several(settings, *given, fellow)
    assert batches.steps == [1, 2]
    assert not (tmp_path / "fellow").exists()
    # The second block of each step, of which the device's gradients count half.
    both = Trainer(settings, backbone, fc7, dataset, TWO, tmp_path, None, False)
    for step, data in zip((1, 2), batches.labels[-2:], strict=True):
        whole = dataset.records.labels[both._sampler.batch(step).positions]
        np.testing.assert_array_equal(data, whole[18:])
    assert np.abs(parameters(trained)["fc7_weight"] - arrays["fc7_weight"]).max() > 1e-6
    with pytest.raises(
        WorkerLostError, match=r"in step 2; .* with worker 0; .* --resume if worker 0 has saved a state"
    ):
        one_of_several(settings, *given, Fellows(rank=1, lose_in=2, workers=2))


def test_a_state_of_several_workers_is_not_resumed_by_one(
    settings_of, backbone, fc7, dataset, train, tmp_path
):
    """Its devices' optimizer states are not as many."""
    given = backbone, fc7, dataset, tmp_path / "run"
    with pytest.raises(WorkerLostError):
        one_of_several(settings_of(), *given, Fellows(lose_in=1, workers=2))
    message = "--resume: number of devices was '1 on each of 2 machines' in .*, is 2 now"
    with pytest.raises(UserError, match=message):
        train(settings_of(), TWO, resume=True)


# -- resuming -------------------------------------------------------------------------------------------


class Validation:
    """A score that goes up and down; remembers the fc7_weight it was given."""

    def __init__(self):
        self.steps = 0

    def __call__(self, backbone):
        score = float(np.abs(backbone.arg["pre_fc1_weight"]).sum() % 1)
        return score, {"accuracy_some": score}


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("step", [0, 1, 2, 3, 6])
def test_an_interrupted_run_ends_as_one_that_was_not(settings_of, train, batches, tmp_path, step):
    """Interrupted at the first and last step, at one that is validated (3 done), before and after lr changes."""
    settings = settings_of(max_steps=7, verbose=3, lr_steps=(2, 5), lr=0.05)
    whole = train(settings, folder="whole", validate=Validation())
    batches.before[step] = interrupt
    with pytest.raises(KeyboardInterrupt, match=f"saved after step {step + 1} of 7; continue with --resume"):
        train(settings, validate=Validation())
    del batches.before[step]
    assert not (tmp_path / "run" / "model-0001.params").exists()
    assert_same(train(settings, validate=Validation(), resume=True), whole)
    assert batches.steps[7:] == [*range(step + 1), *range(step + 1, 7)]

    def fixed(folder):
        return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows(tmp_path / folder)]

    assert fixed("run") == fixed("whole")
    assert [r["step"] for r in fixed("run") if r["kind"] == "validation"] == [3, 6, 7]
    best = [(tmp_path / folder / "best-0001.params").read_bytes() for folder in ("run", "whole")]
    assert best[0] == best[1]


def test_a_killed_run_goes_on_from_its_last_state(settings_of, train, batches, tmp_path):
    class Killed(BaseException):
        """Nothing is saved on the way out, as after kill -9."""

    def kill():
        raise Killed

    settings = settings_of(max_steps=6, verbose=2)
    whole = train(settings, folder="whole", validate=Validation())
    batches.before[5] = kill
    with pytest.raises(Killed):
        train(settings, validate=Validation())
    batches.before.clear()
    assert_same(train(settings, validate=Validation(), resume=True), whole)
    assert batches.steps[-2:] == [4, 5]  # trained from the state after 4 steps on
    assert [row["step"] for row in trained_rows(tmp_path / "run")] == list(range(6))


def test_two_devices_resume_too(settings_of, train, batches):
    settings = settings_of(max_steps=3)
    whole = train(settings, TWO, folder="whole")
    batches.before[1] = interrupt
    with pytest.raises(KeyboardInterrupt):
        train(settings, TWO)
    batches.before.clear()
    resumed = train(settings, TWO, resume=True)
    for name, array in whole.arg.items():
        np.testing.assert_allclose(resumed.arg[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


def test_long_runs_save_without_being_asked(settings_of, train, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(module, "save_state", lambda path, state, settings: saved.append(state.step))
    train(settings_of(max_steps=3), folder="short")
    assert saved == []
    monkeypatch.setattr(module, "_SAVE_EVERY", 0.0)
    train(settings_of(max_steps=3))
    assert saved == [1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "contexts", "message"),
    [
        ({"lr": 0.5}, ONE, "--resume: lr was 0.01 in the unfinished run of .*, is 0.5 now"),
        ({"ddl": {"lambda_order": 0.4}}, ONE, "--resume: ddl was .*'lambda_order': 0.5.*'lambda_order': 0.4"),
        ({}, TWO, "--resume: number of devices was 1 in .*, is 2 now"),
    ],
)
def test_another_run_is_not_resumed(settings_of, train, batches, changes, contexts, message):
    batches.before[0] = interrupt
    with pytest.raises(KeyboardInterrupt):
        train(settings_of())
    with pytest.raises(UserError, match=message):
        train(settings_of(**changes), contexts, resume=True)


def test_a_state_that_is_not_there(settings_of, train):
    with pytest.raises(UserError, match="--resume: no unfinished run in"):
        train(settings_of(), resume=True)


def test_sigterm_saves_as_ctrl_c_does(settings_of, train, batches, monkeypatch):
    """Schedulers send it before they take a machine, some of them twice."""

    def unheard(number, frame):
        raise AssertionError("SIGTERM has not come to the trainer")

    whole = train(settings_of(), folder="whole")
    batches.before[1] = lambda: [os.kill(os.getpid(), signal.SIGTERM) for _ in range(2)]
    before = signal.signal(signal.SIGTERM, unheard)
    try:
        with pytest.raises(KeyboardInterrupt, match="saved after step 2 of 3; continue with --resume"):
            train(settings_of())
    finally:
        assert signal.signal(signal.SIGTERM, before) is unheard
    batches.before.clear()
    assert_same(train(settings_of(), resume=True), whole)


# -- what goes wrong ------------------------------------------------------------------------------------


def test_nan_in_the_network_stops_with_the_state_before_it(settings_of, train, tmp_path):
    settings = settings_of(max_steps=5, lr=1e30)
    with pytest.raises(
        CheckError, match=r"step 1: the network's embedding has NaN in 18 of 18 rows, so loss term"
    ):
        train(settings, folder="nan")
    before = train(dataclasses.replace(settings, max_steps=1), folder="one step")
    with np.load(tmp_path / "nan" / STATE_FILE) as state:
        for name, array in before.arg.items():
            np.testing.assert_array_equal(state[f"arg:{name}"], array, err_msg=name)
        for name, array in before.aux.items():
            np.testing.assert_array_equal(state[f"aux:{name}"], array, err_msg=name)
        assert json.loads(str(state["meta"]))["step"] == 1
    assert [row["step"] for row in rows(tmp_path / "nan")] == [0]


def test_weights_that_an_update_ruined_never_replace_a_good_state(settings_of, train, tmp_path, monkeypatch):
    """The terms of the step after are NaN as well, but the state of step 2 is what can be used."""
    steps = iter(range(100))
    update = mx.mod.Module.update

    def ruin(module):
        update(module)
        if next(steps) == 2:
            arg, aux = module.get_params()
            module.set_params({**arg, "pre_fc1_bias": arg["pre_fc1_bias"] * np.inf}, aux)

    monkeypatch.setattr(mx.mod.Module, "update", ruin)
    with pytest.raises(CheckError, match=r"step 3: .*; stopped, the state before step 2 is in .*state\.npz"):
        train(settings_of(max_steps=5, verbose=2), folder="nan")
    with np.load(tmp_path / "nan" / STATE_FILE) as state:
        assert json.loads(str(state["meta"]))["step"] == 2
        assert all(np.isfinite(state[name]).all() for name in state.files if name.startswith(("arg", "aux")))


def test_a_last_update_that_ruins_the_weights_leaves_no_model(settings_of, train, tmp_path, monkeypatch):
    update = mx.mod.Module.update

    def ruin(module):
        update(module)
        arg, aux = module.get_params()
        module.set_params({**arg, "pre_fc1_bias": arg["pre_fc1_bias"] * np.nan}, aux)

    monkeypatch.setattr(mx.mod.Module, "update", ruin)
    with pytest.raises(
        CheckError, match="step 1: array 'pre_fc1_bias' is NaN or infinite after the update of step 0"
    ):
        train(settings_of(max_steps=1), folder="nan")
    assert not (tmp_path / "nan" / "model-0001.params").exists()


@pytest.mark.parametrize("scope", ["device", "global"])
@pytest.mark.parametrize("which", ["its term", "its value"])
def test_nan_in_a_loss_names_the_term(settings_of, train, tmp_path, monkeypatch, which, scope):
    def odd(F, embedding, settings, options):
        bad = F.reshape(F.log(F.mean(embedding) * 0 - 1), (1,))
        good = F.reshape(F.mean(embedding), (1,))
        terms = F.stack(good, bad if which == "its term" else good, axis=1)
        return bad, terms, ("fine", "log_of_minus_one")

    monkeypatch.setitem(registry.LOSSES, "odd", registry.LossEntry("odd", odd, "NaN"))
    name = {"its term": "log_of_minus_one", "its value": "odd_loss"}[which]
    with pytest.raises(
        CheckError, match=f"step 0: loss term '{name}' is nan; stopped, no state of this run is saved"
    ):
        train(settings_of(loss="odd", ddl={"scope": scope}))
    assert not (tmp_path / "run" / STATE_FILE).exists()


def test_an_image_that_cannot_be_read_costs_nothing(
    settings_of, train, batches, dataset, tmp_path, monkeypatch
):
    settings = settings_of(max_steps=4)
    whole = train(settings, folder="whole")
    good, broken = RecordFile.image, {}

    def image(self, key, *place):
        if broken.get(key):
            raise UserError(f"{self.path}: record {key} is no image")
        return good(self, key, *place)

    earlier = {p for step in (0, 1) for p in module_positions(settings, dataset, step)}
    first = next(p for p in module_positions(settings, dataset, 2) if p not in earlier)
    broken[int(first) + 1] = True
    monkeypatch.setattr(RecordFile, "image", image)
    message = (
        rf"record {first + 1} is no image; the run stopped at step 2, its state is saved in .*state\.npz"
    )
    with pytest.raises(UserError, match=message):
        train(settings)
    broken.clear()
    assert_same(train(settings, resume=True), whole)


def test_a_worker_that_cannot_read_an_image_says_just_that(
    settings_of, backbone, fc7, dataset, batches, tmp_path
):
    """What is saved, and where, worker 0 says."""

    def unreadable():
        raise UserError("record 3 is no image")

    batches.before[1] = unreadable
    with pytest.raises(UserError, match=r"^record 3 is no image$"):
        one_of_several(settings_of(), backbone, fc7, dataset, tmp_path, Fellows(rank=1, workers=2))


def module_positions(settings, dataset, step):
    sampler = registry.get_sampler("pairs").build(
        dataset.records.labels, dataset.partition, dataset.pairs, settings.ddl,
        rows=18, devices=1, seed=settings.seed, options={},
    )  # fmt: skip
    return sampler.batch(step).positions


def test_an_unreadable_image_at_the_first_step_leaves_no_state(
    settings_of, train, dataset, tmp_path, monkeypatch
):
    def image(self, *place):
        raise UserError("record 1 is no image")

    monkeypatch.setattr(RecordFile, "image", image)
    with pytest.raises(UserError, match=r"^record 1 is no image$"):
        train(settings_of())
    assert not (tmp_path / "run" / STATE_FILE).exists()


# -- memory ---------------------------------------------------------------------------------------------


def test_nothing_python_grows_with_the_data_set(settings_of, backbone, dataset, fc7, tmp_path):
    """A trainer for a thousand times as many pairs holds 8 bytes more a pair, no objects."""
    import tracemalloc

    from ddl_plugin.data.pairs import Pairs

    def held(times):
        pairs = tuple(Pairs(np.tile(p.first, times), np.tile(p.second, times), 0, 0) for p in dataset.pairs)
        tracemalloc.start()
        trainer = Trainer(
            settings_of(),
            backbone,
            fc7,
            dataclasses.replace(dataset, pairs=pairs),
            ONE,
            tmp_path,
            None,
            False,
        )
        trainer._sampler.batch(0)
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return size, sum(len(p.first) for p in pairs)

    (small, few), (large, many) = held(1), held(1000)
    assert (large - small) / (many - few) < 9
