"""The runs of a study: where each lies, what of it is done, and what it may share with others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddl_plugin.errors import UserError
from ddl_plugin.experiment.study import Row, Study
from ddl_plugin.files import reading
from ddl_plugin.recipe import describe, load_recipe
from ddl_plugin.settings import LOOKING_ONLY, RunSettings

BASE = "base"
_RESULT, _RECIPE, _PAIRS = "result.json", "recipe.json", "pairs.npz"

#: Settings of which the positive pairs are made.
_OF_PAIRS = ("dataset_path", "attributes", "max_pairs_per_identity", "seed", "pretrained", "sampler")
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
        changed = _difference(result["settings"], describe(self.settings))
        if changed:
            raise UserError(
                f"{self.folder}: expected a run with {changed[0]} = {changed[2]!r}, as the study has it now, got one with "
                f"{changed[1]!r}; use another --output, or remove that folder"
            )
        return result

    def share_pairs(self, others: Iterable[Run]) -> None:
        """Take the positive pairs of another run that makes the same ones; the run itself checks that they hold."""
        mine = self.folder / _PAIRS
        if mine.exists():
            return
        wanted = _of_pairs(describe(self.settings))
        for other in others:
            theirs, recipe = other.folder / _PAIRS, other.folder / _RECIPE
            if theirs.is_file() and recipe.is_file() and _of_pairs(_read(recipe)) == wanted:
                self.folder.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(theirs, mine)
                return


def _read(path: Path) -> dict[str, Any]:
    with reading(path):
        return json.loads(path.read_text(encoding="utf-8"))


def _of_pairs(settings: dict[str, Any]) -> Any:
    ddl = settings["ddl"] or {}
    return [settings[key] for key in _OF_PAIRS], [ddl.get(key) for key in _OF_PAIRS_IN_DDL]


def _difference(recorded: dict[str, Any], wanted: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """The first key that differs, with both values; those that do not touch what is trained do not count."""
    for key in (*wanted, *(key for key in recorded if key not in wanted)):
        if key not in LOOKING_ONLY and recorded.get(key) != wanted.get(key):
            return key, recorded.get(key), wanted.get(key)
    return None


def base_run(study: Study, output: Path) -> Run | None:
    """The run that trains the base model, where the recipe names a recipe for it; all rows start from it."""
    settings = study.settings(study.rows[0], study.seeds[0])
    if not settings.pretrained.endswith(".py"):
        return None
    beside = study.recipe_file().parent / settings.pretrained
    recipe = str(beside if beside.is_file() else settings.pretrained)
    overrides = (f"seed={study.seeds[0]}",)
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
    more = {} if base is None else {"pretrained": str(base.folder / base.settings.loss)}
    recipe = str(study.recipe_file())
    return [
        Run(
            row,
            seed,
            output / "runs" / row.slug / f"seed{seed}",
            output / "runs" / row.slug / f"seed{seed}.log",
            study.settings(row, seed, **more),
            (recipe, *study.overrides(row, seed, **more)),
        )
        for seed in study.seeds
        for row in rows
    ]
