"""What we say beside the trainer's own log."""

from __future__ import annotations

import sys


def note(text: str) -> None:
    print(f"ddl_plugin: {text}", file=sys.stderr, flush=True)
