"""A checkpoint's network in PyTorch, which its exported file is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ddl_plugin.export.graph import Checkpoint
from ddl_plugin.pytorch.checkpoint import load_backbone
from ddl_plugin.pytorch.operators import OPERATORS
from ddl_plugin.pytorch.torch_setup import torch


class TorchNetwork:
    """`export.departure.Reference`, on the CPU."""

    title = "PyTorch"
    version = torch.__version__

    def __init__(self, files: Checkpoint):
        backbone = load_backbone(str(files.params))
        self._graph = backbone.graph
        self._arrays = {**backbone.arg, **backbone.aux}
        self._network = backbone.network().eval().requires_grad_(False)

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self._network(torch.from_numpy(batch)).numpy()

    def shapes(self, batch: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return {name: tuple(v.shape) for name, v in self._outputs(np.zeros(batch, np.float32))}

    def values(self, names: Sequence[str], batch: np.ndarray) -> dict[str, np.ndarray]:
        wanted = set(names)
        return {name: value.numpy() for name, value in self._outputs(batch) if name in wanted}

    def _outputs(self, batch: np.ndarray) -> Iterator[tuple[str, torch.Tensor]]:
        """Every node's name and output, in topological order."""
        values = []
        for node in self._graph.nodes:
            if node.op == "null":
                array = batch if node.name == "data" else self._arrays[node.name]
                values.append(torch.from_numpy(np.ascontiguousarray(array, np.float32)))
                continue
            operator = OPERATORS[node.op]
            mode = {"training": False} if operator.by_mode else {}
            with torch.inference_mode():
                values.append(operator.build(node)(*(values[source] for source, _ in node.inputs), **mode))
            yield node.name, values[-1]


def open_torch(files: Checkpoint) -> tuple[TorchNetwork, str]:
    """The network and PyTorch's version."""
    return TorchNetwork(files), TorchNetwork.version
