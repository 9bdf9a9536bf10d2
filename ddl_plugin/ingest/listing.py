"""What a data set is to be made from: every image of the sources, in the order in which it will be written.

A source is a folder of identity folders, an image list, a .lst of InsightFace or MXNet, or a .rec. One row of
numbers stands for an image; paths lie in a file. Nothing that grows with the data set is a Python list.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddl_plugin.errors import UserError, did_you_mean
from ddl_plugin.ingest.landmarks import file_landmarks
from ddl_plugin.ingest.sources import (
    LISTED_TWICE,
    NOTHING,
    PATHS_FILE,
    TOO_FEW,
    Left,
    RecordedNames,
    Rows,
    Source,
    entries,
    lines,
    listed_paths,
    name_hashes,
    no_points,
    open_source,
    path_of,
    read_source,
    shown,
)

ROWS_FILE, LANDMARKS_FILE = "rows.npy", "landmarks.npy"


@dataclass(frozen=True)
class Listing:
    """rows: ROW (n,), sorted by identity; identities: their names; left: why what else was found is no row."""

    sources: tuple[Source, ...]
    identities: tuple[str, ...]
    rows: np.ndarray
    folder: Path
    left: dict[str, Left]
    digest: str
    recorded: dict[int, RecordedNames]  # by the number of the source

    def names(self, rows: np.ndarray) -> Iterator[str]:
        """How a person knows these images: the path below the source; for a record the name that is recorded
        beside its .rec, or else 'train.rec:12'."""
        with (self.folder / PATHS_FILE).open("rb") as paths:
            for row in entries(self.rows[rows]):
                if row.source in self.recorded:
                    yield self.recorded[row.source].image(row.number)
                else:
                    yield shown(path_of(paths, row))


def make_listing(
    sources: Sequence[str | os.PathLike],
    folder: Path,
    *,
    root: str | os.PathLike | None = None,
    landmarks: str | os.PathLike | None = None,
    keep: str | os.PathLike | None = None,
    drop: str | os.PathLike | None = None,
    min_images: int = 1,
) -> Listing:
    """List the images of `sources` and write the list into `folder`, which exists.

    root: what paths in lists are relative to; the folder of the list where None.
    landmarks: a file with five points per image. keep, drop: files that name identities, one a line.
    min_images: identities with fewer images are not to be stored.
    Raises UserError for sources that cannot be read or understood.
    """
    found = tuple(open_source(Path(source), root) for source in sources)
    recorded = {number: RecordedNames(source.path) for number, source in enumerate(found) if source.is_rec}
    left: dict[str, Left] = {}
    names: list[str] = []
    blocks: list[np.ndarray] = []
    points: list[np.ndarray] = []
    with (folder / PATHS_FILE).open("wb") as paths:
        for number, source in enumerate(found):
            rows = Rows(number, paths)
            found_names = read_source(source, rows, left, recorded.get(number))
            block = rows.rows()
            block["identity"] += len(names)
            prefix = f"{number + 1}/" if len(found) > 1 else ""
            names.extend(prefix + name for name in found_names)
            blocks.append(block)
            points.append(rows.points())
    rows, points = _joined(blocks, points)
    _mark_listed_twice(rows, folder, found)
    if landmarks is not None:
        points = file_landmarks(Path(landmarks), rows, folder, found)
    chosen = np.ones(len(names), bool)
    for path, wanted in ((keep, True), (drop, False)):
        if path is not None:
            chosen &= _named(Path(path), names) == wanted
    kept = chosen[rows["identity"]]
    if not kept.all():
        left["identity not chosen"] = Left(int((~kept).sum()))
    order = np.flatnonzero(kept)[np.argsort(rows["identity"][kept], kind="stable")]
    rows, points = rows[order], points[order] if len(points) else points
    counts = np.bincount(rows["identity"][rows["known"] == NOTHING], minlength=len(names))
    rows["known"][(rows["known"] == NOTHING) & (counts < min_images)[rows["identity"]]] = TOO_FEW
    _save(folder / ROWS_FILE, rows)
    _save(folder / LANDMARKS_FILE, points)
    return Listing(found, tuple(names), rows, folder, left, _digest(folder, names), recorded)


def _joined(blocks: list[np.ndarray], points: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    rows = np.concatenate(blocks)
    if not any(len(part) for part in points):
        return rows, no_points(0)
    full = [part if len(part) else no_points(len(block)) for block, part in zip(blocks, points, strict=True)]
    return rows, np.concatenate(full)


def _mark_listed_twice(rows: np.ndarray, folder: Path, sources: tuple[Source, ...]) -> None:
    """An image that lists name more than once counts where it is named first."""
    lists = np.array([not source.is_rec and not source.path.is_dir() for source in sources])
    listed = np.flatnonzero(lists[rows["source"]])
    full = (
        os.path.normpath(os.path.join(sources[source].root, path))  # noqa: PTH118 - bytes
        for source, path in listed_paths(rows[listed], folder)
    )
    first = np.unique(name_hashes(full), return_index=True)[1]
    again = np.ones(len(listed), bool)
    again[first] = False
    rows["known"][listed[again]] = LISTED_TWICE


def _named(path: Path, names: list[str]) -> np.ndarray:
    """Which identities a file names, one a line: bool (identities,)."""
    wanted = {shown(line.strip()) for _, line in lines(path)}
    if not wanted:
        raise UserError(f"{path}: expected names of identities, one a line, got none")
    unknown = sorted(wanted.difference(names))
    if unknown:
        others = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UserError(
            f"{path}: expected names of identities, one a line, got {unknown[0]!r}{others}, "
            f"which none of the {len(names)} is called{_nearest(unknown[0], names)}"
        )
    return np.array([name in wanted for name in names], bool)


def _nearest(name: str, names: list[str]) -> str:
    hint = did_you_mean(name, names)
    return hint if len(hint) < 200 else f"; they are such as {names[0]!r}"  # where none is near it lists all


def _save(path: Path, array: np.ndarray) -> None:
    """A .npy file. Not by np.save, which does not notice that a disk is full."""
    with path.open("wb") as file:
        header = np.lib.format.header_data_from_array_1_0(array)
        np.lib.format.write_array_header_2_0(file, header)
        file.write(np.ascontiguousarray(array).view(np.uint8).data)


def _digest(folder: Path, names: list[str]) -> str:
    """Hash of everything listed, to know whether a resumed run lists the same."""
    digest = hashlib.blake2b("\n".join(names).encode(), digest_size=16)
    for name in (ROWS_FILE, PATHS_FILE, LANDMARKS_FILE):
        with (folder / name).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
