"""Command line for preparing data: `python -m ddl_plugin.prepare COMMAND ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ddl_plugin.cli import dispatch, run
from ddl_plugin.prepare import attributes, bin, check, pairs, partition, pose, records, synthetic

_COMMANDS = (synthetic, records, check, pose, attributes, partition, pairs, bin)


def main(arguments: Sequence[str] | None = None) -> int:
    return run(
        lambda: dispatch(
            arguments,
            "python -m ddl_plugin.prepare",
            "Prepare data for training and evaluation.",
            _COMMANDS,
            "COMMAND",
        )
    )


if __name__ == "__main__":
    sys.exit(main())
