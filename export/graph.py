"""MXNet's symbol JSON as a small frozen graph, and the files that make up a checkpoint."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddl_plugin.errors import UserError
from ddl_plugin.files import reading

EMBEDDING = "fc1_output"
_WHOLE = re.compile(r"-?\d+")


@dataclass(frozen=True)
class Node:
    """One operator, or a variable (`op` 'null'). Attributes are the strings of the JSON; these methods read them."""

    name: str
    op: str
    attrs: Mapping[str, str]
    inputs: tuple[tuple[int, int], ...]  # (index of a node of the graph, number of its output)

    def text(self, key: str, default: str) -> str:
        value = self.attrs.get(key, "None")
        return default if value in ("None", "") else value

    def flag(self, key: str, default: bool) -> bool:
        return self.text(key, str(default)).lower() in ("true", "1")

    def number(self, key: str, default: float) -> float:
        text = self.text(key, repr(default))
        try:
            return float(text)
        except ValueError as error:
            raise UserError(
                f"node {self.name!r} ({self.op}): {key}: expected a number, got {text!r}"
            ) from error

    def whole(self, key: str, default: int) -> int:
        return int(self.number(key, default))

    def wholes(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """A tuple such as '(3, 3)', also as Python 2 wrote it ('(3L, 3L)'); empty means the default."""
        return tuple(int(text) for text in _WHOLE.findall(self.text(key, ""))) or default


@dataclass(frozen=True)
class Graph:
    """Nodes in an order in which every node follows its inputs; `heads` are the outputs."""

    nodes: tuple[Node, ...]
    heads: tuple[tuple[int, int], ...]
    source: str  # where it was read, for messages

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the data, labels, parameters and auxiliary states."""
        return tuple(node.name for node in self.nodes if node.op == "null")

    def place(self, index: int) -> str:
        """Where an operator stands, in words: "node 37 of 412, between 'bn0' and 'conv1'"."""
        operators = [i for i, node in enumerate(self.nodes) if node.op != "null"]
        text = f"node {operators.index(index) + 1} of {len(operators)}"
        before = [self.nodes[source].name for source, _ in self.nodes[index].inputs[:1]]
        after = [node.name for node in self.nodes if any(source == index for source, _ in node.inputs)][:1]
        if before and after:
            return f"{text}, between {before[0]!r} and {after[0]!r}"
        return text + "".join(f", after {name!r}" for name in before)


def _entry(value: Any, limit: int) -> tuple[int, int]:
    """[node, output] or [node, output, version] as a pair; ValueError when it points past `limit`."""
    node, output = int(value[0]), int(value[1])
    if not 0 <= node < limit:
        raise ValueError(f"an input points to node {node}, expected 0..{limit - 1}")
    return node, output


def _node(index: int, raw: dict[str, Any]) -> Node:
    attrs: dict[str, str] = {}
    # 'param' until 0.8 beside 'attr' for the user's own, 'attr' until 0.12, 'attrs' since.
    for key in ("attr", "param", "attrs"):
        attrs.update(raw.get(key) or {})
    inputs = tuple(_entry(value, index) for value in raw["inputs"])
    return Node(str(raw["name"]), str(raw["op"]), attrs, inputs)


def parse_symbol(text: str, source: str) -> Graph:
    """The graph of a symbol's JSON; UserError naming `source` when it is not one."""
    try:
        content = json.loads(text)
        nodes = tuple(_node(index, raw) for index, raw in enumerate(content["nodes"]))
        heads = tuple(_entry(value, len(nodes)) for value in content["heads"])
    except json.JSONDecodeError as error:
        raise UserError(f"{source}: broken JSON, expected an MXNet symbol: {error}") from error
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{source}: expected an MXNet symbol with 'nodes' and 'heads': {reason}") from error
    return Graph(nodes, heads, source)


