"""The engine over MXNet: a Module on one or more devices of this machine."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ddl_plugin.backbone.checkpoint import Backbone
from ddl_plugin.data.iterator import BatchIterator, pixels_description
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.settings import RunSettings
from ddl_plugin.training.engine import Arrays, Outcome, Pixels
from ddl_plugin.training.graph import fixed_gammas, gathered_loss, training_graph
from ddl_plugin.training.machines import Machines
from ddl_plugin.training.module import StepModule, of_bytes
from ddl_plugin.training.state import RunState


class MXNetEngine:
    """`training.engine.Engine`; its outcomes are those of the step that was just done."""

    def __init__(
        self,
        settings: RunSettings,
        backbone: Backbone,
        num_classes: int,
        contexts: Sequence[mx.Context],
        rows: int,
        kvstore: str | None,
        machines: Machines | None,
    ):
        """`rows`: images of a step on all of `contexts`. `kvstore`: where the gradients of several devices are
        summed; None: on the GPUs, if there are any."""
        self._settings = settings
        self._contexts = list(contexts)
        self._rows = rows
        self._kvstore = kvstore or ("device" if self._contexts[0].device_type == "gpu" else "local")
        self._machines = machines
        self._rank = 0 if machines is None else machines.rank
        self._graph = training_graph(settings, backbone, num_classes, self._contexts)
        self._gathered = gathered_loss(settings, backbone.emb_size, self._contexts)
        self.fixed_gammas = fixed_gammas(backbone.symbol)

    def start(self, state: RunState) -> None:
        module = StepModule(
            of_bytes(self._graph.symbol), self._contexts, gathered=self._gathered, machines=self._machines
        )
        module.bind([pixels_description(self._rows)], [("softmax_label", (self._rows,))])
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
        self._module = module
        self._statistics: list = []  # BatchNorm's before the step under way
        self._step: int | None = None  # whose outcome has not been asked for

    def _schedule(self):
        steps = self._settings.lr_steps
        if not steps:
            return None
        return mx.lr_scheduler.MultiFactorScheduler(list(steps), factor=0.1, base_lr=self._settings.lr)

    def batches(self, pixels: Pixels, start: int, stop: int) -> BatchIterator:
        """By threads of this process, or for GPUs by processes, which leave Python to the training step."""
        gpu, count = self._contexts[0].device_type == "gpu", self._settings.num_threads
        return BatchIterator(**pixels.arguments(), start=start, threads=count, workers=count if gpu else 0)

    def forward_backward(self, batch: mx.io.DataBatch, step: int, stopping: bool = False) -> None:
        # Dropout draws from MXNet's generator; seeded by the step, a resumed run draws the same.
        mx.random.seed(self._settings.seed * 1_000_003 + step + 499_979 * self._rank)
        self._statistics = self._module.statistics()
        self._module.forward_backward(batch)
        self._step = step

    def outcomes(self, wait: bool = False) -> list[Outcome]:
        if self._step is None:
            return []
        step, self._step = self._step, None
        terms = self._terms()
        losses = self._loss()
        finite = all(map(math.isfinite, (*terms.values(), *losses.values())))
        bad_rows = 0 if finite else self._bad_rows()
        return [Outcome(step, terms, losses, self._rows, bad_rows)]

    def _terms(self) -> dict[str, float]:
        """Mean over the devices of all workers of every term, by name."""
        by_name = dict(zip(self._module.output_names, self._module.get_outputs(), strict=True))
        terms = {"ce_loss": float(by_name["ce_loss_output"].asnumpy().mean())}
        if self._gathered is not None:
            terms |= self._gathered.terms()
        elif self._graph.term_names:
            values = by_name[f"{self._settings.loss}_terms_output"].asnumpy().mean(axis=0)
            terms |= dict(zip(self._graph.term_names, map(float, values), strict=True))
        return terms if self._machines is None else self._machines.mean(terms)

    def _loss(self) -> dict[str, float]:
        """The registered loss, which need not be among its own terms; of this worker."""
        name = f"{self._settings.loss}_loss"
        if self._gathered is not None:
            return {name: self._gathered.loss()}
        if self._graph.term_names:
            return {name: float(self._module.get_outputs()[2].asnumpy().mean())}
        return {}

    def _bad_rows(self) -> int:
        embedding = self._module.get_outputs()[0].asnumpy()
        return int((~np.isfinite(embedding).all(axis=1)).sum())

    def update(self, step: int) -> None:
        self._module.update()
        mx.nd.waitall()

    def undo(self, step: int) -> None:
        """BatchNorm has taken the step into its statistics."""
        self._module.restore_statistics(self._statistics)

    def arrays(self) -> tuple[Arrays, Arrays]:
        arg, aux = self._module.get_params()
        return (
            {name: array.asnumpy() for name, array in arg.items()},
            {name: array.asnumpy() for name, array in aux.items()},
        )

    def optimizer_state(self) -> bytes:
        """In MXNet's own serialisation."""
        return self._module.optimizer_state()

    def memory(self) -> str:
        return f"{self._module.planned_megabytes():.0f} MB planned by MXNet for the graph of all devices"
