"""Carries out the runs of a study, each as a `python -m ddl_plugin.train` of its own: what fails does not take
the others with it, and memory is given back."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ddl_plugin.cli import INTERRUPTED
from ddl_plugin.errors import UserError
from ddl_plugin.experiment.runs import Run

#: Of which the median is taken: the first few are slow.
_PROBE_STEPS = 8


def command(run: Run, devices: str, *, resume: bool, more: Sequence[str] = ()) -> list[str]:
    """The command line of a run."""
    line = [sys.executable, "-m", "ddl_plugin.train", *run.overrides, *more, "--output", str(run.folder)]
    return [*line, "--devices", devices, "--quiet", *(["--resume"] if resume else [])]


def _environment(jobs: int) -> dict[str, str]:
    """The processors shared among the jobs; as the user has set it, if so."""
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    return {"OMP_NUM_THREADS": str(threads), **os.environ} if jobs > 1 else dict(os.environ)


def in_words(seconds: float) -> str:
    """'2 h 05 min', '3 min 20 s' or '12 s'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class Runner:
    """Runs one after the other, or `jobs` at a time."""

    def __init__(self, devices: str, jobs: int):
        self._devices = devices
        self._jobs = jobs
        self._stopped = threading.Event()
        self._running: set[subprocess.Popen] = set()
        self._lock = threading.Lock()

    def carry_out(self, runs: Sequence[Run], say: Callable[[str], None]) -> dict[str, str]:
        """Bring all runs to their end; returns {name of a run that failed: why}.

        What is finished is left alone and what was begun goes on. At Ctrl-C the runs that are under way are ended as
        by their own Ctrl-C, and keep their work.
        """
        left = [run for run in runs if run.result() is None]
        if len(left) < len(runs):
            say(f"{len(runs) - len(left)} of {len(runs)} runs are there already")
        failed: dict[str, str] = {}
        with (
            ThreadPoolExecutor(self._jobs) as pool,
            tqdm(total=len(left), desc="runs", unit="run", disable=None) as bar,
        ):
            pending = {pool.submit(self._one, run, runs): run for run in left}
            try:
                for done in as_completed(pending):
                    run, (seconds, reason) = pending[done], done.result()
                    bar.update()
                    if reason is None:
                        bar.write(f"{run.name}: {in_words(seconds)}")
                    else:
                        failed[run.name] = reason
                        bar.write(f"{run.name}: failed after {in_words(seconds)}: {reason}")
            except KeyboardInterrupt:
                self._stop()
                raise
        return failed

    def _one(self, run: Run, runs: Sequence[Run]) -> tuple[float, str | None]:
        """(seconds, why it failed or None)."""
        from ddl_plugin.training.output import begun

        if self._stopped.is_set():
            return 0.0, "interrupted"
        began = time.perf_counter()
        try:
            run.share_pairs(other for other in runs if other is not run)
            resume = begun(run.folder)
            run.log.parent.mkdir(parents=True, exist_ok=True)
            with run.log.open("a", encoding="utf-8") as log:
                code = self._wait(command(run, self._devices, resume=resume), log)
            reason = None if code == 0 else f"{_last_line(run.log)} ({_ending(code)}; log {run.log})"
        except (OSError, UserError) as error:  # such as a folder that cannot be written
            reason = str(error)
        return time.perf_counter() - began, reason

    def _wait(self, line: Sequence[str], log) -> int:
        # A group of its own: Ctrl-C comes to it from us alone, once.
        with self._lock:
            if self._stopped.is_set():  # between the question above and now: nobody would end it
                return INTERRUPTED
            process = subprocess.Popen(
                line, stdout=log, stderr=subprocess.STDOUT, env=_environment(self._jobs), process_group=0
            )
            self._running.add(process)
        try:
            return process.wait()
        finally:
            with self._lock:
                self._running.discard(process)

    def _stop(self) -> None:
        self._stopped.set()
        with self._lock:
            for process in self._running:
                process.send_signal(signal.SIGINT)


def _ending(code: int) -> str:
    """'exit code 2', or 'killed by SIGKILL'."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "nothing was said"


def estimate(runs: Sequence[Run], base: Run | None, devices: str, jobs: int) -> tuple[float, str]:
    """(seconds that the unfinished runs will take, how that is known).

    From finished runs of the study where there are some, else from `_PROBE_STEPS` steps of the first row.
    """
    left = [run for run in runs if run.result() is None]
    if not left:
        return 0.0, "all runs are there"
    at_once = min(jobs, len(left))
    finished = [(run, result) for run in runs if (result := run.result()) is not None]
    if finished:
        seconds = sum(_seconds_of(result) for _, result in finished)
        per_image = seconds / sum(_images(run) for run, _ in finished)
        # The median: a run that was interrupted for a night tells nothing of what is beside the training.
        beside = statistics.median(max(0.0, run.took() - _seconds_of(result)) for run, result in finished)
        total = per_image * sum(map(_images, left)) + beside * len(left)
        return total / at_once, f"by the {len(finished)} finished run(s)"
    with tempfile.TemporaryDirectory() as scratch:
        total, more = 0.0, []
        if base is not None and base.result() is None:
            probe, _, whole = _probe(base, Path(scratch) / "base", devices, 1, [])
            total += whole
            more = [f"pretrained={str(probe / base.settings.loss)!r}"]
        _, steps, whole = _probe(left[0], Path(scratch) / "row", devices, jobs, more)
        fixed = whole - steps
        total += sum(fixed + steps * _images(run) / _images(left[0]) for run in left) / at_once
    return total, f"by {_PROBE_STEPS} steps of {left[0].row.name!r}"


def _probe(run: Run, folder: Path, devices: str, jobs: int, more: Sequence[str]) -> tuple[Path, float, float]:
    """(its folder, seconds of all its steps, seconds of the whole run) as a short run of it foretells, with the
    processors that one of `jobs` has."""
    short = dataclasses.replace(run, folder=folder)
    line = command(
        short, devices, resume=False, more=[*more, "lr_steps=None", f"max_steps={_PROBE_STEPS}", "verbose=0"]
    )
    began = time.perf_counter()
    ended = subprocess.run(line, capture_output=True, text=True, check=False, env=_environment(jobs))
    whole = time.perf_counter() - began
    if ended.returncode:
        raise UserError(f"{run.name}: {(ended.stderr.strip() or 'failed').splitlines()[-1]}")
    trained = json.loads((folder / "result.json").read_text())["runs"][run.settings.loss]
    steps = _images(run) / max(trained["images_per_second"], 1e-6)
    return folder, steps, whole - trained["seconds"] + steps


def _images(run: Run) -> int:
    """Images that a run trains on, over all its steps and losses."""
    settings = run.settings
    losses = 2 if settings.baseline and settings.loss != settings.identity else 1
    return settings.max_steps * settings.batch_rows * losses


def _seconds_of(result: dict[str, Any]) -> float:
    """Of the training alone."""
    return sum(trained["seconds"] for trained in result["runs"].values())
