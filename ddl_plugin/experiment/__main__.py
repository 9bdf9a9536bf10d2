"""`python -m ddl_plugin.experiment STUDY.py --output DIR`: many runs of one recipe, as a table with its spread."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from ddl_plugin.cli import Parser, run, split_devices, uninterrupted
from ddl_plugin.errors import CheckError, UserError
from ddl_plugin.settings import BACKENDS


def main(arguments: Sequence[str] | None = None) -> int:
    return run(lambda: _experiment(arguments))


def _parser() -> Parser:
    parser = Parser(
        prog="python -m ddl_plugin.experiment",
        description="Carry out a study: the rows of a table, each a run with every seed. Called again it goes on.",
    )
    parser.add_argument("study", metavar="STUDY", help="a study file, or the name of a shipped one")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument(
        "--devices", default="cpu", help="of each run: cpu, cpu:0,1, gpu or gpu:0,1 (default: cpu)"
    )
    parser.add_argument(
        "--backend", choices=BACKENDS, help="what trains (default: the study's or the recipe's, or mxnet)"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: 1)")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT",
                        help="rows with TEXT in their name; may be given again")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="list the runs and how long they will take")
    return parser


def _experiment(arguments: Sequence[str] | None) -> None:
    options = _parser().parse_args(arguments)
    if options.jobs < 1:
        raise UserError(f"--jobs: expected a whole number >= 1, got {options.jobs}")
    split_devices(options.devices)
    if options.output.exists() and not options.output.is_dir():
        raise UserError(f"--output: expected a folder, got the file {options.output}")
    with uninterrupted():
        from ddl_plugin.experiment.runner import Runner, estimate, in_words
        from ddl_plugin.experiment.runs import base_run, planned
        from ddl_plugin.experiment.study import load_study

    study = load_study(options.study)
    if options.backend is not None:
        study = dataclasses.replace(study, common={**study.common, "backend": options.backend})
    rows = study.chosen(options.only)
    base = base_run(study, options.output)
    runs = planned(study, rows, options.output, base)
    if options.dry_run:
        for one in ([base] if base else []) + runs:
            print(f"{one.name}: {'done' if one.result() is not None else ' '.join(one.overrides)}")
        seconds, how = estimate(runs, base, options.devices, options.jobs)
        print(f"{len(runs)} runs; left: about {in_words(seconds)}, {how}")
        return
    runner = Runner(options.devices, options.jobs)
    try:
        if base is not None:
            reason = runner.carry_out([base], print)
            if reason:
                raise CheckError(f"the base model was not trained: {reason[base.name]}")
        failed = runner.carry_out(runs, print)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(
            f"what is done is kept in {options.output}; the same command goes on"
        ) from interrupt
    _report(study, planned(study, study.rows, options.output, base), options)
    if failed:
        raise CheckError(
            f"{len(failed)} of {len(runs)} runs failed: {'; '.join(f'{k}: {v}' for k, v in failed.items())}"
        )


def _report(study, runs, options: Namespace) -> None:
    """Table and figures of all finished runs of the study, be they of this call or of others."""
    from ddl_plugin.experiment.figure import study_figure
    from ddl_plugin.experiment.results import as_csv, collect, markdown, shown, tabulated
    from ddl_plugin.files import write_text

    found = collect(runs)
    if not found:
        return
    table = tabulated(study, found)
    done = sum(1 for one in runs if one.result() is not None)
    seeds = ", ".join(map(str, study.seeds))
    over = f"seed {seeds}" if len(study.seeds) == 1 else f"mean and standard deviation over the seeds {seeds}"
    notes = [
        f"{done} of {len(runs)} runs; {over}",
        f"command: python -m ddl_plugin.experiment {shlex.join([options.study, '--output', str(options.output)])}",
    ]
    write_text(options.output / "table.md", markdown(study, table, notes))
    for name, text in zip(("table.csv", "values.csv"), as_csv(table, found), strict=True):
        write_text(options.output / name, text)
    print("\n" + shown(table) + "\n")
    print(notes[0])
    try:
        for kind in ("pdf", "png"):
            study_figure(study, table, options.output / f"figure.{kind}")
            print(f"figure: {options.output / f'figure.{kind}'}")
    except UserError as error:  # no Matplotlib: the table must not be lost for a picture
        print(f"no figure: {error}")
    print(f"results: {options.output}")


if __name__ == "__main__":
    sys.exit(main())
