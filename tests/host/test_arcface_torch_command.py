"""The command on a PyTorch trainer nobody edited: its gradient, its log, its checkpoints, what is refused."""

import dataclasses
import re
import shutil
import sys

import pytest

torch = pytest.importorskip("torch")

import arcface_torch_runs as runs  # noqa: E402
from torch.nn.functional import cross_entropy, linear, normalize, one_hot  # noqa: E402

from ddl_plugin.host.__main__ import main  # noqa: E402
from ddl_plugin.host.arcface_torch import mxnet_stand_in  # noqa: E402
from ddl_plugin.pytorch.loss import DDLLoss  # noqa: E402
from ddl_plugin.settings import DDLSettings  # noqa: E402

DDL = {"hard": [{"darken": (0.2, 0.5)}], "b": 3, "gamma": 20.0, "lambda_pos": 0.3, "lambda_neg": 0.2}
NO_WEIGHT = {**DDL, "lambda_pos": 0.0, "lambda_neg": 0.0, "lambda_order": 0.0}
TERMS = ("identity", "ddl", "kl_pos", "kl_neg", "order", "margin_easy", "margin_hard")


@pytest.fixture
def folder(tmp_path):
    return runs.checkout(tmp_path)


def good(done):
    assert done.returncode == 0, done.stderr
    return done


def output(folder, name, file):
    return torch.load(folder.parent / "work_dirs" / name / file)


def network():
    nn = torch.nn
    return nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(147, 32), nn.Tanh(), nn.Linear(32, 16))


# -- the gradient ------------------------------------------------------------------------------------------


def in_one_process(folder, name, scope):
    """{parameter: gradient} of (identity loss + DDL) over both processes' first batches, by plain autograd."""
    (one, labels), (other, more) = (output(folder, name, f"batches_{rank}.pt")[0] for rank in (0, 1))
    model = network().double()
    model.load_state_dict(output(folder, name, "first_0.pt"))
    heads = [output(folder, name, f"first_head_{rank}.pt")["weight"] for rank in (0, 1)]
    embedding = model(torch.cat([one, other]).double())
    cosines = linear(normalize(embedding), normalize(torch.cat(heads).double()))
    labels = torch.cat([labels, more])
    identity = cross_entropy(16 * (cosines - 0.4 * one_hot(labels, 12)), labels)
    settings = DDLSettings(**DDL)
    if scope == "global":
        # A device has, of each distribution, first images, second images and singles, b of each.
        parts = embedding.reshape(2, 6, 3, 16).transpose(0, 1).reshape(36, 16)
        ddl = DDLLoss(dataclasses.replace(settings, b=6))(parts)[0]
    else:
        ddl = sum(DDLLoss(settings)(block)[0] for block in embedding.chunk(2)) / 2
    names, parameters = zip(*model.named_parameters(), strict=True)
    of_identity = torch.autograd.grad(identity, parameters, retain_graph=True)
    of_ddl = torch.autograd.grad(ddl, parameters)
    for one, other in zip(of_identity, of_ddl, strict=True):
        assert other.norm() > 0.02 * one.norm()  # another factor would be seen
    wanted = [one + other for one, other in zip(of_identity, of_ddl, strict=True)]
    return dict(zip(names, wanted, strict=True)), identity.item(), ddl.item()


@pytest.mark.parametrize("scope", ["device", "global"])
def test_two_processes_have_the_gradient_of_one(folder, small_records, scope):
    """PartialFC multiplies the gradient of gathered embeddings by the number of processes, DDP divides by it: with
    a factor of their number, or its inverse, at the loss, this would be wrong by far."""
    keys = {"rec": str(small_records), "loss": "ddl", "ddl": {**DDL, "scope": scope}, "num_epoch": 1}
    runs.write_config(folder, scope, **keys, keep_batches=True)
    log = good(runs.run(folder, scope, command=runs.TWO)).stdout
    wanted, identity, ddl = in_one_process(folder, scope, scope)
    for rank in (0, 1):
        gradients = output(folder, scope, f"gradients_{rank}.pt")
        assert gradients.keys() == wanted.keys()
        for name, gradient in gradients.items():
            largest = wanted[name].abs().max()
            assert largest > 1e-3
            assert torch.allclose(gradient.double(), wanted[name], rtol=1e-4, atol=1e-5 * float(largest)), (
                name
            )
    # What the log shows are means over the processes.
    assert runs.shown(log, "identity")[0] == pytest.approx(identity, abs=2e-5)
    assert runs.shown(log, "ddl")[0] == pytest.approx(ddl, abs=2e-5)
    first, second = (output(folder, scope, f"batches_{rank}.pt")[0][0] for rank in (0, 1))
    assert not torch.equal(first, second)  # each has its own blocks


# -- a run -------------------------------------------------------------------------------------------------


