"""The before/after report of a run: every model on the same sets, as a table, JSON and a figure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from ddl_plugin.data.records import Records
from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.bins import BinSet, load_bin
from ddl_plugin.evaluation.identification import identify, size_in_words
from ddl_plugin.evaluation.onnx_model import OnnxEmbedder
from ddl_plugin.evaluation.protocols import Protocol, first_others, load_protocol
from ddl_plugin.evaluation.verification import pair_similarities, score, split
from ddl_plugin.files import write_text
from ddl_plugin.settings import RunSettings
from ddl_plugin.training.dataset import in_folder

Results = dict[str, dict[str, Any]]  # model -> what was measured of it


def open_bins(settings: RunSettings, folder: Path) -> list[BinSet]:
    """The verification sets of `val_targets`; `UserError` names one that is not there."""
    sets = []
    for name in settings.val_targets:
        path = in_folder(folder, name if name.endswith(".bin") else f"{name}.bin")
        if not path.is_file():
            there = ", ".join(sorted(p.stem for p in folder.glob("*.bin"))) or "none"
            raise UserError(f"val_targets: no {name}.bin in {folder}; .bin sets there: {there}")
        sets.append(load_bin(path))
    return sets


def open_protocol(settings: RunSettings, folder: Path) -> tuple[Records, Protocol] | None:
    """The records and the gallery and probes of `identification`, None without it."""
    wanted = settings.identification
    if wanted is None:
        return None
    records = Records(in_folder(folder, wanted.rec))
    if wanted.protocol is None:
        return records, first_others(records, wanted.probes)
    return records, load_protocol(in_folder(folder, wanted.protocol), records)


def measure(
    settings: RunSettings, folder: Path, name: str, path: Path, progress: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What there is to say of one model, and its similarities by verification set, for the figure.

    `path` is the exported .onnx file: what is measured is what will be deployed.
    """
    embed = OnnxEmbedder(path)

    def bar(batches: Iterable) -> Iterable:
        return tqdm(batches, f"evaluate {name}", leave=False, disable=not progress)

    result: dict[str, Any] = {"verification": {}}
    similarities = {}
    for bin_set in open_bins(settings, folder):
        values = pair_similarities(embed, bin_set, progress=bar)
        result["verification"][bin_set.name] = score(values, bin_set)
        similarities[bin_set.name] = split(values, bin_set)
    opened = open_protocol(settings, folder)
    if opened is not None:
        sizes = [None if size == "full" else size for size in settings.identification.sizes]
        both = settings.identification.both_sizes
        result["identification"] = identify(embed, *opened, sizes, both_sizes=both, progress=bar)
    return result, similarities


def table(results: Results, tablefmt: str = "simple") -> str:
    """Measures down, models across; rates in percent."""
    models = list(results)
    columns = [_measures(results[model]) for model in models]
    rows = [[*key, *(column[key] for column in columns)] for key in columns[0]]
    return tabulate(rows, headers=["set", "measure", *models], tablefmt=tablefmt, disable_numparse=True)


def _measures(result: dict[str, Any]) -> dict[tuple[str, str], str]:
    values = {}
    for name, scores in result["verification"].items():
        values[name, "accuracy, 10-fold"] = _percent(scores["accuracy"])
        values |= _tar(name, scores)
        values[name, "margin"] = f"{scores['margin']:.3f}"
        values[name, "histogram intersection"] = f"{scores['intersection']:.3f}"
    for row in result.get("identification", {}).get("results", ()):
        name = "probes at " + size_in_words(row["size"], row["gallery_size"], row["condition"])
        values[name, "rank-1"] = _percent(row["rank1"])
        values |= _tar(name, row)
        values[name, "margin"] = f"{row['margin']:.3f}"
    return values


def _tar(name: str, scores: dict[str, Any]) -> dict[tuple[str, str], str]:
    """TAR at the smallest FAR that these scores can resolve to ten impostor pairs or more, else to one."""
    entries = sorted(scores["tar_at_far"], key=lambda entry: entry["far"])
    for enough in (10, 1):
        for entry in entries:
            if entry["far"] * scores["negatives"] >= enough:
                return {(name, f"TAR@FAR={entry['far']:g}"): _percent(entry["tar"])}
    return {}


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def write_figure(similarities: dict[str, dict[str, Any]], paths: Sequence[Path]) -> list[Path]:
    """The similarity distributions; [] where Matplotlib is not installed or no set was evaluated."""
    from ddl_plugin.analysis.figures import distribution_figure

    if not any(similarities.values()):
        return []
    for path in paths:
        distribution_figure(similarities, path)
    return list(paths)


def write_markdown(path: Path, title: str, results: Results, notes: Sequence[str]) -> None:
    lines = [f"# {title}", "", table(results, "github"), "", *(f"- {note}" for note in notes), ""]
    write_text(path, "\n".join(lines))
