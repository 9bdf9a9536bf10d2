"""ONNX head-pose networks in small, for tests: what they compute is written out in NumPy beside them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper

_RNG = np.random.default_rng(7)
#: yaw, pitch and roll of a 64x64 picture: a weight for every value, other ones for each colour and side.
WEIGHTS = _RNG.normal(0, 0.05, (3 * 64 * 64, 3)).astype(np.float32)


def expected_angles(images: list[np.ndarray], weights: np.ndarray = WEIGHTS) -> np.ndarray:
    """What `save_fsanet` gives for uint8 (H, W, 3) RGB images: (n, 3)."""
    rows = []
    for image in images:
        small = cv2.resize(image, (64, 64)).astype(np.float64)
        bgr = small[:, :, ::-1]
        rows.append(((bgr - 127.5) / 128).transpose(2, 0, 1).ravel() @ weights.astype(np.float64))
    return np.array(rows)


def save_fsanet(path: Path, *, batch: int | str = 1, weights: np.ndarray = WEIGHTS, reshape=(0, -1)) -> Path:
    """A network with FSA-Net's input and output; `reshape` as ONNX has it, (1, -1) fixes the batch in the graph."""
    nodes = [
        helper.make_node("Reshape", ["input", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["output"]),
    ]
    constants = [
        helper.make_tensor("shape", TensorProto.INT64, [2], reshape),
        helper.make_tensor("weights", TensorProto.FLOAT, weights.shape, weights.ravel()),
    ]
    return _save(path, nodes, constants, ([batch, 3, 64, 64], "input"), ([batch, 3], "output"))


def save_batch_mean(path: Path) -> Path:
    """A network that answers with the mean over its batch: right for a batch of one alone."""
    nodes = [
        helper.make_node("Reshape", ["input", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["angles"]),
        helper.make_node("ReduceMean", ["angles"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["angles", "angles"], ["zeros"]),
        helper.make_node("Add", ["zeros", "mean"], ["output"]),
    ]
    constants = [
        helper.make_tensor("shape", TensorProto.INT64, [2], [0, -1]),
        helper.make_tensor("weights", TensorProto.FLOAT, WEIGHTS.shape, WEIGHTS.ravel()),
    ]
    return _save(path, nodes, constants, ([1, 3, 64, 64], "input"), ([1, 3], "output"))


def save_landmarks(path: Path, points: np.ndarray) -> Path:
    """A network with 1k3d68's input and output that finds these 68 points (68, 3), -1..1, in any picture."""
    answer = np.zeros((1, 3309), np.float32)
    answer[0, -68 * 3 :] = points.ravel()
    nodes = [
        helper.make_node("ReduceMean", ["data"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Sub", ["mean", "mean"], ["zeros"]),
        helper.make_node("Reshape", ["zeros", "column"], ["rows"]),
        helper.make_node("Add", ["rows", "answer"], ["fc1"]),
    ]
    constants = [
        helper.make_tensor("column", TensorProto.INT64, [2], [-1, 1]),
        helper.make_tensor("answer", TensorProto.FLOAT, answer.shape, answer.ravel()),
    ]
    return _save(path, nodes, constants, (["n", 3, 192, 192], "data"), (["n", 3309], "fc1"))


def save_other(path: Path, inputs: list, outputs: list) -> Path:
    """A network of these shapes, without a meaning."""
    nodes = [
        helper.make_node("ReduceMean", ["data"], ["mean"], keepdims=0),
        helper.make_node("Expand", ["mean", "shape"], ["out"]),
    ]
    shape = [size if isinstance(size, int) else 1 for size in outputs]
    constants = [helper.make_tensor("shape", TensorProto.INT64, [len(shape)], shape)]
    return _save(path, nodes, constants, (inputs, "data"), (outputs, "out"))


def _save(path: Path, nodes, constants, taken, given) -> Path:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for shape, name in (taken, given)]
    graph = helper.make_graph(nodes, "pose", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)
    onnx.save(model, str(path))
    return path
