"""The trainer on PyTorch: steps against updates in NumPy, resuming, NaN, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import types

import numpy as np
import pytest
from small_runs import assert_same, parameters

from ddl_plugin import registry
from ddl_plugin.errors import CheckError, UserError
from ddl_plugin.pytorch import engine as module
from ddl_plugin.pytorch.devices import parse_devices
from ddl_plugin.pytorch.engine import StepModule
from ddl_plugin.pytorch.identity import IdentityLoss
from ddl_plugin.pytorch.loss import DDLLoss
from ddl_plugin.pytorch.torch_setup import torch
from ddl_plugin.settings import IDENTITY_LOSSES
from ddl_plugin.training.engine import identity_settings
from ddl_plugin.training.trainer import STATE_FILE, Trainer

TorchDispatchMode = torch.utils._python_dispatch.TorchDispatchMode
CPU = [torch.device("cpu")]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def torch_settings_of(settings_of):
    def make(**changes):
        return settings_of(backend="torch", **changes)

    return make


@pytest.fixture(scope="session")
def dataset(dataset_of, torch_settings_of):
    return dataset_of(torch_settings_of())


@pytest.fixture
def train(backbone, dataset, fc7, tmp_path):
    """train(settings, ...) -> the trained backbone; `lag` as on a GPU, where outcomes are known a step late."""

    def run(settings, folder="run", data=None, validate=None, resume=False, lag=0):
        trainer = Trainer(
            settings, backbone, fc7, data or dataset, CPU, tmp_path / folder, validate, progress=False
        )
        trainer._engine._lag = lag
        return trainer.run(resume=resume)

    return run


@pytest.fixture
def batches(monkeypatch):
    """The batches that the engine was given; `batches.before[step]` is called before the batch of that step."""
    seen = types.SimpleNamespace(all=[], before={})
    usual = module.Loader

    def loader(source, start, stop, **options):
        found = usual(source, start, stop, **options)
        following = found.next

        def next_batch():
            batch = following()
            seen.before.get(batch.step, lambda: None)()
            seen.all.append(types.SimpleNamespace(
                step=batch.step, pixels=batch.pixels.clone(), labels=batch.labels.clone()
            ))  # fmt: skip
            return batch

        found.next = next_batch
        return found

    monkeypatch.setattr(module, "Loader", loader)
    return seen


def rows(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


# -- the update ------------------------------------------------------------------------------------------


def gradients(settings, backbone, arrays, aux, batch):
    """By name, of one step from `arrays`; `aux` takes the step's statistics."""
    network = dataclasses.replace(backbone, arg={n: arrays[n] for n in backbone.arg}, aux=aux).network()
    identity = IdentityLoss(
        len(arrays["fc7_weight"]), backbone.emb_size, identity_settings(settings), settings.ddl
    )
    with torch.no_grad():
        identity.weight.copy_(torch.from_numpy(arrays["fc7_weight"]))
    total, _, _ = StepModule(network, identity, DDLLoss(settings.ddl), None)(batch.pixels, batch.labels)
    total.backward()
    found = {**network.parameters_by_name(), "fc7_weight": identity.weight}
    return {n: p.grad.numpy() for n, p in found.items() if p.requires_grad}, network.arrays()[1]


@pytest.mark.parametrize("lag", [0, 1])
def test_steps_equal_mxnets_momentum_sgd_in_numpy(
    torch_settings_of, backbone, train, batches, fc7, tmp_path, lag
):
    """lr divided by 10 at step 2 while the momenta go on, weight decay of weights and gammas alone, the
    classifier's own rate."""
    settings = torch_settings_of(max_steps=4, lr=0.02, lr_steps=(2,), mom=0.8, wd=0.5, fc7_lr_mult=3.0)
    after = train(settings, lag=lag)
    arrays, aux = {**backbone.arg, "fc7_weight": fc7}, backbone.aux
    start, momenta = dict(arrays), {}
    for step in range(4):
        each, aux = gradients(settings, backbone, arrays, aux, batches.all[step])
        lr = 0.02 if step < 2 else 0.002
        for name, gradient in each.items():
            own_lr = lr * (3.0 if name == "fc7_weight" else 1.0)
            wd = 0.5 if name.endswith(("_weight", "_gamma")) else 0.0
            momenta[name] = 0.8 * momenta.get(name, 0) - own_lr * (gradient + wd * arrays[name])
            arrays[name] = (arrays[name] + momenta[name]).astype(np.float32)
    trained = parameters(after)
    assert "fc1_gamma" not in momenta
    np.testing.assert_array_equal(trained["fc1_gamma"], 1)
    for name in momenta:
        error = np.linalg.norm(trained[name] - arrays[name])
        assert error < 1e-3 * np.linalg.norm(arrays[name] - start[name]) + 1e-7 * np.sqrt(
            arrays[name].size
        ), name
    for name, array in aux.items():  # of three steps' inputs, over which rounding has grown
        moved = np.linalg.norm(array - backbone.aux[name])
        assert np.linalg.norm(trained[name] - array) < 1e-3 * moved + 1e-6 * np.sqrt(array.size), name
    logged = rows(tmp_path / "run")
    assert [row["lr"] for row in logged] == pytest.approx([0.02, 0.02, 0.002, 0.002])
    assert [row["step"] for row in logged] == [0, 1, 2, 3]


