"""What data sets ship beside their images, and what users have: read into one attribute table by record number."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddl_plugin.annotation.names import Names
from ddl_plugin.data.attributes import RECORD, AttributeTable, made_by, read_columns, same_records, source
from ddl_plugin.errors import UserError
from ddl_plugin.files import reading

#: How a user's table may name images beside their record numbers; each needs the names file.
BY_NAME, BY_LABEL, BY_IDENTITY = "name", "label", "identity"
_WAYS = (RECORD, BY_NAME, BY_LABEL, BY_IDENTITY)

_VGG_IMAGE = re.compile(r"n\d{6}/\d{4}_\d{2}(?:\.jpg)?")
_VGG_POSES = ("frontal", "three-quarter", "profile")  # of the 30 lines of an identity, 10 each
_VGG_TEMPLATE = 5  # images

_SCFACE = re.compile(
    r"(?P<subject>\d{3})_(?:(?P<frontal>frontal)|(?P<side>[lr])(?P<turn>[1-4])"
    r"|cam(?P<camera>[1-7])_(?P<distance>[1-3])|(?P<night>cam8))(?:\.jpe?g)?",
    re.IGNORECASE,
)
_SCFACE_TURN = 22.5  # degrees from one rotated mug shot to the next
_SCFACE_INFRARED = (6, 7, 8)  # cameras

_COX_CAMERA = re.compile(r"(?:cam|video)([1-4])", re.IGNORECASE)
_COX_STILL = re.compile(r"(\d[\d_]*?)(?:_0000|_still)?", re.IGNORECASE)
_COX_SUBJECT = re.compile(r"\d[\d_]*")


@dataclass(frozen=True)
class Imported:
    table: AttributeTable
    listed: int  # rows of the sources
    missing: int  # of them those of no record: the data set was made without them
    records: str | None = (
        None  # the fingerprint of those whose numbers a table of the user's has, where it says so
    )


def import_vggface2(pose_list: str | os.PathLike, names: Names) -> Imported:
    """VGGFace2's test_posetemp_imglist.txt: `pose` (frontal, three-quarter, profile) and `template` (1, 2).

    For each of 368 identities of the test set it lists 30 images: 10 frontal, 10 three-quarter, 10 profile, each
    ten being two templates of 5.
    """
    path = Path(pose_list)
    images, poses, templates = _read_vggface2(path)
    rows = names.find(images, path)
    there = rows >= 0
    columns = {"pose": poses[there], "template": templates[there]}
    provenance = made_by("prepare attributes vggface2", sources=[source(path), source(names.path)])
    table = AttributeTable(names.keys[rows[there]], columns, path, provenance)
    return Imported(table, len(images), int((~there).sum()))


def _read_vggface2(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The images listed, bytes (n,), with the pose and the template that their place in the list says."""
    images, lines = _vggface2_lines(path)
    people = np.array([image[:7] for image in images])
    begins = np.flatnonzero(people[1:] != people[:-1]) + 1
    begins = np.concatenate([[0], begins])
    counts = np.diff(np.append(begins, len(images)))
    lines_of_person = 2 * _VGG_TEMPLATE * len(_VGG_POSES)
    wrong = np.flatnonzero(counts != lines_of_person)
    if wrong.size:
        count = counts[wrong[0]]
        ages = "; 20 lines are those of the list of ages" if count == 20 else ""
        raise UserError(
            f"{path}: line {lines[begins[wrong[0]]]}: expected {lines_of_person} lines of one identity (10 frontal, "
            f"10 three-quarter, 10 profile), got {count}; give test_posetemp_imglist.txt{ages}"
        )
    place = np.arange(len(images)) % lines_of_person
    poses = np.array(_VGG_POSES)[place // (2 * _VGG_TEMPLATE)]
    return np.array(images), poses, place // _VGG_TEMPLATE % 2 + 1


def _vggface2_lines(path: Path) -> tuple[list[bytes], list[int]]:
    images, lines = [], []
    with reading(path), path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            if not _VGG_IMAGE.fullmatch(line.strip()):
                raise UserError(
                    f"{path}: line {number}: expected an image such as 'n000001/0019_01.jpg', got "
                    f"{line.strip()[:80]!r}"
                )
            images.append(line.strip().encode())
            lines.append(number)
    if not images:
        raise UserError(f"{path}: expected lines such as 'n000001/0019_01.jpg', got an empty file")
    return images, lines


def import_scface(names: Names) -> Imported:
    """SCface's file names: `subject`, `kind`, `camera`, `distance`, `infrared`, `turn`.

    kind: surveillance, frontal or rotated (mug shots). camera: 1..5, 6 and 7 (infrared), 8 (the infrared mug shot);
    0 for the other mug shots. distance: 1 (4.20 m), 2 (2.60 m), 3 (1.00 m); 0 for mug shots, whose distance is not
    one of these. turn: |yaw| of mug shots by their names, 0 to 90 degrees; NaN for surveillance images.
    """
    fields = [
        ("subject", "f8"), ("kind", "U12"), ("camera", "f8"), ("distance", "f8"), ("infrared", "?"), ("turn", "f8"),
    ]  # fmt: skip
    return _by_file_name(names, "scface", fields, _scface)


def _scface(name: str) -> tuple | None:
    match = _SCFACE.fullmatch(name.rsplit("/", 1)[-1])
    if not match:
        return None
    subject = float(match["subject"])
    if match["camera"]:
        camera = int(match["camera"])
        return (
            subject, "surveillance", camera, float(match["distance"]), camera in _SCFACE_INFRARED, np.nan,
        )  # fmt: skip
    if match["side"]:
        return subject, "rotated", 0, 0, False, _SCFACE_TURN * int(match["turn"])
    return subject, "frontal", 8 if match["night"] else 0, 0, bool(match["night"]), 0


def import_cox(names: Names) -> Imported:
    """COX's paths: `subject`, `source` (still or video), `camera` (of videos: 1..3, in COX-S2V 1..4; 0 of stills).

    Videos are .../cam1/SUBJECT/... or .../video1/SUBJECT/..., stills are in a folder with 'still' in its name,
    or end in _0000 or _still.
    """
    return _by_file_name(names, "cox", [("subject", "U32"), ("source", "U5"), ("camera", "f8")], _cox)


def _cox(name: str) -> tuple | None:
    *folders, file = name.split("/")
    for i, folder in enumerate(folders):
        camera = _COX_CAMERA.fullmatch(folder)
        if camera:
            subject = folders[i + 1] if i + 1 < len(folders) else ""
            return (subject, "video", float(camera[1])) if _COX_SUBJECT.fullmatch(subject) else None
    stem = file.rsplit(".", 1)[0]
    still = _COX_STILL.fullmatch(stem)
    if still and (still[1] != stem or any("still" in folder.lower() for folder in folders)):
        return still[1], "still", 0.0
    return None


def _by_file_name(
    names: Names, kind: str, fields: list[tuple[str, str]], parse: Callable[[str], tuple | None]
) -> Imported:
    """The table whose rows follow from the names alone. parse: values of `fields`, None for another name."""
    rows = np.empty(len(names.names), fields)
    for i, name in enumerate(names.names):
        values = parse(name.decode("utf-8", "replace"))
        if values is None:
            examples = {
                "scface": "001_cam1_1.jpg, 001_frontal.jpg or 001_L1.jpg",
                "cox": "video/cam1/SUBJECT/FRAME.jpg, COX-S2V-Video/video1/SUBJECT/FRAME.jpg or still/SUBJECT.jpg",
            }
            raise UserError(
                f"{names.path}: record {names.keys[i]}: expected a name such as {examples[kind]}, got "
                f"{name.decode('utf-8', 'replace')!r}"
            )
        rows[i] = values
    columns = {name: rows[name] for name, _ in fields}
    provenance = made_by(f"prepare attributes {kind}", sources=[source(names.path)])
    return Imported(AttributeTable(names.keys, columns, names.path, provenance), len(rows), 0)


def import_tables(paths: Sequence[str | os.PathLike], names: Names | None = None) -> Imported:
    """Tables of the user's (.csv, .npz, .parquet) joined into one: a row for each record that any of them knows.

    A table says which images it means by a column `record`, or, with `names`, `name` (of the file), `label` or
    `identity` (a row for all images of a person). Records that a table does not know are holes in its columns.

    Raises:
        UserError: for tables without such a column, columns that two tables have, and True/False columns that would
        have holes.
    """
    parts = [_join_records(Path(path), names) for path in paths]
    keys = np.unique(np.concatenate([part.table.keys for part in parts]))
    columns: dict[str, np.ndarray] = {}
    for part in parts:
        at, missing = part.table.rows_of(keys)
        for name, values in part.table.columns.items():
            if name in columns:
                raise UserError(
                    f"{part.table.path}: column {name!r}: expected it in one of the tables alone; leave it out"
                )
            columns[name] = _with_holes(part.table.path, name, values[at], missing)
    sources = [_table_source(path, part.table) for path, part in zip(paths, parts, strict=True)]
    if names is not None:
        sources.append(source(names.path))
    provenance = made_by("prepare attributes table", **_common_records(parts), sources=sources)
    table = AttributeTable(keys, columns, provenance=provenance)
    return Imported(table, sum(part.listed for part in parts), sum(part.missing for part in parts))


def _common_records(parts: Sequence[Imported]) -> dict[str, str]:
    """The records that the tables say they are of; UserError where these are not the same."""
    said = [part for part in parts if part.records is not None]
    for part in said:
        if not same_records(part.records, said[0].records):
            raise UserError(
                f"{part.table.path}: expected a table of the same records as {said[0].table.path}, got one that was "
                "made from others, whose numbers mean other images; make both from one data set"
            )
    return {"records": said[0].records} if said else {}


def _table_source(path: str | os.PathLike, table: AttributeTable) -> dict:
    about = {} if table.provenance is None else {"provenance": table.provenance}
    return {**source(path), **about}


def _join_records(path: Path, names: Names | None) -> Imported:
    """One table by record number."""
    columns, provenance = read_columns(path, one_of=_WAYS, texts=(BY_NAME, BY_IDENTITY))
    way = next(way for way in _WAYS if way in columns)
    asked = columns.pop(way)
    if way == RECORD:
        records = (provenance or {}).get("records")
        return Imported(AttributeTable(asked, columns, path, provenance), len(asked), 0, records)
    if names is None:
        raise UserError(
            f"{path}: expected a column {RECORD!r}, got {way!r}: which records these are the names file says; add --names"
        )
    if way == BY_NAME:
        rows = names.find(np.char.encode(asked.astype(str), "utf-8"), path)
        there = rows >= 0
        keys = names.keys[rows[there]]
        columns = {name: values[there] for name, values in columns.items()}
        return Imported(AttributeTable(keys, columns, path, provenance), len(asked), int((~there).sum()))
    return _join_persons(path, names, way, asked, columns, provenance)


def _join_persons(
    path: Path,
    names: Names,
    way: str,
    asked: np.ndarray,
    columns: dict[str, np.ndarray],
    provenance: dict | None,
) -> Imported:
    """A table with a row for each person: every image gets its person's."""
    own = names.labels if way == BY_LABEL else names.identities
    if own is None:
        raise UserError(
            f"{names.path}: expected an identity for each record (four columns, or names with a folder), got "
            f"neither; join {path} by {BY_LABEL}"
        )
    if way == BY_IDENTITY:
        asked = np.char.encode(asked.astype(str), "utf-8")
    elif asked.dtype.kind not in "iuf":
        raise UserError(f"{path}: column {way!r}: expected whole numbers, got texts; join by {BY_IDENTITY}")
    order = np.argsort(asked, kind="stable")
    ordered = asked[order]
    twice = np.flatnonzero(ordered[1:] == ordered[:-1])
    if twice.size:
        person = ordered[twice[0]]
        person = person.decode() if isinstance(person, bytes) else f"{person:g}"
        raise UserError(f"{path}: column {way!r}: expected each person once, got {person} again")
    at = np.minimum(np.searchsorted(ordered, own), len(ordered) - 1)
    there = ordered[at] == own
    if not there.any():
        example = own[0].decode() if way == BY_IDENTITY else own[0]
        raise UserError(
            f"{path}: column {way!r}: expected those of {names.path}, such as {example}, got none of them"
        )
    rows = order[at[there]]
    columns = {name: values[rows] for name, values in columns.items()}
    table = AttributeTable(names.keys[there], columns, path, provenance)
    return Imported(table, len(asked), len(asked) - len(np.unique(rows)))


def _with_holes(path: Path | str, name: str, values: np.ndarray, missing: np.ndarray) -> np.ndarray:
    if not missing.any():
        return values
    if values.dtype.kind == "b":
        raise UserError(
            f"{path}: column {name!r}: expected True or False for each record of the other tables, got none for "
            f"{int(missing.sum())}; save it as numbers or texts, which may have holes"
        )
    values = values.copy()
    values[missing] = "" if values.dtype.kind == "U" else np.nan
    return values
