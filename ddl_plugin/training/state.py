"""The state of an unfinished run: all that the next step depends on, in one file written whole or not at all.

Sampler, mirrors and degradations are pure functions of (seed, step), so the step number is all they need.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddl_plugin.errors import UserError
from ddl_plugin.files import replaced
from ddl_plugin.recipe import completed

_FORMAT = 1
_DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True)
class RunState:
    step: int  # the next step to train
    arg: dict[str, np.ndarray]
    aux: dict[str, np.ndarray]
    optimizer: bytes  # the momenta, as the engine that trains writes them; b"" before the first step
    best: float  # best validation score so far; -inf before the first


def save_state(path: Path, state: RunState, settings: dict) -> None:
    """`settings` are JSON values of all that makes the run: it resumes only as the run that it was."""
    arrays = {f"arg:{name}": array for name, array in state.arg.items()}
    arrays |= {f"aux:{name}": array for name, array in state.aux.items()}
    meta = json.dumps({"format": _FORMAT, "step": state.step, "best": state.best, "settings": settings})
    with replaced(path) as temporary, temporary.open("wb") as file:
        np.savez(file, meta=meta, optimizer=np.frombuffer(state.optimizer, np.uint8), **arrays)


def load_state(path: Path, settings: dict) -> RunState:
    """Raises `UserError` where the file is missing, damaged, or of a run with other settings."""
    if not path.is_file():
        raise UserError(
            f"--resume: no unfinished run in {path.parent} (looked for {path.name}); run without --resume"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            meta = json.loads(str(file["meta"]))
            arrays = {name: file[name] for name in file.files if ":" in name}
            optimizer = file["optimizer"].tobytes()
        if meta["format"] != _FORMAT:
            raise ValueError(f"expected format {_FORMAT}, got {meta['format']}")
        step, best, recorded = meta["step"], meta["best"], completed(meta["settings"])
    except _DAMAGE as error:
        raise UserError(
            f"--resume: {path} is damaged ({error}); delete it and run without --resume"
        ) from error
    wanted = completed(settings)
    for key in settings:
        value = wanted[key]
        if recorded.get(key) != value:
            raise UserError(
                f"--resume: {key} was {recorded.get(key)!r} in the unfinished run of {path.parent}, is {value!r} "
                f"now; set it back, or use another --output"
            )
    part = {kind: {n[4:]: a for n, a in arrays.items() if n.startswith(kind)} for kind in ("arg:", "aux:")}
    return RunState(step, part["arg:"], part["aux:"], optimizer, best)
