"""What we say beside the trainer's own log."""

from __future__ import annotations

import sys
from collections.abc import Callable


def note(text: str) -> None:
    print(f"ddl_plugin: {text}", file=sys.stderr, flush=True)


def note_of(rank: int) -> Callable[[str], None]:
    """`note` in the first of several processes; in the others what is said there goes unsaid."""
    return note if rank == 0 else _unsaid


def _unsaid(text: str) -> None:
    pass
