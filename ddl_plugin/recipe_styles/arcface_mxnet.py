"""arcface_mxnet's config.py: tables `network`, `dataset`, `loss` and `default` over a `config`.

The file's own `generate_config` puts the chosen entries over `config`, as in the host's trainers, and
`default` has what these take for their command line. The loss `ddl` needs no entry; an entry may hold its
settings beside the margins, since the host's tables are flat.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddl_plugin import registry
from ddl_plugin.errors import UserError
from ddl_plugin.recipe_styles.execute import running
from ddl_plugin.recipe_styles.keys import (
    MXNET_ARGUMENTS,
    MXNET_CHECKED,
    MXNET_CHOICES,
    MXNET_GRAPH,
    MXNET_TELLING,
)
from ddl_plugin.recipe_styles.translation import (
    DDL_FIELDS,
    NETWORKS,
    Translation,
    choose_graph,
    choose_sampler,
    fit_batch,
    identity_of,
    leave_out,
    name_identity,
    nearest,
    our_keys,
    require_known,
)
from ddl_plugin.settings import IDENTITY_LOSSES, RunSettings, require

NAME = "arcface_mxnet's config.py"

_TABLES = ("loss", "network", "dataset")  # in the order in which the host applies them
_IMAGE_SHAPE = (112, 112, 3)


def recognised(names: dict[str, Any]) -> bool:
    """Whether a file that defines `names` is one: by its function, or else by three of its tables."""
    tables = [name for name in (*_TABLES, "default") if isinstance(names.get(name), dict)]
    return callable(names.get("generate_config")) or len(tables) >= 3


def translate(
    path: Path, names: dict[str, Any], overrides: Sequence[str]
) -> tuple[Translation, tuple[str, ...]]:
    """The translation, and the overrides that do not choose an entry of a table; raises `UserError`."""
    _require_whole(names)
    choosing = dict(text.split("=", 1) for text in overrides if _chooses(text))
    rest = tuple(text for text in overrides if not _chooses(text))
    chosen = {table: _chosen(table, names, choosing) for table in _TABLES}
    with running(path, "generate_config"):
        names["generate_config"](chosen["network"], chosen["dataset"], chosen["loss"])
    return _Tables(names, chosen).translation("network" in choosing), rest


def complete(translation: Translation) -> None:
    """What depends on several keys, after the command line's: graph, sampler, b, steps."""
    name_identity(translation)
    choose_graph(translation)
    choose_sampler(translation)
    fit_batch(translation)


def closing(translation: Translation, settings: RunSettings) -> list[str]:
    """Notes on the resolved settings."""
    notes = []
    if translation.steps and "max_steps" not in translation.overridden:
        notes.append(
            f"config.max_steps 0, without an end: {settings.max_steps} steps; max_steps=N sets others"
        )
    if "lr_steps" in translation.sources and settings.lr_steps[:1] >= (settings.max_steps,):
        notes.append(
            f"{translation.sources['lr_steps']}: all steps lie beyond max_steps {settings.max_steps}, "
            f"so lr stays {settings.lr:g}; lr_steps=A,B sets others"
        )
    return notes


def _chooses(override: str) -> bool:
    return override.startswith(tuple(f"{table}=" for table in _TABLES))


def _require_whole(names: dict[str, Any]) -> None:
    missing = [name for name in ("config", *_TABLES, "default") if not isinstance(names.get(name), dict)]
    missing += [] if callable(names.get("generate_config")) else ["generate_config"]
    if missing:
        raise UserError(
            f"{missing[0]}: expected config, network, dataset, loss and default as dicts and a function "
            f"generate_config, found no such {', '.join(missing)}"
        )


def _chosen(table: str, names: dict[str, Any], choosing: dict[str, str]) -> str:
    """The entry that the command line or `default` chooses; one of ours is added where the table lacks it."""
    where = f"override {table}" if table in choosing else f"default.{table}"
    name = choosing.get(table, names["default"].get(table))
    entries = names[table]
    ours = {"loss": tuple(registry.LOSSES), "network": NETWORKS, "dataset": ()}[table]
    if name in ours and name not in entries:
        entries[name] = {}
    known = tuple(key for key in entries if isinstance(key, str))
    if name not in known:
        raise UserError(
            f"{where}: expected an entry of the table {table!r} ({', '.join(known)}), got {name!r}"
            f"{nearest(name, (*known, *ours))}"
        )
    require(isinstance(entries[name], dict), f"{table}.{name}", entries[name], "a dict of keys")
    return name


