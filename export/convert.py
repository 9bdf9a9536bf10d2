"""The ONNX model of a checkpoint's embedding: what InsightFace's own tools load, and nothing else.

Input `data` (N, 3, S, S) float32, RGB 0..255; output `fc1` (N, D) float32, not normalised. One ONNX node per MXNet
node, in its order and under its name; parameters are initializers, not inputs.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from ddl_plugin import __version__
from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.onnx_model import normalises_itself
from ddl_plugin.export.graph import EMBEDDING, Checkpoint, Graph, Node, cut, find_checkpoint, load_symbol
from ddl_plugin.export.ops import CONVERTERS, SCALAR_OPS, Builder, Tensor, constant_tensor, show
from ddl_plugin.export.params import Arrays, load_params
from ddl_plugin.files import replaced, sha256

#: Every operator used has its final form for float32 here, and TensorRT 8, OpenVINO 2021 and ONNX Runtime 1.8
#: already read it. Intermediate representation 7 is the one that came with it.
OPSET = 13
IR_VERSION = 7

INPUT = "data"


def _check_operators(graph: Graph) -> None:
    """Raise UserError naming the first operator that cannot be converted and its place, before anything is built."""
    operators = [node for node in graph.nodes if node.op != "null"]
    unknown = [(place, node) for place, node in enumerate(operators, 1) if node.op not in CONVERTERS]
    if not unknown:
        return
    place, node = unknown[0]
    after = f", after {graph.nodes[node.inputs[0][0]].name!r}" if node.inputs else ""
    others = sorted({other.op for _, other in unknown} - {node.op})
    also = f"; neither can {', '.join(others)}" if others else ""
    raise UserError(
        f"{graph.source}: node {node.name!r}: operator {node.op} cannot be converted; "
        f"it is operator {place} of {len(operators)}{after}{also}"
    )


def _parameters(graph: Graph, arg: Arrays, aux: Arrays, source: str) -> Arrays:
    """The arrays that the graph uses, as float32. UserError names the array that is missing or not finite."""
    named = {**aux, **arg}
    used: Arrays = {}
    for name in graph.variables:
        if name == INPUT:
            continue
        if name not in named:
            near = difflib.get_close_matches(name, named, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"{source}: array {name!r} is missing, the .params file holds {len(named)} others{hint}"
            )
        array = np.asarray(named[name])
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int(array.size - np.isfinite(array).sum())
            raise UserError(
                f"{source}: array {name!r} has NaN weights or infinite ones: {bad} of {array.size} values; "
                f"take a checkpoint from before the training diverged"
            )
        used[name] = array.astype(np.float32, copy=False)
    return used


def _recognisable(node: Node, in_preamble: bool) -> Node:
    """The node under a name by which InsightFace's model zoo sees that the graph normalises its input.

    It looks among the first eight nodes for names that begin with `_minus` and `_mul`, as MXNet names them itself.
    """
    if not in_preamble:
        return node
    prefix = "_minus" if any(word in node.op.lower() for word in ("minus", "plus")) else "_mul"
    if node.name.startswith(prefix):
        return node
    return Node(f"{prefix}scalar_{node.name}", node.op, node.attrs, node.inputs)


def _convert_node(build: Builder, node: Node, inputs: list[Tensor]) -> Tensor:
    try:
        return CONVERTERS[node.op](build, node, inputs)
    except (IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        shapes = ", ".join(show(tensor.shape) for tensor in inputs)
        raise UserError(
            f"{build.source}: node {node.name!r} ({node.op}): its attributes {dict(node.attrs)} do not fit its "
            f"inputs {shapes}: {error}"
        ) from error


def _build(graph: Graph, arrays: Arrays, params: str, image_size: int) -> tuple[Builder, Tensor]:
    build = Builder(graph.source, params, reserved={INPUT, *arrays})
    values: list[Tensor] = []
    raw = {INPUT}  # tensors that are the input, or the input shifted and scaled
    for node in graph.nodes:
        if node.op == "null":
            is_input = node.name == INPUT
            shape = (None, 3, image_size, image_size) if is_input else arrays[node.name].shape
            values.append(Tensor(node.name, shape, None if is_input else arrays[node.name]))
            continue
        if any(number != 0 for _, number in node.inputs):
            build.refuse(node, "an input that is not its producer's first output")
        inputs = [values[index] for index, _ in node.inputs]
        in_preamble = node.op in SCALAR_OPS and inputs[0].name in raw
        value = _convert_node(build, _recognisable(node, in_preamble), inputs)
        if in_preamble:
            raw.add(value.name)
        values.append(value)
    return build, values[graph.heads[0][0]]


def _rename(nodes: list[NodeProto], old: str, new: str) -> None:
    """Let every node that reads or writes the tensor `old` read or write `new`."""
    for node in nodes:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new


def _declare_raw_pixels(build: Builder) -> None:
    """Begin a graph that does not shift and scale its input with x - 0 and x * 1.

    MXNet's trainers feed pixels 0..255, and without these two nodes insightface would feed (x - 127.5) / 127.5.
    Both are exact, and runtimes remove them.
    """
    own, build.nodes = build.nodes, []
    shifted = build.add(
        "Sub", "_minusscalar_none", [INPUT, build.scalar("_minusscalar_none_scalar", 0.0)], ()
    )
    scaled = build.add(
        "Mul", "_mulscalar_none", [shifted.name, build.scalar("_mulscalar_none_scalar", 1.0)], ()
    )
    _rename(own, INPUT, scaled.name)
    build.nodes += own


def to_model(
    graph: Graph,
    arg: Arrays,
    aux: Arrays,
    *,
    image_size: int = 112,
    output: str = EMBEDDING,
    params_source: str | None = None,
    metadata: dict[str, str] | None = None,
) -> onnx.ModelProto:
    """The checked ONNX model of `output`; see the module for its form.

    params_source: where `arg` and `aux` come from, for messages. metadata: written into the file as it is.

    Raises UserError naming the operator that cannot be converted, or the array that is missing, of the wrong shape
    or has NaN weights.
    """
    graph = cut(graph, output)
    source = graph.source
    _check_operators(graph)
    if INPUT not in graph.variables:
        raise UserError(f"{source}: {output!r} does not depend on an input named {INPUT!r}")
    params = params_source or source
    build, embedding = _build(graph, _parameters(graph, arg, aux, params), params, image_size)
    if len(embedding.shape) != 2 or embedding.shape[0] is not None or embedding.name == INPUT:
        raise UserError(
            f"{source}: {output!r}: expected an embedding (N, D), got shape {show(embedding.shape)}"
        )
    name = output.removesuffix("_output")
    # The node of that name left no tensor where it was dropped (a Dropout at the end).
    _rename(build.nodes, embedding.name, name)
    if not normalises_itself(build.nodes):
        _declare_raw_pixels(build)
    size = image_size
    onnx_graph = helper.make_graph(
        build.nodes,
        "embedding",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", 3, size, size])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", embedding.shape[1]])],
        [constant_tensor(key, array) for key, array in build.initializers.items()],
    )
    model = helper.make_model(
        onnx_graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="ddl_plugin",
        producer_version=__version__,
    )
    helper.set_model_props(model, metadata or {})
    onnx.checker.check_model(model, full_check=True)
    return model


def read_model(checkpoint: str | Checkpoint, *, image_size: int = 112) -> onnx.ModelProto:
    """The ONNX model of a checkpoint, named as `find_checkpoint` takes it, with what it was made from as metadata."""
    files = checkpoint if isinstance(checkpoint, Checkpoint) else find_checkpoint(checkpoint)
    arg, aux = load_params(files.params)
    metadata = {
        "source": files.params.name,
        "symbol_sha256": sha256(files.symbol),
        "params_sha256": sha256(files.params),
    }
    return to_model(
        load_symbol(files.symbol),
        arg,
        aux,
        image_size=image_size,
        params_source=str(files.params),
        metadata=metadata,
    )


def convert(checkpoint: str | Checkpoint, output: str | os.PathLike, *, image_size: int = 112) -> Path:
    """Write the ONNX file of a checkpoint ('PREFIX,EPOCH' or a folder of ours), atomically, and return its path."""
    model = read_model(checkpoint, image_size=image_size)
    with replaced(output) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return Path(output)
