"""The trainer's batches, drawn by our sampler: what it asks of its own dataloader, in epochs as it counts them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ddl_plugin.pytorch.torch_setup import torch


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """Images as the trainer's dataset.py gives them: uint8 (n, 112, 112, 3) -> float32 (n, 3, 112, 112) in [-1, 1]."""
    planes = pixels.permute(0, 3, 1, 2).contiguous()
    return planes.to(torch.float32).div_(255).sub_(0.5).div_(0.5)


class Epochs:
    """Endless batches cut into epochs: each iteration goes on where the one before has ended.

    begin(): an iterator over (pixels uint8 (n, 112, 112, 3), labels (n,)), called when the first batch is asked for.
    steps: batches of an epoch. device: where images and labels are to be.
    """

    def __init__(self, begin: Callable[[], Iterator], steps: int, device: torch.device):
        self._begin = begin
        self._batches: Iterator | None = None
        self._steps = steps
        self._device = device

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if self._batches is None:
            self._batches = self._begin()
        for _ in range(self._steps):
            pixels, labels = next(self._batches)
            # As bytes: a quarter of what the trainer's own loader copies.
            pixels = pixels.to(self._device, non_blocking=True)
            yield normalised(pixels), labels.to(self._device, torch.int64, non_blocking=True)

    def reset(self) -> None:
        """What the trainer asks of a DALI iterator after each epoch."""
