"""What a folder of InsightFace's arcface_torch has, read from its source without executing it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ddl_plugin.errors import UserError, did_you_mean
from ddl_plugin.host.source import imported, parsed, require, require_defined

TRAINER = "train_v2.py"

#: What the trainer must import by name for us to put ours in its place: {name: (module, where it is defined)}.
_SEAMS = {
    "get_config": ("utils.utils_config", "utils/utils_config.py"),
    "get_dataloader": ("dataset", "dataset.py"),
    "get_model": ("backbones", "backbones/__init__.py"),
    "PartialFC_V2": ("partial_fc_v2", "partial_fc_v2.py"),
    "CallBackLogging": ("utils.utils_callbacks", "utils/utils_callbacks.py"),
}


@dataclass(frozen=True)
class Checkout:
    """A trainer that a loss can join. needs_gpu: whether its process group is NCCL's."""

    folder: Path
    trainer: str
    needs_gpu: bool

    @property
    def path(self) -> Path:
        return self.folder / self.trainer


def is_one(folder: Path) -> bool:
    """Whether `folder` is one of arcface_torch, of whatever version."""
    return (folder / TRAINER).is_file() or (folder / "partial_fc_v2.py").is_file()


def inspect(folder: Path, trainer: str = TRAINER) -> Checkout:
    """The trainer in `folder`. Raises `UserError` with what was looked for where a loss cannot join it."""
    path = folder / trainer
    if not path.is_file():
        others = sorted(p.name for p in folder.glob("train*.py"))
        raise UserError(
            f"host: expected {trainer} in {folder}, got {', '.join(others) or 'no trainer'}"
            f"{did_you_mean(trainer, others) if others else ''}"
        )
    tree = parsed(path)
    for name, (module, file) in _SEAMS.items():
        require(path, imported(tree, module), name, f"imported from {module}")
        require_defined(folder / file, name)
    return Checkout(folder, trainer, "nccl" in path.read_text(encoding="utf-8"))


def find_config(folder: Path, arguments: list[str]) -> Path:
    """The config file among the trainer's arguments; `UserError` where it is not one that it could load."""
    found = sorted(
        f"configs/{p.name}" for p in (folder / "configs").glob("*.py") if p.stem not in ("__init__", "base")
    )
    name = next((text for text in arguments if not text.startswith("-")), None)
    example = "give it after '--', as the trainer takes it: -- configs/X.py"
    if name is None:
        raise UserError(f"host: expected the trainer's config, got none; {example}")
    if not name.startswith("configs/"):
        raise UserError(f"host: expected a config that starts with 'configs/', got {name!r}; {example}")
    # The trainer looks at the last part alone.
    path = folder / "configs" / Path(name).name
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"host: {folder} has no {name}{did_you_mean(name, found)}")
    return path