class _Tables:
    """The file after its generate_config."""

    def __init__(self, names: dict[str, Any], chosen: dict[str, str]):
        self._default = dict(names["default"])
        self._config = {key: value for key, value in names["config"].items() if key not in _TABLES}
        self._chosen = chosen
        self._entries = {table: names[table][chosen[table]] for table in _TABLES}
        self._translation = Translation(network=chosen["network"])

    def translation(self, network_overridden: bool) -> Translation:
        translation, chosen = self._translation, self._chosen
        translation.network_source = "override network" if network_overridden else "default.network"
        translation.read_as = f", network {chosen['network']!r}, dataset {chosen['dataset']!r}"
        self._require_known()
        self._require_image_shape()
        translation.config["loss"] = self._loss()
        self._take_ddl()
        self._take_ours()
        self._take_arguments()
        self._take_pretrained()
        translation.graph = {key: value for key, value in self._config.items() if key in MXNET_GRAPH}
        leave_out(translation, self._rest(), MXNET_TELLING)
        return translation

    def _place(self, key: str) -> str:
        """Where the file has `key`: the entry that was applied last, else `config`."""
        for table in reversed(_TABLES):
            if key in self._entries[table]:
                return f"{table}.{self._chosen[table]}"
        return "config"

    @property
    def _takes_ddl(self) -> bool:
        """Whether the loss's entry may hold settings of DDL."""
        return self._chosen["loss"] in registry.LOSSES and self._chosen["loss"] not in IDENTITY_LOSSES

    def _require_known(self) -> None:
        for key in self._config:
            place = self._place(key)
            inside = self._takes_ddl and place == f"loss.{self._chosen['loss']}"
            require_known(key, place, DDL_FIELDS if inside else (f"ddl.{name}" for name in DDL_FIELDS))
        for key in self._default:
            require_known(key, "default")

    def _require_image_shape(self) -> None:
        shape = self._config.get("image_shape", _IMAGE_SHAPE)
        good = isinstance(shape, (list, tuple)) and tuple(shape) == _IMAGE_SHAPE
        require(
            good, f"{self._place('image_shape')}.image_shape", shape, f"{_IMAGE_SHAPE}, the size of all images here"
        )  # fmt: skip

    def _loss(self) -> str:
        name = self._chosen["loss"]
        kind = self._config.get("loss_name")
        if self._takes_ddl or (kind is None and name in IDENTITY_LOSSES):
            return name
        if kind == "softmax":
            return "softmax"
        if kind == "margin_softmax":
            if name in IDENTITY_LOSSES and name != "softmax":
                return name
            usual = (1.0, 0.0, 0.0)
            return identity_of(*(self._config.get(f"loss_m{i}", usual[i - 1]) for i in (1, 2, 3)))
        raise UserError(
            f"loss.{name}.loss_name: expected 'margin_softmax' or 'softmax', got {kind!r}; "
            f"loss=ddl or loss=arcface chooses another loss"
        )

    def _take_ddl(self) -> None:
        """Settings of DDL in the loss's entry, over those of `config.ddl`."""
        entry = {key: self._config[key] for key in self._config if key in DDL_FIELDS}
        ddl = self._config.get("ddl")
        if entry and (ddl is None or isinstance(ddl, dict)):
            self._config["ddl"] = {**(ddl or {}), **entry}

    def _take_ours(self) -> None:
        """Keys that have our names already, be they the host's or written for us."""
        endless = self._config.get("max_steps") == 0  # until it is stopped
        if endless:
            self._translation.steps["max_steps"] = 0
        for key in our_keys():
            if key in self._config and not (key == "max_steps" and endless):
                self._translation.take(key, self._config[key], f"{self._place(key)}.{key}")

    def _take_arguments(self) -> None:
        """What the host's trainers take from `default`, whatever `config` says."""
        for key in MXNET_ARGUMENTS:
            if key not in self._default:
                continue
            place = self._place(key)
            source = f"default.{key}" if place == "config" else f"{place}.{key}"
            self._say_which(key, self._default[key])
            self._translation.take(key, self._default[key], source)

    def _take_pretrained(self) -> None:
        prefix = self._default.get("pretrained", "")
        if prefix in ("", None):
            return
        require(isinstance(prefix, str), "default.pretrained", prefix, "the prefix of a checkpoint's files")
        epoch = self._default.get("pretrained_epoch")
        good = isinstance(epoch, int) and not isinstance(epoch, bool) and epoch >= 0
        require(good, "default.pretrained_epoch", epoch, "the checkpoint's number, a whole number >= 0")
        self._say_which("pretrained", f"{prefix},{epoch}")
        self._translation.take("pretrained", f"{prefix},{epoch}", "default.pretrained")

    def _say_which(self, key: str, value: Any) -> None:
        if key in self._config and self._config[key] != value:
            self._translation.notes.append(
                f"config.{key} {self._config[key]!r}: default.{key} holds, as for the host: {value!r}"
            )

    def _rest(self) -> dict[str, Any]:
        used = {*our_keys(), *DDL_FIELDS, *MXNET_GRAPH, *MXNET_CHECKED}
        rest = {self._short(key): value for key, value in self._config.items() if key not in used}
        used = {*MXNET_ARGUMENTS, *MXNET_CHOICES}
        return rest | {f"default.{key}": value for key, value in self._default.items() if key not in used}

    def _short(self, key: str) -> str:
        place = self._place(key)
        return key if place == "config" else f"{place}.{key}"
