"""Several processes, as torchrun starts them: what they exchange beside the gradients of a step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import numpy as np

from ddl_plugin.errors import UserError
from ddl_plugin.pytorch.torch_setup import torch
from ddl_plugin.training.workers import WorkerLostError, Workers

distributed = torch.distributed

#: Worker 0 builds pairs and validates while the others wait. One that is lost is noticed otherwise: its connections
#: break, and torchrun ends the others.
_PATIENCE = timedelta(days=7)


class Processes(Workers):
    """`training.workers.Workers` over torch.distributed: gloo between CPUs, NCCL between GPUs. A context manager.

    group: a process group of all processes; None: the one that `join` has started.
    """

    kind = "processes"
    stops_together = True
    remedy = "torchrun ends the other processes"

    def __init__(self, group: Any | None = None) -> None:
        self._group = group
        self.rank: int = distributed.get_rank()
        self.workers: int = distributed.get_world_size()

    @classmethod
    def join(cls, device: torch.device) -> Processes:
        """Meet the other processes; returns when all are there."""
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        try:
            distributed.init_process_group(backend, timeout=_PATIENCE)
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"torchrun: the processes do not meet ({reason})") from error
        return cls()

    @classmethod
    def beside_a_trainer(cls) -> Processes:
        """Those that a trainer of others has joined, through a gloo group of ours: its own may be NCCL's, which takes
        no bytes in host memory and gives up on a process that waits for minutes."""
        return cls(distributed.new_group(backend="gloo", timeout=_PATIENCE))

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:  # else another process may be gone, and NCCL would wait for it
            distributed.destroy_process_group()

    # -- what is exchanged -----------------------------------------------------------------------

    def publish_bytes(self, content: bytes) -> bytes:
        with self.watched():
            size = torch.tensor([len(content)], dtype=torch.int64)
            distributed.broadcast(size, 0, group=self._group)
            if self.rank > 0:
                content = bytes(int(size))
            values = torch.from_numpy(np.frombuffer(content, np.uint8).copy())
            if len(values):
                distributed.broadcast(values, 0, group=self._group)
        return values.numpy().tobytes()

    def give(self, tensors: Iterable[torch.Tensor]) -> None:
        """Make each of `tensors` worker 0's, in place."""
        with self.watched():
            for tensor in tensors:
                distributed.broadcast(tensor, 0, group=self._group)

    def sum(self, values: torch.Tensor) -> None:
        """Make `values` the sums over all processes, in place."""
        with self.watched():
            distributed.all_reduce(values, group=self._group)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """A block that exchanges something: `WorkerLostError` where that fails."""
        try:
            yield
        except RuntimeError as error:
            if not _of_a_connection(error):
                raise
            reason = " ".join(str(error).split())
            raise WorkerLostError(f"another process was lost ({reason[:200]})") from error


def _of_a_connection(error: RuntimeError) -> bool:
    """gloo's errors have no class of their own."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error) or "Connection" in str(error)
