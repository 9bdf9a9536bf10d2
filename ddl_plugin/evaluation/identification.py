"""1:N identification: who of the gallery is on the probe image, at full and at reduced resolution.

Closed set: rank-k is over the probes whose identity is in the gallery, and over those that are missing, which count
as not found. Probes of other identities are counted, reported and left out of rank-k only; their scores are negatives
like any other.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ddl_plugin.data.degrade import degrade
from ddl_plugin.data.records import Records
from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.evidence import ACCEPTED, FAILURES, REJECTED, Evidence, Failure, Genuine
from ddl_plugin.evaluation.faces import Faces, RecordFaces
from ddl_plugin.evaluation.features import Embed, Progress, extract, no_progress
from ddl_plugin.evaluation.metrics import CURVE_POINTS
from ddl_plugin.evaluation.protocols import ALL, Protocol
from ddl_plugin.evaluation.search import Search, search
from ddl_plugin.evaluation.subsets import Subset
from ddl_plugin.evaluation.verification import in_words
from ddl_plugin.settings import Degradation

FARS = (1e-2, 1e-3, 1e-4)
RANKS = (1, 5)
SIZES = (None, 24, 14)


def embed_faces(
    embed: Embed,
    faces: Faces,
    positions: np.ndarray,
    size: int | None = None,
    *,
    flip: bool = False,
    batch: int = 64,
    progress: Progress = no_progress,
) -> np.ndarray:
    """Unit-length embeddings of images, float32 (n, D), in the order of `positions`.

    Args:
        size: side in pixels that the images are shrunk to (area average) and enlarged from (bicubic);
            None: the images as they are.
        flip: add the mirror image's embedding first.
    """

    def load(start: int, stop: int) -> np.ndarray:
        return np.stack([_face(faces, int(p), size) for p in positions[start:stop]])

    features = extract(
        embed,
        load,
        len(positions),
        flip=flip,
        describe=lambda i: faces.describe(int(positions[i])),
        batch=batch,
        progress=progress,
    )
    return features.astype(np.float32)


def _face(faces: Faces, position: int, size: int | None) -> np.ndarray:
    pixels = faces.image(position)
    if size is None:
        return pixels
    # The generator is asked for by degrade; a fixed size draws nothing that matters.
    return degrade(pixels, Degradation(size=size), np.random.default_rng(0))


class Sizes(NamedTuple):
    """Sides in pixels that images are shrunk to; None: as they are."""

    probe: int | None
    gallery: int | None


@dataclass(frozen=True)
class Line:
    """One line of results at each size: some of the probes, and the gallery that they are searched in.

    condition: its name in the results; missing: probes that there should be.
    """

    condition: str
    gallery: np.ndarray  # int64, places in the protocol's gallery
    probes: np.ndarray  # int64, places in the protocol's probes
    missing: int


def lines_of(protocol: Protocol, labels: np.ndarray, subsets: Sequence[Subset] = ()) -> list[Line]:
    """All probes, those of each condition, those of each easy or hard subset; all of these for each group.

    labels: identities of the images. subsets: `chosen` is of the protocol's probes; missing probes are in none.

    Raises:
        UserError: for a line without a probe whose identity is in its gallery, or with a gallery of one identity:
            named, before anything is embedded.
    """
    everything = np.ones(len(protocol.probes), bool)
    groups = [("", np.ones(len(protocol.gallery), bool), everything)]
    if protocol.groups is not None:
        groups = [
            (name, protocol.groups[0] == name, protocol.groups[1] == name) for name in _groups(protocol)
        ]
    kinds = [(ALL, everything)]
    if protocol.conditions is not None:
        kinds += [(name, protocol.conditions == name) for name in _conditions(protocol)]
    count = len(kinds)
    kinds += [(f"{part.name} ({part.rule})", part.chosen) for part in subsets]
    lines = []
    for group, in_gallery, of_group in groups:
        for k, (kind, chosen) in enumerate(kinds):
            missing = [
                condition
                for condition, other in protocol.missing
                if other == group and (k == 0 or (k < count and condition == kind))
            ]
            name = kind if not group else group if kind == ALL else f"{group}, {kind}"
            line = Line(name, np.flatnonzero(in_gallery), np.flatnonzero(of_group & chosen), len(missing))
            _check(line, protocol, labels)
            lines.append(line)
    return lines


def _conditions(protocol: Protocol) -> list[str]:
    """Their names, also of those whose probes are all missing; a probe without one ('') is in no condition."""
    names = {*protocol.conditions.tolist(), *(condition for condition, _ in protocol.missing)}
    return sorted(names - {""})


def _groups(protocol: Protocol) -> list[str]:
    """Their names, also of those that are missing."""
    return sorted({*np.concatenate(protocol.groups).tolist(), *(group for _, group in protocol.missing)})


def _check(line: Line, protocol: Protocol, labels: np.ndarray) -> None:
    identities = np.unique(labels[protocol.gallery[line.gallery]])
    known = np.isin(labels[protocol.probes[line.probes]], identities)
    if not known.size:
        missing = f", and {line.missing} missing" if line.missing else ""
        raise UserError(
            f"probes, condition {line.condition!r}: expected one probe or more, got none{missing}"
        )
    if not known.any():
        raise UserError(
            f"probes, condition {line.condition!r}: expected identities of the gallery, got {known.size} probes "
            f"of others; rank-k needs a probe whose identity is in the gallery"
        )
    if identities.size < 2:
        raise UserError(
            f"gallery, condition {line.condition!r}: expected two identities or more, got {identities.size}"
        )


def identify(
    embed: Embed,
    faces: Records | Faces,
    protocol: Protocol,
    sizes: Sequence[int | None] = SIZES,
    **options: Any,
) -> dict[str, Any]:
    """The results alone of `examine`."""
    return examine(embed, faces, protocol, sizes, **options)[0]


def examine(
    embed: Embed,
    faces: Records | Faces,
    protocol: Protocol,
    sizes: Sequence[int | None] = SIZES,
    *,
    both_sizes: Sequence[int] = (),
    subsets: Sequence[Subset] = (),
    flip: bool = False,
    batch: int = 64,
    fars: Sequence[float] = FARS,
    progress: Progress = no_progress,
) -> tuple[dict[str, Any], list[Evidence]]:
    """Rank-1, rank-5, TAR at FAR over all probe-gallery pairs, and their distributions.

    Args:
        sizes: resolutions of the probes in pixels, None for the images as they are; the gallery as it is.
        both_sizes: resolutions of probes and gallery alike, in pixels: two hard images are compared, as the
            student distributions compare them.
        subsets: easy and hard probes.
        flip: False by default, unlike verification: one embedding of one image, as a deployed search does it.

    Returns:
        dict with set, gallery, gallery_identities, probes, results and, where the protocol has two conditions or more,
        averages. results: one entry for each size (of probes, of gallery) and each line of `lines_of`, with size (of
        the probes: 'full' or pixels), gallery_size ('full' or pixels), condition ('all' or its name), probes (those
        that are there), missing (those that are not: not found), outside_gallery (probes left out of rank-k), rank1,
        rank5 (0..1) and the keys of `summarise`.
        averages: for each size (and group) the means of rank1 and rank5 over the conditions.

        And what stands behind each entry, in the same order.
    """
    if isinstance(faces, Records):
        faces = RecordFaces(faces)
    lines = lines_of(protocol, faces.labels, subsets)
    embedded = functools.partial(embed_faces, embed, faces, flip=flip, batch=batch, progress=progress)
    as_it_is = embedded(protocol.gallery) if sizes else None
    results, evidence = [], []
    for size in dict.fromkeys([*sizes, *both_sizes]):
        probes = embedded(protocol.probes, size)
        for gallery_size in [side for side, asked in ((None, sizes), (size, both_sizes)) if size in asked]:
            gallery = as_it_is if gallery_size is None else embedded(protocol.gallery, gallery_size)
            shown = Sizes(size, gallery_size)
            for line in lines:
                rows, columns = protocol.probes[line.probes], protocol.gallery[line.gallery]
                found = search(
                    gallery[line.gallery],
                    faces.labels[columns],
                    probes[line.probes],
                    faces.labels[rows],
                    fars,
                )
                results.append(_entry(found, line, shown, fars))
                title = title_of(results[-1])
                evidence.append(_evidence(found, line, title, faces, rows, columns, shown))
    result = {
        "set": faces.name,
        "gallery": len(protocol.gallery),
        "gallery_identities": int(np.unique(faces.labels[protocol.gallery]).size),
        "probes": len(protocol.probes),
        "results": results,
    }
    averages = _averages(protocol, results)
    return ({**result, "averages": averages} if averages else result), evidence


def title_of(entry: dict[str, Any]) -> str:
    """'full size', '14 x 14 pixels, gallery too, d1': the line of an entry of results or averages."""
    condition = entry.get("condition", ALL)
    return size_in_words(entry["size"], entry["gallery_size"], condition, unit="{0} x {0} pixels")


def size_in_words(
    size: int | str, gallery_size: int | str = "full", condition: str = ALL, *, unit: str = "{0} px"
) -> str:
    """What was compared: '24 px', '24 px, gallery too', 'full size, frontal'."""
    where = "full size" if size == "full" else unit.format(size)
    where += "" if gallery_size == "full" else ", gallery too"
    return where if condition == ALL else f"{where}, {condition}"


def _entry(found: Search, line: Line, sizes: Sizes, fars: Sequence[float]) -> dict[str, Any]:
    ranks = found.ranks[found.ranks > 0]
    rates = found.rates
    return {
        "size": sizes.probe or "full",
        "gallery_size": sizes.gallery or "full",
        "condition": line.condition,
        "probes": int(found.ranks.size),
        "missing": line.missing,
        "outside_gallery": int(found.ranks.size - ranks.size),
        **{f"rank{k}": float(np.count_nonzero(ranks <= k) / (ranks.size + line.missing)) for k in RANKS},
        **in_words(rates.negatives, rates.positives, fars, rates.tar_at_far(), rates.eer()),
    }


def _evidence(
    found: Search,
    line: Line,
    title: str,
    faces: Faces,
    rows: np.ndarray,
    columns: np.ndarray,
    sizes: Sizes,
) -> Evidence:
    """rows, columns: positions of the line's probes and gallery images."""
    ranks = found.ranks[found.ranks > 0]
    by_rank = np.cumsum(np.bincount(ranks)) / (ranks.size + line.missing)
    identities = int(np.unique(faces.labels[columns]).size)
    at = np.unique(np.geomspace(1, identities, CURVE_POINTS).astype(np.int64))
    cmc = at, by_rank[np.minimum(at, len(by_rank) - 1)]
    failures = []
    for kind, place, score, rival in (
        (REJECTED, found.own, found.own_score, found.other_score),
        (ACCEPTED, found.other, found.other_score, found.own_score),
    ):
        wrong = np.flatnonzero(found.ranks > 1)
        worst = wrong[np.argsort(score[wrong] if kind == REJECTED else -score[wrong], kind="stable")]
        for i in worst[:FAILURES].tolist():
            probe, candidate = int(rows[i]), int(columns[place[i]])
            names = faces.describe(probe), faces.describe(candidate)
            load = functools.partial(_pair, faces, probe, candidate, sizes)
            failures.append(Failure(kind, float(score[i]), float(rival[i]), names, load))
    rates = found.rates
    genuine = _genuine(found, faces, rows, columns, sizes)
    return Evidence(title, rates.negatives, rates.positives, rates.curve(), cmc, tuple(failures), genuine)


