"""What ONNX Runtime runs on here, and the installation in which its CUDA build has been overwritten."""

from __future__ import annotations

import functools
import sys
from importlib import metadata
from typing import Any

import onnxruntime as ort

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
# TF32 keeps 10 bits of the mantissa: enough to move unit embeddings by 1e-3.
_WANTED: dict[str, dict[str, str]] = {CUDA: {"use_tf32": "0"}, CPU: {}}


def wanted() -> list[tuple[str, dict[str, str]]]:
    """CUDA, where this build of ONNX Runtime has it, then the CPU, with their settings."""
    available = ort.get_available_providers()
    return [(name, settings) for name, settings in _WANTED.items() if name in available]


def describe(session: ort.InferenceSession) -> dict[str, Any]:
    """What a report says: the provider in use, and a note where CUDA could have been expected."""
    used = session.get_providers()[0]
    found = {"onnxruntime": used, "onnxruntime_version": ort.__version__}
    note = overwritten()
    if note is None and used == CPU and CUDA in ort.get_available_providers():
        note = "ONNX Runtime has CUDA but could not start it (its own message stands above); the CPU was used"
    return found if note is None else {**found, "note": note}


def overwritten() -> str | None:
    """How to mend an installation of both onnxruntime and onnxruntime-gpu in which the CPU build won, else None.

    Both are the same folder `onnxruntime`: the one installed last overwrites the other.
    """
    if CUDA in ort.get_available_providers():
        return None
    try:
        metadata.version("onnxruntime")
        version = metadata.version("onnxruntime-gpu")
    except metadata.PackageNotFoundError:
        return None
    return (
        f"onnxruntime and onnxruntime-gpu are both installed and the CPU build has overwritten the other: "
        f"pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu=={version}"
    )


@functools.cache
def warn_once() -> None:
    """Say on stderr, once a process, that the CUDA build has been overwritten."""
    note = overwritten()
    if note is not None:
        print(f"warning: {note}", file=sys.stderr)
