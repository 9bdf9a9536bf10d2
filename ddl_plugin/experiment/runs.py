"""The runs of a study: where each lies, what of it is done, and what it may share with others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddl_plugin.errors import UserError
from ddl_plugin.experiment.study import Row, Study
from ddl_plugin.files import reading, replaced
from ddl_plugin.recipe import completed, describe, load_recipe
from ddl_plugin.settings import LOOKING_ONLY, RunSettings

BASE = "base"
_RESULT, _RECIPE, _PAIRS = "result.json", "recipe.json", "pairs.npz"

#: Settings of which the positive pairs are made.
_OF_PAIRS = (
    "dataset_path", "attributes", "train_identities", "max_pairs_per_identity", "seed", "pretrained", "sampler",
)  # fmt: skip
_OF_PAIRS_IN_DDL = ("easy", "hard", "groups")


@dataclass(frozen=True)
class Run:
    """One row with one seed."""

    row: Row
    seed: int
    folder: Path
    log: Path
    settings: RunSettings
    overrides: tuple[str, ...]
    own_base: bool = True  # False: it starts from the study's base model, wherever the study lies

    @property
    def name(self) -> str:
        return f"{self.row.name}, seed {self.seed}"

    def result(self) -> dict[str, Any] | None:
        """What it found, None while it is not finished.

        Raises `UserError` where the folder holds the result of other settings.
        """
        path = self.folder / _RESULT
        if not path.is_file():
            return None
        result = _read(path)
        recorded, wanted = completed(result["settings"]), describe(self.settings)
        if not self.own_base and _ending(recorded["pretrained"]) == _ending(wanted["pretrained"]):
            recorded["pretrained"] = wanted["pretrained"]
        changed = _difference(recorded, wanted, LOOKING_ONLY)
        if changed:
            raise UserError(
                f"{self.folder}: expected a run with {changed[0]} = {changed[2]!r}, as the study has it now, got one with "
                f"{changed[1]!r}; use another --output, or remove that folder"
            )
        return result

    def took(self) -> float:
        """Seconds from the beginning of a finished run to its end, pauses and all."""
        ended, began = ((self.folder / name).stat().st_mtime for name in (_RESULT, _RECIPE))
        return ended - began

    def share_pairs(self, others: Iterable[Run]) -> None:
        """Take the positive pairs of another run that makes the same ones; the run itself checks that they hold."""
        mine = self.folder / _PAIRS
        if mine.exists():
            return
        wanted = _of_pairs(describe(self.settings))
        for other in others:
            theirs, recipe = other.folder / _PAIRS, other.folder / _RECIPE
            if theirs.is_file() and recipe.is_file() and _of_pairs(_read(recipe)) == wanted:
                with replaced(mine) as temporary:
                    shutil.copyfile(theirs, temporary)
                return


def _ending(pretrained: str) -> tuple[str, ...]:
    """Of the study's base model that does not change when the study is moved."""
    return Path(pretrained).parts[-2:]


def _read(path: Path) -> dict[str, Any]:
    try:
        with reading(path):
            content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is damaged ({error}); remove the folder {path.parent}") from error
    if not isinstance(content, dict) or (path.name == _RESULT and "settings" not in content):
        raise UserError(f"{path}: is damaged; remove the folder {path.parent}")
    return content


def _of_pairs(settings: dict[str, Any]) -> Any:
    ddl = settings.get("ddl") or {}
    return [settings.get(key) for key in _OF_PAIRS], [ddl.get(key) for key in _OF_PAIRS_IN_DDL]


def _difference(
    recorded: dict[str, Any], wanted: dict[str, Any], ignored: Collection[str] = ()
) -> tuple[str, Any, Any] | None:
    """The first key that differs, dots nest, with both values."""
    for key in (*wanted, *(key for key in recorded if key not in wanted)):
        old, new = recorded.get(key), wanted.get(key)
        if key in ignored or old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            inner, *both = _difference(old, new)
            return f"{key}.{inner}", *both
        return key, old, new
    return None


def base_run(study: Study, output: Path) -> Run | None:
    """The run that trains the base model, where the recipe names a recipe for it.

    All rows start from it but those that set `pretrained` themselves; None where there is no other.
    """
    rows = [row for row in study.rows if "pretrained" not in row.set]
    if not rows:
        return None
    settings = study.settings(rows[0], study.seeds[0])
    if not settings.pretrained.endswith(".py"):
        return None
    beside = study.recipe_file().parent / settings.pretrained
    recipe = str(beside if beside.is_file() else settings.pretrained)
    host = {key: getattr(settings, key) for key in ("backend", "amp")}
    given = [f"{key}={value}" for key, value in host.items() if value != getattr(RunSettings, key)]
    overrides = (f"seed={study.seeds[0]}", *given)
    row = Row(f"base model by {settings.pretrained}")
    return Run(
        row,
        study.seeds[0],
        output / BASE,
        output / f"{BASE}.log",
        load_recipe(recipe, overrides),
        (recipe, *overrides),
    )


def planned(study: Study, rows: Iterable[Row], output: Path, base: Run | None) -> list[Run]:
    """The runs of these rows, all rows of a seed before the next seed, so that a table is there early."""
    shared = {} if base is None else {"pretrained": str(base.folder / base.settings.loss)}
    return [_run(study, row, seed, output, shared) for seed in study.seeds for row in rows]


def _run(study: Study, row: Row, seed: int, output: Path, shared: dict[str, str]) -> Run:
    own_base = not shared or "pretrained" in row.set
    more = {} if own_base else shared
    return Run(
        row,
        seed,
        output / "runs" / row.slug / f"seed{seed}",
        output / "runs" / row.slug / f"seed{seed}.log",
        study.settings(row, seed, **more),
        (str(study.recipe_file()), *study.overrides(row, seed, **more)),
        own_base,
    )
