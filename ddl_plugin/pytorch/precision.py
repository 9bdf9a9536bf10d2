"""Blocks in which torch computes in the precision of the tensors, whatever would be faster."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from ddl_plugin.pytorch.torch_setup import torch


def without_autocast(tensor: torch.Tensor) -> AbstractContextManager[None]:
    """On the device of `tensor`: what is computed keeps its dtype."""
    kind = tensor.device.type
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)


def without_tf32() -> AbstractContextManager[None]:
    """No TF32 in cuDNN, which torch allows its convolutions; matrix products have none by default."""
    return torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled, benchmark=False, deterministic=False, allow_tf32=False
    )
