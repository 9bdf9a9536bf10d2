"""The embedding network of a checkpoint as a torch module: MXNet's graph, its arrays, its training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ddl_plugin.backbone.arrays import IMAGE_SHAPE, Arrays, Shapes, no_embedding, require_match
from ddl_plugin.backbone.symbol_json import STATES
from ddl_plugin.errors import UserError
from ddl_plugin.export.graph import Graph, Node
from ddl_plugin.pytorch.operators import OPERATORS, Function, is_fixed
from ddl_plugin.pytorch.torch_setup import torch

INPUT = "data"


class Multipliers(NamedTuple):
    """What a parameter's learning rate and weight decay are multiplied by."""

    lr: float
    wd: float


class _Step(NamedTuple):
    """One operator: the number of its value, what computes it, of which values, and which are needed no more then."""

    number: int
    function: Function
    by_mode: bool
    inputs: tuple[int, ...]
    done: tuple[int, ...]


class _Arrays(torch.nn.Module):
    """Holds tensors by MXNet's names, which may have dots and be those of a module's own attributes."""

    def __init__(self) -> None:
        super().__init__()
        self._keys: dict[str, str] = {}

    def add(self, name: str, tensor: torch.Tensor, *, trains: bool | None) -> None:
        """As a parameter, or with `trains` None as a buffer."""
        key = name.replace(".", "_") or "_"
        while hasattr(self, key):
            key += "_"
        self._keys[name] = key
        if trains is None:
            self.register_buffer(key, tensor)
        else:
            self.register_parameter(key, torch.nn.Parameter(tensor, requires_grad=trains))

    def named(self) -> dict[str, torch.Tensor]:
        return {name: getattr(self, key) for name, key in self._keys.items()}


class Network(torch.nn.Module):
    """`graph`, which ends in the embedding, with its parameters and moving statistics.

    forward(images (n, 3, 112, 112) RGB 0..255, of the parameters' type) -> (n, emb_size), not normalised.

    graph: as `parse_symbol` reads it, cut at the embedding. arg, aux: arrays by MXNet's names, of any float type, which
    become float32. bn_frozen: every BatchNorm uses its moving statistics in training too, and keeps them.

    Trains as MXNet does: the moving variance is of the batch as it is, gammas of `fix_gamma` count as 1 and do not
    train. Under autocast the fully connected layer and what follows it stay in the parameters' type.
    Raises `UserError` naming an operator that is not supported, and an array that is missing or of another shape.
    """

    def __init__(
        self,
        graph: Graph,
        arg: Mapping[str, np.ndarray],
        aux: Mapping[str, np.ndarray],
        *,
        bn_frozen: bool = False,
        image_size: int = IMAGE_SHAPE[1],
    ):
        super().__init__()
        given = {name: array.shape for name, array in arg.items()}
        shapes = expected_shapes(graph, graph.source, given, image_size)
        require_match(shapes.arg, dict(arg), graph.source)
        require_match(shapes.aux, dict(aux), graph.source)
        self.emb_size = shapes.emb_size
        self.fixed_gammas = fixed_gammas(graph)
        self._multipliers = multipliers(graph, shapes.arg)
        self.arg, self.aux = _Arrays(), _Arrays()
        for name in shapes.arg:
            self.arg.add(name, _tensor(arg[name]), trains=name not in self.fixed_gammas)
        for name in shapes.aux:
            self.aux.add(name, _tensor(aux[name]), trains=None)
        self._names = tuple(node.name if node.op == "null" else None for node in graph.nodes)
        self._steps = _steps(graph, bn_frozen)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        given = {INPUT: images, **self.arg.named(), **self.aux.named()}
        values = [None if name is None else given[name] for name in self._names]
        return _run(self._steps, values, self.training)

    def arrays(self) -> tuple[Arrays, Arrays]:
        """Copies of (parameters, moving statistics) by MXNet's names, NumPy, in the module's type."""
        return tuple(
            {name: tensor.detach().cpu().contiguous().numpy().copy() for name, tensor in part.named().items()}
            for part in (self.arg, self.aux)
        )

    def set_arrays(self, arg: Mapping[str, np.ndarray], aux: Mapping[str, np.ndarray]) -> None:
        """Take new values for the calls that follow; names and shapes as `arrays` gives them."""
        with torch.no_grad():
            for part, given in ((self.arg, arg), (self.aux, aux)):
                tensors = part.named()
                require_match(
                    {name: tuple(t.shape) for name, t in tensors.items()}, dict(given), "new weights"
                )
                for name, tensor in tensors.items():
                    tensor.copy_(_tensor(given[name]))

    def parameters_by_name(self) -> dict[str, torch.nn.Parameter]:
        """The parameters by MXNet's names; fixed gammas have `requires_grad` False."""
        return self.arg.named()

    def multipliers(self) -> dict[str, Multipliers]:
        """Of every parameter, by MXNet's names, as MXNet's optimizers take them from the symbol."""
        return dict(self._multipliers)


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array, np.float32, order="C"))


