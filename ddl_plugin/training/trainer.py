"""One fine-tuning run: steps, log, validation, checkpoints, resuming. On which host, its engine knows."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddl_plugin.data.sampler import Share
from ddl_plugin.errors import CheckError, UserError
from ddl_plugin.recipe import describe
from ddl_plugin.registry import get_sampler
from ddl_plugin.settings import LOOKING_ONLY, Degradation, RunSettings
from ddl_plugin.training.backends import get_backend
from ddl_plugin.training.dataset import Dataset
from ddl_plugin.training.engine import Arrays, Batches, Outcome, Pixels, identity_settings, learning_rate
from ddl_plugin.training.log import NoLog, RunLog
from ddl_plugin.training.progress import Progress, interrupts
from ddl_plugin.training.roles import launched_by_torchrun
from ddl_plugin.training.state import RunState, load_state, save_state
from ddl_plugin.training.workers import WorkerLostError, Workers

STATE_FILE = "state.npz"
_EPOCH_OF_LAST = 1  # the number in model-0001.params: a run has one last model, and one best
_SAVE_EVERY = 600.0  # seconds of training that a crash may cost

#: validate(backbone) -> (score, values for the log); the best checkpoint is that of the highest score.
Validate = Callable[[Any], tuple[float, dict[str, float]]]
Note = Callable[[Sequence[Outcome]], None]


class Trainer:
    """Fine-tunes `backbone` on `dataset` and leaves in `folder`:

    model-symbol.json, model-0001.params   the last backbone (without classifier and losses)
    best-symbol.json, best-0001.params     the one of the highest validation score, if there is validation
    log.jsonl, tensorboard/                the terms of every step
    state.npz                              what `resume` starts from; whoever calls `run` deletes it when the
                                           end of the run is noted elsewhere

    With `machines` this is one worker of several, which train the same model on their shares of the batches.
    Worker 0 alone resumes, validates and leaves files; the others start from what it has.
    """

    def __init__(
        self,
        settings: RunSettings,
        backbone: Any,
        fc7: np.ndarray,
        dataset: Dataset,
        devices: Sequence[Any],
        folder: Path,
        validate: Validate | None = None,
        progress: bool = True,
        lines: bool = False,
        *,
        kvstore: str | None = None,
        machines: Workers | None = None,
    ):
        """`backbone` and `devices` are those of `settings.backend`; `kvstore`: of MXNet's, where the gradients of
        several devices are summed."""
        self._settings = settings
        self._backend = get_backend(settings.backend)
        self._backbone = backbone
        self._fc7 = fc7
        self._dataset = dataset
        self._devices = len(devices)
        self._folder = folder
        self._validate = validate
        self._progress, self._lines = progress, lines
        self._machines = machines
        self._rank, self._workers = (machines.rank, machines.workers) if machines else (0, 1)
        self._best = -math.inf
        self._saved_step: int | None = None  # of the state file
        self._asked = False  # to stop, by a worker of several that stop together
        self._rates: list[float] = []  # one a step
        self.damaged: dict[int, str] = {}  # record number -> what is wrong with it, of those met by `run`
        sampler = get_sampler(settings.sampler).build(
            dataset.records.labels, dataset.partition, dataset.pairs, settings.ddl,
            rows=settings.batch_rows, devices=self._workers * self._devices, seed=settings.seed,
            options=dict(settings.sampler_options),
        )  # fmt: skip
        self._sampler = Share(sampler, self._rank, self._workers)
        self._engine = self._backend.engine(
            settings, backbone, len(fc7), devices, self._sampler.rows, kvstore=kvstore, machines=machines
        )

    # -- the run ---------------------------------------------------------------------------------

    def run(self, *, resume: bool = False) -> Any:
        """Train to `max_steps`; returns the last backbone. `resume` continues an unfinished run.

        Ctrl-C or SIGTERM finishes the step, saves, and raises KeyboardInterrupt. `CheckError` where a step gives NaN
        or a worker is lost, another one or one that decodes, `UserError` where an image cannot be read: what was
        trained until then is saved.
        """
        state = self._starting_point(resume)
        self._engine.start(state)
        log = RunLog(self._folder, state.step) if self._rank == 0 else NoLog()
        try:
            with self._batches(state.step) as batches, interrupts(launched_by_torchrun()) as interrupted:
                self.damaged = batches.damaged
                self._steps(batches, log, state.step, interrupted)
        finally:
            log.close()
        trained = self._trained()
        self._require_finite({**trained.arg, **trained.aux}, self._settings.max_steps)
        self._save("model", trained)
        return trained

    def first_terms(self) -> dict[str, float]:
        """The loss terms of step 0, without training."""
        self._engine.start(self._beginning())
        with self._batches(0) as batches:
            self._engine.forward_backward(batches.next(), 0)
            (outcome,) = self._engine.outcomes(wait=True)
        return outcome.terms

    def memory(self) -> str:
        """In words, what the graph of `first_terms` takes of memory; '' where that is not known."""
        return self._engine.memory()

    def median_rate(self) -> float:
        """Median images/s over the steps of `run`; 0 before the first."""
        return float(np.median(self._rates)) if self._rates else 0.0

    def _beginning(self) -> RunState:
        arg = {**self._backbone.arg, **self._fc7_arrays()}
        return RunState(0, arg, self._backbone.aux, b"", -math.inf)

    def _starting_point(self, resume: bool) -> RunState:
        """Of worker 0 the whole of it; of another one the arrays follow when its optimizer is made."""
        state = self._beginning()
        if resume and self._rank == 0:
            state = load_state(self._folder / STATE_FILE, self._identification())
            self._best, self._saved_step = state.best, state.step
        if self._machines is None:
            return state
        step = self._machines.publish(state.step)
        return dataclasses.replace(state, step=step, optimizer=self._machines.publish_bytes(state.optimizer))

    def _steps(self, batches: Batches, log: RunLog | NoLog, start: int, interrupted: list) -> None:
        settings = self._settings
        saved = time.monotonic()
        rate = 0.0
        with Progress(
            settings.loss, start, settings.max_steps, bar=self._progress, lines=self._lines
        ) as progress:

            def note(outcomes: Sequence[Outcome]) -> None:
                for known in outcomes:
                    lr = learning_rate(settings, known.step)
                    log.write("train", known.step, {**known.terms, "lr": lr, "images_per_second": rate})
                    progress.done(known.step, known.terms, rate)

            if 0 < start < settings.max_steps and self._due(start):
                self._look(log, start)  # a state is saved before its validation
            for step in range(start, settings.max_steps):
                began = time.perf_counter()
                batch = self._next_batch(batches, step, note)
                outcomes = self._step(batch, step, bool(interrupted), note)
                rate = self._workers * self._sampler.rows / (time.perf_counter() - began)
                self._rates.append(rate)
                note(outcomes)
                due, stop = self._due(step + 1), self._stops(interrupted, outcomes)
                if stop or due or time.monotonic() - saved > _SAVE_EVERY:
                    self._settle(note)
                    self._save_state(step + 1)
                    saved = time.monotonic()
                if stop:
                    self._wait_for_worker_0()
                    raise KeyboardInterrupt(self._interrupted_after(step + 1))
                if due and step + 1 < settings.max_steps:
                    self._look(log, step + 1)
            self._settle(note)
            self._look(log, settings.max_steps)

    def _step(self, batch: Any, step: int, stopping: bool, note: Note) -> list[Outcome]:
        """Train on one batch; returns what has become known. Where that fails, what was trained before is saved."""
        try:
            self._engine.forward_backward(batch, step, stopping)
            outcomes = self._finite(self._engine.outcomes(), note)
            self._engine.update(step)
        except WorkerLostError as lost:
            self._settle(note)
            self._save_before(step)
            raise WorkerLostError(self._after_loss(lost, step)) from lost
        return outcomes

    def _settle(self, note: Note) -> None:
        """Wait for what is not known yet of the steps that were made."""
        outcomes = self._finite(self._engine.outcomes(wait=True), note)
        note(outcomes)
        self._asked |= any(known.stopping for known in outcomes)

    @property
    def _together(self) -> bool:
        return self._machines is not None and self._machines.stops_together

    def _stops(self, interrupted: list, outcomes: Sequence[Outcome]) -> bool:
        """Whether to stop after this step. Workers that stop together all say the same after the same step: they all
        know of a step's outcome in the next one, also where one has waited for it before."""
        if not self._together:
            return bool(interrupted)
        self._asked |= any(known.stopping for known in outcomes)
        return self._asked

    def _wait_for_worker_0(self) -> None:
        """Where all workers stop: until worker 0 has saved. torchrun ends all processes soon after the first ends."""
        if self._together:
            self._machines.publish(None)

    def _due(self, step: int) -> bool:
        """Whether the state is saved, and validated, after so many steps."""
        return self._settings.verbose > 0 and step % self._settings.verbose == 0

    def _next_batch(self, batches: Batches, step: int, note: Note) -> Any:
        """The batch of `step`; where there is none, what was trained is saved first."""
        try:
            return batches.next()
        except (UserError, CheckError) as error:  # an image that cannot be read, a lost process that decodes
            if step == 0 or self._rank > 0:
                raise
            self._settle(note)
            self._save_state(step)
            saved = f"the run stopped at step {step}, its state is saved in {self._folder / STATE_FILE}"
            if isinstance(error, UserError):
                raise UserError(f"{error}; {saved}: mend that record and continue with --resume") from error
            raise CheckError(f"{error}; {saved}; continue with --resume") from error

    def _look(self, log: RunLog | NoLog, step: int) -> None:
        """Validate; keep the best."""
        if self._validate is None:
            return
        trained = self._trained()
        score, values = self._validate(trained)
        log.write("validation", step, values)
        if score > self._best:
            self._best = score
            self._save("best", trained)

    # -- what a run is made of ---------------------------------------------------------------------

    def _fc7_arrays(self) -> Arrays:
        arrays = {"fc7_weight": self._fc7}
        if not identity_settings(self._settings).margin_softmax:
            arrays["fc7_bias"] = np.zeros(len(self._fc7), np.float32)
        return arrays

    def _batches(self, start: int) -> Batches:
        partition, settings = self._dataset.partition, self._settings
        degradations = [d.degradation for d in partition.distributions] if partition else [Degradation()]
        records = self._dataset.records
        pixels = Pixels(
            records, self._sampler, records.labels, degradations, mirror=settings.data_rand_mirror, seed=settings.seed,
            first_row=self._sampler.first_row, whole_rows=self._workers * self._sampler.rows,
            max_damaged=settings.max_damaged,
        )  # fmt: skip
        return self._engine.batches(pixels, start, settings.max_steps)

    # -- what goes wrong ---------------------------------------------------------------------------

    def _finite(self, outcomes: list[Outcome], note: Note) -> list[Outcome]:
        """`outcomes`; `CheckError` naming the first term of one that is not finite, after what was trained is saved."""
        for place, known in enumerate(outcomes):
            values = {**known.terms, **known.losses}
            bad = [name for name, value in values.items() if not math.isfinite(value)]
            if not bad:
                continue
            note(outcomes[:place])
            where = f"loss term {bad[0]!r} is {values[bad[0]]}"
            if known.bad_rows:
                where = (
                    f"the network's embedding has NaN in {known.bad_rows} of {known.rows} rows, so {where}"
                )
            self._save_before(known.step)
            self._wait_for_worker_0()
            raise CheckError(
                f"step {known.step}: {where}; {self._kept()}; start anew with a lower lr or weight of that term"
            )
        return outcomes

    def _require_finite(self, arrays: Mapping[str, np.ndarray], step: int) -> None:
        """`CheckError` naming an array that the update before `step` has ruined."""
        bad = _first_not_finite(arrays)
        if bad is not None:
            raise CheckError(
                f"step {step}: array {bad!r} is NaN or infinite after the update of step {step - 1}; "
                f"{self._kept()}; start anew with a lower lr"
            )

    def _after_loss(self, lost: WorkerLostError, step: int) -> str:
        """What to say where another worker was lost in `step`."""
        if self._rank > 0:
            resume = ", with --resume if worker 0 has saved a state"
        else:
            resume = "" if self._saved_step is None else " with --resume"
        return f"{lost}, in step {step}; {self._kept()}; {self._machines.remedy}, and start all again{resume}"

    def _interrupted_after(self, steps: int) -> str:
        if self._rank > 0:
            return f"after step {steps} of {self._settings.max_steps}"
        return f"saved after step {steps} of {self._settings.max_steps}; continue with --resume"

    def _kept(self) -> str:
        """What of this run can still be used after a step that went wrong."""
        if self._rank > 0:
            return "stopped, what is saved of this run is with worker 0"
        if self._saved_step is None:
            return "stopped, no state of this run is saved"
        return f"stopped, the state before step {self._saved_step} is in {self._folder / STATE_FILE}"

    # -- saving ----------------------------------------------------------------------------------

    def _trained(self) -> Any:
        arg, aux = self._engine.arrays()
        arrays = {name: arg[name] for name in self._backbone.arg}
        # Weight decay moves them where several devices train; readers other than the host take what is stored.
        arrays |= {name: np.ones_like(arrays[name]) for name in self._engine.fixed_gammas}
        return dataclasses.replace(
            self._backbone,
            arg=arrays,
            aux={name: aux[name] for name in self._backbone.aux},
            source=str(self._folder),
            fc7=arg["fc7_weight"],
        )

    def _save(self, name: str, backbone: Any) -> None:
        if self._rank > 0:
            return
        self._backend.save_backbone(self._folder / name, _EPOCH_OF_LAST, backbone)

    def _save_before(self, step: int) -> None:
        """Save what was trained before `step`, if that can be used."""
        self._engine.undo(step)
        if step > 0 and _first_not_finite(*self._engine.arrays()) is None:
            self._save_state(step)

    def _save_state(self, next_step: int) -> None:
        if self._rank > 0:
            return
        arg, aux = self._engine.arrays()
        self._require_finite({**arg, **aux}, next_step)
        state = RunState(next_step, arg, aux, self._engine.optimizer_state(), self._best)
        save_state(self._folder / STATE_FILE, state, self._identification())
        self._saved_step = next_step

    def _identification(self) -> dict[str, Any]:
        """All that an unfinished run must have in common with one that continues it."""
        settings = {k: v for k, v in describe(self._settings).items() if k not in LOOKING_ONLY}
        return {
            **settings,
            "number of devices": devices_in_words(self._devices, self._machines),
            "number of images": len(self._dataset.records),
            "number of identities": len(self._fc7),
        }


def devices_in_words(devices: int, workers: Workers | None) -> int | str:
    """2, or '2 on each of 3 machines': a state is of as many as it was saved on."""
    if workers is None or workers.workers == 1:
        return devices
    return f"{devices} on each of {workers.workers} {workers.kind}"


def _first_not_finite(*groups: Mapping[str, np.ndarray]) -> str | None:
    """Name of the first array that holds NaN or infinity."""
    for arrays in groups:
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                return name
    return None
