"""Which operator of an exported graph departs from its host's, found by giving each one the host's own inputs.

Operators are looked at one by one, in order: each is run in ONNX Runtime on the values that the host computed before
it, so that what one operator does wrong is not seen again in all that follow, and rounding does not add up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

#: What rounding explains of one operator: float32 sums of thousands of terms stay below 1e-5 relative.
ROUNDING = 1e-4
#: A few images show what an operator does; the outputs of every operator at a large batch would not fit in memory.
IMAGES = 4
_CHUNK = 64 << 20  # bytes of the host's outputs that are held at a time
_PREFIXES = ("_minusscalar_", "_mulscalar_")  # that the export puts before the graph's names in the preamble


class Reference(Protocol):
    """A checkpoint's network in the host that trains it, which the exported file is compared with."""

    title: str  # of the host
    version: str  # of the host

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """Embeddings float32 (n, D) of a batch float32 (n, 3, S, S)."""

    def shapes(self, batch: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """{name of a node: shape of its output} of what the embedding depends on, in topological order."""

    def values(self, names: Sequence[str], batch: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs of the nodes of these names."""


@dataclass(frozen=True)
class Departure:
    """One operator given the same inputs in both runtimes; `relative` is infinite where shapes differ."""

    node: onnx.NodeProto
    name: str
    relative: float
    detail: str  # the figures in words


def explain(network: Reference, model: onnx.ModelProto, batch: np.ndarray) -> str:
    """In words, which node is the first to depart; `batch` float32 (n, 3, S, S) is one whose embeddings differ."""
    batch = batch[:IMAGES]
    largest: Departure | None = None
    for found in departures(network, model, batch):
        if not found.relative <= ROUNDING:  # not-a-number departs too
            return (
                f"the first node that departs is {found.name!r} ({found.node.op_type}): given {network.title}'s values as its "
                f"inputs, its output {found.detail}, where rounding explains {ROUNDING:g}"
            )
        if largest is None or found.relative > largest.relative:
            largest = found
    if largest is None:
        return f"no node's output bears a name that {network.title} knows, so none could be compared"
    return (
        f"no single node departs at batch {len(batch)}: the largest relative difference is {largest.relative:.1e}, at "
        f"{largest.name!r} ({largest.node.op_type})"
    )


def departures(network: Reference, model: onnx.ModelProto, batch: np.ndarray) -> Iterator[Departure]:
    """Each ONNX node that has a counterpart in the host, in order, with how far its output is from the host's."""
    shapes = network.shapes(batch.shape)
    groups = list(_groups(model, shapes))
    for chunk in _chunks(groups, shapes):
        wanted = {name for group in chunk for name in (group.name, *group.sources.values())}
        values = network.values([name for name in shapes if name in wanted], batch)
        for group in chunk:
            yield _compare(model, group, values, batch, network.title)


@dataclass(frozen=True)
class _Group:
    """The ONNX nodes that compute the output of one of the host's nodes from those of others."""

    nodes: tuple[onnx.NodeProto, ...]
    name: str  # in the host
    #: {ONNX value: name in the host} of its inputs; the model's own input is not among them.
    sources: dict[str, str]


def _counterpart(value: str, known: dict[str, tuple[int, ...]]) -> str | None:
    names = (value, *(value.removeprefix(prefix) for prefix in _PREFIXES))
    return next((name for name in names if name in known), None)


def _groups(model: onnx.ModelProto, known: dict[str, tuple[int, ...]]) -> Iterator[_Group]:
    inputs = {value.name for value in model.graph.input}
    weights = {tensor.name for tensor in model.graph.initializer}
    producers: dict[str, int] = {}
    for place, node in enumerate(model.graph.node):
        producers.update(dict.fromkeys(node.output, place))
    counterpart = {value: _counterpart(value, known) for value in producers}
    counterpart |= dict.fromkeys((value.name for value in model.graph.output), list(known)[-1])
    for value, place in producers.items():
        name = counterpart[value]
        if name is None:
            continue
        places, sources, pending = {place}, {}, list(model.graph.node[place].input)
        while pending:
            source = pending.pop()
            if not source or source in inputs or source in weights:
                continue
            known_as = counterpart.get(source)
            if known_as is not None:
                sources[source] = known_as
            elif producers.get(source) is not None and producers[source] not in places:
                places.add(producers[source])
                pending += model.graph.node[producers[source]].input
        yield _Group(tuple(model.graph.node[i] for i in sorted(places)), name, sources)


def _chunks(groups: list[_Group], shapes: dict[str, tuple[int, ...]]) -> Iterator[list[_Group]]:
    """Consecutive groups whose values in the host take `_CHUNK` bytes together, one group at least."""
    chunk: list[_Group] = []
    held: set[str] = set()
    for group in groups:
        needed = held | {group.name, *group.sources.values()}
        if chunk and sum(4 * int(np.prod(shapes[name])) for name in needed) > _CHUNK:
            yield chunk
            chunk, needed = [], {group.name, *group.sources.values()}
        chunk.append(group)
        held = needed
    if chunk:
        yield chunk


def _compare(
    model: onnx.ModelProto, group: _Group, values: dict[str, np.ndarray], batch: np.ndarray, host: str
) -> Departure:
    """The group's nodes run alone in ONNX Runtime on the host's values of their inputs."""
    last = group.nodes[-1]
    expected = values[group.name]
    feeds = {source: values[name] for source, name in group.sources.items()}
    used = {name for node in group.nodes for name in node.input}
    feeds |= {value.name: batch for value in model.graph.input if value.name in used}
    try:
        found = _run(model, group.nodes, feeds, used)
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        return Departure(last, group.name, np.inf, f"cannot be computed ({error})")
    if found.shape != expected.shape:
        return Departure(last, group.name, np.inf, f"has shape {found.shape}, {host}'s {expected.shape}")
    relative, absolute = _relative(found, expected)
    return Departure(
        last,
        group.name,
        relative,
        f"differs by {relative:.1e} relative to its channel ({absolute:.1e} absolute)",
    )


def _run(
    model: onnx.ModelProto, nodes: tuple[onnx.NodeProto, ...], feeds: dict[str, np.ndarray], used: set[str]
) -> np.ndarray:
    inputs = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, array.shape)
        for name, array in feeds.items()
    ]
    output = helper.make_tensor_value_info(nodes[-1].output[0], onnx.TensorProto.FLOAT, None)
    weights = [tensor for tensor in model.graph.initializer if tensor.name in used]
    alone = helper.make_model(
        helper.make_graph(nodes, "alone", inputs, [output], weights),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(alone.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def _relative(found: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """(largest difference within a channel relative to the channel's largest value, largest difference).

    A hundredth of the largest value of all is added below, for channels that are nothing but rounding.
    """
    with np.errstate(all="ignore"):  # what is not finite shows in the result
        apart = np.abs(found.astype(np.float64) - expected)
        size = np.abs(expected.astype(np.float64))
        axes = tuple(axis for axis in range(expected.ndim) if axis != 1)
        scale = size.max(axis=axes) + 0.01 * size.max() + 1e-30
        return float((apart.max(axis=axes) / scale).max()), float(apart.max())
