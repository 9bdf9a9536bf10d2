"""`--devices cpu | cpu:0,1 | gpu | gpu:0,1` as MXNet contexts."""

from __future__ import annotations

from ddl_plugin.cli import split_devices
from ddl_plugin.errors import UserError
from ddl_plugin.mxnet_setup import mx

_MOST = 64  # devices; MXNet answers absurd numbers with an allocation failure


def parse_devices(text: str) -> list[mx.Context]:
    """Contexts in the order given. 'cpu:0,1' is two contexts on the CPU, sliced exactly as two GPUs are."""
    kind, listed = split_devices(text)
    numbers = [int(n) for n in listed.split(",")]
    if len(set(numbers)) < len(numbers):
        raise UserError(f"--devices: expected distinct numbers, got {text!r}")
    if max(numbers) >= _MOST:
        raise UserError(f"--devices: expected device numbers below {_MOST}, got {text!r}")
    if kind == "gpu":
        _require_gpus(max(numbers) + 1, text)
    return [mx.Context(kind, number) for number in numbers]


def _require_gpus(needed: int, text: str) -> None:
    there = mx.context.num_gpus() if mx.runtime.Features().is_enabled("CUDA") else 0
    if there < needed:
        remedy = (
            "use fewer, or --devices cpu" if there else "use --devices cpu, or pip install 'ddl_plugin[gpu]'"
        )
        raise UserError(f"--devices: {text!r} needs {needed} GPU(s), MXNet sees {there}; {remedy}")
