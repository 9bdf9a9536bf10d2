"""Our loss inside a trainer of InsightFace's that nobody edited.

The trainer asks its config module for `generate_config(network, dataset, loss)` before it does anything else.
`register` puts a function of ours there. For a loss of ours it gives the trainer the table entry of the identity
loss, and replaces in the trainer's own module what makes its graph, its batches and its log; for any other loss it
calls the trainer's own function and nothing else happens.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ddl_plugin.cli import exiting
from ddl_plugin.errors import UserError, did_you_mean
from ddl_plugin.host import checkout
from ddl_plugin.host.caller import calling_globals
from ddl_plugin.host.entry import Entry
from ddl_plugin.host.interpolation import accept_duplicates
from ddl_plugin.registry import LOSSES

#: Tables of the config module, in the order in which generate_config is given a name in each.
_TABLES = ("network", "dataset", "loss")


def register(config: ModuleType | None = None) -> None:
    """Make `--loss ddl` (and every loss registered by `register_loss`) known to InsightFace's MXNet trainers.

    Called before the trainer is imported, or at the end of its config.py. `config` is its config module;
    None: the module `config` that the trainer itself will import. Calling it again does nothing.

    Raises `UserError` where that module is not one of InsightFace's.
    """
    config = config or _config_module()
    for name in ("config", "default", *_TABLES, "generate_config"):
        if not hasattr(config, name):
            raise UserError(
                f"{getattr(config, '__file__', config)}: looked for {name!r}, as InsightFace's sample_config.py has "
                f"it, and did not find it; call ddl_plugin.register() at the end of config.py"
            )
    if getattr(config.generate_config, "joins", False):
        return
    own = config.generate_config

    def generate_config(*arguments: Any, **options: Any) -> Any:
        accept_duplicates()
        names = _names(own, arguments, options)
        loss = names.get("loss")
        configure = _in_one_line(config, names, lambda: own(*arguments, **options))
        if loss in LOSSES and LOSSES[loss].build is not None:
            return _join(calling_globals(), config, configure, loss)
        return configure()

    joined = exiting(generate_config)
    joined.joins = True
    config.generate_config = joined


def _config_module() -> ModuleType:
    if "config" in sys.modules:
        return sys.modules["config"]
    try:
        return importlib.import_module("config")
    except ModuleNotFoundError as error:
        if error.name != "config":
            raise
        raise UserError(
            "register: expected InsightFace's config.py on the path, got none; run in the folder of arcface_mxnet, "
            "after 'cp sample_config.py config.py'"
        ) from error


def _names(own: Callable[..., Any], arguments: tuple, options: dict[str, Any]) -> dict[str, Any]:
    """What a call gives for each table, whatever the parameters are called; {} for a call that cannot be."""
    try:
        given = inspect.signature(own).bind(*arguments, **options).arguments.values()
    except TypeError:  # raised again by the call itself
        return {}
    return dict(zip(_TABLES, given, strict=False))


def _in_one_line(
    config: ModuleType, names: dict[str, Any], configure: Callable[[], Any]
) -> Callable[[], Any]:
    """`configure` with a one-line error where it fails because a name is not in its table."""

    def wrapped() -> Any:
        try:
            return configure()
        except (KeyError, AttributeError) as error:
            for table, name in names.items():
                known = getattr(config, table)
                if name not in known:
                    where = f"{config.__file__} has no {table}.{name}"
                    raise UserError(f"--{table}: {where}{did_you_mean(name, known)}") from error
            raise

    return wrapped


def _join(trainer: dict[str, Any], config: ModuleType, configure: Callable[[], Any], loss: str) -> Any:
    """Configure the trainer whose globals `trainer` are for the identity loss, and replace its parts."""
    if "__file__" not in trainer:
        raise UserError("host: expected generate_config to be called by InsightFace's trainer")
    path = Path(trainer["__file__"]).resolve()
    found = checkout.inspect(path.parent, path.name)
    written = config.loss.get(loss)
    entry = Entry.parse(loss, config.loss.get(loss, {}), {*config.config, *config.default})
    # The trainer copies the whole entry into its config: it gets what it understands.
    config.loss[loss] = entry.for_trainer()
    try:
        result = configure()
    finally:
        if written is None:
            del config.loss[loss]
        else:
            config.loss[loss] = written
    # What follows needs MXNet, and sets it up, which is no business of ours with another loss.
    if found.kind == "replicated":
        from ddl_plugin.host.replicated import Replicated as Join
    else:
        from ddl_plugin.host.class_parallel import ClassParallel as Join
    Join(found, entry, config.config, trainer).install()
    return result
