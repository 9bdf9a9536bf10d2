"""`python -m ddl_plugin.evaluate KIND ...`: scores of one or several models side by side."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ddl_plugin.cli import Parser, run
from ddl_plugin.evaluate import identification, ijb, verification

_KINDS = (verification, identification, ijb)


def main(arguments: Sequence[str] | None = None) -> int:
    return run(lambda: _evaluate(arguments))


def _evaluate(arguments: Sequence[str] | None) -> None:
    parser = Parser("python -m ddl_plugin.evaluate", description="Measure face recognition models.")
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    for kind in _KINDS:
        kind.add(kinds)
    options = parser.parse_args(arguments)
    options.command(options)


if __name__ == "__main__":
    sys.exit(main())
