"""What the runs of a study found, as a table: rows down, measures across, mean and spread over the seeds."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from ddl_plugin.errors import UserError, did_you_mean
from ddl_plugin.evaluation.identification import size_in_words
from ddl_plugin.experiment.columns import SPEED
from ddl_plugin.experiment.runs import Run
from ddl_plugin.experiment.study import BASE_ROW, Study


@dataclass(frozen=True)
class Cell:
    """A measure of a row: its values by seed, and the paper's."""

    values: tuple[float, ...]
    paper: float | None = None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over the seeds; None of a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        if not self.values:
            text = "-"
        else:
            decimals = 2 if abs(self.mean) >= 2 else 3  # rates in percent, margins in cosines
            text = f"{self.mean:.{decimals}f}"
            text += "" if self.spread is None else f" ± {self.spread:.{decimals}f}"
        return text if self.paper is None else f"{text} (paper {self.paper:g})"


#: {row: {measure: Cell}}; the base model is the first row.
Table = dict[str, dict[str, Cell]]


def measures(result: Mapping[str, Any]) -> dict[str, float]:
    """What a model's part of result.json says, by name: rates in percent; margins and intersections as they are."""
    found: dict[str, float] = {}
    for name, scores in result["verification"].items():
        found[f"{name}: accuracy"] = 100 * scores["accuracy"]
        found |= _of_scores(name, scores)
    for scores in result.get("identification", {}).get("results", ()):
        where = size_in_words(scores["size"], scores.get("gallery_size", "full"), scores["condition"])
        found[f"{where}: rank-1"] = 100 * scores["rank1"]
        found |= _of_scores(where, scores)
    return found


def _of_scores(where: str, scores: Mapping[str, Any]) -> dict[str, float]:
    found = {f"{where}: TAR@FAR={entry['far']:g}": 100 * entry["tar"] for entry in scores["tar_at_far"]}
    found[f"{where}: EER"] = 100 * scores["eer"]
    found[f"{where}: margin"] = scores["margin"]
    found[f"{where}: intersection"] = scores["intersection"]
    return found


def collect(runs: Sequence[Run]) -> dict[tuple[str, int], dict[str, float]]:
    """{(row, seed): {measure: value}} of the finished runs, with the base model as a row of its own."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    for run in runs:
        result = run.result()
        if result is None:
            continue
        models = result["models"]
        if "base" in models:
            # Rows may look at different sets.
            base = (BASE_ROW, run.seed)
            found[base] = {**measures(models["base"]), **found.get(base, {})}
        loss = run.settings.loss
        speed = {SPEED: result["runs"][loss]["images_per_second"]}
        found[run.row.name, run.seed] = {**measures(models[loss]), **speed}
    return found


def columns_of(study: Study, found: Mapping[tuple[str, int], Mapping[str, float]]) -> list[str]:
    """The study's columns, or all there are; `UserError` for one that no run measures."""
    there = list(dict.fromkeys(name for values in found.values() for name in values))
    for column in study.columns:
        if there and column not in there:
            raise UserError(
                f"{study.path}: study.columns: expected what the runs measure, got {column!r}{did_you_mean(column, there)}; "
                f"measured: {', '.join(there)}"
            )
    return list(study.columns) or there


def tabulated(study: Study, found: Mapping[tuple[str, int], Mapping[str, float]]) -> Table:
    """Rows in the study's order, the base model first; a row without a finished run has no values."""
    columns = columns_of(study, found)
    names = [BASE_ROW] if any(row == BASE_ROW for row, _ in found) else []
    papers = {row.name: row.paper for row in study.rows}
    table: Table = {}
    for name in (*names, *papers):
        seeds = sorted(seed for row, seed in found if row == name)
        # One base model, the same for every seed, has no spread over them.
        seeds = seeds[:1] if name == BASE_ROW else seeds
        paper = papers.get(name, {})
        table[name] = {
            column: Cell(_values(found, name, seeds, column), paper.get(column)) for column in columns
        }
    return table


def _values(
    found: Mapping[tuple[str, int], Mapping[str, float]], row: str, seeds: Sequence[int], column: str
) -> tuple[float, ...]:
    """By seed; a row may measure less than others: the base model has no speed of training."""
    return tuple(found[row, seed][column] for seed in seeds if column in found[row, seed])


def markdown(study: Study, table: Table, notes: Sequence[str]) -> str:
    """The table as Markdown, with a heading and notes."""
    return "\n".join(
        [
            f"# {study.title or study.path.stem}",
            "",
            shown(table, "github"),
            "",
            *(f"- {n}" for n in notes),
            "",
        ]
    )


def shown(table: Table, tablefmt: str = "simple") -> str:
    """The table as text."""
    columns = list(next(iter(table.values())))
    rows = [[name, *map(str, cells.values())] for name, cells in table.items()]
    if tablefmt == "github":
        rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return tabulate(rows, headers=["", *columns], tablefmt=tablefmt, disable_numparse=True)


def as_csv(table: Table, found: Mapping[tuple[str, int], Mapping[str, float]]) -> tuple[str, str]:
    """(a line a row and measure: mean, spread, runs, paper; a line a run and measure: all that was measured)."""
    summary, everything = io.StringIO(), io.StringIO()
    write = csv.writer(summary, lineterminator="\n").writerow
    write(["row", "measure", "mean", "standard_deviation", "runs", "paper"])
    for name, cells in table.items():
        for measure, cell in cells.items():
            mean = cell.mean if cell.values else ""
            spread, paper = ("" if value is None else value for value in (cell.spread, cell.paper))
            write([name, measure, mean, spread, len(cell.values), paper])
    write = csv.writer(everything, lineterminator="\n").writerow
    write(["row", "seed", "measure", "value"])
    for (name, seed), values in found.items():
        for measure, value in values.items():
            write([name, seed, measure, value])
    return summary.getvalue(), everything.getvalue()
