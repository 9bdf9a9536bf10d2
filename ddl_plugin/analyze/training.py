"""`analyze training`: the terms of the loss over the steps of one or several runs, from their logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ddl_plugin.cli import require_outputs, uninterrupted
from ddl_plugin.errors import UserError

_LOG = "log.jsonl"


def add(kinds: Any) -> None:
    parser = kinds.add_parser("training", help="terms of the loss over the steps, from the logs of runs")
    parser.add_argument("run", nargs="+", metavar="DIR",
                        help="a run's folder such as runs/demo/ddl, or one with such folders in it")  # fmt: skip
    parser.add_argument("--term", action="append", default=[], metavar="NAME",
                        help="a term of the log; may be given again (default: the losses, margins and intersections)")  # fmt: skip
    parser.add_argument("--output", required=True, metavar="FIGURE", help="a .png, .pdf or .svg file")
    parser.set_defaults(command=_training)


def _training(options: Any) -> None:
    with uninterrupted():
        from ddl_plugin.analysis.drawing import check_output
        from ddl_plugin.analysis.training_figure import read_log, training_figure

    output = check_output(options.output)
    logs = [log for folder in options.run for log in _logs(Path(folder))]
    require_outputs({"--output": output}, logs)
    names = _names(logs)
    training_figure(
        {name: read_log(log) for name, log in zip(names, logs, strict=True)}, output, options.term
    )
    print(f"figure: {output}")


def _logs(folder: Path) -> list[Path]:
    """The log of a run, or those of the runs in a job's folder."""
    found = [folder / _LOG] if (folder / _LOG).is_file() else sorted(folder.glob(f"*/{_LOG}"))
    if not found:
        raise UserError(f"{folder}: expected {_LOG}, which a run writes, there or in its folders, found none")
    return found


def _names(logs: list[Path]) -> list[str]:
    """The folders' names, with as much of their paths as tells them apart."""
    parts = [log.absolute().parent.parts for log in logs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-count:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(
        f"DIR: expected different runs, got one twice: {', '.join(str(log.parent) for log in logs)}"
    )