#: By which values come to the host, beside the operators that are tagged so.
READING = ("cpu", "numpy", "item", "tolist", "__array__", "__bool__", "__float__", "__int__", "__index__")


class NothingRead(TorchDispatchMode):
    """Of a GPU, each of these would be waited for."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(function.tags)
        if function is torch.ops.aten.index.Tensor:  # by numbers it is not
            tags = {t for t in arguments[1] if t is not None and t.dtype in (torch.bool, torch.uint8)}
        if tags:
            raise AssertionError(f"{function} is waited for")
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("changes", [{}, {"amp": "bf16"}, {"loss": "softmax"}, {"bn_frozen": True}])
def test_a_step_waits_for_nothing(torch_settings_of, backbone, dataset, fc7, tmp_path, monkeypatch, changes):
    """Between two outcomes, also where the learning rate changes."""

    def read(*arguments, **options):
        raise AssertionError("a tensor is read")

    settings = torch_settings_of(lr_steps=(1,), **changes)
    trainer = Trainer(settings, backbone, fc7, dataset, CPU, tmp_path, None, False)
    engine = trainer._engine
    engine._lag = 1
    engine.start(trainer._beginning())
    with trainer._batches(0) as batches:
        first, second = batches.next(), batches.next()
    engine.forward_backward(first, 0)
    engine.update(0)
    with monkeypatch.context() as patch, NothingRead():
        for name in READING:
            patch.setattr(torch.Tensor, name, read)
        engine.forward_backward(second, 1)
        engine.update(1)
        with pytest.raises(AssertionError):
            engine.outcomes()
    assert [outcome.step for outcome in engine.outcomes(wait=True)] == [1]


def test_outcomes_a_step_late_are_the_same(torch_settings_of, train, tmp_path):
    """As on a GPU: the log, the states and the models are those of a run that waits for each step."""
    settings = torch_settings_of(max_steps=4, verbose=2)
    one, other = train(settings, folder="one"), train(settings, folder="late", lag=1)
    assert_same(one, other)
    first, second = (
        [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows(tmp_path / folder)]
        for folder in ("one", "late")
    )
    assert first == second


@pytest.mark.parametrize("name", ["softmax", "nsoftmax", "cosface"])
def test_identity_losses_train(torch_settings_of, train, tmp_path, fc7, name):
    assert name in IDENTITY_LOSSES
    trained = train(torch_settings_of(loss=name, max_steps=2, verbose=1, loss_s=None))
    shown = {"kind", "step", "ce_loss", "lr", "images_per_second"}
    assert all(set(row) == shown for row in rows(tmp_path / "run"))
    assert np.abs(trained.fc7 - fc7).max() > 0
    with np.load(tmp_path / "run" / STATE_FILE) as state:
        assert ("arg:fc7_bias" in state.files) == (name == "softmax")
        if name == "softmax":
            assert np.abs(state["arg:fc7_bias"]).max() > 0


@pytest.mark.parametrize("changes", [
    {"loss": "histogram", "loss_options": {"weight": 1.0, "bins": 20}},
    {"loss": "semihard_triplet", "loss_options": {"weight": 1.0, "alpha": 0.3}},
    {"loss": "ohem", "loss_options": {}},
    {"loss": "focal", "loss_options": {}},
    {"ddl": {"scope": "global"}},
    {"amp": "bf16"},
])  # fmt: skip
def test_rivals_scopes_and_bf16_train(torch_settings_of, train, tmp_path, changes):
    if "loss" in changes:
        changes = {
            **changes,
            "loss_options": registry.get_loss(changes["loss"]).resolve(changes["loss_options"]),
        }
    trained = train(torch_settings_of(max_steps=2, **changes))
    assert all(
        np.isfinite(array).all() and array.dtype == np.float32 for array in parameters(trained).values()
    )
    assert all(
        np.isfinite(value) for row in rows(tmp_path / "run") for value in row.values() if value != "train"
    )


def test_bf16_is_near_float32_and_not_it(torch_settings_of, train, tmp_path):
    train(torch_settings_of(max_steps=1), folder="full")
    train(torch_settings_of(max_steps=1, amp="bf16"), folder="half")
    (full,), (half,) = rows(tmp_path / "full"), rows(tmp_path / "half")
    assert half["ce_loss"] == pytest.approx(full["ce_loss"], rel=0.05)
    assert half["ce_loss"] != full["ce_loss"]


def test_bn_frozen_keeps_the_statistics(torch_settings_of, train, backbone):
    frozen = train(torch_settings_of(max_steps=2, bn_frozen=True), folder="frozen")
    free = train(torch_settings_of(max_steps=2), folder="free")
    for name, array in backbone.aux.items():
        np.testing.assert_array_equal(frozen.aux[name], array)
    assert any(np.abs(free.aux[name] - array).max() > 0 for name, array in backbone.aux.items())


def test_first_terms_train_nothing(torch_settings_of, backbone, dataset, fc7, train, tmp_path):
    trainer = Trainer(torch_settings_of(), backbone, fc7, dataset, CPU, tmp_path / "dry", None, False)
    terms = trainer.first_terms()
    assert trainer.memory() == ""
    assert not (tmp_path / "dry").exists()
    train(torch_settings_of(max_steps=1))
    (logged,) = rows(tmp_path / "run")
    assert terms == pytest.approx({name: logged[name] for name in terms}, rel=1e-5)
    assert len(terms) > 10


# -- resuming --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "lag"), [(0, 0), (2, 1), (3, 0), (5, 1)])
def test_an_interrupted_run_ends_as_one_that_was_not(torch_settings_of, train, batches, tmp_path, step, lag):
    def validate(backbone):
        score = float(np.abs(backbone.arg["pre_fc1_weight"]).sum() % 1)
        return score, {"accuracy_some": score}

    settings = torch_settings_of(max_steps=6, verbose=3, lr_steps=(2, 5), lr=0.05)
    whole = train(settings, folder="whole", validate=validate)
    batches.before[step] = interrupt
    with pytest.raises(KeyboardInterrupt, match=f"saved after step {step + 1} of 6; continue with --resume"):
        train(settings, validate=validate, lag=lag)
    del batches.before[step]
    assert_same(train(settings, validate=validate, resume=True, lag=lag), whole)
    assert [batch.step for batch in batches.all[6:]] == [*range(step + 1), *range(step + 1, 6)]

    def fixed(folder):
        return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows(tmp_path / folder)]

    assert fixed("run") == fixed("whole")
    best = [(tmp_path / folder / "best-0001.params").read_bytes() for folder in ("run", "whole")]
    assert best[0] == best[1]


@pytest.mark.parametrize("lag", [0, 1])
def test_a_lost_process_that_decodes_leaves_the_state(torch_settings_of, train, batches, tmp_path, lag):
    def lose():
        raise CheckError("a process that decodes images was lost: SIGKILL")

    whole = train(torch_settings_of(max_steps=4), folder="whole")
    batches.before[2] = lose
    with pytest.raises(CheckError) as found:
        train(torch_settings_of(max_steps=4), lag=lag)
    assert str(found.value) == (
        "a process that decodes images was lost: SIGKILL; the run stopped at step 2, its state is saved in "
        f"{tmp_path / 'run' / STATE_FILE}; continue with --resume"
    )
    batches.before.clear()
    assert_same(train(torch_settings_of(max_steps=4), resume=True, lag=lag), whole)
    batches.before[0] = lose
    with pytest.raises(CheckError, match=r"was lost: SIGKILL$"):
        train(torch_settings_of(max_steps=4), folder="nothing yet")
    assert not (tmp_path / "nothing yet" / STATE_FILE).exists()


def test_a_run_that_torchrun_has_launched_alone_is_saved_at_two_ctrl_cs(
    torch_settings_of, train, batches, monkeypatch
):
    """The terminal's, and the one that torchrun passes on."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    batches.before[0] = lambda: (interrupt(), interrupt())
    with pytest.raises(KeyboardInterrupt, match="saved after step 1 of 3; continue with --resume"):
        train(torch_settings_of())


