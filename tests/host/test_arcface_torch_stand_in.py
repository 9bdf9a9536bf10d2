"""The stand-in for MXNet: the records that the trainer reads, and the pictures that it decodes."""

import pickle
import subprocess
import sys

import cv2
import numpy as np
import pytest

from ddl_plugin.data.records import Records
from ddl_plugin.host.arcface_torch import mxnet_stand_in as stand_in


@pytest.fixture
def opened(small_records):
    return stand_in.MXIndexedRecordIO(str(small_records / "train.idx"), str(small_records / "train.rec"), "r")


def test_records_are_read_by_their_number(opened, small_records):
    records = Records(small_records)
    header, rest = stand_in.unpack(opened.read_idx(0))
    assert (header.flag, header.label.tolist(), rest) == (2, [73.0, 85.0], b"")
    assert opened.keys == list(range(85))
    for position in (0, 40, 71):
        header, image = stand_in.unpack(opened.read_idx(position + 1))
        assert (header.flag, header.label) == (0, records.labels[position])
        decoded = stand_in.imdecode(image).asnumpy()
        assert type(decoded) is np.ndarray
        assert np.array_equal(decoded, records.image(position))


def test_it_goes_to_another_process(opened):
    copy = pickle.loads(pickle.dumps(opened))
    assert copy.read_idx(5) == opened.read_idx(5)


def test_what_verification_does_to_an_image():
    pixels = np.random.default_rng(0).integers(0, 256, (90, 112, 3), np.uint8)
    image = stand_in.imdecode(cv2.imencode(".png", pixels[:, :, ::-1])[1].tobytes())
    assert np.array_equal(image.asnumpy(), pixels)
    assert stand_in.resize_short(image, 112).shape == (112, 139, 3)
    planes = stand_in.transpose(image, axes=(2, 0, 1))
    flipped = stand_in.flip(data=planes, axis=2).asnumpy()
    assert np.array_equal(flipped, pixels.transpose(2, 0, 1)[:, :, ::-1])
    assert min(flipped.strides) > 0  # torch.from_numpy takes no others
    with pytest.raises(ValueError, match="9 bytes that are no image"):
        stand_in.imdecode(b"not a jpg")


SCRIPT = """
import importlib.util, sys
there = importlib.util.find_spec("mxnet") is not None
if {hidden}:
    importlib.util.find_spec = lambda name, own=importlib.util.find_spec: None if name == "mxnet" else own(name)
from ddl_plugin.host.arcface_torch import mxnet_stand_in
mxnet_stand_in.provide()
provided = "mxnet" in sys.modules
assert provided == ({hidden} or not there), (provided, there)
if provided:
    import mxnet as mx
    from mxnet import ndarray as nd
    assert mx.nd is nd is mx.ndarray and mx.recordio.unpack and mx.image.imdecode and nd.array([1]).asnumpy() == [1]
"""


@pytest.mark.parametrize("hidden", [False, True])
def test_it_stands_in_only_where_there_is_no_mxnet(hidden):
    subprocess.run([sys.executable, "-c", SCRIPT.format(hidden=hidden)], check=True)


def test_it_does_what_mxnet_does(opened, small_records):
    mx = pytest.importorskip("mxnet")
    theirs = mx.recordio.MXIndexedRecordIO(
        str(small_records / "train.idx"), str(small_records / "train.rec"), "r"
    )
    assert opened.keys == list(theirs.keys)
    for key in (0, 1, 72, 84):
        assert opened.read_idx(key) == theirs.read_idx(key)
        (own, own_rest), (header, rest) = (
            stand_in.unpack(opened.read_idx(key)),
            mx.recordio.unpack(theirs.read_idx(key)),
        )
        assert own_rest == rest
        assert (own.flag, own.id, own.id2) == (header.flag, header.id, header.id2)
        assert np.array_equal(own.label, header.label)
    image = mx.recordio.unpack(theirs.read_idx(1))[1]
    decoded, wanted = stand_in.imdecode(image), mx.image.imdecode(image)
    assert np.abs(decoded.asnumpy().astype(int) - wanted.asnumpy()).max() <= 2  # two builds of libjpeg
    small, wanted = stand_in.resize_short(decoded, 60), mx.image.resize_short(wanted, 60)
    assert small.shape == wanted.shape