def _genuine(found: Search, faces: Faces, rows: np.ndarray, columns: np.ndarray, sizes: Sizes) -> Genuine:
    """The probes whose identity is in the gallery, each against the best of another person."""
    probes = np.flatnonzero(found.ranks > 0)

    def places(i: int) -> tuple[int, int, int]:
        p = probes[i]
        return int(rows[p]), int(columns[found.own[p]]), int(columns[found.other[p]])

    def images(i: int) -> tuple[np.ndarray, ...]:
        probe, *candidates = places(i)
        return (
            _face(faces, probe, sizes.probe),
            *(_face(faces, candidate, sizes.gallery) for candidate in candidates),
        )

    return Genuine(
        found.own_score[probes],
        found.other_score[probes],
        found.ranks[probes] == 1,
        ("probe", "mate in the gallery", "another person, the most alike"),
        lambda i: tuple(map(faces.describe, places(i))),
        images,
    )


def _pair(faces: Faces, probe: int, candidate: int, sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    return _face(faces, probe, sizes.probe), _face(faces, candidate, sizes.gallery)


def _averages(protocol: Protocol, results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the conditions, of each size and group, as in the last column of the paper's Table 3."""
    if protocol.conditions is None:
        return []
    conditions = _conditions(protocol)
    groups = [""] if protocol.groups is None else _groups(protocol)
    averages = []
    for size, gallery in dict.fromkeys((entry["size"], entry["gallery_size"]) for entry in results):
        of_size = [e for e in results if (e["size"], e["gallery_size"]) == (size, gallery)]
        for group in groups:
            names = [f"{group}, {condition}" if group else condition for condition in conditions]
            entries = [e for e in of_size if e["condition"] in names]
            if len(entries) > 1:
                means = {f"rank{k}": float(np.mean([e[f"rank{k}"] for e in entries])) for k in RANKS}
                averages.append(
                    {"size": size, "gallery_size": gallery, "group": group or None, "over": names, **means}
                )
    return averages