def test_another_backend_does_not_go_on(torch_settings_of, train, batches, tmp_path):
    batches.before[0] = interrupt
    with pytest.raises(KeyboardInterrupt):
        train(torch_settings_of())
    with pytest.raises(UserError, match=r"--resume: amp was None in the unfinished run of .*, is 'bf16' now"):
        train(torch_settings_of(amp="bf16"), resume=True)
    path = tmp_path / "run" / STATE_FILE
    with np.load(path) as state:
        arrays = {name: state[name] for name in state.files}
    meta = json.loads(str(arrays["meta"]))
    assert meta["settings"]["backend"] == "torch"
    del meta["settings"]["backend"]  # as versions with one backend wrote it
    np.savez(path, **{**arrays, "meta": json.dumps(meta)})
    with pytest.raises(
        UserError, match=r"--resume: backend was 'mxnet' in the unfinished run of .*, is 'torch' now"
    ):
        train(torch_settings_of(), resume=True)


# -- what goes wrong -------------------------------------------------------------------------------------


@pytest.mark.parametrize("lag", [0, 1])
def test_nan_stops_with_the_state_before_it(torch_settings_of, train, tmp_path, lag):
    """Also where the next step was sent on its way before that was known."""
    settings = torch_settings_of(max_steps=5, lr=1e30)
    with pytest.raises(
        CheckError,
        match=r"step 1: the network's embedding has NaN in 18 of 18 rows, so loss term 'ce_loss' is nan; .*before step 1",
    ):
        train(settings, folder="nan", lag=lag)
    before = train(dataclasses.replace(settings, max_steps=1), folder="one step")
    with np.load(tmp_path / "nan" / STATE_FILE) as state:
        for name, array in {**before.arg, **before.aux}.items():
            kind = "aux" if name in before.aux else "arg"
            np.testing.assert_array_equal(state[f"{kind}:{name}"], array, err_msg=name)
        assert json.loads(str(state["meta"]))["step"] == 1
    assert [row["step"] for row in rows(tmp_path / "nan")] == [0]


