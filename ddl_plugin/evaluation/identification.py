"""1:N identification on a .rec: who of the gallery is on the probe image, at full and at reduced resolution.

Closed set: rank-k is over the probes whose identity is in the gallery. The others are counted, reported and
left out of rank-k only; their scores are negatives like any other.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddl_plugin.data.degrade import degrade
from ddl_plugin.data.records import Records
from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.bins import SIDE
from ddl_plugin.evaluation.features import Embed, Progress, extract, no_progress
from ddl_plugin.evaluation.verification import summarise
from ddl_plugin.settings import Degradation, unknown_keys

FARS = (1e-2, 1e-3, 1e-4)
RANKS = (1, 5)
SIZES = (None, 24, 14)

_COLUMNS = ("record", "role", "condition")
_ROLES = ("gallery", "probe")
_CHUNK_SCORES = 1 << 22  # scores of one matrix product: 16 MiB


@dataclass(frozen=True)
class Protocol:
    """Which images are the gallery and which are the probes."""

    gallery: np.ndarray  # int64 (G,) positions
    probes: np.ndarray  # int64 (P,) positions
    conditions: np.ndarray | None = None  # str (P,), what kind of probe each one is


class Matches(NamedTuple):
    """All scores of probes against a gallery."""

    ranks: np.ndarray  # int64 (P,), 1 is best; 0: the probe's identity is not in the gallery
    negatives: np.ndarray  # float32, probe and gallery image of different identities
    positives: np.ndarray  # float32, of the same identity


def first_second(records: Records) -> Protocol:
    """Gallery: the first image of each identity that has two or more; probes: the second ones."""
    order = np.argsort(records.labels, kind="stable")
    labels = records.labels[order]
    starts = np.flatnonzero(np.concatenate(([True], labels[1:] != labels[:-1])))
    starts = starts[np.diff(starts, append=len(labels)) >= 2]
    if starts.size < 2:
        raise UserError(
            f"{records.path}: expected two identities or more with two images each, got {starts.size}; "
            f"use another .rec, or name gallery and probes with --protocol"
        )
    return Protocol(order[starts].astype(np.int64), order[starts + 1].astype(np.int64))


def load_protocol(path: str | os.PathLike, records: Records) -> Protocol:
    """Read a CSV with the columns record (its number in the .idx), role (gallery or probe), [condition].

    Raises:
        UserError: unknown or missing columns, another role, a record that the .rec has not or that is listed
            twice (with its line), a gallery of fewer than two identities, no probe.
    """
    path = Path(path)
    keys, is_probe, conditions, has_condition = _read_rows(path)
    place = np.searchsorted(records.keys, keys)
    found = records.keys[np.minimum(place, len(records) - 1)] == keys
    if not found.all():
        missing = keys[~found]
        raise UserError(
            f"{path}: expected record numbers of {records.path.name} (1..{records.keys[-1]}), got {missing.size} "
            f"others, the first is {missing[0]}"
        )
    numbers, counts = np.unique(keys, return_counts=True)
    if (counts > 1).any():
        raise UserError(
            f"{path}: expected every record once, in the gallery or as a probe, got record "
            f"{numbers[counts > 1][0]} {counts[counts > 1][0]} times"
        )
    gallery, probes = place[~is_probe], place[is_probe]
    identities = np.unique(records.labels[gallery]).size
    if identities < 2 or probes.size == 0:
        raise UserError(
            f"{path}: expected two gallery identities or more and one probe or more, got {identities} and {probes.size}"
        )
    return Protocol(gallery, probes, conditions[is_probe] if has_condition else None)


def _read_rows(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            unknown_keys(str(path), dict.fromkeys(columns), _COLUMNS)
            for name in _COLUMNS[:2]:
                if name not in columns:
                    raise UserError(
                        f"{path}: expected the columns record, role and, if wanted, condition; got no {name!r}"
                    )
            rows = [_row(path, reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a protocol: {error}") from error
    keys = np.array([key for key, _, _ in rows], dtype=np.int64)
    is_probe = np.array([probe for _, probe, _ in rows], dtype=bool)
    return (
        keys,
        is_probe,
        np.array([condition for _, _, condition in rows], dtype=str),
        "condition" in columns,
    )


def _row(path: Path, line: int, row: dict[str, Any]) -> tuple[int, bool, str]:
    where = f"{path}, line {line}"
    number, role = (row["record"] or "").strip(), (row["role"] or "").strip()
    if not (number.isascii() and number.isdigit()) or len(number) > 18:
        raise UserError(f"{where}: record: expected a record number, got {number!r}")
    if role not in _ROLES:
        raise UserError(f"{where}: role: expected gallery or probe, got {role!r}")
    return int(number), role == "probe", (row.get("condition") or "").strip()


def embed_records(
    embed: Embed,
    records: Records,
    positions: np.ndarray,
    size: int | None = None,
    *,
    flip: bool = False,
    batch: int = 64,
    progress: Progress = no_progress,
) -> np.ndarray:
    """Unit-length embeddings of images of a .rec, float32 (n, D), in the order of `positions`.

    Args:
        size: side in pixels that the images are shrunk to (area average) and enlarged from (bicubic);
            None: the images as they are.
        flip: add the mirror image's embedding first.
    """
    degradation = Degradation(size=size)
    rng = np.random.default_rng(0)  # asked for by degrade; a fixed size draws nothing that matters

    def image(position: int) -> np.ndarray:
        pixels = records.image(position)
        if pixels.shape != (SIDE, SIDE, 3):
            raise UserError(
                f"{describe(position)}: expected {SIDE}x{SIDE} pixels, got {pixels.shape[1]}x{pixels.shape[0]}; "
                f"align the faces first"
            )
        return pixels if size is None else degrade(pixels, degradation, rng)

    def load(start: int, stop: int) -> np.ndarray:
        return np.stack([image(int(p)) for p in positions[start:stop]])

    def describe(position: int) -> str:
        return f"record {records.keys[position]} of {records.path.name}"

    features = extract(
        embed,
        load,
        len(positions),
        flip=flip,
        describe=lambda i: describe(positions[i]),
        batch=batch,
        progress=progress,
    )
    return features.astype(np.float32)


def match(
    gallery: np.ndarray, gallery_labels: np.ndarray, probes: np.ndarray, probe_labels: np.ndarray
) -> Matches:
    """Compare every probe with every gallery image.

    A probe's score for an identity is its best over that identity's gallery images. Its rank is 1 + the number
    of other identities whose score is as high or higher: a tie counts as wrong.

    Args:
        gallery, probes: (G, D) and (P, D) float32, unit length.
        gallery_labels, probe_labels: (G,) and (P,) identities.

    Memory: the G x P scores that are returned, 4 bytes each, and one block of at most 16 MiB.
    """
    order = np.argsort(gallery_labels, kind="stable")
    gallery, gallery_labels = gallery[order], gallery_labels[order]
    identities, starts, sizes = np.unique(gallery_labels, return_index=True, return_counts=True)
    own = np.minimum(np.searchsorted(identities, probe_labels), len(identities) - 1)
    known = identities[own] == probe_labels

    count = int(sizes[own[known]].sum())
    positives = np.empty(count, dtype=np.float32)
    negatives = np.empty(len(gallery) * len(probes) - count, dtype=np.float32)
    ranks = np.zeros(len(probes), dtype=np.int64)
    at_positive = at_negative = 0
    rows = max(1, _CHUNK_SCORES // len(gallery))
    for start in range(0, len(probes), rows):
        part = slice(start, start + rows)
        scores = probes[part] @ gallery.T
        same = probe_labels[part, None] == gallery_labels
        for kept, at, values in (
            (positives, at_positive, scores[same]),
            (negatives, at_negative, scores[~same]),
        ):
            kept[at : at + values.size] = values
        at_positive += np.count_nonzero(same)
        at_negative += same.size - np.count_nonzero(same)

        best = np.maximum.reduceat(scores, starts, axis=1)
        right = np.take_along_axis(best, own[part, None], axis=1)
        # The right identity itself is counted by >=, and stands for the 1 of "1 +".
        ranks[part] = np.where(known[part], np.count_nonzero(best >= right, axis=1), 0)
    return Matches(ranks, negatives, positives)


def identify(
    embed: Embed,
    records: Records,
    protocol: Protocol,
    sizes: Sequence[int | None] = SIZES,
    *,
    flip: bool = False,
    batch: int = 64,
    fars: Sequence[float] = FARS,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Rank-1, rank-5, TAR at FAR over all probe-gallery pairs, margin and intersection.

    Args:
        sizes: resolutions of the probes in pixels, None for the images as they are; the gallery is never
            degraded.
        flip: False by default, unlike verification: one embedding of one image, as a deployed search does it.

    Returns:
        dict with gallery, gallery_identities, probes and results: one entry for each size, and for each size and
        condition where the protocol has conditions, with size ('full' or pixels), condition ('all' or its name),
        probes, outside_gallery (probes left out of rank-k), rank1, rank5 (0..1) and the keys of `summarise`.
    """
    gallery_labels = records.labels[protocol.gallery]
    gallery = embed_records(embed, records, protocol.gallery, flip=flip, batch=batch, progress=progress)
    results = []
    for size in sizes:
        probes = embed_records(
            embed, records, protocol.probes, size, flip=flip, batch=batch, progress=progress
        )
        for condition, chosen in _conditions(protocol):
            matches = match(gallery, gallery_labels, probes[chosen], records.labels[protocol.probes[chosen]])
            named = {"size": "full" if size is None else size, "condition": condition}
            results.append({**named, **_score(matches, condition, fars)})
    return {
        "set": records.path.stem,
        "gallery": len(protocol.gallery),
        "gallery_identities": int(np.unique(gallery_labels).size),
        "probes": len(protocol.probes),
        "results": results,
    }


def _conditions(protocol: Protocol) -> list[tuple[str, np.ndarray]]:
    everything = [("all", np.arange(len(protocol.probes)))]
    if protocol.conditions is None:
        return everything
    return everything + [
        (str(name), np.flatnonzero(protocol.conditions == name)) for name in np.unique(protocol.conditions)
    ]


def _score(matches: Matches, condition: str, fars: Sequence[float]) -> dict[str, Any]:
    ranks = matches.ranks[matches.ranks > 0]
    if ranks.size == 0:
        raise UserError(
            f"probes, condition {condition!r}: expected identities of the gallery, got {matches.ranks.size} probes "
            f"of others; rank-k needs a probe whose identity is in the gallery"
        )
    return {
        "probes": int(matches.ranks.size),
        "outside_gallery": int(matches.ranks.size - ranks.size),
        **{f"rank{k}": float(np.mean(ranks <= k)) for k in RANKS},
        **summarise(matches.negatives, matches.positives, fars),
    }
