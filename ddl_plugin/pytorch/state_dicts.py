"""State dicts of arcface_torch (iresnet of any depth, mbf, mbf_large) as MXNet's graph and arrays, and back.

The graph has the same layers and shifts and scales its input itself, (x - 127.5) / 127.5, which arcface_torch does
before its network. Every operator says in its attribute `__torch__` which module of theirs it is, and BatchNorms
how many batches that had seen, so that the way back needs nothing else, after training or a round trip through files too.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddl_plugin.backbone.arrays import Arrays, renamed, require_finite, require_match
from ddl_plugin.backbone.symbol_json import GraphBuilder
from ddl_plugin.errors import UserError, did_you_mean
from ddl_plugin.export.graph import Graph
from ddl_plugin.files import reading
from ddl_plugin.pytorch.network import expected_shapes
from ddl_plugin.pytorch.torch_setup import torch

if TYPE_CHECKING:
    from ddl_plugin.pytorch.checkpoint import Backbone

StateDict = dict[str, torch.Tensor]

_MODULE, _BATCHES = "__torch__", "__num_batches_tracked__"
_COUNT = "num_batches_tracked"

#: Operator -> what torch calls its inputs after the first.
_KEYS = {
    "Convolution": ("weight",),
    "FullyConnected": ("weight", "bias"),
    "LeakyReLU": ("weight",),
    "BatchNorm": ("weight", "bias", "running_mean", "running_var"),
}

#: What wrappers put before every name: DistributedDataParallel, torch.compile.
_WRAPPERS = ("module.", "_orig_mod.")

#: Where a training checkpoint of arcface_torch keeps its backbone.
_NESTED = ("state_dict_backbone", "state_dict")

_KNOWN = "arcface_torch's iresnet (r18, r34, r50, r100, r200) or MobileFaceNet (mbf, mbf_large)"


def read_state_dict(path: str) -> StateDict:
    """The tensors of a `.pth` or `.pt` file by their keys, without the names of wrappers; nothing in it is executed.

    Takes arcface_torch's `model.pt`, `backbone.pth` and, of its training checkpoints, the backbone.
    Raises `UserError` for a missing, truncated or foreign file and for one with Python objects in it.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file, expected a state dict such as backbone.pth or model.pt")
    try:
        with reading(path):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({named[1]})" if named else ""
        raise UserError(
            f"{path}: expected a state dict with nothing but tensors, got a file with Python objects{what} or none of "
            f"torch's; save it with torch.save(model.state_dict(), path)"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        told = isinstance(error, (RuntimeError, EOFError)) and str(error).strip()
        reason = told.splitlines()[0] if told else "not its format"
        raise UserError(
            f"{path}: truncated or no file of torch.save ({reason}); copy or save it again"
        ) from error
    for key in _NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    wrong = not isinstance(content, dict) or not content
    if wrong or not all(isinstance(k, str) and torch.is_tensor(v) for k, v in content.items()):
        raise UserError(f"{path}: expected a state dict, names and tensors, got {_described(content)}")
    while wrapper := _common_wrapper(content):
        content = {key.removeprefix(wrapper): tensor for key, tensor in content.items()}
    return dict(content)


def _common_wrapper(keys: Iterable[str]) -> str | None:
    return next((wrapper for wrapper in _WRAPPERS if all(key.startswith(wrapper) for key in keys)), None)


def _described(content: Any) -> str:
    if isinstance(content, dict):
        return f"a dict with {', '.join(map(repr, list(content)[:3])) or 'nothing in it'}"
    return f"a {type(content).__name__}"


def from_state_dict(
    state: Mapping[str, torch.Tensor], source: str, rename: Mapping[str, str] = {}
) -> tuple[Graph, Arrays, Arrays]:
    """(graph, parameters, moving statistics) of a state dict, by MXNet's names, float32.

    `rename`: key in the state dict -> key as arcface_torch has it. Raises `UserError` naming `source` where it is the
    state dict of another network, and naming the key that is missing, too many, of another shape or not finite.
    """
    for key in rename.keys() - state.keys():
        raise UserError(f"rename: no array {key!r} in {source}{did_you_mean(key, state)}")
    arrays = renamed({key: _array(tensor) for key, tensor in state.items()}, rename, source)
    counts = {
        key: int(array) for key, array in arrays.items() if key.endswith(f".{_COUNT}") and array.size == 1
    }
    values = {key: array for key, array in arrays.items() if key not in counts}
    graph = _graph(values, counts, source)
    shapes = expected_shapes(graph, source)
    names = dict(_names(graph))
    wanted = {**shapes.arg, **shapes.aux}
    require_match({key: wanted[name] for key, name in names.items()}, values, source)
    require_finite(values, source)
    own = {name: values[key] for key, name in names.items()}
    return graph, {name: own[name] for name in shapes.arg}, {name: own[name] for name in shapes.aux}


def to_state_dict(backbone: Backbone) -> StateDict:
    """The state dict of a backbone that was read from one, trained or not: keys in arcface_torch's order, float32.

    Raises `UserError` where the graph is not one of arcface_torch's.
    """
    arrays = {**backbone.arg, **backbone.aux}
    state: StateDict = {}
    graph = backbone.graph
    counts = {
        node.attrs[_MODULE]: node.whole(_BATCHES, 0)
        for node in graph.nodes
        if _BATCHES in node.attrs and node.op != "null"
    }
    for key, name in _names(graph):
        state[key] = torch.from_numpy(np.array(arrays[name]))
        module, _, last = key.rpartition(".")
        if last == "running_var" and module in counts:
            state[f"{module}.{_COUNT}"] = torch.tensor(counts[module])
    if not state:
        raise UserError(
            f"{backbone.source}: expected a graph that was read from a state dict of {_KNOWN}, got another one"
        )
    return state


def _array(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().numpy()


def _names(graph: Graph) -> Iterator[tuple[str, str]]:
    """(torch's key, MXNet's name) of every parameter and moving statistic, in torch's order."""
    for node in graph.nodes:
        if node.op in _KEYS and _MODULE in node.attrs:
            variables = [graph.nodes[source].name for source, _ in node.inputs[1:]]
            for key, name in zip(_KEYS[node.op], variables, strict=False):
                yield f"{node.attrs[_MODULE]}.{key}", name


# -- the graphs -----------------------------------------------------------------------------------------


def _graph(values: Arrays, counts: Mapping[str, int], source: str) -> Graph:
    """Of the network whose state dict this is, with as many blocks as it has."""
    if "layer1.0.bn1.weight" in values and "features.running_mean" in values:
        build = _iresnet
    elif "conv_sep.layers.0.weight" in values and "features.layers.3.running_mean" in values:
        build = _mobilefacenet
    else:
        names = ", ".join(map(repr, list(values)[:3]))
        raise UserError(f"{source}: expected a state dict of {_KNOWN}, got one with {names}, ...")
    layers = _Layers(source, counts)
    return layers.builder.graph(build(layers, values))


class _Layers:
    """torch's layers in a graph under construction; each is named by the module that it is."""

    def __init__(self, source: str, counts: Mapping[str, int]):
        self.builder = GraphBuilder(source)
        self._counts = counts

    def images(self) -> int:
        shifted = self.builder.add("_minus_scalar", [self.builder.variable("data")], scalar=127.5)
        return self.builder.add("_mul_scalar", [shifted], scalar=1 / 127.5)

    def conv(
        self, x: int, module: str, filters: int, kernel: int, stride: int = 1, pad: int = 0, groups: int = 1
    ) -> int:
        return self.builder.convolution(
            x, _named(module), filters, kernel, stride, pad, groups, **{_MODULE: module}
        )

    def norm(self, x: int, module: str, *, name: str | None = None, fixed: bool = False) -> int:
        said = {_MODULE: module}
        if f"{module}.{_COUNT}" in self._counts:
            said[_BATCHES] = str(self._counts[f"{module}.{_COUNT}"])
        return self.builder.batch_norm(
            x, name or _named(module), eps=1e-5, fix_gamma=fixed, momentum=0.9, **said
        )

    def prelu(self, x: int, module: str) -> int:
        return self.builder.prelu(x, _named(module), **{_MODULE: module})

    def linear(self, x: int, module: str, hidden: int, *, bias: bool) -> int:
        return self.builder.fully_connected(x, "pre_fc1", hidden, bias=bias, **{_MODULE: module})

    def sum(self, first: int, second: int) -> int:
        return self.builder.add("elemwise_add", [first, second])


def _named(module: str) -> str:
    return module.replace(".", "_")


def _count(values: Arrays, prefix: str) -> int:
    """How many modules `prefix`0, `prefix`1, ... there are; a number that is left out is missed later, by name."""
    numbers = (re.match(rf"{re.escape(prefix)}(\d+)\.", key) for key in values)
    return len({number[1] for number in numbers if number})


def _iresnet(layers: _Layers, values: Arrays) -> int:
    """BatchNorm, convolution, BatchNorm, PReLU, convolution of stride 1 or 2, BatchNorm; plus the shortcut."""

    def block(x: int, module: str, filters: int, stride: int) -> int:
        y = layers.conv(layers.norm(x, f"{module}.bn1"), f"{module}.conv1", filters, 3, 1, 1)
        y = layers.prelu(layers.norm(y, f"{module}.bn2"), f"{module}.prelu")
        y = layers.norm(layers.conv(y, f"{module}.conv2", filters, 3, stride, 1), f"{module}.bn3")
        if stride == 1:
            return layers.sum(y, x)
        x = layers.conv(x, f"{module}.downsample.0", filters, 1, stride)
        return layers.sum(y, layers.norm(x, f"{module}.downsample.1"))

    x = layers.conv(layers.images(), "conv1", 64, 3, 1, 1)
    x = layers.prelu(layers.norm(x, "bn1"), "prelu")
    for stage, filters in enumerate((64, 128, 256, 512), 1):
        for number in range(_count(values, f"layer{stage}.")):
            x = block(x, f"layer{stage}.{number}", filters, 1 if number else 2)
    x = layers.linear(layers.norm(x, "bn2"), "fc", len(values["features.running_mean"]), bias=True)
    # arcface_torch keeps the last scale at 1 without training it; a file with another one means what it says.
    return layers.norm(x, "features", name="fc1", fixed=bool(np.all(values.get("features.weight") == 1)))


def _mobilefacenet(layers: _Layers, values: Arrays) -> int:
    def conv(
        x: int,
        module: str,
        filters: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        *,
        act: bool = True,
    ) -> int:
        pad = kernel // 2 if kernel < 7 else 0
        x = layers.conv(x, f"{module}.layers.0", filters, kernel, stride, pad, groups)
        x = layers.norm(x, f"{module}.layers.1")
        return layers.prelu(x, f"{module}.layers.2") if act else x

    def bottleneck(x: int, module: str, filters: int, groups: int, stride: int) -> int:
        x = conv(x, f"{module}.layers.0", groups)
        x = conv(x, f"{module}.layers.1", groups, 3, stride, groups)
        return conv(x, f"{module}.layers.2", filters, act=False)

    def residuals(x: int, module: str, filters: int, groups: int) -> int:
        for number in range(_count(values, f"{module}.layers.")):
            x = layers.sum(bottleneck(x, f"{module}.layers.{number}", filters, groups, 1), x)
        return x

    width = len(values["layers.0.layers.0.weight"]) if "layers.0.layers.0.weight" in values else 128
    x = conv(layers.images(), "layers.0", width, 3, 2)
    if "layers.1.layers.0.weight" in values:
        x = conv(x, "layers.1", width, 3, groups=64)
    else:
        x = residuals(x, "layers.1", width, 128)
    x = residuals(bottleneck(x, "layers.2", width, 128, 2), "layers.3", width, 128)
    x = residuals(bottleneck(x, "layers.4", 2 * width, 256, 2), "layers.5", 2 * width, 256)
    x = residuals(bottleneck(x, "layers.6", 2 * width, 512, 2), "layers.7", 2 * width, 256)
    x = conv(conv(x, "conv_sep", 512), "features.layers.0", 512, 7, groups=512, act=False)
    x = layers.linear(x, "features.layers.2", len(values["features.layers.3.running_mean"]), bias=False)
    return layers.norm(x, "features.layers.3", name="fc1")
