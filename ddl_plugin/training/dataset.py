"""The data of a run: records, partition and positive pairs, made once and reused while they still hold."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddl_plugin.data.attributes import AttributeTable
from ddl_plugin.data.pairs import Pairs, build_pairs, load_pairs, save_pairs
from ddl_plugin.data.partition import Partition, build_partition, single_partition
from ddl_plugin.data.records import Records
from ddl_plugin.errors import UserError
from ddl_plugin.recipe import describe
from ddl_plugin.settings import RunSettings

SYNTHETIC = "synthetic"
SYNTHETIC_FOLDER = Path("data") / SYNTHETIC

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
    records = Records(folder)
    table = None
    if settings.attributes is not None:
        table = AttributeTable.load(in_folder(folder, settings.attributes))
    rule = settings.sampler_options.get("rule")
    if rule is not None:
        return folder, records, single_partition(records, rule, table)
    if settings.ddl is None:
        return folder, records, None
    return folder, records, build_partition(records, settings.ddl, table)


def open_dataset(
    settings: RunSettings, embed: Embed | None, model_hash: str, cache: Path, say: Say, progress: bool
) -> Dataset:
    """Open the records, split them and get the positive pairs, from `cache` where they still hold.

    `embed` is the base model and `model_hash` what it is known by: pairs of another model, partition or
    record file are made anew, and why is said. `embed` None: training from scratch, where there is no model
    to build pairs with; `UserError` if the sampler draws them.
    """
    folder, records, partition = open_partition(settings)
    if settings.sampler == "pairs" and embed is None:
        raise UserError(
            "pretrained: expected a checkpoint, with which positive pairs are built, got none; "
            "name one, or train from scratch with sampler = 'images' first"
        )
    if settings.sampler == "images" or partition is None or embed is None:
        return Dataset(folder, records, partition, ())
    wanted = {
        "records": records.fingerprint(),
        "model": model_hash,
        "partition": [
            {"positions": _fingerprint(d.positions), "degradation": describe_degradation(settings, k)}
            for k, d in enumerate(partition.distributions)
        ],
        "max_pairs_per_identity": settings.max_pairs_per_identity,
        "seed": settings.seed,
    }
    pairs, reason = load_pairs(cache, wanted)
    if pairs is None:
        say(f"positive pairs: building ({reason})")
        pairs = build_pairs(
            records, partition, embed, max_pairs_per_identity=settings.max_pairs_per_identity,
            seed=settings.seed, b=settings.ddl.b, progress=progress,
        )  # fmt: skip
        save_pairs(cache, pairs, wanted)
    return Dataset(folder, records, partition, pairs)


def describe_degradation(settings: RunSettings, k: int) -> dict | None:
    return describe(settings)["ddl"]["hard"][k - 1]["degradation"] if k else None


def _fingerprint(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()[:16]


def summary_rows(dataset: Dataset) -> list[dict]:
    """One row a distribution: images, identities, pairs kept, pairs dropped because s < 0."""
    if dataset.partition is None:
        return []
    rows = dataset.partition.summary()
    for row, pairs in zip(rows, dataset.pairs, strict=False):
        row |= {"pairs": len(pairs.first), "dropped (s < 0)": pairs.dropped}
    return rows
