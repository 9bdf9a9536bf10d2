"""Recipe files: a Python file that defines `config` (an EasyDict), one file for one run.

A recipe is executed as Python, as InsightFace's config.py is; everything it sets is checked by
`settings.RunSettings`. `KEY=VALUE` on the command line overrides a key; dots nest. The config files of two
hosts are recipes too, through `recipe_styles`.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from ddl_plugin.errors import UserError, did_you_mean
from ddl_plugin.recipe_styles import host_config
from ddl_plugin.recipe_styles.execute import execute
from ddl_plugin.registry import LOSSES, SAMPLERS, get_loss, get_sampler
from ddl_plugin.settings import (
    DDLSettings,
    Degradation,
    GroupSettings,
    HardSettings,
    IdentificationSettings,
    OnlineSettings,
    RunSettings,
    field_names,
    require,
    unknown_keys,
)

#: Fields of RunSettings that a recipe gives as a dict of their own, or under the loss's own name.
_NESTED = {"ddl": DDLSettings, "identification": IdentificationSettings}
_HIDDEN = ("loss_options", "sampler_options")
#: What `describe` makes of the settings within settings, by the fields that hold them.
_PARTS = {
    **_NESTED,
    "hard": HardSettings,
    "degradation": Degradation,
    "one_of": Degradation,
    "groups": GroupSettings,
    "online": OnlineSettings,
}


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name without '.py'."""
    folder = Path(__file__).parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"}


def find_recipe(name: str) -> Path:
    """The recipe file `name`, or the shipped recipe of that name where there is no such file."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if path.stem in shipped and path.suffix in ("", ".py") and path.parent in (Path(), Path("recipes")):
        return shipped[path.stem]
    raise UserError(
        f"recipe: no file {name!r}, and no shipped recipe of that name{did_you_mean(path.stem, shipped)}"
    )


def _unsaid(note: str) -> None:
    pass


def load_recipe(
    name: str, overrides: Sequence[str] = (), note: Callable[[str], None] = _unsaid
) -> RunSettings:
    """Execute the recipe, apply `KEY=VALUE` overrides, check everything.

    The recipe may also be a config file of arcface_mxnet or arcface_torch (docs/RECIPES.md). What becomes of
    its keys is then told to `note`, a line at a time.

    Raises `UserError` naming the recipe, and the key or the line that is wrong.
    """
    path = find_recipe(name)
    names = execute(path)
    host = host_config(path, names, overrides)
    config = _own_config(path, names) if host is None else host.config
    for override in overrides if host is None else host.overrides:
        _override(config, override)
    try:
        if host is not None:
            host.complete()
        settings = resolve(config)
    except UserError as error:
        raise (UserError(f"{path}: {error}") if host is None else host.blamed(error)) from error
    for line in host.notes(settings) if host is not None else ():
        note(line)
    return settings


def resolve(config: dict[str, Any]) -> RunSettings:
    """The settings that a recipe's dictionary means."""
    known = [name for name in field_names(RunSettings) if name not in _HIDDEN]
    own = [name for name in (*LOSSES, *SAMPLERS) if name not in known]
    unknown_keys("config", config, (*known, *own))
    loss = config.get("loss", RunSettings.loss)
    sampler = config.get("sampler", RunSettings.sampler)
    require(isinstance(loss, str), "loss", loss, "a name such as 'ddl' or 'arcface'")
    require(isinstance(sampler, str), "sampler", sampler, "a name such as 'pairs' or 'images'")
    get_loss(loss), get_sampler(sampler)
    for name in own:
        if name in config and name not in (loss, sampler):
            raise UserError(f"config: options of {name!r}, but loss is {loss!r} and sampler {sampler!r}")
        require(isinstance(config.get(name, {}), dict), name, config.get(name), "a dict of its options")
    values: dict[str, Any] = {name: config[name] for name in known if name in config}
    for name, cls in _NESTED.items():
        if values.get(name) is not None:
            values[name] = _nested(name, cls, values[name])
    values["loss_options"] = get_loss(loss).resolve(_plain(config.get(loss, {})) if loss in own else {})
    values["sampler_options"] = get_sampler(sampler).resolve(
        _plain(config.get(sampler, {})) if sampler in own else {}
    )
    settings = RunSettings(**{name: _plain(value) for name, value in values.items()})
    needs = get_loss(loss).needs
    if needs and settings.ddl is not None and settings.ddl.scope == "global":
        raise UserError(
            f"ddl.scope: expected 'device' for loss {loss!r}, which needs {' and '.join(needs)} of each row, got 'global'"
        )
    return settings


def _nested(name: str, cls: type, value: Any) -> Any:
    require(isinstance(value, dict), name, value, f"a dict of {', '.join(field_names(cls))}")
    unknown_keys(f"config.{name}", value, field_names(cls))
    return cls(**{key: _plain(item) for key, item in value.items()})


def _plain(value: Any) -> Any:
    """EasyDict, lists, NumPy's numbers and paths as plain dicts, tuples, numbers and text.

    EasyDict turns lists of dicts into its own types.
    """
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_plain(item) for item in value)
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, PurePath) else value


def _own_config(path: Path, names: dict[str, Any]) -> dict[str, Any]:
    config = names.get("config")
    require(
        isinstance(config, dict),
        f"{path}: config",
        type(config).__name__,
        "an EasyDict named `config` in the recipe",
    )
    return dict(config)


def _override(config: dict[str, Any], text: str) -> None:
    """Set the key of 'a.b=value'; the value is a Python literal, or else the text itself."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"override: expected KEY=VALUE such as ddl.lambda_order=0.4, got {text!r}")
    try:
        parsed = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        parsed = value
    target = config
    *parents, last = key.split(".")
    for parent in parents:
        inner = target.get(parent)
        inner = {} if inner is None else inner
        require(isinstance(inner, dict), f"override {key}", inner, f"{parent} to be a dict")
        target[parent] = target = dict(inner)
    target[last] = parsed


def describe(settings: RunSettings) -> dict[str, Any]:
    """The resolved settings as plain values that JSON can hold, for recipe.json."""
    return _jsonable(dataclasses.asdict(settings))


def completed(recorded: dict[str, Any], kind: type = RunSettings) -> dict[str, Any]:
    """What `describe` once gave, with the defaults of settings that the version which wrote it did not have."""
    filled = {**_defaults(kind), **recorded}
    for name, part in _PARTS.items():
        value = filled.get(name)
        if isinstance(value, dict):
            filled[name] = completed(value, part)
        elif isinstance(value, list):
            filled[name] = [completed(one, part) if isinstance(one, dict) else one for one in value]
    return filled


def _defaults(kind: type) -> dict[str, Any]:
    """The plain defaults of a settings class; those that are made, as a dict, are given by every version."""
    fields = (f for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING)
    return {f.name: _jsonable(f.default) for f in fields}


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return value
