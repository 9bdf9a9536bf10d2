"""`evaluate verification`: 10-fold accuracy and TAR at FAR on verification sets, and of their easy and hard pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ddl_plugin.cli import uninterrupted
from ddl_plugin.errors import UserError
from ddl_plugin.evaluate.figures import add_figures, draw, figure_paths
from ddl_plugin.evaluate.models import add_models, measured, require_model_outputs
from ddl_plugin.evaluate.report import add_report, check_report, write_report
from ddl_plugin.evaluate.tables import print_table, write_results

if TYPE_CHECKING:
    from ddl_plugin.evaluation.bins import BinSet
    from ddl_plugin.evaluation.evidence import Evidence
    from ddl_plugin.evaluation.subsets import Subset


def add(kinds: Any) -> None:
    parser = kinds.add_parser("verification", help="10-fold accuracy and TAR at FAR on .bin sets")
    parser.add_argument("--bin", nargs="+", action="extend", required=True, metavar="FILE",
                        help="InsightFace verification sets, e.g. lfw.bin cfp_fp.bin")  # fmt: skip
    parser.add_argument("--attributes", nargs="+", metavar="TABLE",
                        help="what is known of the images of each set, in the order of --bin: a .csv, .npz or "
                        ".parquet whose column `record` counts the images from 0")  # fmt: skip
    add_rules(parser, "pairs")
    add_figures(parser)
    add_report(parser)
    add_models(parser)
    parser.set_defaults(command=_verification)


def add_rules(parser: Any, what: str) -> None:
    """The options --easy and --hard."""
    parser.add_argument("--easy", metavar="RULE",
                        help=f"which {what} to call easy, such as 'abs(yaw) < 10'; without it those that are not hard")  # fmt: skip
    parser.add_argument("--hard", nargs="+", action="extend", metavar="RULE",
                        help=f"which {what} to call hard, such as 'abs(yaw) > 45'; one for each hard set")  # fmt: skip


def _verification(options: Any) -> None:
    with uninterrupted():
        from ddl_plugin.evaluation.bins import load_bin
        from ddl_plugin.evaluation.verification import check

    _require_attributes_for_each(options)
    inputs = [*options.bin, *(options.attributes or ())]
    sets = [load_bin(path) for path in options.bin]
    figures = figure_paths(options.figures, [bin_set.name for bin_set in sets])
    report = check_report(options.report)
    outputs = {
        "--json": options.json,
        "--report": report,
        **{f"--figures ({path.name})": path for path in figures},
    }
    require_model_outputs(outputs, options.model, inputs)
    for bin_set in sets:
        check(bin_set)
    subsets = _subsets(options, sets)
    found = measured(options.model, lambda embed, progress: _measure(embed, progress, sets, subsets))
    results = {name: entries for name, (entries, _) in found.items()}
    evidence = {name: lines for name, (_, lines) in found.items()}
    for i, bin_set in enumerate(sets):
        columns = {name: entries[i] for name, entries in results.items()}
        print_table(f"{bin_set.name}: {len(bin_set)} pairs", columns)
        for k, part in enumerate(subsets[i]):
            title = f"{bin_set.name}, {part.name}: {int(part.chosen.sum())} pairs ({part.rule})"
            print_table(title, {name: entry["subsets"][k] for name, entry in columns.items()})
        if figures:
            draw(figures[i], {name: lines[i] for name, lines in evidence.items()})
    write_results(options, "verification", results)
    write_report(report, "verification", options.model, results, evidence)


def _require_attributes_for_each(options: Any) -> None:
    if options.attributes and len(options.attributes) != len(options.bin):
        raise UserError(
            f"--attributes: expected a table for each of {len(options.bin)} sets of --bin, in their order, got "
            f"{len(options.attributes)}"
        )


def _subsets(options: Any, sets: list[BinSet]) -> list[list[Subset]]:
    from ddl_plugin.data.attributes import AttributeTable, require_of
    from ddl_plugin.evaluation.bins import fingerprint
    from ddl_plugin.evaluation.subsets import pair_subsets, rules_of

    rules = rules_of(options.easy, options.hard, options.attributes)
    if rules is None:
        return [[] for _ in sets]
    tables = [AttributeTable.load(path) for path in options.attributes]
    for table, path in zip(tables, options.bin, strict=True):
        require_of(table, fingerprint(path))
    return [pair_subsets(rules, table, bin_set) for table, bin_set in zip(tables, sets, strict=True)]


def _measure(
    embed: Any, progress: Any, sets: list[BinSet], subsets: list[list[Subset]]
) -> tuple[list[dict[str, Any]], list[list[Evidence]]]:
    """Of one model: the entry of each set, and what stands behind it (the set, then its subsets)."""
    from ddl_plugin.evaluation.verification import evidence, pair_similarities, score, score_subsets

    entries, lines = [], []
    for bin_set, parts in zip(sets, subsets, strict=True):
        similarity = pair_similarities(embed, bin_set, progress=progress)
        entry = score(similarity, bin_set)
        if parts:
            entry["subsets"] = score_subsets(similarity, bin_set, parts)
            entry["in_no_subset"] = int((~_any(parts)).sum())
        entries.append(entry)
        lines.append(evidence(similarity, bin_set, parts))
    return entries, lines


def _any(parts: list[Subset]) -> Any:
    import numpy as np

    return np.logical_or.reduce([part.chosen for part in parts])
