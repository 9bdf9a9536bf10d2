"""MXNet's Module for a step that its devices do not take each for itself."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddl_plugin.data.iterator import planes
from ddl_plugin.loss.gathered import GatheredLoss
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.training.machines import Machines


def of_bytes(symbol: mx.sym.Symbol) -> mx.sym.Symbol:
    """`symbol` with `data` as `BatchIterator` gives it, uint8 images, which each device converts for itself."""
    return symbol(data=planes(mx.sym, mx.sym.Variable("data")))


class StepModule(mx.mod.Module):
    """A Module whose loss may span its devices, and whose gradients may be those of several machines.

    gathered: the loss on the embeddings of all devices; `symbol` is then one of `training_symbol(gathered=True)`.
    machines: gradients are summed over the devices of all workers before each update, which every worker makes
    for itself, starting from worker 0's parameters. Without both it is a Module like any other.
    """

    def __init__(
        self,
        symbol: mx.sym.Symbol,
        context: mx.Context | Sequence[mx.Context],
        *,
        gathered: GatheredLoss | None = None,
        machines: Machines | None = None,
        logger: Any = logging,
    ):
        super().__init__(symbol, context=context, logger=logger)
        self._gathered = gathered
        self._machines = machines

    def backward(self, out_grads: Sequence[mx.nd.NDArray] | None = None) -> None:
        """With a gathered loss, its gradient goes into output 0; `out_grads` must then be None."""
        if self._gathered is None:
            super().backward(out_grads)
            return
        if out_grads is not None:
            raise ValueError("expected no out_grads beside a gathered loss")
        executors = self._exec_group.execs
        # The optimizer's rescale_grad, 1/devices, is for a sum of losses of one device each: this is one of all.
        heads = self._gathered.gradients([e.outputs[0] for e in executors], factor=len(executors))
        for executor, head in zip(executors, heads, strict=True):
            # The other outputs are losses, which take no gradient, or have none.
            executor.backward(out_grads=[head, *map(mx.nd.zeros_like, executor.outputs[1:])])

    def init_optimizer(
        self,
        kvstore: Any = "local",
        optimizer: Any = "sgd",
        optimizer_params: Any = (("learning_rate", 0.01),),
        force_init: bool = False,
    ) -> None:
        """With machines `kvstore` is not used, and `rescale_grad` is that of one machine, as without them."""
        machines = self._machines
        if machines is None or (self.optimizer_initialized and not force_init):
            super().init_optimizer(kvstore, optimizer, optimizer_params, force_init)
            return
        arg, aux = map(machines.broadcast, self.get_params())
        self.set_params(arg, aux)
        if isinstance(optimizer, str):
            optimizer_params = dict(optimizer_params)
            alone = optimizer_params.get("rescale_grad", 1.0 / self._exec_group.batch_size)
            optimizer_params["rescale_grad"] = alone / machines.workers
        else:
            optimizer.rescale_grad /= machines.workers
        super().init_optimizer(None, optimizer, optimizer_params, force_init)

    def update(self) -> None:
        """With machines, `WorkerLostError` where the others' gradients do not come: nothing is updated then."""
        if self._machines is not None:
            self._machines.sum_gradients(self._exec_group.param_names, self._exec_group.grad_arrays)
        super().update()

    # -- what a trainer keeps of it ----------------------------------------------------------------

    def statistics(self) -> list[list[mx.nd.NDArray]]:
        """Copies of BatchNorm's moving statistics on each device, which a forward and backward pass changes."""
        return [[array.copy() for array in executor.aux_arrays] for executor in self._exec_group.execs]

    def restore_statistics(self, statistics: list[list[mx.nd.NDArray]]) -> None:
        for executor, kept in zip(self._exec_group.execs, statistics, strict=True):
            for array, value in zip(executor.aux_arrays, kept, strict=True):
                value.copyto(array)

    def optimizer_state(self) -> bytes:
        """The optimizer's state in MXNet's own serialisation."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "optimizer.states"
            self.save_optimizer_states(str(path))
            return path.read_bytes()

    def set_optimizer_state(self, state: bytes) -> None:
        with tempfile.NamedTemporaryFile(suffix=".states") as file:
            file.write(state)
            file.flush()
            self.load_optimizer_states(file.name)

    def planned_megabytes(self) -> float:
        """From the executors' own description, 'Total N MB allocated', one line a device."""
        texts = [executor.debug_str() for executor in self._exec_group.execs]
        return float(sum(int(n) for text in texts for n in re.findall(r"Total (\d+) MB allocated", text)))
