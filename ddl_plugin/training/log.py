"""The log of a run: one JSON line a step, TensorBoard, and the progress bar's text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from ddl_plugin.files import write_text


class RunLog:
    """Appends to log.jsonl and tensorboard/ in `folder`. Steps from `start` on that a log of an earlier,
    interrupted run holds are dropped first, so that every step stands there once."""

    def __init__(self, folder: Path, start: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "log.jsonl"
        self._keep_before(start)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start or None)

    def _keep_before(self, start: int) -> None:
        if not self._path.is_file():
            return
        lines = self._path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if (row := _parsed(line)) and row["step"] < start]
        write_text(self._path, "".join(f"{line}\n" for line in kept))

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """One line {"kind", "step", ...values}; `kind` is 'train' or 'validation'."""
        row: dict[str, Any] = {"kind": kind, "step": step}
        self._file.write(json.dumps({**row, **{k: _rounded(v) for k, v in values.items()}}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


class NoLog:
    """The log of a worker that leaves it to worker 0."""

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


def _parsed(line: str) -> dict[str, Any] | None:
    """A line's row; None for one that a killed process left unfinished."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _rounded(value: float) -> float:
    return float(f"{value:.7g}")
