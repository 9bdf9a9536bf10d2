"""A detector in InsightFace's SCRFD layout that takes bright spots for faces: the real code around a fake network."""

import numpy as np
import onnx
from insightface.utils.face_align import arcface_dst
from onnx import TensorProto, helper, numpy_helper

SIDE = 64  # of its input
STRIDE = 8  # of the only outputs that find anything
#: Landmarks around a spot's upper left corner, in pixels of the input.
TEMPLATE = (arcface_dst - 56) / 112 * 30


def save(path, landmarks=True):
    """One face for each cell of 8x8 pixels (of 64x64) with a mean above 191; box and landmarks are fixed around it."""
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["grey"], axes=[1], keepdims=1),
        helper.make_node("AveragePool", ["grey"], ["cells"], kernel_shape=[STRIDE] * 2, strides=[STRIDE] * 2),
        helper.make_node("Reshape", ["cells", "column"], ["first"]),
        helper.make_node("Sub", ["first", "ten"], ["second"]),  # the second of two anchors finds nothing
        helper.make_node("Concat", ["first", "second"], ["both"], axis=1),
        helper.make_node("Reshape", ["both", "column"], ["score_8"]),
    ]
    constants = {"column": np.array([-1, 1], np.int64), "ten": np.float32(10)}
    outputs = []
    values = {"score": lambda stride: [-1], "bbox": lambda stride: [16 / stride] * 4}
    if landmarks:
        values["kps"] = lambda stride: np.ravel(TEMPLATE / stride)
    for kind, value in values.items():
        for stride in (8, 16, 32):
            name = f"{kind}_{stride}"
            rows = np.tile(np.float32(value(stride)), (2 * (SIDE // stride) ** 2, 1))
            outputs.append((name, rows.shape))
            if name != "score_8":
                constants[f"{name}_value"] = rows
                nodes.append(helper.make_node("Identity", [f"{name}_value"], [name]))
    graph = helper.make_graph(
        nodes,
        "spots",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return path
