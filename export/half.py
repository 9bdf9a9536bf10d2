"""A model in half precision: weights and operators in float16, input and output in float32 as callers know them.

An operator stays in float32 where half precision would lose it: reductions and roots, weights that half precision
cannot hold, and outputs that come near its largest number, 65504. Casts stand where the two meet.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime as ort
from onnx import NodeProto, TensorProto, helper, numpy_helper

from ddl_plugin.export.images import as_input

#: Operators whose half-precision form is common to the runtimes and adds up nothing in half precision.
_IN_HALF = {
    "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "Flatten", "Gemm", "HardSigmoid",
    "LeakyRelu", "MatMul", "MaxPool", "Mul", "PRelu", "Pad", "Relu", "Reshape", "Sigmoid", "Sub", "Sum", "Tanh",
    "Transpose",
}  # fmt: skip
_LARGEST = 65504 / 4  # an output's largest value on the images looked at, with room for others
_LOSS = 1e-3  # of an array's norm; rounding takes at most 2^-11 of each of its values
_TOGETHER = 16  # outputs looked at in one run


def to_half(model: onnx.ModelProto, images: np.ndarray) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The model in half precision, and {node: why} of those kept in float32 although their operator is not.

    images: uint8 (n, S, S, 3), on which the outputs' sizes are looked at.
    """
    largest = _largest_values(model, as_input(images))
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    kept = {
        node.name: reason
        for node in model.graph.node
        if node.op_type in _IN_HALF and (reason := _reason(node, weights, largest))
    }
    preamble = preamble_nodes(model)
    in_half = {
        node.name
        for node in model.graph.node
        if node.op_type in _IN_HALF and node.name not in kept and node.name not in preamble
    }
    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    _Rewriter(converted, in_half).run()
    onnx.checker.check_model(converted, full_check=True)
    return converted, {name: reason for name, reason in kept.items() if name not in preamble}


def preamble_nodes(model: onnx.ModelProto) -> set[str]:
    """Nodes that shift and scale the pixels: 0..255 and 127.5 are exact in float32 and cost nothing."""
    raw, found = {value.name for value in model.graph.input}, set()
    for node in model.graph.node:
        if node.op_type in ("Sub", "Mul", "Add", "Div") and node.input[0] in raw:
            raw.add(node.output[0])
            found.add(node.name)
    return found


#: The inputs that an operator multiplies by: small ones count, where a small bias or mean adds next to nothing.
_FACTORS = {
    "BatchNormalization": (1, 4),
    "Conv": (1,),
    "Gemm": (1,),
    "MatMul": (0, 1),
    "Mul": (0, 1),
    "PRelu": (1,),
}


def _reason(node: NodeProto, weights: dict[str, TensorProto], largest: dict[str, float]) -> str:
    """Why a node stays in float32; '' where it need not."""
    for place, name in enumerate(node.input):
        if name in weights and weights[name].data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(weights[name]).astype(np.float64)
            kept = _halved(array).astype(np.float64)
            if (node.op_type, place) == ("BatchNormalization", 4):  # the variance is divided by with epsilon
                epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
                array, kept = array + epsilon, kept + epsilon
            lost = np.linalg.norm(kept - array) > _LOSS * np.linalg.norm(array)
            if not np.isfinite(kept).all() or (lost and place in _FACTORS.get(node.op_type, ())):
                return f"half precision cannot hold {name}, {_range(array)}"
    peak = max((largest.get(name, 0.0) for name in (*node.input, *node.output)), default=0.0)
    return "" if peak <= _LARGEST else f"values up to {peak:.3g}"


def _halved(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return array.astype(np.float16)


def _range(array: np.ndarray) -> str:
    size = np.abs(array[array != 0])
    return f"values of size {size.min():.3g} to {size.max():.3g}"


def _largest_values(model: onnx.ModelProto, batch: np.ndarray) -> dict[str, float]:
    """The largest absolute value of each node's output over the batch, some outputs at a time."""
    found: dict[str, float] = {}
    names = [name for node in model.graph.node for name in node.output]
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    for start in range(0, len(names), _TOGETHER):
        chosen = names[start : start + _TOGETHER]
        del opened.graph.output[:]
        opened.graph.output.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in chosen
        )
        session = ort.InferenceSession(opened.SerializeToString(), providers=["CPUExecutionProvider"])
        values = session.run(chosen, {session.get_inputs()[0].name: batch})
        found |= {name: float(np.abs(value).max()) for name, value in zip(chosen, values, strict=True)}
    return found


class _Rewriter:
    """Changes a model in place: the nodes named in `in_half` compute in float16, the others as before."""

    def __init__(self, model: onnx.ModelProto, in_half: set[str]):
        self.graph = model.graph
        self.in_half = in_half
        self.weights = {tensor.name: tensor for tensor in self.graph.initializer}
        self.halves: dict[str, str] = {}  # float32 value -> its float16 copy
        self.floats: dict[str, str] = {}  # float16 value -> its float32 copy
        self.half_values: set[str] = set()
        self.used: dict[str, TensorProto] = {}

    def run(self) -> None:
        nodes: list[NodeProto] = []
        for node in self.graph.node:
            nodes += self._rewritten(node)
        outputs = [value.name for value in self.graph.output if value.name in self.half_values]
        for name in outputs:  # the caller's name belongs to the float32 value
            for node in nodes:
                for names in (node.input, node.output):
                    for i, used in enumerate(names):
                        if used == name:
                            names[i] = f"{name}_float16"
            nodes.append(
                helper.make_node(
                    "Cast", [f"{name}_float16"], [name], name=f"{name}_to_float32", to=TensorProto.FLOAT
                )
            )
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        del self.graph.value_info[:]
        del self.graph.initializer[:]
        self.graph.initializer.extend(self.used.values())

    def _rewritten(self, node: NodeProto) -> Iterator[NodeProto]:
        half = node.name in self.in_half
        for i, name in enumerate(node.input):
            if not name:
                continue
            tensor = self.weights.get(name)
            if tensor is not None:
                node.input[i] = self._weight(tensor, half)
            elif half != (name in self.half_values):
                known = self.halves if half else self.floats
                if name not in known:
                    kind = "float16" if half else "float32"
                    known[name] = f"{name}_to_{kind}"
                    to = TensorProto.FLOAT16 if half else TensorProto.FLOAT
                    yield helper.make_node("Cast", [name], [known[name]], name=known[name], to=to)
                node.input[i] = known[name]
        if half:
            self.half_values.update(node.output)
        yield node

    def _weight(self, tensor: TensorProto, half: bool) -> str:
        """The name of a weight in the precision of its node; read by nodes of both, there are two of it."""
        as_half = half and tensor.data_type == TensorProto.FLOAT
        name = tensor.name
        stored = self.used.get(name)
        wanted = TensorProto.FLOAT16 if as_half else tensor.data_type
        if stored is not None and stored.data_type != wanted:
            name = f"{name}_float{16 if as_half else 32}"
        if name not in self.used:
            array = numpy_helper.to_array(tensor)
            self.used[name] = numpy_helper.from_array(_halved(array) if as_half else array, name)
        return name
