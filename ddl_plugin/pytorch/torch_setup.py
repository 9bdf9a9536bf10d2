"""What must hold before `import torch`; all other modules get PyTorch from here.

from ddl_plugin.pytorch.torch_setup import torch
"""

from __future__ import annotations

from ddl_plugin.errors import UserError

_PIP_LINE = "pip install 'ddl_plugin[torch]'"

#: The first whose fused SGD runs on the CPU; works with NumPy 1 and 2.
_OLDEST = (2, 4)


def _import_torch():
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise UserError(f"PyTorch cannot be imported ({error}); {_PIP_LINE}") from error
        raise UserError(f"PyTorch is not installed; {_PIP_LINE}") from error
    except (ImportError, OSError, AttributeError) as error:  # no CUDA library, another NumPy
        raise UserError(f"PyTorch cannot be imported ({error}); {_PIP_LINE}") from error
    version = str(getattr(torch, "__version__", "a module without a version"))
    try:
        number = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    except ValueError:
        number = ()
    if number < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise UserError(f"PyTorch {oldest} or later is needed, got {version}; {_PIP_LINE}")
    return torch


torch = _import_torch()
