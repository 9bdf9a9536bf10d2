"""Our loss in train.py, where every device has the whole classifier and its slice of the batch."""

from __future__ import annotations

from typing import Any

from ddl_plugin.errors import CheckError
from ddl_plugin.export.graph import EMBEDDING
from ddl_plugin.host.metric import shown, with_terms
from ddl_plugin.host.run import Run
from ddl_plugin.loss.gathered import GatheredLoss
from ddl_plugin.loss.symbol import loss_outputs
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.training.module import StepModule

_TERMS_OUTPUT = 3


class Replicated(Run):
    """The trainer's graph gains the loss, its metric the terms; with a global scope or several machines its
    module is one that can do these."""

    def install(self) -> None:
        super().install()
        own = self.trainer["get_symbol"]
        self.trainer["get_symbol"] = lambda args: self._symbol(own, args)
        self.trainer["AccMetric"] = with_terms(self.trainer["AccMetric"], self._terms)
        self._names: tuple[str, ...] = ()
        self._gathered: GatheredLoss | None = None

    def _symbol(self, own_get_symbol: Any, args: Any) -> mx.sym.Symbol:
        """Outputs [0] embedding, [1] softmax, [2] loss, [3] terms (both only where the devices' own graphs
        compute the loss), [-1] cross entropy: the first two and the last are the trainer's own."""
        self.begin(args)
        own = own_get_symbol(args)  # once: calling it again would rename layers of some networks
        embedding = own.get_internals()[EMBEDDING]
        self.take_base(embedding, self.settings.rename)
        first, softmax, *rest = own
        ddl = self.settings.ddl
        if ddl.scope == "global":
            # One device computes the loss of all: as the trainer, the first one it was given.
            self._gathered = self.gathered_loss(args.ctx_num, self.context)
            first, added, self._names = mx.sym.identity(embedding, name="embedding"), [], self._gathered.names
        else:
            added, self._names = loss_outputs(
                embedding, self.entry.name, ddl, self.settings.loss_options, self.config.emb_size
            )
        if self._gathered is not None or self.machines is not None:
            mx.mod.Module = self._module
        return mx.sym.Group([first, softmax, *added, *rest])

    def _terms(self, outputs: list[Any]) -> dict[str, float]:
        if self._gathered is not None:
            values = self._gathered.terms()
        else:
            values = dict(zip(self._names, outputs[_TERMS_OUTPUT].asnumpy()[0].tolist(), strict=True))
        return {name: values[name] for name in shown(self._names)}

    def _module(self, symbol: mx.sym.Symbol, context: list[mx.Context], **options: Any) -> StepModule:
        module = StepModule(symbol, context, gathered=self._gathered, machines=self.machines, **options)
        own_update = module.update

        def update() -> None:
            try:
                own_update()
            except CheckError as lost:
                raise CheckError(f"{lost}; {self._saved(module)}") from lost

        module.update = update
        return module

    def _saved(self, module: StepModule) -> str:
        """Save what was trained until a worker was lost; says where."""
        if self.machines.rank > 0:
            return "worker 0, where it is still there, saves what was trained"
        prefix = self.folder / "lost"
        arg, aux = module.get_params()
        mx.model.save_checkpoint(str(prefix), 0, module.symbol.get_internals()[EMBEDDING], arg, aux)
        return (
            f"what was trained is saved: start all workers again with --pretrained {prefix} --pretrained-epoch 0 "
            f"and loss.{self.entry.name}.fc7_init = 'checkpoint'"
        )
