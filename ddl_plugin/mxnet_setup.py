"""Everything that must hold before `import mxnet`; all other modules get MXNet from here.

from ddl_plugin.mxnet_setup import mx
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from ddl_plugin.errors import UserError

_PIP_LINE = "pip install 'mxnet==1.9.1' 'numpy>=1.23.5,<1.24'"

#: Set only where the user has not set them.
_ENVIRONMENT = {
    # The default oneDNN subgraph backend crashes on the second forward of an inference bind of
    # MobileFaceNet ("We can't generate TBlob for MKLDNN data"). The backend called "default" joins no
    # operators, as "NONE" does, but without a line on stderr at every bind.
    "MXNET_SUBGRAPH_BACKEND": "default",
    "MXNET_SUBGRAPH_VERBOSE": "0",
    # One line per storage fallback of a sparse operator that nobody here uses.
    "MXNET_STORAGE_FALLBACK_LOG_VERBOSE": "0",
}

#: Aliases that NumPy 1.24 removed and mxnet 1.9.1 uses at import.
_NUMPY_ALIASES = {"bool": bool, "object": object, "int": int, "float": float}


_SMT = Path("/sys/devices/system/cpu/smt/active")  # '1' where a core runs two threads


def _use_every_core() -> None:
    """MXNet takes half of the processors, as if each core ran two threads; give it all where none does."""
    if "OMP_NUM_THREADS" in os.environ or not _SMT.is_file() or _SMT.read_text().strip() != "0":
        return
    os.environ.setdefault("MXNET_OMP_MAX_THREADS", str(len(os.sched_getaffinity(0))))


def _import_mxnet():
    _use_every_core()
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name, value in _NUMPY_ALIASES.items():
        if name not in np.__dict__:
            setattr(np, name, value)
    try:
        import mxnet
    except (ImportError, OSError, AttributeError) as error:  # also: no CUDA library, another NumPy
        raise UserError(f"MXNet cannot be imported ({error}): {_PIP_LINE}") from error
    version = getattr(mxnet, "__version__", "a module without a version")
    if not version.startswith("1.9."):
        raise UserError(f"MXNet 1.9.1 is needed, got {version}: {_PIP_LINE}")
    return mxnet


mx = _import_mxnet()

#: A symbol of MXNet 1.0.0 (as its JSON counts versions) or later has nothing to upgrade.
_SAME_FORMAT, _PRESENT = 10000, 10901


def symbol_from_json(text: str) -> mx.sym.Symbol:
    """`mx.sym.load_json`, without its two lines on stderr for every symbol of an older MXNet 1."""
    content = json.loads(text)
    attributes = content.get("attrs", {})
    if _SAME_FORMAT <= attributes.get("mxnet_version", ["int", 0])[1] < _PRESENT:
        content["attrs"] = {**attributes, "mxnet_version": ["int", _PRESENT]}
    return mx.sym.load_json(json.dumps(content))