def test_without_weight_the_losses_are_the_trainers_own(folder, small_records):
    """On the same batches, to the bit, and so are the weights; nor does any other loss change anything."""
    keys = {"rec": str(small_records), "loss": "ddl", "ddl": NO_WEIGHT}
    runs.write_config(folder, "weightless", **keys, keep_batches=True)
    log = good(runs.run(folder, "weightless")).stdout
    kept = folder.parent / "work_dirs" / "weightless" / "batches_0.pt"
    runs.write_config(folder, "alone", rec=str(kept), loss="arcface", ddl=DDL)
    other = good(runs.run(folder, "alone"))
    assert len(runs.losses(folder, "alone")) == 8
    assert runs.losses(folder, "weightless") == runs.losses(folder, "alone")
    assert runs.shown(other.stdout, "ddl") == []
    assert "alone.py: config.ddl without config.loss = 'ddl': the trainer's own loss alone" in other.stderr
    assert runs.shown(log, "ddl") == [0.0] * 8
    one, two = (output(folder, name, "model.pt") for name in ("weightless", "alone"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)

    batches = torch.load(kept)
    assert all(image.dtype == torch.float32 and image.shape == (18, 3, 112, 112) for image, _ in batches)
    assert all(image.min() >= -1 and image.max() <= 1 for image, _ in batches)
    for _, labels in batches:
        first, second, singles = labels.reshape(2, 3, 3).unbind(1)
        assert torch.equal(first, second)  # positive pairs
        assert all(len(set(row.tolist())) == 3 for row in singles)


def test_a_run_from_a_base_model_and_its_resumption(folder, small_records, tmp_path):
    torch.manual_seed(3)
    torch.save(network().state_dict(), tmp_path / "base.pt")
    keys = {
        "rec": str(small_records), "loss": "ddl", "ddl": DDL, "pretrained": str(tmp_path / "base.pt"), "dali": True, "fp16": True,
        "num_workers": 1, "batch_size": 18,
    }  # fmt: skip
    runs.write_config(folder, "whole", **keys)
    whole = good(runs.run(folder, "whole"))
    # As if it had ended after the first of its two epochs.
    runs.write_config(folder, "rest", **keys, resume=True)
    done, begun = (folder.parent / "work_dirs" / name for name in ("whole", "rest"))
    begun.mkdir()
    shutil.copy(done / "pairs.npz", begun)
    shutil.copy(done / "epoch_1_0.pt", begun / "checkpoint_gpu_0.pt")
    rest = good(runs.run(folder, "rest"))
    assert len(runs.losses(folder, "whole")) == 8
    assert runs.losses(folder, "rest") == pytest.approx(runs.losses(folder, "whole")[4:], abs=1e-6)
    assert "positive pairs: building" in whole.stderr
    assert "positive pairs: building" not in rest.stderr  # pairs.npz is there
    assert "classifier starts from the mean embedding" in whole.stderr
    assert "classifier starts" not in rest.stderr

    first = output(folder, "whole", "first_0.pt")
    assert all(torch.equal(first[name], array) for name, array in torch.load(tmp_path / "base.pt").items())
    head = output(folder, "whole", "first_head_0.pt")
    assert list(head) == ["weight"]  # a checkpoint is the trainer's own
    assert torch.allclose(head["weight"].norm(dim=1), torch.ones(12))
    for name in TERMS:
        assert len(runs.shown(whole.stdout, name)) == 8, name
    scalars = (folder.parent / "work_dirs" / "whole" / "scalars.txt").read_text()
    for name in (*TERMS, "mean_pos_easy", "intersection_hard"):
        assert scalars.count(f"ddl/{name} ") == 8, name
    assert len(re.findall(r"Loss \d", whole.stdout)) == 8  # the trainer's own line
    for identity, ddl, loss in zip(
        runs.shown(whole.stdout, "identity"),
        runs.shown(whole.stdout, "ddl"),
        runs.losses(folder, "whole"),
        strict=True,
    ):
        assert identity + ddl == pytest.approx(loss, abs=1e-5)


# -- mistakes ----------------------------------------------------------------------------------------------


@pytest.fixture
def refused(folder, monkeypatch, capsys):
    """refused(config's keys, *ours): the one line of a command that ends before the trainer is run."""

    def run(keys, *ours, its=("configs/other.py",)):
        runs.write_config(folder, "other", **keys)
        known = set(sys.modules)
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setattr(mxnet_stand_in, "provide", lambda: None)  # it would stay
        assert main([str(folder), *ours, "--", *its]) == 2
        for name in set(sys.modules) - known:
            if name.split(".")[0] in ("utils", "configs"):
                del sys.modules[name]
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        return lines[0]

    return run


def test_mistakes_are_one_line_with_the_file(refused, folder, small_records):
    usual = {"rec": str(small_records), "loss": "ddl", "ddl": DDL}
    where = f"error: {folder / 'configs' / 'other.py'}: config"
    for keys, message in (
        ({"loss": "dll"}, ".loss: expected one of"),
        ({"batch_size": 20}, ".batch_size: expected 3b(K+1) = 18 for b = 3, K = 1, got 20"),
        ({"ddl": {**DDL, "gama": 1}}, ".ddl: unknown key 'gama'; did you mean 'gamma'?"),
        ({"attributes": "yaw.npz"}, ".attributes: expected a file"),
        ({"rec": "nowhere"}, ".rec: expected a folder with train.rec"),
    ):
        assert refused({**usual, **keys}).startswith(where + message)
    assert refused(usual, its=()).startswith("error: host: expected the trainer's config, got none")
    assert "no config/other.py" not in refused(usual, its=("configs/othr.py",))


def test_a_config_that_cannot_be_read_is_one_line(refused, folder):
    (folder / "configs" / "broken.py").write_text("config = nothing\n")
    line = refused({}, its=("configs/broken.py",))
    assert line.endswith("broken.py, line 1: NameError: name 'nothing' is not defined")


def test_without_a_gpu_a_trainer_over_nccl_is_refused(refused, folder, monkeypatch):
    path = folder / "train_v2.py"
    path.write_text(path.read_text().replace('"gloo"', '"nccl"'))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    line = refused({"loss": "ddl"})
    assert "trains on GPUs, its processes joined by NCCL: expected one at least" in line


def test_what_only_the_records_tell_ends_the_run_in_one_line(folder, small_records):
    runs.write_config(folder, "few", rec=str(small_records), loss="ddl", ddl=DDL, num_classes=11)
    done = runs.run(folder, "few")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "error: config.num_classes: expected 12 at least, the identities in " in done.stderr