def _run(steps: Sequence[_Step], values: list[torch.Tensor | None], training: bool) -> torch.Tensor:
    """Compute one operator after the other into `values`, which holds the variables; the last one's value."""
    for step in steps:
        inputs = [values[i] for i in step.inputs]
        result = step.function(*inputs, training=training) if step.by_mode else step.function(*inputs)
        values[step.number] = result
        for i in step.done:
            values[i] = None
    return result


def _steps(graph: Graph, bn_frozen: bool) -> tuple[_Step, ...]:
    _require_operators(graph)
    last: dict[int, int] = {}
    for number, node in enumerate(graph.nodes):
        last.update(dict.fromkeys((source for source, _ in node.inputs), number))
    head = graph.heads[0][0]
    steps = []
    for number, node in enumerate(graph.nodes[: head + 1]):
        if node.op == "null":
            continue
        if bn_frozen and node.op in STATES:
            node = Node(node.name, node.op, {**node.attrs, "use_global_stats": "True"}, node.inputs)
        inputs = tuple(source for source, _ in node.inputs)
        done = tuple(i for i in dict.fromkeys(inputs) if last[i] == number)
        operator = OPERATORS[node.op]
        steps.append(_Step(number, _built(graph, number, node), operator.by_mode, inputs, done))
    return tuple(steps)


def _built(graph: Graph, number: int, node: Node) -> Function:
    try:
        return OPERATORS[node.op].build(node)
    except UserError as error:
        raise UserError(f"{graph.source}: {error}; it is {graph.place(number)}") from error


def _require_operators(graph: Graph) -> None:
    """Raise `UserError` naming the first operator that is not supported, and its place."""
    unknown = [i for i, node in enumerate(graph.nodes) if node.op not in OPERATORS and node.op != "null"]
    if unknown:
        node = graph.nodes[unknown[0]]
        others = sorted({graph.nodes[i].op for i in unknown} - {node.op})
        also = f"; neither is {', '.join(others)}" if others else ""
        raise UserError(
            f"{graph.source}: node {node.name!r}: operator {node.op} is not supported with PyTorch; "
            f"it is {graph.place(unknown[0])}{also}"
        )
    for number, node in enumerate(graph.nodes):
        if any(output != 0 for _, output in node.inputs):
            raise UserError(
                f"{graph.source}: node {node.name!r} ({node.op}): an input that is not its producer's first output "
                f"is not supported with PyTorch; it is {graph.place(number)}"
            )


# -- what a graph says of its variables ----------------------------------------------------------------


class Expected(NamedTuple):
    """Shapes of the parameters and of the moving statistics by MXNet's names, and the embedding's length."""

    arg: Shapes
    aux: Shapes
    emb_size: int


