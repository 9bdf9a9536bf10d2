"""`loss.ddl` in the trainer's config.py: our settings in, what the trainer itself reads out. No MXNet here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ddl_plugin.errors import UserError
from ddl_plugin.host.batch_size import fitted
from ddl_plugin.recipe import load_recipe, resolve
from ddl_plugin.registry import get_loss
from ddl_plugin.settings import (
    IDENTITY_LOSSES,
    DDLSettings,
    RunSettings,
    field_names,
    require,
    unknown_keys,
)

_MARGINS = ("loss_m1", "loss_m2", "loss_m3", "loss_s")
#: Settings of a run, beside those of the loss, that are ours under the trainer too. All others are the trainer's.
_OF_A_RUN = (
    "attributes", "max_pairs_per_identity", "positive_pairs", "num_threads", "max_damaged", "seed", "rename", "fc7_init", *_MARGINS,
)  # fmt: skip
_OF_THE_LOSS = field_names(DDLSettings)

_LATER = "as the trainer's arguments say"


@dataclass(frozen=True)
class Entry:
    """A checked `loss.<name>` entry.

    settings: the run as our own parts know it, without what only the trainer's arguments say (`run_settings`).
    b_written: whether b is the user's, and not the default. of_trainer: keys of the trainer's own that stand in
    the entry.
    """

    name: str
    settings: RunSettings
    b_written: bool
    of_trainer: Mapping[str, Any]

    @classmethod
    def parse(cls, name: str, values: Any, trainers_keys: Collection[str] = ()) -> Entry:
        """Raises `UserError` for unknown keys, values that cannot be, and no hard distribution.

        trainers_keys: what the trainer takes from any of its tables, `lr` for example.
        """
        where = f"config.py: loss.{name}"
        needs = get_loss(name).needs
        if needs:
            raise UserError(
                f"--loss {name}: expected a loss of the embeddings alone, got one that needs {' and '.join(needs)} of "
                f"each row, which this trainer does not give; train it with python -m ddl_plugin.train"
            )
        require(
            isinstance(values, Mapping), where, values, "a table such as edict(hard=[{'size': (12, 16)}])"
        )
        if "loss_name" in values:
            raise UserError(
                f"{where}.loss_name: expected no such key, got {values['loss_name']!r}; the loss beside {name} is "
                f"named by identity: write loss.{name}.identity = 'arcface' instead"
            )
        known = (*_OF_THE_LOSS, *_OF_A_RUN, *get_loss(name).defaults)
        of_trainer = {k: v for k, v in values.items() if k not in known and k in trainers_keys}
        unknown_keys(where, {k: v for k, v in values.items() if k not in of_trainer}, known)
        if "hard" not in values and "groups" not in values:
            raise UserError(
                f"{where}.hard: expected the hard distributions, e.g. ['abs(yaw) > 45'] or [{{'size': (12, 16)}}], "
                f"got none; write loss.{name} = edict(hard=[...]) in config.py, or give --recipe"
            )
        of_the_loss, own, options = (
            {key: values[key] for key in keys if key in values}
            for keys in (_OF_THE_LOSS, _OF_A_RUN, get_loss(name).defaults)
        )
        run = {"loss": name, **own, "pretrained": _LATER, "dataset_path": _LATER, "ddl": of_the_loss}
        try:
            settings = resolve({**run, name: options} if options else run)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        rows = settings.ddl.identity_rows
        if rows != "all":
            raise UserError(
                f"loss.{name}.identity_rows: expected 'all', got {rows!r}: the trainer's accuracy and loss are those "
                f"of all rows"
            )
        return cls(name, settings, "b" in values, of_trainer)

    def for_trainer(self) -> dict[str, Any]:
        """The table entry that the trainer itself is given: the identity loss, and images per device."""
        ddl = self.settings.ddl
        given: dict[str, Any] = {"loss_name": "softmax", "per_batch_size": ddl.rows, **self.of_trainer}
        preset = IDENTITY_LOSSES[ddl.identity]
        if preset is not None:
            given["loss_name"] = "margin_softmax"
            for key, value in zip(_MARGINS, preset, strict=True):
                own = getattr(self.settings, key)
                given[key] = value if own is None else float(own)
        return given

    def settings_for(self, per_batch_size: int) -> DDLSettings:
        """The settings of a batch of `per_batch_size` images a device; b follows it where none was written.

        Raises `UserError` with the nearest valid sizes where it is not 3b(K+1).
        """
        return fitted(
            self.settings.ddl, per_batch_size,
            b_written=self.b_written, size_name="--per-batch-size", b_name=f"loss.{self.name}.b",
        )  # fmt: skip

    def run_settings(self, config: Mapping[str, Any], pretrained: str, ddl: DDLSettings) -> RunSettings:
        """The run as our own parts know it: data, pairs, classifier. Steps and rates are the trainer's."""
        return dataclasses.replace(
            self.settings, pretrained=pretrained, ddl=ddl, dataset_path=str(config["dataset_path"]),
            data_rand_mirror=bool(config.get("data_rand_mirror", True)),
        )  # fmt: skip


def entry_from_recipe(path: str, note: Callable[[str], None]) -> tuple[str, dict[str, Any]]:
    """The loss's name and the `loss.<name>` entry that one of our recipes means.

    What of the recipe is the trainer's to decide (steps, rates, network, data) is named in a note.
    """
    settings = load_recipe(path, note=note)
    if get_loss(settings.loss).build is None or settings.ddl is None:
        raise UserError(f"--recipe: expected one with loss = 'ddl', got {settings.loss!r} in {path}")
    values = {key: getattr(settings.ddl, key) for key in _OF_THE_LOSS}
    values |= {key: v for key in _OF_A_RUN if (v := getattr(settings, key)) != _default(key)}
    values |= settings.loss_options
    left = [
        f.name for f in dataclasses.fields(RunSettings)
        if f.name not in (*_OF_A_RUN, "loss", "ddl", "loss_options") and getattr(settings, f.name) != _default(f.name)
    ]  # fmt: skip
    if left:
        note(f"{path}: left to the trainer's own config and arguments: {', '.join(left)}")
    return settings.loss, values


def _default(name: str) -> Any:
    found = next(f for f in dataclasses.fields(RunSettings) if f.name == name)
    return found.default_factory() if found.default is dataclasses.MISSING else found.default
