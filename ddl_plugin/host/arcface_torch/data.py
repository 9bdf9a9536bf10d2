"""The records of a run, their distributions and their positive pairs."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ddl_plugin.data.candidates import draw_candidates
from ddl_plugin.data.pairs import Pairs, require_pairs
from ddl_plugin.data.partition import Partition
from ddl_plugin.data.records import Records
from ddl_plugin.errors import UserError
from ddl_plugin.export.graph import find_checkpoint, is_state_dict
from ddl_plugin.host.arcface_torch.base_model import BaseModel
from ddl_plugin.pytorch.processes import Processes
from ddl_plugin.settings import RunSettings
from ddl_plugin.training.dataset import (
    SYNTHETIC,
    Dataset,
    dataset_folder,
    in_folder,
    open_dataset,
    open_partition,
)


def open_data(
    settings: RunSettings,
    base: BaseModel | None,
    cache: Path,
    say: Callable[[str], None],
    progress: bool,
    ranks: Processes,
) -> Dataset:
    """Open the records, split them, and get the positive pairs: those of the file that the config names, made by whatever
    model; those that the base model leaves, kept in `cache`; without either all candidates, as none is known to
    have s < 0.
    """
    if base is not None:
        model = base.fingerprint()
        ranks.require_same({"the arrays of config.pretrained": model})
    if settings.positive_pairs is not None:
        made_by = _made_by(in_folder(dataset_folder(settings), settings.positive_pairs))
        return open_dataset(settings, _no_model, made_by, cache, say, progress, ranks)
    if base is not None:
        return open_dataset(settings, base.embed, model, cache, say, progress, ranks)
    with ranks.worker_0_first():
        folder, records, partition = open_partition(settings)
    ranks.require_same({"the records": records.fingerprint()})
    say(
        "positive pairs: all candidates, for there is no model (config.pretrained) to find those with a cosine below 0"
    )
    return Dataset(folder, records, partition, _all_candidates(settings, records, partition))


def require_files(settings: RunSettings) -> None:
    """`UserError` for a file that the config names and that is not there: asked before anything is started."""
    folder = Path(settings.dataset_path).expanduser()
    if settings.dataset_path != SYNTHETIC and not (folder / "train.rec").is_file():
        raise UserError(
            f"config.rec: expected a folder with train.rec and train.idx, found no train.rec in {folder}"
        )
    for key in ("attributes", "positive_pairs"):
        name = getattr(settings, key)
        if name is not None and not in_folder(folder, name).is_file():
            raise UserError(
                f"config.{key}: expected a file, in {folder} or by its own path, got no file {name!r}"
            )
    if settings.pretrained:
        _require_model(settings.pretrained)


def _require_model(pretrained: str) -> None:
    if is_state_dict(pretrained):
        if not Path(pretrained).is_file():
            raise UserError(
                f"config.pretrained: expected a file such as model.pt, got no file {pretrained!r}"
            )
        return
    try:
        find_checkpoint(pretrained)
    except UserError as error:
        raise UserError(f"config.pretrained: {error}") from error


def _all_candidates(settings: RunSettings, records: Records, partition: Partition) -> tuple[Pairs, ...]:
    """The pairs that a model would be asked for; the same in every rank."""
    pairs = []
    for number, distribution in enumerate(partition.distributions):
        drawn = draw_candidates(
            records.labels, distribution, number, most=settings.max_pairs_per_identity, seed=settings.seed
        )
        pairs.append(Pairs(drawn.first, drawn.second, candidates=len(drawn.first), dropped=0))
    require_pairs(pairs, partition.summary(), settings.ddl.b)
    return tuple(pairs)


def _made_by(path: Path) -> str:
    """What the model of a file of pairs is known by; '' where the file is none, which is said when it is opened."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return str(json.loads(str(file["made_from"]))["model"])
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile):
        return ""


def _no_model(images: np.ndarray) -> np.ndarray:
    raise AssertionError("prepared pairs need no model")
