"""What a folder of InsightFace's MXNet trainers has, read from its source without executing it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ddl_plugin.errors import UserError, did_you_mean
from ddl_plugin.host.source import defined, imported, parsed, require, require_defined

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
            f"{did_you_mean(trainer, others)}; give the folder recognition/arcface_mxnet or "
            f"recognition/arcface_torch of insightface"
        )
    tree = parsed(path)
    names = defined(tree)
    kind = next((kind for kind, needed in _TRAINERS.items() if names.issuperset(needed)), None)
    if kind is None:
        raise UserError(
            f"host: {path} is no trainer that is known: looked for the functions "
            f"{' or '.join(', '.join(needed) for needed in _TRAINERS.values())}; "
            f"known are train.py and train_parall.py of insightface's arcface_mxnet, from 2018 on"
        )
    require(path, imported(tree, "config"), "generate_config", "imported from config")
    if kind == "replicated":
        require(path, imported(tree, "metric"), "AccMetric", "imported from metric")
        require_defined(folder / "metric.py", "AccMetric")
    else:
        require_defined(folder / f"{_PARALLEL_MODULE}.py", "ParallModule")
    used = imported(tree, _IMAGES)
    iterator = next((name for name in _ITERATORS if name in used), None)
    if iterator is None:
        raise UserError(
            f"host: {path}: looked for {' or '.join(_ITERATORS)}, imported from {_IMAGES} there, and found neither; "
            f"its training batches cannot be replaced"
        )
    require_defined(folder / f"{_IMAGES}.py", iterator)
    return Checkout(folder, trainer, kind, iterator)
