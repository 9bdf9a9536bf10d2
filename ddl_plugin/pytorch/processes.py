"""Several processes, as torchrun starts them: what they exchange beside the gradients of a step."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import numpy as np

from ddl_plugin.errors import UserError
from ddl_plugin.pytorch.torch_setup import torch
from ddl_plugin.training.workers import WorkerLostError

distributed = torch.distributed

#: Worker 0 builds pairs and validates while the others wait. One that is lost is noticed otherwise: its connections
#: break, and torchrun ends the others.
_PATIENCE = timedelta(days=7)


class Processes:
    """`training.workers.Workers` over torch.distributed: gloo between CPUs, NCCL between GPUs. A context manager."""

    kind = "processes"
    stops_together = True
    remedy = "torchrun ends the other processes"

    def __init__(self) -> None:
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

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:  # else another process may be gone, and NCCL would wait for it
            distributed.destroy_process_group()

    # -- what is exchanged -----------------------------------------------------------------------

    def publish(self, value: Any) -> Any:
        """Worker 0's `value`, made of what JSON has; what the others give is not looked at."""
        return json.loads(self.publish_bytes(json.dumps(value).encode()))

    def publish_bytes(self, content: bytes) -> bytes:
        """Worker 0's `content`; what the others give is not looked at."""
        with self.watched():
            size = torch.tensor([len(content)], dtype=torch.int64)
            distributed.broadcast(size, 0)
            if self.rank > 0:
                content = bytes(int(size))
            values = torch.from_numpy(np.frombuffer(content, np.uint8).copy())
            if len(values):
                distributed.broadcast(values, 0)
        return values.numpy().tobytes()

    def require_same(self, own: Mapping[str, Any]) -> None:
        """`UserError` in a worker for whom something is not as for worker 0; values are what JSON has."""
        theirs = self.publish(own)
        for key, value in json.loads(json.dumps(own)).items():
            if theirs.get(key) != value:
                raise UserError(
                    f"{key}: expected {theirs.get(key)!r} as worker 0 has, got {value!r} in worker {self.rank}; "
                    f"start all processes with the same recipe and data"
                )

    @contextlib.contextmanager
    def worker_0_first(self) -> Iterator[None]:
        """A block that worker 0 leaves before the others enter it."""
        if self.rank > 0:
            self.publish(None)
        yield
        if self.rank == 0:
            self.publish(None)

    def sum(self, values: torch.Tensor) -> None:
        """Make `values` the sums over all processes, in place."""
        with self.watched():
            distributed.all_reduce(values)

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
