"""What the commands print and write: a table of figures with a column a model."""

from __future__ import annotations

from typing import Any

from ddl_plugin.cli import write_json


def print_table(title: str, columns: dict[str, dict[str, Any]]) -> None:
    """columns: the entry of each model, of one set or condition."""
    rows = {name: dict(_lines(entry)) for name, entry in columns.items()}
    first = next(iter(rows.values()))
    print_lines(title, {line: [rows[name][line] for name in rows] for line in first}, list(rows))


def print_lines(title: str, lines: dict[str, list[str]], models: list[str]) -> None:
    """lines: name of a figure -> its value for each model."""
    from tabulate import tabulate

    align = ("left", *["right"] * len(models))
    table = [[line, *values] for line, values in lines.items()]
    print(f"\n{title}")
    print(tabulate(table, headers=["", *models], disable_numparse=True, colalign=align))


def _lines(entry: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [*_accuracy(entry)]
    lines += [(f"rank-{k}", f"{entry[f'rank{k}']:.2%}") for k in (1, 5, 10) if f"rank{k}" in entry]
    for point in entry["tar_at_far"]:
        line = f"TAR at FAR {point['far']:.2g} (obtained)"
        lines.append((line, f"{point['tar']:.2%} ({point['obtained_far']:.2g})"))
    d_prime = entry["d_prime"]
    return [
        *lines,
        ("equal error rate", f"{entry['eer']:.2%}"),
        ("same person, cosine", f"{entry['positive_mean']:.3f} ± {entry['positive_std']:.3f}"),
        ("different persons, cosine", f"{entry['negative_mean']:.3f} ± {entry['negative_std']:.3f}"),
        ("expectation margin", f"{entry['margin']:.3f}"),
        ("histogram intersection", f"{entry['intersection']:.3f}"),
        ("d'", "none" if d_prime is None else f"{d_prime:.2f}"),
    ]


def _accuracy(entry: dict[str, Any]) -> list[tuple[str, str]]:
    if "accuracy_std" not in entry:
        return (
            [("accuracy, thresholds of the set", f"{entry['accuracy']:.2%}")] if "accuracy" in entry else []
        )
    lines = [("accuracy, 10 folds", f"{entry['accuracy']:.2%} ± {100 * entry['accuracy_std']:.2f}")]
    val = entry["val"]
    if val is not None:
        spread = f"{val['val']:.2%} ± {100 * val['std']:.2f} ({val['far']:.2g})"
        lines.append(("VAL at FAR 0.001 (obtained)", spread))
    return lines


def write_results(options: Any, kind: str, columns: dict[str, Any]) -> None:
    if options.json:
        models = dict(zip(columns, options.model, strict=True))
        write_json(options.json, {"kind": kind, "models": models, "results": columns})
