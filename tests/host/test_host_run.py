"""What a run derives from the trainer's arguments, and how its end is told."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from ddl_plugin.host.batches import EpochIterator
from ddl_plugin.host.class_parallel import _set_fc7
from ddl_plugin.host.run import Run
from ddl_plugin.mxnet_setup import mx


@pytest.fixture
def run():
    made = Run(None, None, {}, {})
    made.args = SimpleNamespace(models_root="models", network="r50", loss="ddl", dataset="vgg2")
    return made


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        ({}, "r50-ddl-vgg2"),
        ({"extra_model_name": ""}, "r50-ddl-vgg2"),
        ({"extra_model_name": "b"}, "r50-ddl-vgg2-b"),
    ],
)
def test_our_files_are_where_the_trainer_saves_its_models(run, extra, name):
    vars(run.args).update(extra)
    assert str(run.folder) == f"models/{name}"


@pytest.mark.parametrize("error", [SystemExit(0), RuntimeError("no disk left"), KeyboardInterrupt()])
def test_whatever_ends_the_trainer_ends_the_threads_and_is_told(run, error):
    ended = []
    run.batches = SimpleNamespace(close=lambda: ended.append("batches"))
    run.machines = SimpleNamespace(close=lambda why: ended.append(why))

    def train_net(args):
        raise error

    with pytest.raises(type(error)) as raised:
        run._with_ending(train_net)(run.args)
    assert raised.value is error
    assert ended == ["batches", error]


def test_a_trainer_that_returns_ends_well(run):
    ended = []
    run.machines = SimpleNamespace(close=ended.append)
    assert run._with_ending(lambda args: args)(3) == 3
    assert ended == [None]


def test_our_batches_stand_wherever_the_trainers_stood(run, monkeypatch):
    """Under whatever name; and no thread of the trainer's around them, in which an error would be lost."""
    images = ModuleType("image_iter")
    images.FaceImageIter = own = object()
    monkeypatch.setitem(sys.modules, "image_iter", images)
    monkeypatch.setattr(mx.io, "PrefetchingIter", lambda batches: ("prefetched", batches))
    run.trainer.update(Images=own, other=3)
    run._checkout = SimpleNamespace(iterator="FaceImageIter")
    run._replace_batches()
    assert images.FaceImageIter == run.trainer["Images"] == run._batches
    assert run.trainer["other"] == 3
    ours = EpochIterator(SimpleNamespace(batch_size=6, provide_data=[], provide_label=[]), 1)
    assert mx.io.PrefetchingIter(ours) is ours
    assert mx.io.PrefetchingIter("theirs") == ("prefetched", "theirs")


def test_each_device_gets_its_rows_of_the_classifier():
    """Five rows on four devices of two: the third has one more than there are, the fourth none."""
    rows = np.arange(10, dtype=np.float32).reshape(5, 2)
    weights = [mx.nd.full((2, 2), -1) for _ in range(4)]

    def part(device):
        name = f"fc7_{device}_weight"
        return SimpleNamespace(
            get_params=lambda: ({name: weights[device]}, {}),
            set_params=lambda arg, aux: weights.__setitem__(device, arg[name]),
        )

    module = SimpleNamespace(_ctx_num_classes=2, _arcface_modules=[part(device) for device in range(4)])
    _set_fc7(module, mx.nd.array(rows))
    found = np.concatenate([weight.asnumpy() for weight in weights])
    assert np.array_equal(found[:5], rows)
    assert (found[5:] == -1).all()
