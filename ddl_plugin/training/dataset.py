"""The data of a run: records, partition and positive pairs, made once and reused while they still hold."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddl_plugin.data.attributes import AttributeTable, require_of
from ddl_plugin.data.pairs import Pairs, open_pairs, prepared_pairs
from ddl_plugin.data.partition import Partition, build_partition, single_partition, undivided
from ddl_plugin.data.records import Records
from ddl_plugin.errors import UserError
from ddl_plugin.recipe import describe
from ddl_plugin.settings import LOOKING_ONLY, RunSettings
from ddl_plugin.training.workers import Workers

SYNTHETIC = "synthetic"
SYNTHETIC_FOLDER = Path("data") / SYNTHETIC

#: Settings in which the machines of one training may differ: where their data lie, and how fast they read them.
_OF_A_MACHINE = (*LOOKING_ONLY, "dataset_path", "attributes", "pretrained", "positive_pairs")

Embed = Callable[[np.ndarray], np.ndarray]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Dataset:
    folder: Path
    records: Records
    partition: Partition | None  # None where the run has no distributions
    pairs: tuple[Pairs, ...]  # one a distribution; () where the sampler needs none


def dataset_folder(settings: RunSettings) -> Path:
    """The folder of train.rec; `dataset_path = 'synthetic'` is drawn where it is not there yet."""
    if settings.dataset_path == SYNTHETIC:
        from ddl_plugin.data.synthetic import ensure

        ensure(SYNTHETIC_FOLDER)
        return SYNTHETIC_FOLDER
    folder = Path(settings.dataset_path).expanduser()
    if not (folder / "train.rec").is_file():
        raise UserError(
            f"dataset_path: expected train.rec and train.idx in {str(folder)!r}, found no train.rec; "
            f"the recipe's header names the data; dataset_path=FOLDER on the command line sets another place"
        )
    return folder


def in_folder(folder: Path, name: str) -> Path:
    """`name` in the data set's folder where it is there, else as a path of its own."""
    inside = folder / name
    return inside if inside.exists() else Path(name).expanduser()


def open_partition(settings: RunSettings) -> tuple[Path, Records, Partition | None]:
    """The records, and the distributions that the sampler draws from (None: all images alike)."""
    folder = dataset_folder(settings)
    records = Records(folder, max_damaged=settings.max_damaged)
    table = None
    if settings.attributes is not None:
        table = AttributeTable.load(
            in_folder(folder, settings.attributes), given_as="the recipe's 'attributes'"
        )
        require_of(table, records.fingerprint())
    partition = _partition(settings, records, table)
    if settings.train_identities < 1:
        partition = partition or undivided(records, None, None)
        partition = partition.of_identities(records.labels, settings.train_identities, settings.seed)
    return folder, records, partition


def _partition(settings: RunSettings, records: Records, table: AttributeTable | None) -> Partition | None:
    rule = settings.sampler_options.get("rule")
    if rule is not None:
        return single_partition(records, rule, table)
    return None if settings.ddl is None else build_partition(records, settings.ddl, table)


def open_dataset(
    settings: RunSettings,
    embed: Embed | None,
    model_hash: str,
    cache: Path,
    say: Say,
    progress: bool,
    machines: Workers | None = None,
) -> Dataset:
    """Open the records, split them and get the positive pairs, from `cache` where they still hold.

    `embed` is the base model and `model_hash` what it is known by: pairs of another model, partition or
    record file are made anew, and why is said. `embed` None: training from scratch, where there is no model
    to build pairs with; `UserError` if the sampler draws them.

    With `machines` worker 0 builds the pairs and gives them to the others, which use nothing but `settings`;
    `UserError` where the data or settings of one are not those of worker 0.
    """
    alone = machines is None
    with contextlib.nullcontext() if alone else machines.worker_0_first():  # which draws what is to be drawn
        folder, records, partition = open_partition(settings)
    if not alone:
        machines.require_same(_in_common(settings, records, partition))
    if settings.sampler in ("images", "identities") or partition is None:
        return Dataset(folder, records, partition, ())
    pairs = ()
    if alone or machines.rank == 0:
        pairs = _pairs(settings, records, partition, embed, model_hash, cache, say, progress)
    if not alone:
        pairs = _unpacked(machines.publish_bytes(_packed(pairs)))
    return Dataset(folder, records, partition, pairs)


def _pairs(
    settings: RunSettings,
    records: Records,
    partition: Partition,
    embed: Embed | None,
    model_hash: str,
    cache: Path,
    say: Say,
    progress: bool,
) -> tuple[Pairs, ...]:
    if embed is not None:
        wanted = {
            "model": model_hash,
            "max_pairs_per_identity": settings.max_pairs_per_identity,
            "seed": settings.seed,
            "b": settings.ddl.b,
        }
        if settings.positive_pairs is not None:
            path = in_folder(records.path.parent, settings.positive_pairs)
            return prepared_pairs(path, records, partition, **wanted)
        return open_pairs(
            cache,
            records,
            partition,
            embed,
            **wanted,
            max_damaged=settings.max_damaged,
            say=say,
            progress=progress,
        )
    if settings.sampler == "pairs":
        raise UserError(
            "pretrained: expected a checkpoint, with which positive pairs are built, got none; "
            "name one, or train from scratch with sampler = 'images' first"
        )
    return ()


def _in_common(settings: RunSettings, records: Records, partition: Partition | None) -> dict[str, Any]:
    """What all machines of one training must have in common, by what it is called."""
    parts = () if partition is None else partition.distributions
    return {
        **{key: value for key, value in describe(settings).items() if key not in _OF_A_MACHINE},
        "the records": records.fingerprint(),
        **{f"the images of {part.name}": _fingerprint(part.positions) for part in parts},
    }


def _fingerprint(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()[:16]


def _packed(pairs: Sequence[Pairs]) -> bytes:
    """What a sampler needs of the pairs."""
    file = io.BytesIO()
    np.savez(file, *(np.stack([own.first, own.second]) for own in pairs))
    return file.getvalue()


def _unpacked(content: bytes) -> tuple[Pairs, ...]:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return tuple(Pairs(*file[name], candidates=file[name].shape[1], dropped=0) for name in file.files)


def summary_rows(dataset: Dataset) -> list[dict]:
    """One row a distribution: images, identities, pairs kept, pairs dropped because s < 0."""
    if dataset.partition is None:
        return []
    rows = dataset.partition.summary()
    for row, pairs in zip(rows, dataset.pairs, strict=False):
        row |= {"pairs": len(pairs.first), "dropped (s < 0)": pairs.dropped}
    return rows
