"""The output folder of a job: what of it is done, what may be lost, and whether it is still the same work."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddl_plugin.cli import write_json
from ddl_plugin.errors import UserError
from ddl_plugin.recipe import completed, describe
from ddl_plugin.settings import LOOKING_ONLY, RunSettings
from ddl_plugin.training.trainer import STATE_FILE

PRETRAINING = "pretraining"  # folder of the base model's own run, where a recipe trains it

_DONE = "done.json"  # in a run's folder: the settings it was trained with
_RECIPE = "recipe.json"  # the resolved settings of the job
_ORIGIN = "origin.json"  # what its runs start from: hashes of the base model and the records, devices


@contextmanager
def locked(output: Path, *, create: bool) -> Iterator[None]:
    """Keep the folder to one job at a time; `UserError` where another one is working in it.

    Without `create` a folder that is not there stays so, and there is nothing to lock.
    """
    if create:
        output.mkdir(parents=True, exist_ok=True)
    if not output.is_dir():
        yield
        return
    folder = os.open(output, os.O_RDONLY)  # the folder itself is locked: no file to leave behind
    try:
        _lock(folder, output)
        yield
    finally:
        os.close(folder)


def _lock(folder: int, output: Path) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"--output: another run is working in {output}; wait for it, or use another --output"
        ) from error


def begin(output: Path, settings: RunSettings) -> None:
    """Start new work in `output`; `UserError` where other work would be lost, be it of this recipe or another."""
    for name, what in ((STATE_FILE, "an unfinished run"), (_DONE, "a finished run")):
        for path in sorted(output.glob(f"*/{name}")):
            raise UserError(
                f"--output: {path.parent} holds {what}; add --resume to go on with it, or use another --output"
            )
    write_json(output / _RECIPE, describe(settings))


def go_on(output: Path, settings: RunSettings) -> None:
    """Go on with the work in `output`; `UserError` where there is none, or that of another recipe."""
    if not begun(output):
        raise UserError(
            f"--resume: expected a run to go on with in {output}, found none; check --output, or run without --resume"
        )
    path = output / _RECIPE
    if path.is_file():
        changed = _difference(_read(path), settings)
        if changed:
            raise UserError(
                f"--resume: {changed} was begun in {output}; set it back, or use another --output"
            )


def begun(output: Path) -> bool:
    """Whether the folder holds a run, be it of the base model, that can be gone on with."""
    places = [f"{folder}*/{name}" for folder in ("", f"{PRETRAINING}/") for name in (STATE_FILE, _DONE)]
    return any(path for place in places for path in output.glob(place))


def require_same_origin(output: Path, origin: dict[str, Any]) -> None:
    """`UserError` where work in `output` started from other files than `origin` says; else note it there."""
    path = output / _ORIGIN
    if path.is_file() and begun(output):
        recorded = _read(path)
        changed = [key for key, value in origin.items() if recorded.get(key) != value]
        if changed:
            raise UserError(
                f"--resume: {changed[0]} changed since the run in {output} was begun (expected "
                f"{recorded.get(changed[0])}, got {origin[changed[0]]}); put it back, or use another --output"
            )
    write_json(path, origin)


def is_done(folder: Path, settings: RunSettings) -> bool:
    """Whether this run was finished in `folder`; `UserError` where another one was."""
    path = folder / _DONE
    if not path.is_file():
        return False
    changed = _difference(_read(path).get("settings", {}), settings)
    if changed:
        raise UserError(f"{folder}: {changed} was finished here; use another --output, or delete the folder")
    return True


def mark_done(folder: Path, settings: RunSettings, speed: dict[str, float]) -> None:
    """The run is finished; its state for resuming goes."""
    write_json(folder / _DONE, {"settings": describe(settings), "speed": speed})
    (folder / STATE_FILE).unlink(missing_ok=True)


def speed_of(folder: Path) -> dict[str, float]:
    """Time and images/s of a finished run."""
    return _read(folder / _DONE).get("speed", {})


def _read(path: Path) -> dict[str, Any]:
    """One of the JSON files above; `UserError` where it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); delete the folder, or use another --output"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged; delete the folder, or use another --output")
    return content


def _difference(recorded: dict[str, Any], settings: RunSettings) -> str | None:
    """'lr is 0.2, but a run with 0.1' for the first setting that differs and touches what is trained."""
    recorded = completed(recorded)
    for key, value in describe(settings).items():
        if key not in LOOKING_ONLY and recorded.get(key) != value:
            return f"{key} is {value!r}, but a run with {recorded.get(key)!r}"
    return None
