"""`analyze distributions`: the similarity distributions of models on verification sets, as a figure."""

from __future__ import annotations

from typing import Any

from ddl_plugin.cli import uninterrupted, write_json
from ddl_plugin.errors import UserError
from ddl_plugin.evaluate.models import MODEL, model_names, open_model, progress_bar, require_model_outputs


def add(kinds: Any) -> None:
    parser = kinds.add_parser(
        "distributions", help="similarities of the same and of different persons, a column a model"
    )
    parser.add_argument("--model", action="append", required=True,
                        help=f"{MODEL} for a column each")  # fmt: skip
    parser.add_argument("--bin", nargs="+", action="extend", required=True, metavar="FILE",
                        help="InsightFace verification sets, a row each, e.g. easy.bin hard.bin")  # fmt: skip
    parser.add_argument("--output", required=True, metavar="FIGURE", help="a .png, .pdf or .svg file")
    parser.add_argument("--json", metavar="FILE", help="write the statistics there too")
    parser.set_defaults(command=_analyze)


def _analyze(options: Any) -> None:
    with uninterrupted():
        from ddl_plugin.analysis.drawing import check_output
        from ddl_plugin.analysis.figures import distribution_figure
        from ddl_plugin.evaluation.bins import load_bin
        from ddl_plugin.evaluation.verification import pair_scores, summarise

        output = check_output(options.output)  # imports Matplotlib
    names = model_names(options.model)
    sets = {bin_set.name: bin_set for bin_set in map(load_bin, options.bin)}
    if len(sets) < len(options.bin):
        raise UserError(f"--bin: expected files with different names, got {', '.join(options.bin)}")
    require_model_outputs({"--output": output, "--json": options.json}, options.model, options.bin)
    scores = {}
    for name, model in zip(names, options.model, strict=True):
        embed, progress = open_model(model), progress_bar(name)
        scores[name] = {row: pair_scores(embed, bin_set, progress=progress) for row, bin_set in sets.items()}
    statistics = {
        name: {row: summarise(*pair) for row, pair in by_set.items()} for name, by_set in scores.items()
    }
    distribution_figure(scores, output)
    _print(statistics)
    print(f"\nfigure: {output}")
    if options.json:
        models = dict(zip(names, options.model, strict=True))
        write_json(options.json, {"kind": "distributions", "models": models, "results": statistics})


def _print(statistics: dict[str, dict[str, dict[str, Any]]]) -> None:
    from tabulate import tabulate

    table = [
        [
            row,
            name,
            *(f"{entry[key]:.3f}" for key in ("positive_mean", "negative_mean", "margin", "intersection")),
        ]
        for row in next(iter(statistics.values()))
        for name, entry in ((name, by_set[row]) for name, by_set in statistics.items())
    ]
    headers = ["set", "model", "same, mean", "different, mean", "margin", "intersection"]
    align = ("left", "left", *["right"] * 4)
    print(tabulate(table, headers=headers, disable_numparse=True, colalign=align))