@pytest.mark.parametrize("which", ["its term", "its value"])
def test_nan_in_a_loss_names_the_term(torch_settings_of, train, tmp_path, monkeypatch, which):
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
        train(torch_settings_of(loss="odd"))
    assert not (tmp_path / "run" / STATE_FILE).exists()


# -- devices ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["cpu", "cpu:0", "cpu:3"])
def test_the_cpu(text):
    assert parse_devices(text) == CPU


@pytest.mark.parametrize(("text", "message"), [
    ("gpu:99", r"--devices: 'gpu:99' needs gpu:99, PyTorch sees \d+ GPU\(s\); use"),
    ("cuda:99", r"--devices: 'cuda:99' needs gpu:99, PyTorch sees \d+ GPU\(s\); use"),
    ("cpu:0,1", r"--devices: expected one device, .* got 'cpu:0,1'; start torchrun --nproc_per_node=2 -m ddl_plugin\.train"),
    ("gpu:0,0", "--devices: expected distinct numbers, got 'gpu:0,0'"),
    ("tpu", "--devices: expected cpu, cpu:0,1, gpu or gpu:0,1, got 'tpu'"),
])  # fmt: skip
def test_devices_that_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse_devices(text)


def test_a_process_takes_the_gpu_of_its_number(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    for text, number in (("gpu", 1), ("gpu:2,3", 3), ("cuda:3,0", 0)):
        assert parse_devices(text) == taken[-1:] == [torch.device("cuda", number)]
    with pytest.raises(
        UserError, match="expected a GPU for each of the 2 processes that torchrun started here, got 'gpu:1'"
    ):
        parse_devices("gpu:1")
