"""Fixtures that several packages' tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

_HERE = Path(__file__).resolve().parent
_LOOKED_AT = (os.environ.get("DDL_PLUGIN_TEST_DATA"), _HERE.parents[1] / "shared" / "data")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A folder with lfw112_dev/ (LFW in RecordIO), y1_ms1m/ (InsightFace's MobileFaceNet), pose_fsanet/."""
    for folder in filter(None, _LOOKED_AT):
        if (Path(folder) / "lfw112_dev" / "train.rec").is_file():
            return Path(folder)
    pytest.skip("real data not there: set DDL_PLUGIN_TEST_DATA to a folder with lfw112_dev/ and y1_ms1m/")


@pytest.fixture
def unreadable(monkeypatch) -> Callable[[Path], AbstractContextManager[None]]:
    """unreadable(path): a block in which this file may not be opened; root could open any."""
    usual = Path.open

    @contextmanager
    def block(path: Path) -> Iterator[None]:
        def refuse(self, *arguments, **options):
            if self == path:
                raise PermissionError(13, "Permission denied", str(path))
            return usual(self, *arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", refuse)
            yield

    return block


@pytest.fixture(scope="session")
def save_pooling_model() -> Callable[[Path, float], None]:
    """save(path, bias): an ONNX network without weights: (pixels - bias) / 128, 8x8 means, flattened."""

    def save(path: Path, bias: float) -> None:
        nodes = [
            helper.make_node("Sub", ["data", "mean"], ["centred"], name="Sub0"),
            helper.make_node("Mul", ["centred", "scale"], ["scaled"], name="Mul0"),
            helper.make_node("AveragePool", ["scaled"], ["pooled"], kernel_shape=[8, 8], strides=[8, 8]),
            helper.make_node("Flatten", ["pooled"], ["fc1"]),
        ]
        constants = [
            helper.make_tensor("mean", TensorProto.FLOAT, [1], [bias]),
            helper.make_tensor("scale", TensorProto.FLOAT, [1], [1 / 128]),
        ]
        data = helper.make_tensor_value_info("data", TensorProto.FLOAT, ["N", 3, 112, 112])
        output = helper.make_tensor_value_info("fc1", TensorProto.FLOAT, ["N", 588])
        graph = helper.make_graph(nodes, "fake", [data], [output], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.save(model, str(path))

    return save
