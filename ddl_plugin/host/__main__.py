"""`python -m ddl_plugin.host FOLDER -- ARGUMENTS`: InsightFace's own trainer, with our losses known to it.

FOLDER is its arcface_mxnet or its arcface_torch, which is seen by what it holds.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ddl_plugin.cli import Parser, run, split_devices
from ddl_plugin.errors import UserError
from ddl_plugin.host.arcface_torch.checkout import is_one as is_arcface_torch
from ddl_plugin.host.checkout import Checkout, inspect
from ddl_plugin.host.entry import entry_from_recipe
from ddl_plugin.host.join import register
from ddl_plugin.host.notes import note
from ddl_plugin.training.roles import is_server, let_ctrl_c_end


def _parser() -> Parser:
    parser = Parser(
        prog="python -m ddl_plugin.host",
        usage="%(prog)s FOLDER [options] -- ARGUMENTS OF ITS TRAINER",
        description="Run InsightFace's own trainer, unmodified, with the loss ddl known to it: recognition/arcface_mxnet "
        "(--loss ddl) or recognition/arcface_torch (config.loss = 'ddl').",
        epilog="Examples: python -m ddl_plugin.host insightface/recognition/arcface_mxnet --recipe recipes/vgg2_pose.py "
        "-- --network r50 --loss ddl --dataset vgg2 --pretrained models/r50/model --pretrained-epoch 0; "
        "torchrun --nproc_per_node=8 -m ddl_plugin.host insightface/recognition/arcface_torch -- configs/ms1mv3_r50.py",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--trainer",
        help="train.py (default of arcface_mxnet), train_parall.py, or train_v2.py (arcface_torch)",
    )
    parser.add_argument(
        "--recipe", metavar="RECIPE.py", help="the loss as in this recipe; else as in the config"
    )
    parser.add_argument(
        "--devices",
        metavar="cpu:0,1",
        help="of arcface_mxnet: cpu, cpu:0,1, gpu or gpu:0,1; default: CUDA_VISIBLE_DEVICES, as the trainer reads "
        "it, or cpu",
    )
    return parser


def _host(arguments: Sequence[str]) -> None:
    ours, its = _split(arguments)
    parser = _parser()
    options, others = parser.parse_known_args(ours)
    if others:
        parser.error(f"unrecognized arguments: {' '.join(others)}; what is the trainer's stands after '--'")
    folder = options.folder.resolve()
    if is_arcface_torch(folder):
        if options.devices is not None:
            parser.error(
                "--devices: arcface_torch has one GPU a process; choose them by CUDA_VISIBLE_DEVICES"
            )
        from ddl_plugin.host.arcface_torch.join import host as host_torch  # which needs PyTorch

        host_torch(folder, options.trainer, options.recipe, its)
    else:
        _host_mxnet(inspect(folder, options.trainer or "train.py"), options.devices, options.recipe, its)


def _host_mxnet(checkout: Checkout, devices: str | None, recipe: str | None, its: list[str]) -> None:
    if importlib.util.find_spec("mxnet") is None:
        importlib.import_module("ddl_plugin.mxnet_setup")  # which says what to install
    on_cpu = _choose_devices(devices)
    sys.path.insert(0, str(checkout.folder))
    config = _config(checkout)
    if recipe:
        name, entry = entry_from_recipe(recipe, note)
        config.loss[name] = entry
    register(config)
    if on_cpu:
        config.generate_config = _devices_on_cpu(config.generate_config)
    if is_server():  # which the trainer's `import mxnet` becomes
        let_ctrl_c_end()
    sys.argv = [str(checkout.path), *its]
    runpy.run_path(str(checkout.path), run_name="__main__")


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our arguments, and after '--' those of the trainer."""
    arguments = list(arguments)
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def _choose_devices(text: str | None) -> bool:
    """Set CUDA_VISIBLE_DEVICES, by which the trainer chooses its devices; whether they are on the CPU."""
    if text is None:
        if "CUDA_VISIBLE_DEVICES" not in os.environ:
            note("CUDA_VISIBLE_DEVICES is not set: training on the CPU")
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
        return not os.environ["CUDA_VISIBLE_DEVICES"].strip()
    kind, numbers = split_devices(text)
    on_cpu = kind == "cpu"
    os.environ["CUDA_VISIBLE_DEVICES"] = "" if on_cpu and "," not in numbers else numbers
    return on_cpu


def _config(checkout: Checkout) -> ModuleType:
    """The trainer's config.py, under the name by which it imports it; without one, its sample_config.py."""
    path = checkout.folder / "config.py"
    if not path.is_file():
        path = checkout.folder / "sample_config.py"
        if not path.is_file():
            raise UserError(
                f"host: expected config.py in {checkout.folder}, found neither that nor sample_config.py"
            )
        note(f"no config.py in {checkout.folder}: its sample_config.py is used")
    spec = importlib.util.spec_from_file_location("config", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["config"] = module
    try:
        spec.loader.exec_module(module)
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise UserError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    return module


def _devices_on_cpu(generate_config: Callable[..., Any]) -> Callable[..., Any]:
    """Several devices, and class-parallel ones, are GPUs in the trainer's code: here they are CPU contexts."""

    @functools.wraps(generate_config)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        mxnet = sys.modules["mxnet"]  # the trainer has imported it by now
        mxnet.gpu = mxnet.cpu
        return generate_config(*arguments, **options)

    return wrapped


def main(arguments: Sequence[str] | None = None) -> int:
    return run(lambda: _host(sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    sys.exit(main())
