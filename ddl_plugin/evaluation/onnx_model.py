"""Embeddings from an ONNX file, as InsightFace's own tools would compute them. No MXNet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.providers import wanted, warn_once

SIDE = 112
#: How insightface.model_zoo tells whether the graph normalises its input: names among the first eight nodes.
_LOOKED_AT = 8
_OUTSIDE = (127.5, 127.5)  # mean and divisor that it applies when the graph does not


def open_session(path: str | os.PathLike, threads: int | None = None) -> ort.InferenceSession:
    """An ONNX Runtime session on CUDA when this build of ONNX Runtime has it, else on the CPU.

    Raises UserError when the file is missing or is no ONNX model.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such ONNX file")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    warn_once()
    try:
        return ort.InferenceSession(str(path), options, providers=wanted())
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise UserError(f"{path}: expected an ONNX model that ONNX Runtime can run: {error}") from error


def normalises_itself(nodes: Sequence[onnx.NodeProto]) -> bool:
    """Whether a graph takes pixels 0..255, by insightface's rule; its mean and scale are in the graph then."""
    names = [node.name for node in nodes[:_LOOKED_AT]]
    return any(n.startswith(("Sub", "_minus")) for n in names) and any(
        n.startswith(("Mul", "_mul")) for n in names
    )


class OnnxEmbedder:
    """`embed` over an ONNX recognition model: uint8 (n, 112, 112, 3) RGB -> float32 (n, D), not normalised.

    Pixels go in as 0..255 when the graph normalises them itself, else as (x - 127.5) / 127.5.

    path: the .onnx file. threads: of ONNX Runtime, None for its own choice. batch_size: images of one run; a model
    exported with a fixed batch is run with its own.
    """

    def __init__(self, path: str | os.PathLike, threads: int | None = None, batch_size: int = 64):
        self.path = Path(path)
        self._session = open_session(path, threads)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shape = inputs[0].shape
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or not _image_like(shape):
            got = ", ".join(f"{value.name} {value.type} {value.shape}" for value in inputs)
            raise UserError(f"{path}: expected one float input (n, 3, {SIDE}, {SIDE}), got {got}")
        if len(outputs) != 1 or len(outputs[0].shape) != 2:
            got = ", ".join(f"{value.name} {value.shape}" for value in outputs)
            raise UserError(f"{path}: expected one output (n, D), got {got}")
        self._input = inputs[0].name
        self._fixed_batch = isinstance(shape[0], int)
        self.batch_size = shape[0] if self._fixed_batch else batch_size
        self._raw_pixels = normalises_itself(onnx.load(str(path), load_external_data=False).graph.node)
        declared = outputs[0].shape[1]
        self.dimension: int = declared if isinstance(declared, int) else self._run(_blank()).shape[1]

    @property
    def provider(self) -> str:
        """The execution provider in use, e.g. 'CPUExecutionProvider'."""
        return self._session.get_providers()[0]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        if images.ndim != 4 or images.shape[1:] != (SIDE, SIDE, 3):
            raise UserError(f"{self.path}: expected images (n, {SIDE}, {SIDE}, 3), got {images.shape}")
        result = np.empty((len(images), self.dimension), np.float32)
        for start in range(0, len(images), self.batch_size):
            chunk = images[start : start + self.batch_size]
            result[start : start + len(chunk)] = self._run(chunk)
        return result

    def _run(self, images: np.ndarray) -> np.ndarray:
        count = len(images)
        if self._fixed_batch and count < self.batch_size:
            images = images[np.arange(self.batch_size) % count]
        pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32)
        if not self._raw_pixels:
            mean, divisor = _OUTSIDE
            pixels = (pixels - np.float32(mean)) / np.float32(divisor)
        return self._session.run(None, {self._input: pixels})[0][:count]


def _blank() -> np.ndarray:
    return np.zeros((1, SIDE, SIDE, 3), np.uint8)


def _image_like(shape: list) -> bool:
    """Whether an input's shape is (n, 3, 112, 112), where axes without a fixed size are not numbers."""
    sides_fit = len(shape) == 4 and all(size == SIDE or not isinstance(size, int) for size in shape[2:])
    return sides_fit and shape[1] == 3
