"""Command line for preparing data: `python -m ddl_plugin.prepare COMMAND ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ddl_plugin.cli import Parser, run
from ddl_plugin.prepare import attributes, bin, check, pairs, partition, pose, records, synthetic

_COMMANDS = (synthetic, records, check, pose, attributes, partition, pairs, bin)


def main(arguments: Sequence[str] | None = None) -> int:
    return run(lambda: _prepare(arguments))


def _prepare(arguments: Sequence[str] | None) -> None:
    options = _parser().parse_args(arguments)
    options.command(options)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m ddl_plugin.prepare", description="Prepare data for training and evaluation."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
