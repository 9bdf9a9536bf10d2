"""Who is searched for in whom: gallery and probes from a CSV file.

A CSV has the columns `role` (gallery or probe), perhaps `condition` (the kind of a probe) and `group` (a probe is
compared with the gallery of its own group alone), and says which images it means by one of `record` (number in the
.idx) or `file`. The protocols of SCface and COX are in `named_protocols`.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddl_plugin.annotation.names import Names
from ddl_plugin.data.records import Records
from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.faces import FileFaces
from ddl_plugin.files import write_text
from ddl_plugin.settings import unknown_keys

GALLERY, PROBE = "gallery", "probe"
ALL = "all"  # the condition of all probes, in results
_COLUMNS = ("record", "file", "identity", "role", "condition", "group")
_SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Protocol:
    """Which images are the gallery and which are the probes.

    groups: of the gallery images and of the probes; each probe is compared with its own group alone.
    missing: (condition, group) of each probe that there should be and is not: it counts as not found.
    """

    gallery: np.ndarray  # int64 (G,) positions
    probes: np.ndarray  # int64 (P,) positions
    conditions: np.ndarray | None = None  # str (P,), what kind of probe each one is
    groups: tuple[np.ndarray, np.ndarray] | None = None  # str (G,), str (P,)
    missing: tuple[tuple[str, str], ...] = ()


def first_others(records: Records, probes: int = 1) -> Protocol:
    """Gallery: the first image of each identity that has two or more; probes: up to `probes` of those after it."""
    order = np.argsort(records.labels, kind="stable")
    labels = records.labels[order]
    starts = np.flatnonzero(np.concatenate(([True], labels[1:] != labels[:-1])))
    sizes = np.diff(starts, append=len(labels))
    starts, sizes = starts[sizes >= 2], sizes[sizes >= 2]
    if starts.size < 2:
        raise UserError(
            f"{records.path}: expected two identities or more with two images each, got {starts.size}; "
            f"use another .rec, or name gallery and probes with --protocol"
        )
    own = np.minimum(sizes - 1, probes)
    within = np.arange(own.sum()) - np.repeat(np.cumsum(own) - own, own)
    chosen = np.repeat(starts + 1, own) + within
    return Protocol(order[starts].astype(np.int64), order[chosen].astype(np.int64))


@dataclass(frozen=True)
class _Rows:
    """The lines of a CSV, a list a column that it has; lines: their numbers."""

    path: Path
    lines: list[int]
    columns: dict[str, list[str]]

    def texts(self, name: str) -> np.ndarray | None:
        return np.array(self.columns[name], dtype=str) if name in self.columns else None


def load_protocol(
    path: str | os.PathLike, records: Records, names: Names | None = None, max_missing: int = 0
) -> Protocol:
    """Read a CSV about the images of a .rec, by `record`, or by `file` with the names file of the data set.

    max_missing: probes by `file` that are not in the .rec may be that many; they count as not found.

    Raises:
        UserError: unknown or missing columns, another role, a record that the .rec has not or that is listed
            twice (with its line), a gallery of fewer than two identities, no probe, more probes missing.
    """
    rows = _read_rows(Path(path))
    if "file" in rows.columns:
        if names is None:
            raise UserError(
                f"{path}: expected a column 'record', got 'file': which records these are the names file says; add "
                "--names FILE, or leave --rec out to read the files themselves"
            )
        found = names.find(np.char.encode(rows.texts("file"), "utf-8"), path)
        keys = np.where(found >= 0, names.keys[found], -1)
    else:
        keys = _record_numbers(rows)
    place = np.minimum(np.searchsorted(records.keys, keys), len(records) - 1)
    there = records.keys[place] == keys
    if "record" in rows.columns and not there.all():
        missing = keys[~there]
        raise UserError(
            f"{path}: expected record numbers of {records.path.name} (1..{records.keys[-1]}), got {missing.size} "
            f"others, the first is {missing[0]}"
        )
    _require_once(rows, np.where(there, keys, -1), "record")
    return _protocol(rows, place, there, records.labels, max_missing)


def load_file_protocol(
    path: str | os.PathLike, root: str | os.PathLike | None = None, max_missing: int = 0
) -> tuple[FileFaces, Protocol]:
    """Read a CSV with the columns `file` (below `root`, or else the CSV's folder) and `identity`.

    The files are looked for, and read when their turn comes. Raises UserError as `load_protocol` does.
    """
    path = Path(path)
    rows = _read_rows(path)
    for name, remedy in (("file", "give --rec REC for record numbers"), ("identity", "it names the person")):
        if name not in rows.columns:
            raise UserError(f"{path}: expected a column {name!r} where there is no --rec, got none; {remedy}")
    empty = [line for line, name in zip(rows.lines, rows.columns["identity"], strict=True) if not name]
    if empty:
        raise UserError(
            f"{path}, line {empty[0]}: identity: expected a name, got none ({len(empty)} such lines)"
        )
    root = path.parent if root is None else Path(root)
    files = rows.columns["file"]
    there = np.array([(root / file).is_file() for file in files], dtype=bool)
    normal = [os.path.normpath(file) for file in files]
    _require_once(rows, np.unique(normal, return_inverse=True)[1], "file")
    faces = FileFaces(path.stem, root, files, rows.texts("identity"))
    return faces, _protocol(rows, np.arange(len(files)), there, faces.labels, max_missing)


def _protocol(
    rows: _Rows, place: np.ndarray, there: np.ndarray, labels: np.ndarray, max_missing: int
) -> Protocol:
    """there: bool (n,), whether the image of each line exists, at `place`."""
    roles = rows.texts("role")
    conditions, groups = rows.texts("condition"), rows.texts("group")
    _require_named(rows, conditions, groups)
    shown = rows.columns.get("file") or rows.columns["record"]
    lost = np.flatnonzero(~there)
    require_few_missing(
        str(rows.path),
        [shown[i] for i in lost if roles[i] == PROBE],
        [shown[i] for i in lost if roles[i] == GALLERY],
        max_missing,
    )
    is_gallery, is_probe = there & (roles == GALLERY), there & (roles == PROBE)
    identities = np.unique(labels[place[is_gallery]]).size
    if identities < 2 or not is_probe.any():
        raise UserError(
            f"{rows.path}: expected two gallery identities or more and one probe or more, got {identities} and "
            f"{int(is_probe.sum())}"
        )
    missing = tuple(
        ("" if conditions is None else str(conditions[i]), "" if groups is None else str(groups[i]))
        for i in lost
    )
    return Protocol(
        place[is_gallery].astype(np.int64),
        place[is_probe].astype(np.int64),
        None if conditions is None else conditions[is_probe],
        None if groups is None else (groups[is_gallery], groups[is_probe]),
        missing,
    )


def _require_named(rows: _Rows, conditions: np.ndarray | None, groups: np.ndarray | None) -> None:
    """UserError for a condition that has the name of all probes, and for an image without a group."""
    for values, wrong, what in (
        (conditions, ALL, f"a condition of another name than {ALL!r}, which is that of all probes"),
        (groups, "", "a group of every image"),
    ):
        places = np.flatnonzero(values == wrong) if values is not None else np.empty(0, int)
        if places.size:
            raise UserError(
                f"{rows.path}, line {rows.lines[places[0]]}: expected {what}, got {wrong!r} ({places.size} such lines)"
            )


def require_few_missing(where: str, probes: Sequence[str], gallery: Sequence[str], max_missing: int) -> None:
    """UserError, with the first names, for a gallery image that is missing, and for too many probes."""
    if gallery:
        raise UserError(
            f"{where}: expected every gallery image, got {_first(gallery)} missing; find or align them again"
        )
    if len(probes) > max_missing:
        raise UserError(
            f"{where}: expected every probe, got {_first(probes)} missing; find or align them again, or count them "
            f"as not found with --max-missing {len(probes)}"
        )


def _first(names: Sequence[str]) -> str:
    more = ", .." if len(names) > _SHOWN else ""
    return f"{len(names)} ({', '.join(names[:_SHOWN])}{more})"


def _require_once(rows: _Rows, numbers: np.ndarray, what: str) -> None:
    """numbers: what is the same for the same image, -1 for an image that is not there."""
    values, first, counts = np.unique(numbers, return_index=True, return_counts=True)
    twice = np.flatnonzero((counts > 1) & (values >= 0))
    if twice.size:
        i = twice[np.argmin(first[twice])]
        again = np.flatnonzero(numbers == values[i])[1]
        name = rows.columns[what][first[i]] if what in rows.columns else values[i]
        raise UserError(
            f"{rows.path}: expected every {what} once, in the gallery or as a probe, got {what} {name} "
            f"{counts[i]} times (lines {rows.lines[first[i]]} and {rows.lines[again]}), and "
            f"{twice.size - 1} others"
        )


def _record_numbers(rows: _Rows) -> np.ndarray:
    for line, number in zip(rows.lines, rows.columns["record"], strict=True):
        if not (number.isascii() and number.isdigit()) or len(number) > 18:
            raise UserError(f"{rows.path}, line {line}: record: expected a record number, got {number!r}")
    return np.array(rows.columns["record"], dtype=np.int64)


def _read_rows(path: Path) -> _Rows:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            unknown_keys(str(path), dict.fromkeys(columns), _COLUMNS)
            _require_columns(path, columns)
            lines: list[int] = []
            values: dict[str, list[str]] = {name: [] for name in columns}
            for row in reader:
                lines.append(reader.line_num)
                for name in columns:
                    values[name].append((row[name] or "").strip())
                role = values["role"][-1]
                if role not in (GALLERY, PROBE):
                    raise UserError(
                        f"{path}, line {reader.line_num}: role: expected gallery or probe, got {role!r}"
                    )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a protocol: {error}") from error
    if not lines:
        raise UserError(f"{path}: expected a line for each image below the header, got none")
    return _Rows(path, lines, values)


def _require_columns(path: Path, columns: list[str]) -> None:
    ways = [name for name in ("record", "file") if name in columns]
    if len(ways) == 2:
        raise UserError(f"{path}: expected 'record' or 'file' to name the images, got both columns")
    for name in (*(ways or ["record"]), "role"):
        if name not in columns:
            raise UserError(
                f"{path}: expected the columns record (or file), role and, if wanted, condition; got no {name!r}"
            )


def write_protocol(path: str | os.PathLike, protocol: Protocol, records: Records) -> None:
    """Write a protocol without missing probes as the CSV that `load_protocol` reads."""
    lines = []
    for role, positions, k in ((GALLERY, protocol.gallery, 0), (PROBE, protocol.probes, 1)):
        for i, key in enumerate(records.keys[positions].tolist()):
            cells = [str(key), role]
            if protocol.conditions is not None:
                cells.append(str(protocol.conditions[i]) if k else "")
            if protocol.groups is not None:
                cells.append(str(protocol.groups[k][i]))
            lines.append(",".join(cells))
    header = ["record", "role"]
    header += ["condition"] if protocol.conditions is not None else []
    header += ["group"] if protocol.groups is not None else []
    write_text(path, "\n".join([",".join(header), *lines]) + "\n")
