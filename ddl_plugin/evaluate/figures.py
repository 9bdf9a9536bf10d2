"""`--figures DIR` of the commands: distributions (the paper's Fig. 6), curves, and where models fail (Fig. 7)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddl_plugin.evaluation.evidence import Evidence


def add_figures(parser: Any) -> None:
    parser.add_argument("--figures", type=Path, metavar="DIR",
                        help="draw the distributions of similarities there, a .png for each set, and in a folder "
                        "for each its ROC, CMC and failures")  # fmt: skip


def figure_paths(folder: Path | None, names: Sequence[str]) -> list[Path]:
    """The figure of each name (distinct ones give distinct files); [] without a folder.

    Asked before any work. UserError where Matplotlib is not installed.
    """
    if folder is None:
        return []
    from ddl_plugin.analysis.drawing import check_output

    return [check_output(folder / f"{stem}.png") for stem in _stems(names)]


def _stems(names: Sequence[str]) -> list[str]:
    """Names of files after these, distinct also where case is not told apart."""
    taken: dict[str, None] = {}
    for name in names:
        plain = re.sub(r"[^\w.-]+", "_", name).strip("_") or "set"
        count = 1
        stem = plain
        while stem.lower() in taken:
            count += 1
            stem = f"{plain}_{count}"
        taken[stem.lower()] = None
    return list(taken)


def draw(path: Path, evidence: Mapping[str, Sequence[Evidence]]) -> None:
    """Write the figure of all distributions, and into a folder of its name the curves and failures of each line.

    evidence: model -> the lines of results, the same for every model.
    """
    from ddl_plugin.analysis.figures import distribution_figure

    distribution_figure(
        {
            model: {line.title: (line.negatives, line.positives) for line in lines}
            for model, lines in evidence.items()
        },
        path,
    )
    print(f"\nfigure: {path}")
    folder = path.with_suffix("")
    some = next(iter(evidence.values()))
    for i, stem in enumerate(_stems([line.title for line in some])):
        _draw_line(folder, stem, {model: lines[i] for model, lines in evidence.items()})
    print(f"figures: {folder}")


def _draw_line(folder: Path, stem: str, lines: Mapping[str, Evidence]) -> None:
    """ROC, CMC and examples of failures of one line of results, as files that begin with `stem`."""
    from ddl_plugin.analysis.curves import cmc_figure, roc_figure
    from ddl_plugin.analysis.failures import failures_figure
    from ddl_plugin.evaluate.examples import compared, wrong

    title = next(iter(lines.values())).title
    roc_figure({model: line.curve for model, line in lines.items()}, folder / f"{stem}_roc.png", title)
    ranked = {model: line.cmc for model, line in lines.items() if line.cmc is not None}
    if ranked:
        cmc_figure(ranked, folder / f"{stem}_cmc.png", title)
    found = [
        failures for model, line in lines.items() for failures in wrong(model, line, "its fold's threshold")
    ]
    found = [failures for failures in (*found, *compared(lines)) if failures.examples]
    for failures, name in zip(found, _stems([failures.title for failures in found]), strict=True):
        failures_figure(failures.examples, folder / f"{stem}_{name}.png", f"{title}. {failures.title}")