def expected_shapes(
    graph: Graph,
    source: str,
    given: Mapping[str, tuple[int, ...]] = {},
    image_size: int = IMAGE_SHAPE[1],
) -> Expected:
    """What `graph` makes of an image (3, image_size, image_size): its operators are run without values.

    given: shapes of variables that neither their operator nor they themselves settle.
    Raises `UserError` naming `source` where the graph does not make one vector of an image, and naming an operator
    that is not supported.
    """
    steps = {step.number: step for step in _steps(graph, False)}
    states = _states(graph)
    values: list[torch.Tensor | None] = [None] * len(graph.nodes)
    shapes: dict[str, tuple[int, ...]] = {}
    with torch.device("meta"):
        for number, node in enumerate(graph.nodes):
            if node.op == "null" and node.name == INPUT:
                values[number] = torch.empty((2, IMAGE_SHAPE[0], image_size, image_size))
            if number not in steps:
                continue
            try:
                _settle(graph, node, values, shapes, given)
                inputs = [values[source] for source, _ in node.inputs]
                mode = {"training": False} if steps[number].by_mode else {}
                values[number] = steps[number].function(*inputs, **mode)
            except (RuntimeError, ValueError, IndexError, TypeError, ZeroDivisionError, KeyError) as error:
                raise no_embedding(source) from error
    output = values[graph.heads[0][0]]
    if INPUT not in graph.variables or output is None or output.ndim != 2 or len(output) != 2:
        raise no_embedding(source)
    aux = {name: shape for name, shape in shapes.items() if name in states}
    return Expected({n: s for n, s in shapes.items() if n not in states}, aux, output.shape[1])


def _settle(
    graph: Graph,
    node: Node,
    values: list,
    shapes: dict[str, tuple[int, ...]],
    given: Mapping[str, tuple[int, ...]],
) -> None:
    """Give the variables that `node` is the first to use their shapes."""
    rule = OPERATORS[node.op].parameters
    own: tuple[tuple[int, ...], ...] = ()
    if rule is not None:
        data = values[node.inputs[0][0]]
        if data is None:
            raise ValueError(f"{node.name}: a variable as its data")
        own = rule(node, tuple(data.shape))
        if len(own) != len(node.inputs) - 1:
            raise ValueError(f"{node.name}: {len(node.inputs) - 1} parameters, expected {len(own)}")
    for place, (source, _) in enumerate(node.inputs):
        variable = graph.nodes[source]
        if variable.op != "null" or values[source] is not None:
            continue
        shape = variable.wholes("__shape__", ())
        if not shape or 0 in shape:  # MXNet writes 0 for a size that is to be inferred
            shape = own[place - 1] if own and place else given[variable.name]
        shapes[variable.name] = tuple(shape)
        values[source] = torch.empty(shape)


def _states(graph: Graph) -> set[str]:
    """Names of the auxiliary states."""
    return {
        graph.nodes[node.inputs[place][0]].name
        for node in graph.nodes
        for place in STATES.get(node.op, ())
        if place < len(node.inputs)
    }


def fixed_gammas(graph: Graph) -> tuple[str, ...]:
    """The gammas that MXNet takes for 1 whatever they hold."""
    fixed = (node for node in graph.nodes if node.op in STATES and is_fixed(node))
    return tuple(dict.fromkeys(graph.nodes[node.inputs[1][0]].name for node in fixed))


def multipliers(graph: Graph, names: Iterable[str]) -> dict[str, Multipliers]:
    """As MXNet's optimizers have it: weights and gammas alone decay, unless the variable says otherwise."""
    variables = {node.name: node for node in graph.nodes if node.op == "null"}
    result = {}
    for name in names:
        lr, wd = (
            variables[name].number(f"__{kind}__", variables[name].number(kind, default))
            for kind, default in (("lr_mult", 1.0), ("wd_mult", float(name.endswith(("_weight", "_gamma")))))
        )
        result[name] = Multipliers(lr, wd)
    return result
