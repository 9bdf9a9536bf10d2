"""A user's Python file executed; what goes wrong in it becomes one line with the file and the line number."""

from __future__ import annotations

import runpy
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddl_plugin.errors import UserError


def execute(path: Path) -> dict[str, Any]:
    """The names that the file defines; raises `UserError` naming the file and the line that fails."""
    with running(path, str(path)):
        return runpy.run_path(str(path), run_name="recipe")


@contextmanager
def running(path: Path, what: str) -> Iterator[None]:
    """A block that runs code of the file `path`; messages begin with `what`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{what}{_line_of(error, path)}: {type(error).__name__}: {error}") from error


def _line_of(error: BaseException, path: Path) -> str:
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f", line {error.lineno}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""
