"""What newer versions of PyTorch no longer take, and the trainer still gives."""

from __future__ import annotations

import inspect
from typing import Any

from ddl_plugin.pytorch.torch_setup import torch


def accept_verbose() -> None:
    """Let learning rate schedulers be made with `verbose`, which PyTorch 2.7 took away; it did nothing to the rate."""
    scheduler = torch.optim.lr_scheduler._LRScheduler  # the old name, which is the trainer's base class
    if "verbose" in inspect.signature(scheduler.__init__).parameters:
        return
    own = scheduler.__init__

    def init(self: Any, *arguments: Any, verbose: Any = None, **options: Any) -> None:
        own(self, *arguments[:2], **options)

    scheduler.__init__ = init
