"""The ONNX model of a checkpoint's embedding: what InsightFace's own tools load, and nothing else.

Input `data` (N, 3, S, S) float32, RGB 0..255; output `fc1` (N, D) float32, not normalised. One ONNX node per MXNet
node, in its order and under its name; parameters are initializers, not inputs.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from ddl_plugin import __version__
from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.onnx_model import normalises_itself
from ddl_plugin.export.graph import Checkpoint, Graph, Node, cut, embedding_of, find_checkpoint, load_symbol
from ddl_plugin.export.ops import OPERATORS, SCALAR_OPS, Builder, Tensor, show
from ddl_plugin.export.origin import describe
from ddl_plugin.export.params import Arrays, load_params
from ddl_plugin.files import replaced

#: Every operator used has its final form for float32 here, per-channel quantisation begins here, and ONNX Runtime reads
#: it since 1.6. Intermediate representation 7 is the one that came with it.
OPSET = 13
IR_VERSION = 7

INPUT, OUTPUT = "data", "fc1"


def _check_operators(graph: Graph) -> None:
    """Raise UserError naming the first operator that cannot be converted and its place, before anything is built."""
    unknown = [i for i, node in enumerate(graph.nodes) if node.op not in OPERATORS and node.op != "null"]
    if not unknown:
        return
    node = graph.nodes[unknown[0]]
    others = sorted({graph.nodes[i].op for i in unknown} - {node.op})
    also = f"; neither can {', '.join(others)}" if others else ""
    raise UserError(
        f"{graph.source}: node {node.name!r}: operator {node.op} cannot be converted; "
        f"it is {graph.place(unknown[0])}{also}"
    )


def _require_all(graph: Graph, names: Sequence[str], named: Arrays, source: str) -> None:
    """UserError naming the first array that is missing, what needs it, and what it may be called in the file."""
    missing = [name for name in names if name not in named]
    if not missing:
        return
    first = missing[0]
    at = next(i for i, node in enumerate(graph.nodes) if node.name == first)
    reader = next(node for node in graph.nodes if any(source == at for source, _ in node.inputs))
    spare = [name for name in named if name not in graph.variables]
    near = difflib.get_close_matches(first, spare, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    raise UserError(
        f"{source}: array {first!r} is missing{more}: node {reader.name!r} ({reader.op}) expects it, "
        f"the file holds {len(named)} arrays{hint}"
    )


def _parameters(graph: Graph, named: Arrays, source: str) -> Arrays:
    """The arrays that the graph uses, as float32. UserError names the array that is missing or not finite."""
    names = [name for name in graph.variables if name != INPUT]
    _require_all(graph, names, named, source)
    used: Arrays = {}
    for name in names:
        # float64 beyond float32's range becomes infinite, and is refused as such.
        with np.errstate(over="ignore"):
            array = np.asarray(named[name]).astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            bad = int(array.size - np.isfinite(array).sum())
            raise UserError(
                f"{source}: array {name!r} has NaN weights or infinite ones: {bad} of {array.size} values; "
                f"take a checkpoint from before the training diverged"
            )
        used[name] = array
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
        return OPERATORS[node.op].convert(build, node, inputs)
    except (IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        shapes = ", ".join(show(tensor.shape) for tensor in inputs)
        raise UserError(
            f"{build.graph.source}: node {node.name!r} ({node.op}): its attributes {dict(node.attrs)} do not fit its "
            f"inputs {shapes}: {error}"
        ) from error


def _build(graph: Graph, arrays: Arrays, spare: Arrays, params: str, size: int) -> tuple[Builder, Tensor]:
    reserved = {INPUT, *arrays}
    if graph.nodes[-1].name != OUTPUT:
        reserved.add(OUTPUT)
    build = Builder(graph, params, reserved, spare)
    values: list[Tensor] = []
    raw = {INPUT}  # tensors that are the input, or the input shifted and scaled
    for index, node in enumerate(graph.nodes):
        build.index = index
        if node.op == "null":
            is_input = node.name == INPUT
            shape = (None, 3, size, size) if is_input else arrays[node.name].shape
            values.append(Tensor(node.name, shape, None if is_input else arrays[node.name]))
            continue
        if any(number != 0 for _, number in node.inputs):
            build.refuse(node, "an input that is not its producer's first output")
        inputs = [values[source] for source, _ in node.inputs]
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


def _tensors(model: onnx.ModelProto, arrays: Arrays) -> None:
    """Store the initializers in place: a model of hundreds of megabytes is not copied on its way."""
    for name, array in arrays.items():
        tensor = model.graph.initializer.add()
        tensor.name = name
        tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor.dims.extend(array.shape)
        tensor.raw_data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _assemble(
    graph: Graph, arg: Arrays, aux: Arrays, image_size: int, output: str | None, params_source: str | None
) -> onnx.ModelProto:
    """The model of `to_model`, not yet checked and without metadata."""
    output = output or embedding_of(graph)
    graph = cut(graph, output)
    source = graph.source
    _check_operators(graph)
    if INPUT not in graph.variables:
        raise UserError(f"{source}: {output!r} does not depend on an input named {INPUT!r}")
    params, named = params_source or source, {**aux, **arg}
    spare = {name: array for name, array in named.items() if name not in graph.variables}
    build, embedding = _build(graph, _parameters(graph, named, params), spare, params, image_size)
    if len(embedding.shape) != 2 or embedding.shape[0] is not None or embedding.name == INPUT:
        raise UserError(
            f"{source}: {output!r}: expected an embedding (N, D), got shape {show(embedding.shape)}"
        )
    # The node of that name left no tensor where it was dropped (a Dropout at the end).
    _rename(build.nodes, embedding.name, OUTPUT)
    if not normalises_itself(build.nodes):
        _declare_raw_pixels(build)
    pixels = ["N", 3, image_size, image_size]
    model = helper.make_model(
        helper.make_graph(
            build.nodes,
            "embedding",
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, pixels)],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", embedding.shape[1]])],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="ddl_plugin",
        producer_version=__version__,
    )
    _tensors(model, build.initializers)
    return model


def to_model(
    graph: Graph,
    arg: Arrays,
    aux: Arrays,
    *,
    image_size: int = 112,
    output: str | None = None,
    params_source: str | None = None,
) -> onnx.ModelProto:
    """The checked ONNX model of `output`; see the module for its form.

    output: such as 'fc1_output'; None for what `embedding_of` finds. params_source: where `arg` and `aux` come from,
    for messages.

    Raises UserError naming the operator that cannot be converted, or the array that is missing, of the wrong shape
    or has NaN weights.
    """
    model = _assemble(graph, arg, aux, image_size, output, params_source)
    onnx.checker.check_model(model, full_check=True)
    return model


def read_model(checkpoint: str | Checkpoint, *, image_size: int = 112) -> onnx.ModelProto:
    """The ONNX model of a checkpoint, named as `find_checkpoint` takes it, with what it was made from as metadata."""
    files = checkpoint if isinstance(checkpoint, Checkpoint) else find_checkpoint(checkpoint)
    parameters = load_params(files.params, mapped=True)
    model = _assemble(load_symbol(files.symbol), *parameters, image_size, None, str(files.params))
    del (
        parameters
    )  # the views of the file go, and with them its pages, before the check needs memory of its own
    helper.set_model_props(model, describe(files))
    onnx.checker.check_model(model, full_check=True)
    return model


def convert(checkpoint: str | Checkpoint, output: str | os.PathLike, *, image_size: int = 112) -> Path:
    """Write the ONNX file of a checkpoint, named as `find_checkpoint` takes it, atomically, and return its path."""
    model = read_model(checkpoint, image_size=image_size)
    with replaced(output) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return Path(output)
