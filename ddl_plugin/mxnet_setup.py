"""Everything that must hold before `import mxnet`; all other modules get MXNet from here.

from ddl_plugin.mxnet_setup import mx
"""

from __future__ import annotations

import ctypes
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


#: glibc's mallopt: (parameter, value). Arrays up to 32 MiB stay with the process when they are freed:
#: by default glibc gives them back to the kernel at once, and every step faults them in again.
_MALLOPT = (
    (-3, 32 << 20),  # M_MMAP_THRESHOLD, at its largest
    (-1, (1 << 31) - 1),  # M_TRIM_THRESHOLD
    (-2, 64 << 20),  # M_TOP_PAD
)


_SMT = Path("/sys/devices/system/cpu/smt/active")  # '1' where a core runs two threads


def _use_every_core() -> None:
    """MXNet takes half of the processors, as if each core ran two threads; give it all where none does."""
    if "OMP_NUM_THREADS" in os.environ or not _SMT.is_file() or _SMT.read_text().strip() != "0":
        return
    os.environ.setdefault("MXNET_OMP_MAX_THREADS", str(len(os.sched_getaffinity(0))))


def _keep_freed_memory() -> None:
    """Set _MALLOPT where the C library is glibc and the user has not tuned its malloc."""
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in _MALLOPT:
            mallopt(parameter, value)


def _import_mxnet():
    _keep_freed_memory()
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
