"""What the trainer's processes tell each other about the data, beside what they train."""

from __future__ import annotations

from datetime import timedelta

from ddl_plugin.pytorch.processes import Processes
from ddl_plugin.pytorch.torch_setup import torch

distributed = torch.distributed

#: Building pairs of millions of images takes hours, in which the others wait.
_PATIENCE = timedelta(days=7)


class Ranks(Processes):
    """The processes of the trainer's own group, through a gloo group of ours: NCCL has nothing to do with bytes, and
    gives up on a process that waits for minutes."""

    def __init__(self) -> None:
        super().__init__()
        self._group = distributed.new_group(backend="gloo", timeout=_PATIENCE)

    def publish_bytes(self, content: bytes) -> bytes:
        """Rank 0's `content`; what the others give is not looked at."""
        with self.watched():
            size = torch.tensor([len(content)])
            distributed.broadcast(size, 0, group=self._group)
            received = bytearray(content) if self.rank == 0 else bytearray(size.item())
            if received:
                distributed.broadcast(torch.frombuffer(received, dtype=torch.uint8), 0, group=self._group)
        return bytes(received)
