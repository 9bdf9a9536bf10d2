"""Fixtures that several packages' tests share, and what is skipped where a framework is not installed."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

# Before anything brings NumPy: networks of these sizes gain nothing from a second thread, and the processes
# that tests start, and the two that `-n 2` makes, would wait for each other's.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

_HERE = Path(__file__).resolve().parent

_FRAMEWORKS = {"mxnet": "MXNet", "torch": "PyTorch"}
#: Those that are not installed; one that is there and broken is not among them, and fails.
_ABSENT = {module: name for module, name in _FRAMEWORKS.items() if importlib.util.find_spec(module) is None}
_LOOKED_AT = (os.environ.get("DDL_PLUGIN_TEST_DATA"), _HERE.parents[1] / "shared" / "data")


# -- frameworks ---------------------------------------------------------------------------------------------


def _missing_framework(error: BaseException | None) -> str | None:
    """The absent framework whose import is what `error` was raised from; None for any other error."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name in _ABSENT:
            return _ABSENT[error.name]
        error = error.__cause__
    return None


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    """A test file whose imports need a framework that is not installed is skipped, and says so."""
    report = yield
    call = getattr(report, "call", None)
    if (
        report.failed
        and isinstance(collector, pytest.Module)
        and call is not None
        and call.excinfo is not None
    ):
        name = _missing_framework(call.excinfo.value)
        if name is not None:
            report.outcome = "skipped"
            report.longrepr = (str(collector.path), 1, f"Skipped: needs {name}, which is not installed")
            # What pytest would stop at with --pdb.
            del report.call
    return report


@pytest.fixture(scope="session")
def needs_mxnet() -> None:
    """For a test or a fixture that imports MXNet when it runs, or starts a command that does."""
    if "mxnet" in _ABSENT:
        pytest.skip("needs MXNet, which is not installed")


@pytest.fixture(scope="session")
def mx(needs_mxnet):
    """MXNet, for one test of a file whose others need none."""
    from ddl_plugin.mxnet_setup import mx

    return mx


@pytest.fixture(scope="session")
def backend() -> str:
    """What trains in the tests where either would do."""
    if len(_ABSENT) == len(_FRAMEWORKS):
        pytest.skip("needs MXNet or PyTorch, and neither is installed")
    return "torch" if "mxnet" in _ABSENT else "mxnet"


@pytest.fixture(scope="session")
def save_new_model(backend) -> Callable[[Path, int], str]:
    """save(prefix, epoch): the network 'tiny' with an embedding of 16 and random weights; 'PREFIX,EPOCH'."""
    from ddl_plugin.training.backends import get_backend

    def save(prefix: Path, epoch: int = 0) -> str:
        writer = get_backend(backend)
        writer.save_backbone(prefix, epoch, writer.new_backbone("tiny", 16, seed=1))
        return f"{prefix},{epoch}"

    return save


# -- data and models ----------------------------------------------------------------------------------------


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
    import onnx
    from onnx import TensorProto, helper

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
