"""One fine-tuning run: steps, log, validation, checkpoints, resuming."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddl_plugin.backbone.checkpoint import Arrays, Backbone, save_backbone
from ddl_plugin.data.iterator import BatchIterator, pixels_description
from ddl_plugin.data.sampler import Share
from ddl_plugin.errors import CheckError, UserError
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.recipe import describe
from ddl_plugin.registry import get_sampler
from ddl_plugin.settings import LOOKING_ONLY, Degradation, RunSettings
from ddl_plugin.training.dataset import Dataset
from ddl_plugin.training.graph import fixed_gammas, gathered_loss, training_graph
from ddl_plugin.training.log import NoLog, RunLog
from ddl_plugin.training.machines import END_THE_REST, Machines, WorkerLostError
from ddl_plugin.training.module import StepModule, of_bytes
from ddl_plugin.training.progress import Progress, interrupts
from ddl_plugin.training.state import RunState, load_state, save_state

STATE_FILE = "state.npz"
_EPOCH_OF_LAST = 1  # the number in model-0001.params: a run has one last model, and one best
_SAVE_EVERY = 600.0  # seconds of training that a crash may cost

#: validate(backbone) -> (score, values for the log); the best checkpoint is that of the highest score.
Validate = Callable[[Backbone], tuple[float, dict[str, float]]]


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
        backbone: Backbone,
        fc7: np.ndarray,
        dataset: Dataset,
        contexts: Sequence[mx.Context],
        folder: Path,
        validate: Validate | None = None,
        progress: bool = True,
        lines: bool = False,
        *,
        kvstore: str | None = None,
        machines: Machines | None = None,
    ):
        """`kvstore`: where the gradients of several devices are summed; None: on the GPUs, if there are any."""
        self._settings = settings
        self._backbone = backbone
        self._fc7 = fc7
        self._dataset = dataset
        self._contexts = list(contexts)
        self._folder = folder
        self._validate = validate
        self._progress, self._lines = progress, lines
        self._kvstore = kvstore or ("device" if self._contexts[0].device_type == "gpu" else "local")
        self._machines = machines
        self._rank, self._workers = (machines.rank, machines.workers) if machines else (0, 1)
        self._best = -math.inf
        self._saved_step: int | None = None  # of the state file
        self._planned = 0.0
        self._rates: list[float] = []  # one a step
        self.damaged: dict[int, str] = {}  # record number -> what is wrong with it, of those met by `run`
        sampler = get_sampler(settings.sampler).build(
            dataset.records.labels, dataset.partition, dataset.pairs, settings.ddl,
            rows=settings.batch_rows, devices=self._workers * len(self._contexts), seed=settings.seed,
            options=dict(settings.sampler_options),
        )  # fmt: skip
        self._sampler = Share(sampler, self._rank, self._workers)
        self._graph = training_graph(settings, backbone, len(fc7), self._contexts)
        self._gathered = gathered_loss(settings, backbone.emb_size, self._contexts)

    # -- the run ---------------------------------------------------------------------------------

    def run(self, *, resume: bool = False) -> Backbone:
        """Train to `max_steps`; returns the last backbone. `resume` continues an unfinished run.

        Ctrl-C finishes the step, saves, and raises KeyboardInterrupt. `CheckError` where a step gives NaN or
        another worker is lost, `UserError` where an image cannot be read: what was trained until then is saved.
        """
        state = self._starting_point(resume)
        module = self._bound_module(state)
        log = RunLog(self._folder, state.step) if self._rank == 0 else NoLog()
        try:
            with self._iterator(state.step) as batches, interrupts() as interrupted:
                self.damaged = batches.damaged
                self._steps(module, batches, log, state.step, interrupted)
        finally:
            log.close()
        trained = self._trained(module)
        self._require_finite({**trained.arg, **trained.aux}, self._settings.max_steps)
        self._save("model", trained)
        return trained

    def first_terms(self) -> dict[str, float]:
        """The loss terms of step 0, without training."""
        module = self._bound_module(self._beginning())
        with self._iterator(0) as batches:
            module.forward_backward(batches.next())
            mx.nd.waitall()
            self._planned = module.planned_megabytes()
            return self._terms(module)

    def planned_megabytes(self) -> float:
        """What MXNet planned for the graph of all devices in `first_terms`."""
        return self._planned

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

    def _steps(self, module, batches: BatchIterator, log: RunLog, start: int, interrupted: list) -> None:
        settings = self._settings
        saved = time.monotonic()
        with Progress(
            settings.loss, start, settings.max_steps, bar=self._progress, lines=self._lines
        ) as progress:
            if 0 < start < settings.max_steps and self._due(start):
                self._look(module, log, start)  # a state is saved before its validation
            for step in range(start, settings.max_steps):
                began = time.perf_counter()
                batch = self._next_batch(batches, module, step)
                terms = self._step(module, batch, step)
                rate = self._workers * self._sampler.rows / (time.perf_counter() - began)
                self._rates.append(rate)
                log.write("train", step, {**terms, "lr": self._lr(step), "images_per_second": rate})
                progress.done(step, terms, rate)
                due = self._due(step + 1)
                if interrupted or due or time.monotonic() - saved > _SAVE_EVERY:
                    self._save_state(module, step + 1)
                    saved = time.monotonic()
                if interrupted:
                    raise KeyboardInterrupt(self._interrupted_after(step + 1))
                if due and step + 1 < settings.max_steps:
                    self._look(module, log, step + 1)
            self._look(module, log, settings.max_steps)

    def _step(self, module, batch, step: int) -> dict[str, float]:
        """Train on one batch; returns its terms. Where that fails, what was trained before is saved."""
        # Dropout draws from MXNet's generator; seeded by the step, a resumed run draws the same.
        mx.random.seed(self._settings.seed * 1_000_003 + step + 499_979 * self._rank)
        statistics = module.statistics()
        module.forward_backward(batch)
        try:
            terms = self._terms(module)
            self._stop_at_nan(module, step, terms, statistics)
            module.update()
        except WorkerLostError as lost:
            self._save_before(module, step, statistics)
            raise WorkerLostError(self._after_loss(lost, step)) from lost
        mx.nd.waitall()
        return terms

    def _due(self, step: int) -> bool:
        """Whether the state is saved, and validated, after so many steps."""
        return self._settings.verbose > 0 and step % self._settings.verbose == 0

    def _next_batch(self, batches: BatchIterator, module, step: int):
        """The batch of `step`; where an image cannot be read, what was trained is saved first."""
        try:
            return batches.next()
        except UserError as error:
            if step == 0 or self._rank > 0:
                raise
            self._save_state(module, step)
            raise UserError(
                f"{error}; the run stopped at step {step}, its state is saved in {self._folder / STATE_FILE}: "
                f"mend that record and continue with --resume"
            ) from error

    def _look(self, module, log: RunLog, step: int) -> None:
        """Validate; keep the best."""
        if self._validate is None:
            return
        trained = self._trained(module)
        score, values = self._validate(trained)
        log.write("validation", step, values)
        if score > self._best:
            self._best = score
            self._save("best", trained)

    # -- the module ------------------------------------------------------------------------------

    def _fc7_arrays(self) -> Arrays:
        arrays = {"fc7_weight": self._fc7}
        if "fc7_bias" in self._graph.symbol.list_arguments():
            arrays["fc7_bias"] = np.zeros(len(self._fc7), np.float32)
        return arrays

    def _bound_module(self, state: RunState) -> StepModule:
        rows = self._sampler.rows
        module = StepModule(
            of_bytes(self._graph.symbol), self._contexts, gathered=self._gathered, machines=self._machines
        )
        module.bind([pixels_description(rows)], [("softmax_label", (rows,))])
        module.init_params(
            arg_params={name: mx.nd.array(array) for name, array in state.arg.items()},
            aux_params={name: mx.nd.array(array) for name, array in state.aux.items()},
        )  # allow_missing stays False: nothing is random unless the recipe says so
        module.init_optimizer(
            kvstore=self._kvstore,
            optimizer="sgd",
            optimizer_params={
                "learning_rate": self._settings.lr,
                "momentum": self._settings.mom,
                "wd": self._settings.wd,
                "rescale_grad": 1.0 / len(self._contexts),
                "lr_scheduler": self._schedule(),
                "begin_num_update": state.step,
            },
        )
        if state.optimizer:
            module.set_optimizer_state(state.optimizer)
        return module

    def _schedule(self):
        steps = self._settings.lr_steps
        if not steps:
            return None
        return mx.lr_scheduler.MultiFactorScheduler(list(steps), factor=0.1, base_lr=self._settings.lr)

    def _lr(self, step: int) -> float:
        return self._settings.lr * 0.1 ** sum(step >= s for s in self._settings.lr_steps)

    def _iterator(self, start: int) -> BatchIterator:
        partition, settings = self._dataset.partition, self._settings
        degradations = [d.degradation for d in partition.distributions] if partition else [Degradation()]
        return BatchIterator(
            self._dataset.records, self._sampler, self._dataset.records.labels, degradations,
            mirror=settings.data_rand_mirror, seed=settings.seed, start=start, threads=settings.num_threads,
            first_row=self._sampler.first_row, whole_rows=self._workers * self._sampler.rows,
            max_damaged=settings.max_damaged,
        )  # fmt: skip

    def _terms(self, module) -> dict[str, float]:
        """Mean over the devices of all workers of every term, by name."""
        by_name = dict(zip(module.output_names, module.get_outputs(), strict=True))
        terms = {"ce_loss": float(by_name["ce_loss_output"].asnumpy().mean())}
        if self._gathered is not None:
            terms |= self._gathered.terms()
        elif self._graph.term_names:
            values = by_name[f"{self._settings.loss}_terms_output"].asnumpy().mean(axis=0)
            terms |= dict(zip(self._graph.term_names, map(float, values), strict=True))
        return terms if self._machines is None else self._machines.mean(terms)

    def _stop_at_nan(self, module, step: int, terms: dict[str, float], statistics: list) -> None:
        """`CheckError` naming the first term that is not finite; `statistics` are those before this step."""
        values = dict(terms)
        loss = f"{self._settings.loss}_loss"  # a registered loss need not be among its own terms
        if self._gathered is not None:
            values[loss] = self._gathered.loss()
        elif self._graph.term_names:
            values[loss] = float(module.get_outputs()[2].asnumpy().mean())
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if not bad:
            return
        embedding = module.get_outputs()[0].asnumpy()
        where = f"loss term {bad[0]!r} is {values[bad[0]]}"
        if not np.isfinite(embedding).all():
            rows = int((~np.isfinite(embedding).all(axis=1)).sum())
            where = f"the network's embedding has NaN in {rows} of {len(embedding)} rows, so {where}"
        self._save_before(module, step, statistics)
        raise CheckError(
            f"step {step}: {where}; {self._kept()}; start anew with a lower lr or weight of that term"
        )

    def _require_finite(self, arrays: Mapping[str, Any], step: int) -> None:
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
        return f"{lost}, in step {step}; {self._kept()}; {END_THE_REST}, and start all again{resume}"

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

    def _trained(self, module) -> Backbone:
        arg, aux = module.get_params()
        arrays = {name: arg[name].asnumpy() for name in self._backbone.arg}
        arrays |= {name: np.ones_like(arrays[name]) for name in fixed_gammas(self._backbone.symbol)}
        return dataclasses.replace(
            self._backbone,
            arg=arrays,
            aux={name: aux[name].asnumpy() for name in self._backbone.aux},
            source=str(self._folder),
            fc7=arg["fc7_weight"].asnumpy(),
        )

    def _save(self, name: str, backbone: Backbone) -> None:
        if self._rank > 0:
            return
        save_backbone(self._folder / name, _EPOCH_OF_LAST, backbone.symbol, backbone.arg, backbone.aux)

    def _save_before(self, module, step: int, statistics: list) -> None:
        """Save what was trained before `step`, if that can be used.

        The update of `step` has not been made, but BatchNorm has taken it into its statistics.
        """
        module.restore_statistics(statistics)
        if step > 0 and _first_not_finite(*module.get_params()) is None:
            self._save_state(module, step)

    def _save_state(self, module, next_step: int) -> None:
        if self._rank > 0:
            return
        arg, aux = module.get_params()
        self._require_finite({**arg, **aux}, next_step)
        state = RunState(
            next_step,
            {name: array.asnumpy() for name, array in arg.items()},
            {name: array.asnumpy() for name, array in aux.items()},
            module.optimizer_state(),
            self._best,
        )
        save_state(self._folder / STATE_FILE, state, self._identification())
        self._saved_step = next_step

    def _identification(self) -> dict[str, Any]:
        """All that an unfinished run must have in common with one that continues it."""
        settings = {k: v for k, v in describe(self._settings).items() if k not in LOOKING_ONLY}
        return {
            **settings,
            "number of devices": devices_in_words(len(self._contexts), self._workers),
            "number of images": len(self._dataset.records),
            "number of identities": len(self._fc7),
        }


def devices_in_words(devices: int, workers: int) -> int | str:
    """2, or '2 on each of 3 machines': a state is of as many as it was saved on."""
    return devices if workers == 1 else f"{devices} on each of {workers} machines"


def _first_not_finite(*groups: Mapping[str, Any]) -> str | None:
    """Name of the first array, NumPy or MXNet, that holds NaN or infinity."""
    for arrays in groups:
        for name, array in arrays.items():
            values = array if isinstance(array, np.ndarray) else array.asnumpy()
            if not np.isfinite(values).all():
                return name
    return None
