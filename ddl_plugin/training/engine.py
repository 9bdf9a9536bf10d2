"""What the trainer asks of a host: to make steps, and to give and take the arrays that they change."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ddl_plugin.data.records import Records
from ddl_plugin.data.sampler import Share
from ddl_plugin.loss.identity import IdentitySettings
from ddl_plugin.settings import Degradation, RunSettings
from ddl_plugin.training.state import RunState

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Outcome:
    """What a step gave, means over all devices of all workers."""

    step: int
    terms: dict[str, float]  # for the log, by name
    losses: dict[str, float] = field(default_factory=dict)  # that are not among the terms
    rows: int = 0  # of the batch here
    bad_rows: int = 0  # of them those whose embedding is not finite; told where a term is not
    stopping: bool = False  # a worker was asked to stop, where they stop together


@dataclass(frozen=True)
class Pixels:
    """Which batches a run trains on; the fields are those of `data.batches.BatchSource`."""

    records: Records
    sampler: Share
    labels: np.ndarray
    degradations: list[Degradation]
    mirror: bool
    seed: int
    first_row: int
    whole_rows: int
    max_damaged: float

    def arguments(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


class Batches(Protocol):
    """Batches of steps, in order. A context manager."""

    damaged: dict[int, str]  # record number -> what is wrong with it, of those met so far

    def next(self) -> Any:
        """The batch of the next step, as `Engine.forward_backward` takes it."""


class Engine(Protocol):
    """A run's network, losses and optimizer on the devices of one worker.

    A step is `forward_backward`, then `update`. `outcomes` may lag behind: it gives what is known without waiting
    for the devices. An engine whose outcomes lag makes no update from a step that was not finite on, by itself.
    """

    fixed_gammas: list[str]  # arrays that the host takes for 1 whatever they hold

    def start(self, state: RunState) -> None:
        """Take the arrays of `state`, and its optimizer's state if it has one."""

    def batches(self, pixels: Pixels, start: int, stop: int) -> AbstractContextManager[Batches]:
        """The batches of the steps `start` to `stop`, `stop` not among them."""

    def forward_backward(self, batch: Any, step: int, stopping: bool = False) -> None:
        """Losses and gradients of `batch`; `stopping` is told to the other workers."""

    def outcomes(self, wait: bool = False) -> list[Outcome]:
        """What has become known since the last call, in order of steps; `wait`: of all that was done."""

    def update(self, step: int) -> None:
        """Let the optimizer make its step. `WorkerLostError` where the others' gradients do not come."""

    def undo(self, step: int) -> None:
        """Take back what steps from `step` on changed besides their updates, of which none was made."""

    def arrays(self) -> tuple[Arrays, Arrays]:
        """Parameters and auxiliary states by name, the classifier's among them."""

    def optimizer_state(self) -> bytes:
        """What `RunState.optimizer` holds."""

    def memory(self) -> str:
        """In words, what the graph takes of memory; '' where that is not known."""


def learning_rate(settings: RunSettings, step: int) -> float:
    return settings.lr * 0.1 ** sum(step >= s for s in settings.lr_steps)


def identity_settings(settings: RunSettings) -> IdentitySettings:
    """The identity loss of a run: the preset of its name, with the margins that the recipe sets."""
    changes = {
        name: getattr(settings, f"loss_{name}")
        for name in ("m1", "m2", "m3", "s")
        if getattr(settings, f"loss_{name}") is not None
    }
    rows = settings.ddl.identity_rows if settings.ddl is not None else "all"
    return IdentitySettings.preset(
        settings.identity, rows=rows, fc7_lr_mult=float(settings.fc7_lr_mult), **changes
    )