def load_symbol(path: str | os.PathLike) -> Graph:
    """Read a `-symbol.json` file of any MXNet version."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such symbol file")
    try:
        with reading(path):
            text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected JSON text, got a binary file") from error
    return parse_symbol(text, str(path))


def _missing_output(graph: Graph, output: str) -> UserError:
    names = [f"{node.name}_output" for node in graph.nodes if node.op != "null"]
    near = difflib.get_close_matches(output, names, n=3, cutoff=0.5) or names[-3:]
    hint = f"; nearest outputs: {', '.join(near)}" if near else "; it has no operators"
    return UserError(f"{graph.source}: no output {output!r}, where InsightFace keeps the embedding{hint}")


def embedding_of(graph: Graph) -> str:
    """The output that is the embedding: EMBEDDING, or the only one of a graph without labels, as Gluon exports it.

    Raises UserError naming the nearest outputs where there is neither.
    """
    if any(f"{node.name}_output" == EMBEDDING and node.op != "null" for node in graph.nodes):
        return EMBEDDING
    (head, number), *others = graph.heads or ((0, 1),)
    sole = not others and number == 0 and graph.nodes and graph.nodes[head].op != "null"
    if not sole or any(name.endswith("label") for name in graph.variables):
        raise _missing_output(graph, EMBEDDING)
    return f"{graph.nodes[head].name}_output"


def cut(graph: Graph, output: str = EMBEDDING) -> Graph:
    """Keep only what `output` is computed from: classifier, losses and labels fall away. Order is kept."""
    found = [i for i, node in enumerate(graph.nodes) if node.op != "null" and f"{node.name}_output" == output]
    if not found:
        raise _missing_output(graph, output)
    needed = {found[-1]}
    for index in range(found[-1], -1, -1):  # every node follows its inputs: one backward pass suffices
        if index in needed:
            needed.update(source for source, _ in graph.nodes[index].inputs)
    place = {old: new for new, old in enumerate(sorted(needed))}
    kept = []
    for old in sorted(needed):
        node = graph.nodes[old]
        inputs = tuple((place[source], number) for source, number in node.inputs)
        kept.append(Node(node.name, node.op, node.attrs, inputs))
    return Graph(tuple(kept), ((len(kept) - 1, 0),), graph.source)


@dataclass(frozen=True)
class Checkpoint:
    """The two files of an MXNet checkpoint."""

    symbol: Path
    params: Path


def find_checkpoint(text: str | os.PathLike) -> Checkpoint:
    """The files named by 'PREFIX,EPOCH', by the .params file itself, by its -symbol.json where it has one epoch, or
    by a folder that holds one checkpoint (its newest epoch).

    Raises UserError naming the file that is missing and the epochs that are there.
    """
    text = os.fspath(text)
    if text and Path(text).is_dir():
        return _in_folder(Path(text))
    named = re.fullmatch(r"(.+),\s*(\d+)\s*", text) or re.fullmatch(r"(.+)-(\d{4,})\.params", text)
    if named:
        return _existing(Path(named[1]), int(named[2]))
    prefix = Path(text.removesuffix("-symbol.json"))
    epochs = _epochs(prefix)
    if text.endswith("-symbol.json") and len(epochs) == 1:
        return _existing(prefix, epochs[0])
    near = f"; did you mean {' or '.join(repr(f'{prefix},{epoch}') for epoch in epochs)}?" if epochs else ""
    raise UserError(
        f"checkpoint {text!r}: expected PREFIX,EPOCH such as 'models/model,0', a .params file beside its symbol, "
        f"or a folder that holds model-symbol.json and model-NNNN.params{near}"
    )


def _in_folder(folder: Path) -> Checkpoint:
    """The newest epoch of the folder's checkpoint, which is called 'model' or is the only one."""
    prefixes = [Path(str(path).removesuffix("-symbol.json")) for path in sorted(folder.glob("*-symbol.json"))]
    prefix = folder / "model"
    if len(prefixes) == 1 and not _epochs(prefix):
        prefix = prefixes[0]
    epochs = _epochs(prefix)
    if not epochs:
        raise UserError(f"{folder}: expected a model-NNNN.params in this folder, found none{_hint(folder)}")
    return _existing(prefix, epochs[-1])


def is_state_dict(model: str | os.PathLike) -> bool:
    """Whether a model is a state dict of torch, by its name: .pth or .pt."""
    return os.fspath(model).endswith((".pth", ".pt"))


def model_files(model: str | os.PathLike) -> tuple[Path, ...]:
    """The files that are read of a model: the .onnx file, the state dict, or the two of a checkpoint."""
    if os.fspath(model).endswith(".onnx") or is_state_dict(model):
        return (Path(model),)
    found = find_checkpoint(model)
    return found.symbol, found.params


def _hint(folder: Path) -> str:
    """Names the subfolders that hold a checkpoint, as those of a run do, or this folder's several checkpoints."""
    inside = [f"'{path.parent}'" for path in sorted(folder.glob("*/model-symbol.json"))]
    for path in sorted(folder.glob("*-symbol.json")):
        prefix = Path(str(path).removesuffix("-symbol.json"))
        inside += [f"'{prefix},{epoch}'" for epoch in _epochs(prefix)[-1:]]
    return f"; did you mean {' or '.join(inside)}?" if inside else ""


def _epochs(prefix: Path) -> list[int]:
    """Epochs of the .params files of a prefix, ascending."""
    pattern = re.compile(re.escape(prefix.name) + r"-(\d{4,})\.params")
    names = (path.name for path in prefix.parent.iterdir()) if prefix.parent.is_dir() else ()
    return sorted(int(match[1]) for match in map(pattern.fullmatch, names) if match)


def _existing(prefix: Path, epoch: int) -> Checkpoint:
    found = Checkpoint(Path(f"{prefix}-symbol.json"), Path(f"{prefix}-{epoch:04d}.params"))
    if not found.symbol.is_file():
        raise UserError(f"{found.symbol}: no such symbol file, needed beside {found.params.name}")
    if not found.params.is_file():
        there = ", ".join(map(str, _epochs(prefix))) or "none"
        raise UserError(f"{found.params}: no such .params file; epochs of this prefix: {there}")
    return found
