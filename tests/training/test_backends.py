"""Which backend is chosen, and what is said where its framework is not there."""

import importlib
import sys
from importlib.machinery import BuiltinImporter, ModuleSpec

import pytest

from ddl_plugin.errors import UserError
from ddl_plugin.host.arcface_torch import mxnet_stand_in
from ddl_plugin.training import backends
from ddl_plugin.training.backends import get_backend


def only(monkeypatch, installed):
    """As if these packages alone were installed."""
    specs = {name: ModuleSpec(name, BuiltinImporter) for name in installed}
    monkeypatch.setattr(importlib.util, "find_spec", specs.get)


@pytest.mark.parametrize(("name", "other"), [("mxnet", "torch"), ("torch", "mxnet")])
def test_the_other_backend_is_named_where_it_is_installed(monkeypatch, name, other):
    def absent(module):
        raise UserError("It is not installed; pip install it")

    monkeypatch.setattr(importlib, "import_module", absent)
    only(monkeypatch, {other})
    with pytest.raises(
        UserError, match=rf"^It is not installed; pip install it; or train with --backend {other}, which"
    ):
        get_backend(name)
    only(monkeypatch, set())
    with pytest.raises(UserError, match=r"^It is not installed; pip install it$"):
        get_backend(name)


def test_an_unknown_backend():
    with pytest.raises(UserError, match="backend: expected one of mxnet, torch, got 'jax'"):
        get_backend("jax")


@pytest.mark.parametrize(
    ("checkpoint", "installed", "chosen"),
    [
        ("model,0", {"mxnet", "torch"}, "mxnet"),
        ("model,0", {"mxnet"}, "mxnet"),
        ("model,0", {"torch"}, "torch"),
        ("model,0", set(), "mxnet"),
        ("backbone.pth", {"mxnet", "torch"}, "torch"),
        ("backbone.pth", {"mxnet"}, "torch"),
    ],
)
def test_the_host_that_reads_a_checkpoint(monkeypatch, checkpoint, installed, chosen):
    only(monkeypatch, installed)
    monkeypatch.setattr(backends, "get_backend", lambda name: name)
    assert backends.backend_of(checkpoint) == chosen


def test_what_stands_in_for_mxnet_is_not_mxnet(monkeypatch):
    """In a process of PyTorch's host, which needs MXNet to read records alone."""
    monkeypatch.setitem(sys.modules, "mxnet", mxnet_stand_in._modules()[0])
    if importlib.util.find_spec("torch") is None:
        monkeypatch.setitem(sys.modules, "torch", importlib)  # any module that is really there
    monkeypatch.setattr(backends, "get_backend", lambda name: name)
    assert backends.backend_of("model,0") == "torch"


def test_the_parts_that_both_share_know_neither(tmp_path):
    """In a process of its own, in which both are missing."""
    import subprocess

    code = (
        "import sys\n"
        "sys.modules['mxnet'] = sys.modules['torch'] = None\n"
        "import ddl_plugin.training.job, ddl_plugin.training.trainer, ddl_plugin.train, ddl_plugin.experiment.runner\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
