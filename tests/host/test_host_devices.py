"""Which devices the trainer gets: it reads CUDA_VISIBLE_DEVICES, and on the CPU its GPUs are CPU contexts."""

import os
import sys
import types

import pytest

from ddl_plugin.errors import UserError
from ddl_plugin.host.__main__ import _choose_devices, _devices_on_cpu


@pytest.mark.parametrize(
    ("text", "before", "visible", "on_cpu"),
    [
        ("cpu", "0,1", "", True),
        ("cpu:0", None, "", True),
        ("cpu:0,1", "", "0,1", True),
        ("gpu", None, "0", False),
        ("gpu:2,3", "0", "2,3", False),
        (None, "0,1", "0,1", False),
        (None, " ", " ", True),
        (None, None, "", True),
    ],
)
def test_the_environment_says_which_devices(monkeypatch, text, before, visible, on_cpu):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # put back afterwards, whatever is set here
    if before is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = before
    assert _choose_devices(text) is on_cpu
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible


@pytest.mark.parametrize("text", ["tpu", "cpu:", "cpu:a", "gpu:0,", "0,1", ""])
def test_other_devices_are_refused(text):
    with pytest.raises(UserError, match="--devices: expected cpu, cpu:0,1, gpu or gpu:0,1, got"):
        _choose_devices(text)


def test_gpus_are_cpus_from_the_trainers_first_call_on(monkeypatch):
    mxnet = types.SimpleNamespace(cpu="cpu", gpu="gpu")
    monkeypatch.setitem(sys.modules, "mxnet", mxnet)
    wrapped = _devices_on_cpu(lambda network, *others, loss: (network, others, loss))
    assert mxnet.gpu == "gpu"
    assert wrapped("y1", "lfw", loss="arcface") == ("y1", ("lfw",), "arcface")
    assert mxnet.gpu == "cpu"
