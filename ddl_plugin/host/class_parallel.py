"""Our loss in train_parall.py, where each device has a part of the classifier and all devices' embeddings."""

from __future__ import annotations

import importlib
from typing import Any

from ddl_plugin.errors import UserError
from ddl_plugin.export.graph import EMBEDDING
from ddl_plugin.host.metric import shown
from ddl_plugin.host.run import Run
from ddl_plugin.loss.gathered import GatheredLoss
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.training.roles import SEVERAL_MACHINES

_ONE_MACHINE = ": InsightFace has no parall_module_dist; use train.py --kvstore dist_sync"


class ClassParallel(Run):
    """The gradient that the trainer's module sends back into the network gains that of the loss.

    The module gathers the embeddings of all devices before its classifier, so both scopes are computed there.
    """

    def install(self) -> None:
        if self.config.get("num_workers", 1) > 1:
            raise UserError(f"DMLC_NUM_WORKER: expected 1, got {self.config.num_workers}{_ONE_MACHINE}")
        super().install()
        own = self.trainer["get_symbol_embedding"]
        self.trainer["get_symbol_embedding"] = lambda *_: self._symbol(own)
        self._gathered: GatheredLoss | None = None
        self._join_module(importlib.import_module("parall_module_local_v1").ParallModule)

    def begin(self, args: Any) -> None:
        if args.kvstore in SEVERAL_MACHINES:
            raise UserError(f"--kvstore: expected one of one machine, got {args.kvstore}{_ONE_MACHINE}")
        super().begin(args)

    def _symbol(self, own_get_symbol: Any) -> mx.sym.Symbol:
        """The graph of --network, into which the checkpoint must fit.

        The trainer would train the checkpoint's graph, but saves that of --network in the end, under the prefix of
        all its checkpoints: where the names in the two differ, none of them could be read.
        """
        symbol = own_get_symbol()
        self._network = symbol.get_internals()[EMBEDDING]
        return symbol

    def _join_module(self, module_class: type) -> None:
        """Methods of the class are replaced, not the class: it names itself in its own calls of super()."""
        own = {name: getattr(module_class, name) for name in ("__init__", "fit", "init_params", "backward")}

        def init(module: Any, *arguments: Any, args: Any = None, **options: Any) -> None:
            self.begin(args)
            self.take_base(self._network, self.settings.rename)
            own["__init__"](module, *arguments, args=args, **options)
            self._gathered = self.gathered_loss(len(module._context), module._context[-1])

        def fit(
            module: Any, *arguments: Any, arg_params: Any = None, aux_params: Any = None, **options: Any
        ) -> None:
            # The trainer passes --pretrained's arrays here and the module refuses them; init_params takes them.
            own["fit"](module, *arguments, **options)

        def init_params(module: Any, *arguments: Any, **options: Any) -> None:
            arg = {name: array for name, array in self.arg.items() if not name.startswith("fc7")}
            own["init_params"](module, *arguments, **{**options, "arg_params": arg, "aux_params": self.aux})
            if "fc7_weight" in self.arg:
                _set_fc7(module, self.arg["fc7_weight"])

        def backward(module: Any, out_grads: Any = None) -> None:
            network = module._curr_module
            send_back = network.backward

            def with_loss(out_grads: list[mx.nd.NDArray]) -> None:
                send_back(out_grads=[out_grads[0] + self._gradient(module, out_grads[0])])

            network.backward = with_loss
            try:
                own["backward"](module, out_grads)
            finally:
                del network.backward  # the instance's: the class's own is there again

        module_class.__init__ = init
        module_class.fit = fit
        module_class.init_params = init_params
        module_class.backward = backward

    def _gradient(self, module: Any, own: mx.nd.NDArray) -> mx.nd.NDArray:
        """Of the loss by the gathered embeddings, (batch, D), on the device and in the type of `own`.

        The optimiser multiplies by 1/batch, because the classifier's gradients are sums over the batch.
        """
        embeddings = module._curr_module.get_outputs(merge_multi_context=True)[0]
        (gradient,) = self._gathered.gradients([embeddings], factor=float(self.args.batch_size))
        if module._iter % self.args.frequent == 0:
            terms = self._gathered.terms()
            values = " ".join(f"{name}={terms[name]:.6f}" for name in shown(self._gathered.names))
            print(
                f"{{{self.entry.name}}} {module._iter} {values}", flush=True
            )  # as the module prints {fc7_acc}
        return gradient.as_in_context(own.context).astype(own.dtype, copy=False)


def _set_fc7(module: Any, fc7: mx.nd.NDArray) -> None:
    """Give each device its rows of `fc7`; the last ones may reach beyond its end, and keep what they have there."""
    size = module._ctx_num_classes
    for device, part in enumerate(module._arcface_modules):
        name = f"fc7_{device}_weight"
        rows = fc7[device * size : (device + 1) * size]
        weight = part.get_params()[0][name]
        weight[: len(rows)] = rows
        part.set_params({name: weight}, {})
