"""`python -m ddl_plugin.analyze KIND ...`: what models and runs look like."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ddl_plugin.analyze import distributions, embeddings, training
from ddl_plugin.cli import Parser, run

_KINDS = (distributions, training, embeddings)


def main(arguments: Sequence[str] | None = None) -> int:
    return run(lambda: _analyze(arguments))


def _analyze(arguments: Sequence[str] | None) -> None:
    parser = Parser(
        "python -m ddl_plugin.analyze", description="Draw what models and training runs look like."
    )
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    for kind in _KINDS:
        kind.add(kinds)
    options = parser.parse_args(arguments)
    options.command(options)


if __name__ == "__main__":
    sys.exit(main())
