"""What a model costs: multiply-adds by operator, parameters, bytes of weights."""

from __future__ import annotations

import math
from typing import Any

import onnx
from onnx import numpy_helper, shape_inference

from ddl_plugin.errors import CheckError

#: They move or name values and compute none.
_FREE = {
    "Cast",
    "Concat",
    "Flatten",
    "Identity",
    "Pad",
    "Reshape",
    "Slice",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
}


def cost(model: onnx.ModelProto) -> dict[str, Any]:
    """Counts for one image.

    multiply_adds: {operator: count}; a convolution's are output values times values in its window, a Gemm's rows
    times columns; pooling and reductions count the values they read, other operators one for each value they write.
    """
    shapes = _shapes(model)
    counts: dict[str, int] = {}
    for node in model.graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + _multiply_adds(node, shapes)
    tensors = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    parameters = sum(math.prod(tensor.dims) for tensor in tensors)
    return {
        "multiply_adds": counts,
        "total_multiply_adds": sum(counts.values()),
        "parameters": parameters,
        "weight_bytes": sum(numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer),
        "file_bytes": model.ByteSize(),
    }


def check_same_cost(model: onnx.ModelProto, base: onnx.ModelProto, base_name: str) -> dict[str, Any]:
    """{'model': cost, 'base': cost}; CheckError where one is not the other's.

    The files' sizes are reported, not required to be equal: they hold names and metadata too.
    """
    found, expected = cost(model), cost(base)
    for key in ("multiply_adds", "parameters", "weight_bytes"):
        if found[key] != expected[key]:
            raise CheckError(f"{key} are not those of {base_name}: {found[key]} against {expected[key]}")
    return {"model": found, "base": expected}


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of all values, for a batch of one."""
    single = onnx.ModelProto()
    single.CopyFrom(model)
    for value in (*single.graph.input, *single.graph.output):
        value.type.tensor_type.shape.dim[0].Clear()
        value.type.tensor_type.shape.dim[0].dim_value = 1
    inferred = shape_inference.infer_shapes(single, strict_mode=True, data_prop=True).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    return shapes


def _multiply_adds(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    read, written = math.prod(shapes[node.input[0]]), math.prod(shapes[node.output[0]])
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type in _FREE:
        return 0
    if node.op_type == "Conv":  # the weight is (filters, channels of a group, rows, columns)
        return written * math.prod(shapes[node.input[1]][1:])
    if node.op_type == "ConvTranspose":
        return read * math.prod(shapes[node.input[1]][1:])
    if node.op_type == "Gemm":
        return written * shapes[node.input[0]][0 if attributes.get("transA") else 1]
    if node.op_type == "MatMul":
        return written * shapes[node.input[0]][-1]
    if node.op_type in ("MaxPool", "AveragePool"):
        return written * math.prod(attributes["kernel_shape"])
    if node.op_type.startswith(("Global", "Reduce")):
        return read
    return written
