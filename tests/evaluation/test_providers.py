from importlib import metadata

import pytest

from ddl_plugin.evaluation import providers

CPU_ONLY, WITH_CUDA = ["CPUExecutionProvider"], ["CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.fixture
def installed(monkeypatch):
    """installed(available, {distribution: version}) pretends that ONNX Runtime was installed so."""

    def pretend(available, versions):
        def version(name):
            if name not in versions:
                raise metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(providers.metadata, "version", version)
        monkeypatch.setattr(providers.ort, "get_available_providers", lambda: list(available))

    return pretend


class Session:
    def __init__(self, used):
        self.used = used

    def get_providers(self):
        return self.used


def test_cuda_comes_first_without_tf32(installed):
    installed(["AzureExecutionProvider", *WITH_CUDA], {})
    assert providers.wanted() == [("CUDAExecutionProvider", {"use_tf32": "0"}), ("CPUExecutionProvider", {})]
    installed(CPU_ONLY, {})
    assert providers.wanted() == [("CPUExecutionProvider", {})]


BOTH = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.30.0"}


def test_the_overwritten_cuda_build_is_told_with_its_remedy(installed):
    installed(CPU_ONLY, BOTH)
    remedy = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu==1.30.0"
    assert providers.overwritten().endswith(remedy)
    assert "\n" not in providers.overwritten()
    assert remedy in providers.describe(Session(CPU_ONLY))["note"]


@pytest.mark.parametrize(
    ("available", "versions"),
    [
        (WITH_CUDA, BOTH),
        (CPU_ONLY, {"onnxruntime": "1"}),
        (WITH_CUDA, {"onnxruntime-gpu": "1"}),
        (CPU_ONLY, {}),
    ],
)
def test_right_installations_need_no_word(installed, available, versions):
    installed(available, versions)
    assert providers.overwritten() is None
    assert "note" not in providers.describe(Session(available))


def test_cuda_that_could_not_start_is_told(installed):
    installed(WITH_CUDA, {"onnxruntime-gpu": "1"})
    found = providers.describe(Session(CPU_ONLY))
    assert found["onnxruntime"] == "CPUExecutionProvider"
    assert "could not start" in found["note"]


def test_the_warning_comes_once(installed, capsys):
    installed(CPU_ONLY, BOTH)
    providers.warn_once.cache_clear()
    providers.warn_once()
    providers.warn_once()
    assert capsys.readouterr().err.count("warning: ") == 1
    providers.warn_once.cache_clear()
