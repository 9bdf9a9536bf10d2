import pytest

from ddl_plugin.errors import UserError
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.training.devices import parse_devices


@pytest.mark.parametrize(
    ("text", "expected"),
    [("cpu", [mx.cpu(0)]), ("cpu:0,1", [mx.cpu(0), mx.cpu(1)]), ("cpu:3,1", [mx.cpu(3), mx.cpu(1)])],
)
def test_contexts_in_the_order_given(text, expected):
    assert parse_devices(text) == expected


@pytest.mark.parametrize("text", ["", "tpu", "cpu:", "cpu:0,", "gpu:-1", "cpu 0", "gpu:0;1", "CPU"])
def test_anything_else_is_refused(text):
    with pytest.raises(UserError, match=r"--devices: expected cpu, cpu:0,1, gpu or gpu:0,1, got"):
        parse_devices(text)


def test_the_same_device_twice_is_refused():
    with pytest.raises(UserError, match="expected distinct numbers, got 'cpu:1,1'"):
        parse_devices("cpu:1,1")


@pytest.mark.parametrize(
    ("there", "text", "message"),
    [
        (0, "gpu", r"'gpu' needs 1 GPU\(s\), MXNet sees 0; use --devices cpu, or pip install"),
        (2, "gpu:0,2", r"'gpu:0,2' needs 3 GPU\(s\), MXNet sees 2; use fewer, or --devices cpu"),
    ],
)
def test_missing_gpus_are_said_with_a_remedy(monkeypatch, there, text, message):
    monkeypatch.setattr(mx.runtime.Features, "is_enabled", lambda self, name: True)
    monkeypatch.setattr(mx.context, "num_gpus", lambda: there)
    with pytest.raises(UserError, match=message):
        parse_devices(text)


def test_gpus_that_are_there_are_taken(monkeypatch):
    monkeypatch.setattr(mx.runtime.Features, "is_enabled", lambda self, name: True)
    monkeypatch.setattr(mx.context, "num_gpus", lambda: 2)
    assert parse_devices("gpu:1,0") == [mx.gpu(1), mx.gpu(0)]


def test_absurd_device_numbers_are_refused():
    with pytest.raises(UserError, match=r"--devices: expected device numbers below 64, got 'cpu:9999999999'"):
        parse_devices("cpu:9999999999")
