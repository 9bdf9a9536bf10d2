"""What a folder of InsightFace's MXNet trainers has, read from its source without executing it."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from ddl_plugin.errors import UserError, did_you_mean

#: What each kind of trainer must define, by which it is known.
_TRAINERS = {
    "replicated": ("get_symbol", "train_net", "parse_args"),  # train.py: fc7 on every device
    "class-parallel": ("get_symbol_embedding", "get_symbol_arcface", "train_net", "parse_args"),
}
_PARALLEL_MODULE = "parall_module_local_v1"
_IMAGES = "image_iter"
_ITERATORS = ("get_face_image_iter", "FaceImageIter")


@dataclass(frozen=True)
class Checkout:
    """A trainer that a loss can join, and how.

    kind: 'replicated' (train.py) or 'class-parallel' (train_parall.py). iterator: what of image_iter.py the
    trainer makes its batches with: `get_face_image_iter`, or `FaceImageIter` in versions before it.
    """

    folder: Path
    trainer: str
    kind: str
    iterator: str

    @property
    def path(self) -> Path:
        return self.folder / self.trainer


def inspect(folder: Path, trainer: str = "train.py") -> Checkout:
    """Which version of InsightFace's arcface_mxnet trainers `folder` holds.

    Raises `UserError` with what was looked for where it is none that is known.
    """
    if not folder.is_dir():
        raise UserError(f"host: expected the folder of InsightFace's arcface_mxnet, got no folder {folder}")
    path = folder / trainer
    if not path.is_file():
        others = sorted(p.name for p in folder.glob("train*.py"))
        raise UserError(
            f"host: expected {trainer} in {folder}, got {', '.join(others) or 'no trainer'}"
            f"{did_you_mean(trainer, others)}; give the folder recognition/arcface_mxnet of insightface"
        )
    tree = _parsed(path)
    names = _defined(tree)
    kind = next((kind for kind, needed in _TRAINERS.items() if names.issuperset(needed)), None)
    if kind is None:
        raise UserError(
            f"host: {path} is no trainer that is known: looked for the functions "
            f"{' or '.join(', '.join(needed) for needed in _TRAINERS.values())}; "
            f"known are train.py and train_parall.py of insightface's arcface_mxnet, from 2018 on"
        )
    _require(path, _imported(tree, "config"), "generate_config", "imported from config")
    if kind == "replicated":
        _require(path, _imported(tree, "metric"), "AccMetric", "imported from metric")
        _require_defined(folder / "metric.py", "AccMetric")
    else:
        _require_defined(folder / f"{_PARALLEL_MODULE}.py", "ParallModule")
    used = _imported(tree, _IMAGES)
    iterator = next((name for name in _ITERATORS if name in used), None)
    if iterator is None:
        raise UserError(
            f"host: {path}: looked for {' or '.join(_ITERATORS)}, imported from {_IMAGES} there, and found neither; "
            f"its training batches cannot be replaced"
        )
    _require_defined(folder / f"{_IMAGES}.py", iterator)
    return Checkout(folder, trainer, kind, iterator)


def _require_defined(path: Path, name: str) -> None:
    _require(path, _defined(_parsed(path)), name, "defined")


def _require(path: Path, names: set[str], name: str, how: str) -> None:
    if name not in names and "*" not in names:
        raise UserError(f"host: {path}: looked for {name}, {how} there, and did not find it")


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError as error:
        raise UserError(f"host: expected {path.name} in {path.parent}, found none") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"host: {path} cannot be read as Python: {error}") from error


def _defined(tree: ast.Module) -> set[str]:
    """Names of the functions and classes of a module's top level, and what it imports there."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names.update(alias.asname or alias.name for alias in node.names)
    return names


def _imported(tree: ast.Module, module: str) -> set[str]:
    """Names that are imported from `module`, also within functions; '*': all."""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == module)
    return {alias.name for node in nodes for alias in node.names}
