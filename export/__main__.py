"""`python -m ddl_plugin.export CHECKPOINT --output MODEL.onnx`; see `command`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ddl_plugin.cli import run, uninterrupted


def _command(arguments: Sequence[str] | None) -> None:
    with uninterrupted():
        from ddl_plugin.export.command import command
    command(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    return run(lambda: _command(arguments))


if __name__ == "__main__":
    sys.exit(main())
