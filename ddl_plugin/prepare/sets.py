"""What `partition` and `pairs` are asked for alike: a data set, and the rules of its easy and hard sets."""

from __future__ import annotations

import argparse
import ast
from dataclasses import dataclass
from pathlib import Path

from ddl_plugin.data.attributes import AttributeTable, require_of
from ddl_plugin.data.partition import Partition, build_partition
from ddl_plugin.data.records import Records
from ddl_plugin.errors import UserError
from ddl_plugin.prepare.record_files import record_files
from ddl_plugin.settings import MAX_DAMAGED, DDLSettings, RunSettings

# --hard and --recipe take all that follows them, a REC|DIR too
_PLACE = {"records": "; it goes before --hard", "hard": ""}


@dataclass(frozen=True)
class Sets:
    records: Records
    partition: Partition
    b: int  # of the recipe; the least there is where rules are given by themselves
    attributes: AttributeTable | None
    recipe: RunSettings | None

    @property
    def max_damaged(self) -> float:
        return MAX_DAMAGED if self.recipe is None else self.recipe.max_damaged

    @property
    def inputs(self) -> list[Path]:
        """Files that no output may replace."""
        files = record_files(self.records.path)
        return [*files, Path(self.attributes.path)] if self.attributes is not None else files


def add_sets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "records", nargs="?", type=Path, metavar="REC|DIR",
        help="a .rec file, or a folder holding train.rec; default: the recipe's dataset_path",
    )  # fmt: skip
    rules = parser.add_argument_group("sets", "by a recipe, or by rules")
    rules.add_argument(
        "--recipe", nargs="+", metavar=("RECIPE.py", "KEY=VALUE"),
        help="take all that follows, and what pairs need, from a recipe, changed as on the trainer's command line",
    )  # fmt: skip
    rules.add_argument(
        "--easy", metavar="RULE", help="such as 'abs(yaw) < 10'; without it every record is easy"
    )
    rules.add_argument(
        "--hard", nargs="+", action="extend", metavar="RULE",
        help="such as 'abs(yaw) > 45', or degradations such as \"{'size': (12, 16)}\"; one for each hard set",
    )  # fmt: skip
    rules.add_argument(
        "--attributes", type=Path, metavar="FILE", help="table with a `record` column and those in the rules"
    )


def open_sets(options: argparse.Namespace) -> Sets:
    """`UserError` for what is missing or contradicts itself, and for rules that cannot be applied."""
    if options.recipe is None:
        return _by_rules(options)
    for name in ("easy", "hard"):
        if getattr(options, name) is not None:
            raise UserError(
                f"--{name}: expected rules from --recipe alone, got them twice; change the recipe's by "
                f"--recipe {options.recipe[0]} ddl.{name}=..."
            )
    return _by_recipe(options)


def _by_rules(options: argparse.Namespace) -> Sets:
    for name, what in (("records", "REC|DIR"), ("hard", "--hard")):
        if getattr(options, name) is None:
            raise UserError(f"{what}: expected it, or --recipe RECIPE.py, got neither{_PLACE[name]}")
    settings = DDLSettings(b=2, easy=options.easy, hard=tuple(map(_hard, options.hard)))
    return _opened(Records(options.records), settings, options.attributes, None)


def _hard(text: str) -> str | dict:
    """A rule, or the dict of degradations that a recipe would hold."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise UserError(
            f"--hard: expected degradations such as {{'size': (12, 16)}}, got {text!r} ({error})"
        ) from error


def _by_recipe(options: argparse.Namespace) -> Sets:
    from ddl_plugin.recipe import load_recipe
    from ddl_plugin.training.dataset import SYNTHETIC, SYNTHETIC_FOLDER, dataset_folder, in_folder

    name, *overrides = options.recipe
    stray = next((text for text in overrides if "=" not in text), None)
    if stray is not None:
        raise UserError(
            f"--recipe: expected KEY=VALUE after {name}, got {stray!r}; REC|DIR goes before --recipe"
        )
    settings = load_recipe(name, overrides)
    if settings.ddl is None:
        raise UserError(f"{name}: expected config.ddl with easy and hard sets, got none")
    if options.records is None and settings.dataset_path == SYNTHETIC:
        drawn = (SYNTHETIC_FOLDER / "train.rec").is_file()
        print(f"{SYNTHETIC_FOLDER}: the synthetic data set, {'drawn before' if drawn else 'being drawn'}")
    path = dataset_folder(settings) if options.records is None else options.records
    records = Records(path, max_damaged=settings.max_damaged)
    if options.attributes is not None or settings.attributes is None:
        return _opened(records, settings.ddl, options.attributes, settings)
    attributes = in_folder(records.path.parent, settings.attributes)
    return _opened(records, settings.ddl, attributes, settings, given_as="the recipe's 'attributes'")


def _opened(
    records: Records,
    settings: DDLSettings,
    attributes: Path | None,
    recipe: RunSettings | None,
    given_as: str = "--attributes",
) -> Sets:
    table = None
    if attributes is not None:
        table = AttributeTable.load(attributes, given_as=given_as)
        require_of(table, records.fingerprint())
    return Sets(records, build_partition(records, settings, table), settings.b, table, recipe)
