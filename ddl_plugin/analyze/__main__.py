"""`python -m ddl_plugin.analyze KIND ...`: what models and runs look like."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ddl_plugin.analyze import distributions, embeddings, training
from ddl_plugin.cli import dispatch, run

_KINDS = (distributions, training, embeddings)


def main(arguments: Sequence[str] | None = None) -> int:
    return run(
        lambda: dispatch(
            arguments,
            "python -m ddl_plugin.analyze",
            "Draw what models and training runs look like.",
            _KINDS,
            "KIND",
        )
    )


if __name__ == "__main__":
    sys.exit(main())
