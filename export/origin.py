"""What an ONNX file was made from, as the metadata that it carries. Equal inputs give equal text: no times, no paths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx

from ddl_plugin import __version__
from ddl_plugin.export.graph import Checkpoint
from ddl_plugin.files import reading, sha256
from ddl_plugin.settings import LOOKING_ONLY

_FINISHED = "done.json"  # what a finished run leaves beside its checkpoint
#: Settings of which only the last part is kept: a deployed file must not tell its maker's folders.
_PATHS = ("dataset_path", "attributes", "positive_pairs", "pretrained")


def describe(files: Checkpoint) -> dict[str, str]:
    """Names and hashes of the two files, versions, and the settings of the run where it was one of ours."""
    described = {
        "symbol": files.symbol.name,
        "symbol_sha256": sha256(files.symbol),
        "params": files.params.name,
        "params_sha256": sha256(files.params),
        "ddl_plugin": __version__,
        "onnx": onnx.__version__,
    }
    settings = _settings(files.params.parent / _FINISHED)
    if settings:
        described["settings"] = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return described


def _settings(path: Path) -> dict[str, Any]:
    """What the run was trained with; {} where there was no run of ours, be there a file of that name or not."""
    if not path.is_file():
        return {}
    try:
        with reading(path):
            settings = json.loads(path.read_bytes())["settings"].items()
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}
    return {key: _nameless(key, value) for key, value in settings if key not in LOOKING_ONLY}


def _nameless(key: str, value: Any) -> Any:
    """A path without its folders."""
    return Path(value).name if key in _PATHS and isinstance(value, str) else value
