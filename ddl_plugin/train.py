"""`python -m ddl_plugin.train RECIPE.py`: fine-tune as the recipe says, export, check, report."""

from __future__ import annotations

import contextlib
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from ddl_plugin.cli import Parser, run, uninterrupted
from ddl_plugin.errors import UserError
from ddl_plugin.settings import BACKENDS, RunSettings
from ddl_plugin.training.roles import (
    KVSTORES,
    SEVERAL_MACHINES,
    launched_processes,
    require_environment,
    serve_if_not_worker,
)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m ddl_plugin.train",
        description="Fine-tune a face recognition model as a recipe says, export it to ONNX and report.",
    )
    parser.add_argument("recipe", help="a recipe file, or the name of a shipped one such as 'demo'")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="change a key of the recipe; dots nest: ddl.lambda_order=0.4",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: runs/<name of the recipe>")
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        help="what trains, the same as backend=... (default: the recipe's, or mxnet)",
    )
    parser.add_argument("--devices", default="cpu", help="cpu, cpu:0,1, gpu or gpu:0,1 (default: cpu)")
    parser.add_argument(
        "--kvstore",
        choices=KVSTORES,
        help="of MXNet, where gradients are summed: local, device (default: on the GPUs, if any), or with other machines: "
        "dist_sync, dist_device_sync (docs/MACHINES.md)",
    )
    parser.add_argument("--max-steps", type=int, metavar="N", help="the same as max_steps=N")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved recipe, data, batch, memory and one step's terms; train nothing",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="neither progress bars nor, in a log file, lines of progress"
    )
    return parser


def _train(arguments: Sequence[str] | None) -> None:
    options = _parser().parse_intermixed_args(arguments)
    with uninterrupted():
        from ddl_plugin.recipe import find_recipe, load_recipe

    overrides = list(options.overrides)
    if options.max_steps is not None:
        overrides.append(f"max_steps={options.max_steps}")
    if options.backend is not None:
        overrides.append(f"backend={options.backend}")
    settings = load_recipe(
        options.recipe, overrides, note=lambda text: print(f"note: {text}", file=sys.stderr)
    )
    recipe = find_recipe(options.recipe)
    output = options.output or Path("runs") / recipe.stem
    if output.exists() and not output.is_dir():
        raise UserError(f"--output: expected a folder, got the file {output}")

    several = _several(settings, options)
    with uninterrupted():
        from ddl_plugin.training.backends import get_backend
        from ddl_plugin.training.job import Job, carry_out, dry_run

    backend = get_backend(settings.backend)
    devices = backend.parse_devices(options.devices)
    bars = sys.stderr.isatty() and not options.quiet
    with backend.join(options.kvstore, devices) if several else contextlib.nullcontext() as machines:
        job = Job(
            settings,
            recipe,
            output,
            devices,
            progress=bars,
            lines=not bars and not options.quiet,
            kvstore=None if several else options.kvstore,
            machines=machines,
        )
        if options.dry_run:
            dry_run(job)
        else:
            carry_out(job, resume=options.resume)


def _several(settings: RunSettings, options: Namespace) -> bool:
    """Whether this is one worker of several; a scheduler or a server of MXNet's does not return from here."""
    if settings.backend == "torch":
        if options.kvstore is not None:
            raise UserError(
                f"--kvstore: expected none with backend 'torch', got {options.kvstore}; start several processes with "
                f"torchrun (docs/PYTORCH.md)"
            )
        several, one, how = launched_processes() > 1, "process", "torchrun"
    else:
        if launched_processes() > 1:
            raise UserError(
                f"torchrun: expected backend 'torch', got {settings.backend!r}, with which every process would train for "
                f"itself; add --backend torch"
            )
        require_environment(options.kvstore)
        several, one, how = options.kvstore in SEVERAL_MACHINES, "machine", f"--kvstore {options.kvstore}"
    if several:
        _require_trainable_by_several(settings, options, one, how)
        if settings.backend == "mxnet":
            serve_if_not_worker()
    return several


def _require_trainable_by_several(settings: RunSettings, options: Namespace, one: str, how: str) -> None:
    """`one` of several what there are, started `how`."""
    if options.dry_run:
        raise UserError(f"--dry-run: expected one {one}, got {how}; leave {how.split()[0]} out")
    if settings.pretrained.endswith(".py"):
        raise UserError(
            f"pretrained: expected a trained model with {how}, got the recipe {settings.pretrained!r}; train it on one "
            f"{one} first (python -m ddl_plugin.train {settings.pretrained}), then set pretrained to the folder of that "
            f"run on every machine"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    return run(lambda: _train(arguments))


if __name__ == "__main__":
    sys.exit(main())
