"""Rows of all processes in each process, with the gradient that DistributedDataParallel's mean asks for."""

from __future__ import annotations

from typing import Any

from ddl_plugin.pytorch.torch_setup import torch

distributed = torch.distributed


def processes(group: Any | None = None) -> int:
    """How many processes `group` (None: all) has; 1 where no process group was initialised."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return distributed.get_world_size(group)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any | None, world: int, rank: int) -> torch.Tensor:
        ctx.world, ctx.rank, ctx.rows = world, rank, x.shape[0]
        found = x.new_empty((world * x.shape[0], *x.shape[1:]))
        distributed.all_gather_into_tensor(found, x, group=group)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        own = gradient.narrow(0, ctx.rank * ctx.rows, ctx.rows)
        return own * ctx.world, None, None, None


def gathered(x: torch.Tensor, group: Any | None = None) -> torch.Tensor:
    """The rows of all processes of `group`, in order of their ranks: (n, ...) -> (processes * n, ...).

    Every process must have the same n and compute the same loss L of what it gets. The gradient with respect to
    its own rows is then `processes` times dL/dx: DistributedDataParallel takes the mean of the processes'
    gradients of a parameter, and sum_p dL/dx_p dx_p/dw is what one process on all rows would have. It needs no
    communication.

    Without a process group, or with one process, `x` itself.
    """
    world = processes(group)
    if world == 1:
        return x
    return _Gathered.apply(x.contiguous(), group, world, distributed.get_rank(group))
