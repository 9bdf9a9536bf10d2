"""What the commands print and write: a table of figures with a column a model."""

from __future__ import annotations

from typing import Any

from ddl_plugin.cli import write_json


def print_table(title: str, columns: dict[str, dict[str, Any]]) -> None:
    from tabulate import tabulate

    rows = {name: dict(_lines(entry)) for name, entry in columns.items()}
    first = next(iter(rows.values()))
    table = [[line, *(rows[name][line] for name in rows)] for line in first]
    print(f"\n{title}")
    print(
        tabulate(table, headers=["", *rows], disable_numparse=True, colalign=("left", *["right"] * len(rows)))
    )


def _lines(entry: dict[str, Any]) -> list[tuple[str, str]]:
    lines = []
    if "accuracy" in entry:
        spread = f"{entry['accuracy']:.2%} ± {100 * entry['accuracy_std']:.2f}"
        lines.append(("accuracy, 10 folds", spread))
    lines += [(f"rank-{k}", f"{entry[f'rank{k}']:.2%}") for k in (1, 5) if f"rank{k}" in entry]
    for point in entry["tar_at_far"]:
        line = f"TAR at FAR {point['far']:.2g} (obtained)"
        lines.append((line, f"{point['tar']:.2%} ({point['obtained_far']:.2g})"))
    lines += [
        ("equal error rate", f"{entry['eer']:.2%}"),
        ("expectation margin", f"{entry['margin']:.3f}"),
        ("histogram intersection", f"{entry['intersection']:.3f}"),
    ]
    return lines


def write_results(options: Any, kind: str, columns: dict[str, Any]) -> None:
    if options.json:
        models = dict(zip(columns, options.model, strict=True))
        write_json(options.json, {"kind": kind, "models": models, "results": columns})
