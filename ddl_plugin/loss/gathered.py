"""A registered loss computed outside the devices' own graphs, on the embeddings of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ddl_plugin.loss.registered import build_checked
from ddl_plugin.loss.scope import step_loss
from ddl_plugin.loss.shapes import require_shapes
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.registry import get_loss
from ddl_plugin.settings import DDLSettings


class GatheredLoss:
    """The loss of one step over `devices` devices, by `settings.scope`, and its gradient by embedding.

    For what a device's own graph cannot see: similarities between devices (scope 'global'), and trainers
    that gather the embeddings anyway. Its graph is bound on `context`, in float32.
    """

    def __init__(
        self,
        loss: str,
        settings: DDLSettings,
        options: dict[str, Any],
        *,
        devices: int,
        emb_size: int,
        context: mx.Context,
    ):
        entry = get_loss(loss)
        options = entry.resolve(options)
        require_shapes(entry, emb_size, settings, options)

        def build(F: Any, *arguments: Any) -> tuple[Any, Any, tuple[str, ...]]:
            return build_checked(F, entry, *arguments)

        embedding = mx.sym.Variable("embedding")
        value, terms, self.names = step_loss(mx.sym, embedding, build, settings, options, devices)
        graph = mx.sym.Group([mx.sym.MakeLoss(value), mx.sym.BlockGrad(terms)])
        self._context = context
        self._rows = devices * settings.rows
        self._executor = graph.simple_bind(context, grad_req="write", embedding=(self._rows, emb_size))

    def gradients(self, embeddings: Sequence[mx.nd.NDArray], factor: float) -> list[mx.nd.NDArray]:
        """`factor` times the gradient of the loss with respect to each of `embeddings`.

        Inputs: arrays of any float dtype whose rows, one array after the other, are the devices' blocks: one
        array a device, or one with all. Outputs: arrays of the same shapes, dtypes and contexts.
        """
        parts = [array.as_in_context(self._context).astype("float32", copy=False) for array in embeddings]
        gathered = parts[0] if len(parts) == 1 else mx.nd.concat(*parts, dim=0)
        if gathered.shape[0] != self._rows:
            raise ValueError(f"expected {self._rows} rows of embeddings, got {gathered.shape[0]}")
        self._executor.forward(is_train=True, embedding=gathered)
        self._executor.backward()
        gradient = self._executor.grad_dict["embedding"] * factor
        result, begin = [], 0
        for array in embeddings:
            part = mx.nd.slice_axis(gradient, axis=0, begin=begin, end=begin + array.shape[0])
            result.append(part.astype(array.dtype, copy=False).as_in_context(array.context))
            begin += array.shape[0]
        return result

    def loss(self) -> float:
        """The loss of the last `gradients`."""
        return float(self._executor.outputs[0].asscalar())

    def terms(self) -> dict[str, float]:
        """The terms of the last `gradients`, by name; scope 'device': their means over the devices."""
        values = self._executor.outputs[1].asnumpy().reshape(-1).astype(np.float64)
        return dict(zip(self.names, values.tolist(), strict=True))
