"""`--devices cpu | gpu | gpu:1` as the one device of this process."""

from __future__ import annotations

import os

from ddl_plugin.cli import split_devices
from ddl_plugin.errors import UserError
from ddl_plugin.pytorch.torch_setup import torch


def parse_devices(text: str) -> list[torch.device]:
    """The device that this process trains on, in a list; 'cuda' is another word for 'gpu'.

    A process that torchrun started takes the device of its number on this machine: of those listed, or else gpu:0,
    gpu:1 and so on. `UserError` where it is not there, and where one process is given several.
    """
    kind, _ = split_devices(text.replace("cuda", "gpu", 1) if text.startswith("cuda") else text)
    listed = [int(number) for number in text.partition(":")[2].split(",") if number]
    if len(set(listed)) < len(listed):
        raise UserError(f"--devices: expected distinct numbers, got {text!r}")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if len(listed) > 1 and here == 1:
        raise UserError(
            f"--devices: expected one device, which is what a process of PyTorch trains on, got {text!r}; start "
            f"torchrun --nproc_per_node={len(listed)} -m ddl_plugin.train ... --backend torch --devices {text}"
        )
    if kind == "cpu":
        return [torch.device("cpu")]
    number = _own(listed, text, here)
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if number >= there:
        remedy = "use another" if there else "use --devices cpu, or a PyTorch that was built for CUDA"
        raise UserError(f"--devices: {text!r} needs gpu:{number}, PyTorch sees {there} GPU(s); {remedy}")
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return [device]


def _own(listed: list[int], text: str, here: int) -> int:
    """The GPU of this process, one of `here` on this machine."""
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    if not listed:
        return rank
    if len(listed) != here:
        raise UserError(
            f"--devices: expected a GPU for each of the {here} processes that torchrun started here, got {text!r}"
        )
    return listed[rank]
