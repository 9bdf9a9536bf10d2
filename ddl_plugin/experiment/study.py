"""Study files: a Python file that defines `study`, the rows of a table, each a recipe with some keys changed.

study.title    heads the table
study.recipe   a recipe file beside the study, or a shipped one by name
study.common   {KEY: VALUE} of every row; keys as on the command line, dots nest
study.rows     [{"name": ..., "set": {KEY: VALUE}, "paper": {COLUMN: VALUE}}, ...]
study.seeds    each row is run with each of them
study.columns  measures of the table, by name (docs/STUDIES.md); without it all
study.axis     a key that all rows set to a number: the figure has it as its horizontal axis
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddl_plugin.errors import UserError, did_you_mean
from ddl_plugin.experiment.columns import require_measured
from ddl_plugin.recipe import find_recipe, load_recipe
from ddl_plugin.recipe_styles.execute import execute
from ddl_plugin.settings import RunSettings, field_names, require, unknown_keys

#: The row of a table that the base model has.
BASE_ROW = "base model"


@dataclass(frozen=True)
class Row:
    """A row of the table: what it changes in the recipe, and what the paper has there."""

    name: str
    set: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, float] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The name as a folder's."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


@dataclass(frozen=True)
class Study:
    """A checked study."""

    path: Path
    recipe: str
    rows: tuple[Row, ...]
    title: str = ""
    common: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    columns: tuple[str, ...] = ()
    axis: str | None = None

    def __post_init__(self) -> None:
        where = f"{self.path}: study"
        for name in ("title", "recipe"):
            require(isinstance(getattr(self, name), str), f"{where}.{name}", getattr(self, name), "text")
        self._check_keys(f"{where}.common", self.common)
        require(len(self.rows) > 0, f"{where}.rows", [], "at least one row")
        for row in self.rows:
            good = isinstance(row.name, str) and bool(row.slug)
            require(good, f"{where}.rows: name", row.name, "text with a letter or a digit")
            self._check_keys(f"{where}.rows: {row.name}: set", row.set)
            numbers = isinstance(row.paper, Mapping) and all(
                isinstance(v, (int, float)) for v in row.paper.values()
            )
            require(numbers, f"{where}.rows: {row.name}: paper", row.paper, "{column: number}")
            if self.columns:
                unknown_keys(f"{where}.rows: {row.name}: paper", dict(row.paper), self.columns)
            require(
                row.name != BASE_ROW, f"{where}.rows: name", row.name, "another name than the base model's"
            )
        slugs = [row.slug for row in self.rows]
        twice = [row.name for row in self.rows if slugs.count(row.slug) > 1]
        require(not twice, f"{where}.rows: names", twice, "names whose letters and digits differ")
        seeds = (
            isinstance(self.seeds, tuple)
            and self.seeds
            and all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in self.seeds)
        )
        require(
            seeds and len(set(self.seeds)) == len(self.seeds),
            f"{where}.seeds",
            self.seeds,
            "different whole numbers >= 0",
        )
        require(
            all(isinstance(c, str) for c in self.columns),
            f"{where}.columns",
            self.columns,
            "names of measures",
        )
        if self.axis is not None:
            for row in self.rows:
                value = row.set.get(self.axis)
                good = isinstance(value, (int, float)) and not isinstance(value, bool)
                require(
                    good,
                    f"{where}.rows: {row.name}: {self.axis}",
                    value,
                    "a number, because it is study.axis",
                )

    @staticmethod
    def _check_keys(where: str, keys: Any) -> None:
        good = isinstance(keys, Mapping) and all(isinstance(key, str) for key in keys)
        require(good, where, keys, "a dict such as {'ddl.b': 16}")
        own = {"seed": "study.seeds"}
        for key in keys:
            if key in own:
                raise UserError(
                    f"{where}: expected no key {key!r}, got {keys[key]!r}; it is set by {own[key]}"
                )

    def recipe_file(self) -> Path:
        """The recipe beside the study, or the shipped one."""
        beside = self.path.parent / self.recipe
        return beside if beside.is_file() else find_recipe(self.recipe)

    def overrides(self, row: Row, seed: int, **more: Any) -> list[str]:
        """KEY=VALUE of one run."""
        keys = {**self.common, **row.set, "seed": seed, **more}
        return [f"{key}={value!r}" for key, value in keys.items()]

    def settings(self, row: Row, seed: int, **more: Any) -> RunSettings:
        """What one run is; raises `UserError` naming the row."""
        try:
            return load_recipe(str(self.recipe_file()), self.overrides(row, seed, **more))
        except UserError as error:
            raise UserError(f"{self.path}: row {row.name!r}: {error}") from error

    def chosen(self, patterns: list[str]) -> tuple[Row, ...]:
        """The rows whose name has one of `patterns` in it, in the study's order; () means all."""
        if not patterns:
            return self.rows
        for pattern in patterns:
            if not any(pattern.lower() in row.name.lower() for row in self.rows):
                names = [row.name for row in self.rows]
                raise UserError(
                    f"--only: expected part of a row's name, got {pattern!r}{did_you_mean(pattern, names)}; rows: "
                    f"{', '.join(names)}"
                )
        return tuple(row for row in self.rows if any(p.lower() in row.name.lower() for p in patterns))


def shipped_studies() -> dict[str, Path]:
    """The studies that come with the package, by name without '.py'."""
    folder = Path(__file__).parents[1] / "recipes" / "studies"
    return {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"}


def find_study(name: str) -> Path:
    """The study file `name`, or the shipped study of that name where there is no such file."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_studies()
    if path.stem in shipped and path.suffix in ("", ".py"):
        return shipped[path.stem]
    raise UserError(
        f"study: no file {name!r}, and no shipped study of that name{did_you_mean(path.stem, shipped)}"
    )


def load_study(name: str) -> Study:
    """Execute the study file and check it, its recipe and every row's settings.

    Raises `UserError` naming the study, and the row or the key that is wrong.
    """
    path = find_study(name)
    given = execute(path).get("study")
    require(
        isinstance(given, Mapping), f"{path}: study", type(given).__name__, "a dict or EasyDict named `study`"
    )
    known = tuple(key for key in field_names(Study) if key != "path")
    unknown_keys(f"{path}: study", dict(given), known)
    for key in ("recipe", "rows"):
        require(key in given, f"{path}: study.{key}", None, "it to be set")
    values = {key: given[key] for key in given}
    for key in ("rows", "seeds", "columns"):
        if key in values:
            require(isinstance(values[key], (list, tuple)), f"{path}: study.{key}", values[key], "a list")
            values[key] = tuple(values[key])
    values["rows"] = tuple(_row(path, row) for row in values["rows"])
    study = Study(path, **values)
    runs = [study.settings(row, study.seeds[0]) for row in study.rows]
    require_measured(f"{path}: study.columns", study.columns, runs)
    return study


def _row(path: Path, given: Any) -> Row:
    require(isinstance(given, Mapping) and "name" in given, f"{path}: study.rows", given, "dicts with a name")
    unknown_keys(f"{path}: study.rows", dict(given), field_names(Row))
    return Row(**given)
