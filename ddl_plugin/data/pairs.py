"""Positive pairs, built offline with the base model (section 3.1), and the file that keeps them.

Per distribution and identity up to `max_pairs_per_identity` pairs of images; those with a cosine below 0 are
usually outliers: they are dropped and counted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ddl_plugin.data.candidates import Candidates, blocks, draw_candidates
from ddl_plugin.data.embeddings import Embed, Embeddings, Say, View, difference
from ddl_plugin.data.partition import Partition
from ddl_plugin.data.records import Records
from ddl_plugin.data.shards import shard_path, shard_paths
from ddl_plugin.errors import UserError
from ddl_plugin.files import replaced
from ddl_plugin.settings import MAX_DAMAGED

_FORMAT = 2  # of the file
_CHUNK = 1 << 15  # images, rounded up to whole identities, whose embeddings are held at a time
BINS = 100  # of the histogram on either side of 0
#: What NumPy, zipfile and json raise for a file that was cut off, altered, or is something else.
_DAMAGE = (
    OSError, EOFError, KeyError, ValueError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class Pairs:
    """The positive pairs of one distribution: same identity, cosine >= 0 under the base model.

    first, second: (M,) int32 positions in the records, first < second. candidates: pairs that were compared.
    dropped: those of them with a cosine below 0; M = candidates - dropped. unreadable: pairs that could not be
    compared. paired: identities with a pair; emptied: those that had candidates and kept none. histogram:
    (2 BINS,) int64, candidates by cosine in equal steps from -1 to 1: the first BINS are the dropped ones.
    """

    first: np.ndarray
    second: np.ndarray
    candidates: int
    dropped: int
    unreadable: int = 0
    paired: int = 0
    emptied: int = 0
    histogram: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(2 * BINS, np.int64))


def open_pairs(
    path: str | os.PathLike,
    records: Records,
    partition: Partition,
    embed: Embed,
    *,
    model: str,
    max_pairs_per_identity: int = 100,
    seed: int = 0,
    b: int = 1,
    max_damaged: float = MAX_DAMAGED,
    say: Say,
    progress: bool = False,
    embeddings: Path | None = None,
    share: tuple[int, int] | None = None,
) -> tuple[Pairs, ...]:
    """The pairs that `path` holds; where it holds none, or those of other data, they are built and written there.

    model: what `embed` is known by; `say` is told why pairs are built. embeddings: a folder that keeps the images'
    embeddings for other rules, limits and seeds; without it they are kept beside `path` until it is written, for
    a process that is killed and run again. share: (i, n), do part i of n and write it as `shard_path` calls it;
    `merge_pairs` joins the parts. What is raised: see `build_pairs`.
    """
    made_from = origin_of_pairs(records, partition, model, max_pairs_per_identity, seed)
    if share is not None:
        path = shard_path(path, *share)
        made_from["share"] = list(share)
    pairs, reason = load_pairs(path, made_from)
    if pairs is not None:
        return pairs
    say(f"positive pairs: building ({reason})")
    work = Path(f"{path}.part")
    pairs = build_pairs(
        records, partition, embed, max_pairs_per_identity=max_pairs_per_identity, seed=seed, b=b,
        progress=progress, model=model, folder=embeddings or work, max_damaged=max_damaged, say=say, share=share,
    )  # fmt: skip
    save_pairs(path, pairs, made_from, {"distributions": partition.summary(), "b": b})
    shutil.rmtree(work, ignore_errors=True)
    return pairs


def prepared_pairs(
    path: str | os.PathLike,
    records: Records,
    partition: Partition,
    *,
    model: str,
    max_pairs_per_identity: int = 100,
    seed: int = 0,
    b: int = 1,
) -> tuple[Pairs, ...]:
    """The pairs of a file that must hold: one that a recipe names. `UserError` with the reason where it does not."""
    pairs, reason = load_pairs(path, origin_of_pairs(records, partition, model, max_pairs_per_identity, seed))
    if pairs is None:
        raise UserError(
            f"positive_pairs: expected those of this run, got others: {reason}; make them with prepare pairs "
            f"and the run's recipe, or leave `positive_pairs` out to have them built"
        )
    require_pairs(pairs, partition.summary(), b)
    return pairs


def origin_of_pairs(
    records: Records, partition: Partition, model: str, max_pairs_per_identity: int, seed: int
) -> dict[str, Any]:
    """What decides which pairs are built: pairs made from the same need not be built again."""
    return {
        "records": records.fingerprint(),
        "model": model,
        "partition": [
            {
                "positions": hashlib.sha256(np.ascontiguousarray(d.positions)).hexdigest()[:16],
                "degradation": dataclasses.asdict(d.degradation) if k else None,
            }
            for k, d in enumerate(partition.distributions)
        ],
        "max_pairs_per_identity": max_pairs_per_identity,
        "seed": seed,
    }


def build_pairs(
    records: Records,
    partition: Partition,
    embed: Embed,
    *,
    max_pairs_per_identity: int = 100,
    seed: int = 0,
    b: int = 1,
    progress: bool = False,
    model: str = "",
    folder: Path | None = None,
    max_damaged: float = MAX_DAMAGED,
    say: Say | None = None,
    share: tuple[int, int] | None = None,
) -> tuple[Pairs, ...]:
    """The pairs of each distribution, in the order of `partition`.

    Deterministic for a seed, whatever the threads and the shares: the candidates are drawn without replacement
    from an identity's n(n-1)/2 pairs, and image i of distribution k is degraded with a generator of its own, keyed
    by (seed, k, i). Only images that occur in a pair are embedded. Memory: 8 bytes a candidate, and the
    embeddings of about 32,768 images at a time; `folder`, `model`, `max_damaged`, `say` as in `Embeddings`.

    share: (i, n), the pairs of part i of n of the identities: as many candidates in every part, nearly.

    `UserError` where the model gives NaN, where a distribution has no identity with two images, for more damaged
    images than are allowed, or where fewer than `b` (ddl.b) pairs are left.
    """
    drawn = [
        draw_candidates(
            records.labels, distribution, number, most=max_pairs_per_identity, seed=seed, share=share
        )
        for number, distribution in enumerate(partition.distributions)
    ]
    total = sum(own.images(len(records.labels)) for own in drawn)
    with (
        Embeddings(
            records, embed, folder=folder, model=model, max_damaged=max_damaged, say=say
        ) as embeddings,
        # In a log file a line now and then.
        tqdm(
            desc="positive pairs", total=total, unit="img", disable=not progress, leave=False,
            mininterval=0.1 if sys.stderr.isatty() else 60,
        ) as bar,
    ):  # fmt: skip
        pairs = []
        for number, distribution in enumerate(partition.distributions):
            view = View.of(distribution.name, distribution.degradation, number, seed)
            # Taken out of the list: only the pairs that are kept stay in memory.
            pairs.append(_kept(drawn.pop(0), lambda used, view=view: embeddings.of(view, used, bar.update)))
    if embeddings.unreadable and say is not None:
        say(f"{records.path}: {embeddings.said_unreadable()}; their pairs are left out")
    if share is None:
        require_pairs(pairs, partition.summary(), b)
    return tuple(pairs)


def require_pairs(pairs: Sequence[Pairs], about: Sequence[dict], b: int) -> None:
    """`UserError` where a distribution, of which `about` says name and label, has fewer than `b` pairs."""
    for own, row in zip(pairs, about, strict=True):
        kept = len(own.first)
        if kept < b:
            what = "all" if kept == 0 else f"{own.dropped}"
            raise UserError(
                f"ddl: {row['name']} ({row['label']}): expected at least {b} positive pairs with a cosine >= 0, "
                f"got {kept}: {what} of {own.candidates} candidates are below 0; check that the base model fits "
                f"these images, lower ddl.b or widen the rule"
            )


# -- similarities ------------------------------------------------------------------------------------------


def _kept(candidates: Candidates, embeddings: Callable[[np.ndarray], np.ndarray]) -> Pairs:
    """The candidates with a cosine of 0 or more. embeddings(positions) -> unit float32 (n, D)."""
    first, second, starts = candidates.first, candidates.second, candidates.starts
    similar, known = np.empty(len(first), bool), 0
    histogram = np.zeros(2 * BINS, np.int64)
    for begin, end in blocks(starts, _CHUNK // 2):
        part = slice(int(starts[begin]), int(starts[end]))
        used = np.unique(np.concatenate([first[part], second[part]]))
        unit = embeddings(used)
        cosines = _cosines(unit, np.searchsorted(used, first[part]), np.searchsorted(used, second[part]))
        similar[part] = cosines >= 0  # not so for NaN
        known += int((~np.isnan(cosines)).sum())
        histogram += _histogram(cosines)
    kept = int(similar.sum())
    any_kept = np.add.reduceat(similar, starts[:-1], dtype=np.int64) > 0 if len(starts) > 1 else similar
    paired = int(any_kept.sum())
    return Pairs(
        first[similar], second[similar], candidates=known, dropped=known - kept,
        unreadable=len(first) - known, paired=paired, emptied=len(starts) - 1 - paired, histogram=histogram,
    )  # fmt: skip


def _cosines(unit: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """<unit[one], unit[other]>: float32 (M,), some rows at a time."""
    result = np.empty(len(one), np.float32)
    for start in range(0, len(one), 1 << 14):
        part = slice(start, start + (1 << 14))
        result[part] = np.einsum("md,md->m", unit[one[part]], unit[other[part]])
    return result


def _histogram(cosines: np.ndarray) -> np.ndarray:
    """Counts (2 BINS,) int64 in equal steps from -1 to 1; none below 0 counts as 0 or above, by rounding."""
    cosines = np.clip(cosines[~np.isnan(cosines)], -1, 1).astype(np.float64)
    below = np.histogram(cosines[cosines < 0], BINS, (-1, 0))[0]
    above = np.histogram(cosines[cosines >= 0], BINS, (0, 1))[0]
    return np.concatenate([below, above])


# -- the file ----------------------------------------------------------------------------------------------


def save_pairs(
    path: str | os.PathLike, pairs: Sequence[Pairs], made_from: dict, about: dict | None = None
) -> None:
    """Write the pairs and what they were made from (JSON values) as an .npz; never a part of a file.

    about: what else is to be known of them (JSON values), which does not decide whether they hold.
    """
    arrays = {
        "made_from": np.array(json.dumps({"format": _FORMAT, **made_from}, sort_keys=True)),
        "about": np.array(json.dumps(about or {})),
        "counts": np.array([[getattr(own, name) for name in _COUNTS] for own in pairs], np.int64),
        "histograms": np.array([own.histogram for own in pairs], np.int64),
    }
    for k, own in enumerate(pairs):
        arrays[f"first{k}"], arrays[f"second{k}"] = own.first, own.second
    with replaced(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


_COUNTS = ("candidates", "dropped", "unreadable", "paired", "emptied")


def load_pairs(path: str | os.PathLike, made_from: dict) -> tuple[tuple[Pairs, ...], None] | tuple[None, str]:
    """(pairs, None) where the file holds pairs made from `made_from`, else (None, why it does not)."""
    path = Path(path)
    if not path.is_file():
        return None, f"{path} is not there"
    try:
        recorded, _, pairs = _read(path, {"format": _FORMAT, **made_from})
    except _DAMAGE as error:
        return None, f"{path} is damaged ({type(error).__name__}: {error})"
    if pairs is None:
        return None, f"{path}: {difference(recorded, {'format': _FORMAT, **made_from})}"
    return pairs, None


def _read(path: Path, wanted: dict | None = None) -> tuple[dict, dict, tuple[Pairs, ...] | None]:
    """(made_from, about, pairs) of a file; pairs None where it was made from something else than `wanted`.

    Raises what `_DAMAGE` lists.
    """
    with np.load(path, allow_pickle=False) as file:
        recorded = json.loads(str(file["made_from"]))
        if wanted is not None and difference(recorded, wanted):
            return recorded, {}, None
        pairs = tuple(
            Pairs(
                file[f"first{k}"], file[f"second{k}"],
                **dict(zip(_COUNTS, map(int, counts), strict=True)), histogram=histogram,
            )
            for k, (counts, histogram) in enumerate(zip(file["counts"], file["histograms"], strict=True))
        )  # fmt: skip
        about = json.loads(str(file["about"]))
    if not pairs or not all(_sound(own) for own in pairs):
        raise ValueError("its arrays do not belong together")
    return recorded, about, pairs


def _sound(pairs: Pairs) -> bool:
    shapes = {pairs.first.shape, pairs.second.shape, (pairs.candidates - pairs.dropped,)}
    types = {pairs.first.dtype, pairs.second.dtype}
    return len(shapes) == 1 and types == {np.dtype(np.int32)} and pairs.histogram.shape == (2 * BINS,)


def merge_pairs(path: str | os.PathLike) -> tuple[tuple[Pairs, ...], dict]:
    """Join the parts of `path` that `open_pairs` wrote for all shares, and write them there.

    Returns the pairs, the same that one process would have built, and what the parts say about them: the
    `distributions` (rows of `Partition.summary`) and `b`.

    `UserError` for parts that are missing, damaged or of different data, and for fewer than b pairs.
    """
    paths = shard_paths(path)
    parts = []
    for i, part in enumerate(paths):
        try:
            made_from, about, pairs = _read(part)
        except _DAMAGE as error:
            raise UserError(f"--merge: {part} is damaged ({error}); make it again") from error
        changed = difference(made_from, {**(parts[0][0] if parts else made_from), "share": [i, len(paths)]})
        if changed:
            raise UserError(
                f"--merge: {part}: expected the same data as {paths[0].name}, but it was {changed}; make it again"
            )
        parts.append((made_from, about, pairs))
    made_from, about = parts[0][:2]
    joined = tuple(_joined(own) for own in zip(*(pairs for _, _, pairs in parts), strict=True))
    require_pairs(joined, about["distributions"], about["b"])
    save_pairs(path, joined, {key: value for key, value in made_from.items() if key != "share"}, about)
    return joined, about


def _joined(parts: Sequence[Pairs]) -> Pairs:
    return Pairs(
        np.concatenate([part.first for part in parts]),
        np.concatenate([part.second for part in parts]),
        **{name: sum(getattr(part, name) for part in parts) for name in _COUNTS},
        histogram=sum(part.histogram for part in parts),
    )
