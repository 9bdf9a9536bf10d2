"""A checkpoint's network in MXNet itself, which reads the files independently of our own readers."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from ddl_plugin.cli import uninterrupted
from ddl_plugin.errors import UserError
from ddl_plugin.export.graph import Checkpoint, embedding_of, load_symbol

_PIECE = 4  # images; MXNet needs gigabytes for the activations of a deep network at batch 33


class MXNetNetwork:
    """The embedding, and every operator's output, of a checkpoint; on the CPU.

    Raises UserError where MXNet is not installed or cannot be imported.
    """

    title = "MXNet"

    def __init__(self, files: Checkpoint):
        with uninterrupted():
            from ddl_plugin.mxnet_setup import mx, symbol_from_json

        self._mx = mx
        self.version: str = mx.__version__
        self._internals = symbol_from_json(
            _in_float32(files.symbol.read_text(encoding="utf-8"))
        ).get_internals()
        self._embedding = self._internals[embedding_of(load_symbol(files.symbol))]
        self._params = {
            name.partition(":")[2]: array.as_in_context(mx.cpu()).astype("float32", copy=False)
            for name, array in mx.nd.load(str(files.params)).items()
        }
        self._executor, self._bound = None, None

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """Embeddings float32 (n, D) of a batch float32 (n, 3, S, S).

        In pieces, unless a node's output has lost the batch's axis: then an image's embedding may depend on the others.
        """
        if any(shape[:1] != batch.shape[:1] for shape in self.shapes(batch.shape).values()):
            return self._embed(batch)
        pieces = (batch[start : start + _PIECE] for start in range(0, len(batch), _PIECE))
        return np.concatenate([self._embed(piece) for piece in pieces])

    def _embed(self, batch: np.ndarray) -> np.ndarray:
        if batch.shape != self._bound:
            self._executor = None  # its memory goes before another takes its own
            self._executor, self._bound = self._bind(self._embedding, batch), batch.shape
        return self._forward(self._executor, batch)[0]

    def shapes(self, batch: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """{name of a node: shape of its output} of what the embedding depends on, in topological order."""
        internals = self._embedding.get_internals()
        parameters = {*internals.list_arguments(), *internals.list_auxiliary_states()}
        _, shapes, _ = internals.infer_shape(data=batch)
        named = zip(internals.list_outputs(), shapes, strict=True)
        return {
            name.removesuffix("_output"): shape
            for name, shape in named
            if name not in parameters and name.endswith("_output")
        }

    def values(self, names: Sequence[str], batch: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs of the nodes of these names."""
        if not names:
            return {}
        group = self._mx.sym.Group([self._internals[f"{name}_output"] for name in names])
        return dict(zip(names, self._forward(self._bind(group, batch), batch), strict=True))

    def _bind(self, symbol, batch: np.ndarray):
        """An executor on the parameters themselves: copies would take a large network's memory once more a batch."""
        given = {**self._params, "data": self._mx.nd.zeros(batch.shape)}
        arguments, states = symbol.list_arguments(), symbol.list_auxiliary_states()
        return symbol.bind(
            self._mx.cpu(),
            args={name: given[name] for name in arguments},
            aux_states={name: given[name] for name in states},
            grad_req="null",
        )

    def _forward(self, executor, batch: np.ndarray) -> list[np.ndarray]:
        return [value.asnumpy() for value in executor.forward(is_train=False, data=self._mx.nd.array(batch))]


def _in_float32(symbol: str) -> str:
    """The symbol with its casts to half precision made casts to float32, which is what the exported graph computes."""
    content = json.loads(symbol)
    for node in content["nodes"]:
        for attrs in (node.get(key, {}) for key in ("attrs", "attr", "param")):
            if node["op"] == "Cast" and attrs.get("dtype") == "float16":
                attrs["dtype"] = "float32"
    return json.dumps(content)


def open_mxnet(files: Checkpoint) -> tuple[MXNetNetwork | None, str]:
    """The network and MXNet's version, or None and why there is none."""
    try:
        network = MXNetNetwork(files)
    except UserError as error:  # MXNet is not installed, or cannot be imported
        return None, str(error)
    return network, network.version
