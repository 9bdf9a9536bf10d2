"""How a worker's process ends, and what of."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from typing import Any

from ddl_plugin.cli import INTERRUPTED
from ddl_plugin.errors import CheckError, UserError


class Guard:
    """Once armed, ends the interpreter with `code`, and without MXNet's own ending, unless it is released.

    That ending waits for all workers, so with one of them gone for ever. It begins when the KVStore is let go of:
    here it is held.
    """

    def __init__(self) -> None:
        self.code = 1
        self.store: Any = None

    def arm(self) -> None:
        atexit.register(self._end)

    def release(self) -> None:
        """Let MXNet end as it does: workers wait for each other, then servers and scheduler end."""
        atexit.unregister(self._end)
        self.store = None

    def _end(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(self.code)


def exit_code(error: BaseException | None) -> int:
    """What a command that ends of `error` exits with."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, UserError):
        return 2
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return int(error is not None)


def in_words(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, (UserError, CheckError)):
        return text
    kind = {KeyboardInterrupt: "interrupted", SystemExit: "exit code"}.get(type(error), type(error).__name__)
    return f"{kind}: {text}" if text else kind
