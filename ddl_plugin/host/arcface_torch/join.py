"""The trainer run in this process, with our loss where its config asks for it.

The trainer reads its config first, by `get_config`. There a function of ours stands: it looks at `config.loss`, and
for a loss of ours it replaces in the trainer's own module what makes its batches, its loss and its log. For any
other the trainer's own parts stay.
"""

from __future__ import annotations

import functools
import importlib
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ddl_plugin.errors import UserError
from ddl_plugin.host.arcface_torch import entry, mxnet_stand_in
from ddl_plugin.host.arcface_torch.checkout import TRAINER, Checkout, find_config, inspect
from ddl_plugin.host.arcface_torch.data import require_files
from ddl_plugin.host.arcface_torch.newer_versions import accept_verbose
from ddl_plugin.host.arcface_torch.run import Run
from ddl_plugin.host.caller import calling_globals
from ddl_plugin.host.interpolation import accept_duplicates
from ddl_plugin.host.notes import note_of
from ddl_plugin.pytorch.torch_setup import torch
from ddl_plugin.recipe_styles.execute import running

Read = Callable[..., Any]


def host(folder: Path, trainer: str | None, recipe: str | None, arguments: Sequence[str]) -> None:
    """Run the trainer in `folder` with its `arguments`; what is wrong with the config is found before it starts."""
    checkout = inspect(folder, trainer or TRAINER)
    path = find_config(checkout.folder, list(arguments))
    _require_devices(checkout)
    sys.path.insert(0, str(checkout.folder))
    mxnet_stand_in.provide()
    accept_verbose()
    say = note_of(int(os.environ.get("RANK", "0")))
    read = _reading(path, entry.keys_of_recipe(recipe, say) if recipe else {})
    config = read(f"configs/{path.name}")
    joined = _joined(path, config, say)
    runs: list[Run] = []
    _replace_get_config(read, joined, runs)
    sys.argv = [str(checkout.path), *arguments]
    try:
        runpy.run_path(str(checkout.path), run_name="__main__")
    finally:
        for run in runs:
            run.close()


def _joined(path: Path, config: Any, say: Callable[[str], None]) -> entry.Entry | None:
    """Our part in the run that the config asks for, or None; mistakes in it are blamed on the file."""
    try:
        if not entry.joins(config):
            without = "config.ddl without" if config.get("ddl") is not None else "no"
            say(f"{path.name}: {without} config.loss = 'ddl': the trainer's own loss alone")
            return None
        joined = entry.parse(config)
        require_files(joined.settings)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    for line in joined.notes:
        say(f"{path.name}: {line}")
    return joined


def _require_devices(checkout: Checkout) -> None:
    if checkout.needs_gpu and torch.cuda.device_count() == 0:
        raise UserError(
            f"host: {checkout.trainer} trains on GPUs, its processes joined by NCCL: expected one at least, PyTorch "
            f"{torch.__version__} sees none; python -m ddl_plugin.train --backend torch trains on a CPU"
        )


def _reading(path: Path, over: dict[str, Any]) -> Read:
    """The trainer's own get_config, its errors in one line, and `over` what it returns."""
    own = importlib.import_module("utils.utils_config").get_config

    @functools.wraps(own)
    def read(*arguments: Any, **options: Any) -> Any:
        with running(path, str(path)):
            config = own(*arguments, **options)
        config.update(over)
        return config

    return read


def _replace_get_config(read: Read, joined: entry.Entry | None, runs: list[Run]) -> None:
    @functools.wraps(read)
    def get_config(*arguments: Any, **options: Any) -> Any:
        accept_duplicates()
        config = read(*arguments, **options)
        if joined is not None:
            runs.append(Run(joined, config, calling_globals()))
            runs[-1].install()
        return config

    importlib.import_module("utils.utils_config").get_config = get_config
