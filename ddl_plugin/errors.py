"""The two ways in which a command ends other than well, and how a mistyped name is answered."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user gave cannot be used: one clear line on stderr, exit code 2.

    The message says what was expected, what was got, where, and the remedy.
    """


class CheckError(Exception):
    """A check that the command exists for did not hold (parity, graph equality): exit code 1."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known name, else the list of all known names."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known) or 'none'}"
