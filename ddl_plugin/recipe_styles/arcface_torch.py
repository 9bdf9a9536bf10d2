"""arcface_torch's config: a flat `config` over that of the base.py beside it.

It stands for the host's margin softmax (`margin_list`, scale 64), or for DDL beside it where there are settings
of `ddl`, in the file or on the command line. Keys of ours may stand in the file; they hold over the host's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddl_plugin.recipe_styles.execute import execute
from ddl_plugin.recipe_styles.keys import TORCH_NAMES, TORCH_TELLING
from ddl_plugin.recipe_styles.translation import (
    DDL_FIELDS,
    MARGINS,
    Translation,
    choose_graph,
    choose_sampler,
    fit_batch,
    identity_of,
    leave_out,
    our_keys,
    require_known,
)
from ddl_plugin.settings import RunSettings, require

NAME = "arcface_torch's config"

_ITS_OWN = ("rec", "margin_list", "embedding_size")
_SCALE = 64.0  # of its trainer; no config has it
_BASE = "base.py"


def recognised(names: dict[str, Any]) -> bool:
    """Whether a file that defines `names` is one: `config` has a key that no other style has."""
    config = names.get("config")
    return isinstance(config, dict) and any(key in config for key in _ITS_OWN)


def translate(
    path: Path, names: dict[str, Any], overrides: Sequence[str]
) -> tuple[Translation, tuple[str, ...]]:
    """The translation, and all of the overrides; raises `UserError`."""
    job, base = dict(names["config"]), _base_of(path)
    config = {**(base or {}), **job}
    origins = {key: f"{_BASE}'s config.{key}" if key not in job else f"config.{key}" for key in config}
    for key in config:
        where = "config" if key in job else f"{_BASE}: config"
        require_known(key, where, (f"ddl.{name}" for name in DDL_FIELDS))
    translation = Translation(network=config.get("network"))
    translation.read_as = f" over {_BASE}" if base is not None else f", no {_BASE} beside it"
    _take_ours(translation, config, origins)
    _take_theirs(translation, config, origins)
    if "margin_list" in config:
        translation.margins = _margins(config["margin_list"])
    if "num_epoch" in config:
        translation.steps["num_epoch"] = config["num_epoch"]
    used = {*our_keys(), *TORCH_NAMES, "margin_list", "num_epoch"}
    leave_out(translation, {k: v for k, v in config.items() if k not in used}, TORCH_TELLING)
    return translation, tuple(overrides)


def complete(translation: Translation) -> None:
    """What depends on several keys, after the command line's: identity loss, graph, sampler, b."""
    _choose_identity(translation)
    choose_graph(translation)
    choose_sampler(translation)
    fit_batch(translation)


def closing(translation: Translation, settings: RunSettings) -> list[str]:
    """Notes on the resolved settings."""
    if not translation.steps:
        return []
    tenths = f" divided by 10 at {', '.join(map(str, settings.lr_steps))}" if settings.lr_steps else ""
    return [
        f"num_epoch {translation.steps['num_epoch']!r}: steps are counted here, {settings.max_steps} of them, "
        f"lr {settings.lr:g}{tenths}; max_steps=N and lr_steps=A,B set others"
    ]


def _base_of(path: Path) -> dict[str, Any] | None:
    base = path.with_name(_BASE)
    if not base.is_file() or base.samefile(path):
        return None
    config = execute(base).get("config")
    require(isinstance(config, dict), f"{base}: config", type(config).__name__, "an EasyDict named `config`")
    return dict(config)


def _take_ours(translation: Translation, config: dict[str, Any], origins: dict[str, str]) -> None:
    for key in our_keys():
        if key in config and key != "network":  # which is a graph of the host's
            translation.take(key, config[key], origins[key])


def _take_theirs(translation: Translation, config: dict[str, Any], origins: dict[str, str]) -> None:
    for name, key in TORCH_NAMES.items():
        if name not in config:
            continue
        if key in config:
            translation.notes.append(f"{name} {config[name]!r}: {key} {config[key]!r} is set too, and holds")
            continue
        value = config[name]
        if name == "num_workers" and value == 0:  # there: decoding in the trainer's own process
            value = 1
        if name == "rec" and value == "synthetic":
            translation.notes.append("rec 'synthetic': the data set that is drawn here, not random pixels")
        translation.take(key, value, origins[name])


def _margins(value: Any) -> tuple[Any, ...]:
    good = isinstance(value, (list, tuple)) and len(value) == 3
    good = good and all(isinstance(m, (int, float)) and not isinstance(m, bool) for m in value)
    require(good, "margin_list", value, "three margins (m1, m2, m3)")
    return tuple(value)


def _choose_identity(translation: Translation) -> None:
    """The margins of `margin_list`, unless an identity loss with others was asked for by name."""
    config, margins = translation.config, translation.margins
    if margins is None:
        require("loss" in config, "margin_list", None, "three margins (m1, m2, m3), or `loss`")
        return
    fitting = identity_of(*margins)
    config.setdefault("loss", fitting if config.get("ddl") is None else "ddl")
    ddl = translation.ddl or {}
    asked = config["loss"] if translation.identity_alone else ddl.get("identity", fitting)
    if asked != fitting:
        translation.notes.append(f"margin_list {margins}: the margins of {asked!r} hold instead")
        return
    if ddl:
        config["ddl"] = {**ddl, "identity": fitting}
    if fitting == "combined" and margins[2] > 0:
        translation.notes.append(
            f"margin_list {margins}: all three are applied; the host applies the third alone where it is above 0"
        )
    for key, value in zip(MARGINS, margins, strict=True):
        if key not in config:
            translation.take(key, value, "config.margin_list")
    config.setdefault("loss_s", _SCALE)
