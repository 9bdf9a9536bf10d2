"""The protocols of SCface (resolution) and COX (race) over a .rec and the table of `prepare attributes`.

Both have training and test subjects: those of a file, or drawn by a seed. A protocol is of the test subjects alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddl_plugin.data.attributes import AttributeTable
from ddl_plugin.data.records import Records
from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.protocols import Protocol, require_few_missing
from ddl_plugin.files import reading

SCFACE_SUBJECTS = 130
SCFACE_TRAINING = 50  # subjects that the paper (4.1) fine-tunes on
SCFACE_CAMERAS = (1, 2, 3, 4, 5)  # of visible light
SCFACE_DISTANCES = (1, 2, 3)  # 4.20 m, 2.60 m, 1.00 m
_SPLIT = 211  # what random numbers are for: part of their key beside the seed


@dataclass(frozen=True)
class Split:
    """Names of the subjects, as the attribute table has them."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    drawn: str  # how, in words


@dataclass(frozen=True)
class Subjects:
    """file: names the test subjects, one a line; else `train` says how many are for training: a number of subjects,
    or a share below 1 (of each group); seed: which."""

    file: str | os.PathLike | None = None
    train: float | None = None
    seed: int = 0


def scface(
    records: Records, table: AttributeTable, subjects: Subjects, max_missing: int = 0
) -> tuple[Protocol, Split]:
    """SCface as in the paper's 4.1 and Table 3.

    Gallery: the visible frontal mug shot of each test subject. Probes: cameras 1 to 5 (visible light) at distances 1, 2
    and 3, the conditions d1 (4.20 m), d2 (2.60 m) and d3 (1.00 m): 400 each for 80 subjects. The infrared cameras and
    the rotated mug shots are not used.

    A probe that is not there counts as not found, if there are at most `max_missing`.
    """
    columns = _columns(table, records, ("subject", "kind", "camera", "distance", "infrared"), "scface")
    names = _as_texts(columns["subject"], lambda number: f"{number:03.0f}")
    frontal = (columns["kind"] == "frontal") & ~_true(columns["infrared"])
    surveillance = (columns["kind"] == "surveillance") & np.isin(columns["camera"], SCFACE_CAMERAS)
    train = subjects.train
    if train is None and subjects.file is None:
        count = np.unique(names).size
        if count != SCFACE_SUBJECTS:
            raise UserError(
                f"{table.path}: expected SCface's {SCFACE_SUBJECTS} subjects, of which {SCFACE_TRAINING} are for "
                f"training, got {count}; name those to test with --test-subjects FILE, or say how many are not with "
                "--train-subjects N (0: none)"
            )
        train = SCFACE_TRAINING
    split = _split(names, None, subjects, train, str(table.path))
    testing = np.isin(names, split.test)
    gallery, probes = np.flatnonzero(frontal & testing), np.flatnonzero(surveillance & testing)
    _require_one_identity(records, names, np.concatenate([gallery, probes]))
    without = sorted(set(split.test) - set(names[gallery]))
    found = set(
        zip(
            names[probes].tolist(),
            columns["camera"][probes].astype(int).tolist(),
            columns["distance"][probes].astype(int).tolist(),
            strict=True,
        )
    )
    lost = [
        (subject, camera, distance)
        for subject in split.test
        for distance in SCFACE_DISTANCES
        for camera in SCFACE_CAMERAS
        if (subject, camera, distance) not in found
    ]
    require_few_missing(
        str(records.path),
        [f"{subject}_cam{camera}_{distance}" for subject, camera, distance in lost],
        [f"{subject}_frontal" for subject in without],
        max_missing,
    )
    conditions = np.array([f"d{distance:.0f}" for distance in columns["distance"][probes]])
    return Protocol(gallery, probes, conditions, missing=tuple((f"d{d}", "") for _, _, d in lost)), split


def cox(
    records: Records, table: AttributeTable, subjects: Subjects, group: str | None = None
) -> tuple[Protocol, Split]:
    """COX's stills against its videos (V2S), of the test subjects, within each group (the paper's 4.1: race).

    Gallery: the stills; probes: the frames of the videos, the conditions cam1, cam2, cam3. Half of the subjects, of
    each group, are for training where nothing else is said.
    """
    columns = _columns(table, records, ("subject", "source", "camera"), "cox")
    names = _as_texts(columns["subject"], lambda number: f"{number:.0f}")
    groups = None if group is None else group_texts(table, group, records.keys)
    split = _split(
        names, groups, subjects, 0.5 if subjects.train is None else subjects.train, str(table.path)
    )
    testing = np.isin(names, split.test)
    gallery = np.flatnonzero((columns["source"] == "still") & testing)
    probes = np.flatnonzero((columns["source"] == "video") & testing)
    if not gallery.size or not probes.size:
        raise UserError(
            f"{table.path}: expected stills and videos of the test subjects, got {gallery.size} and {probes.size}"
        )
    _require_one_identity(records, names, np.concatenate([gallery, probes]))
    without = sorted(set(names[probes]) - set(names[gallery]))
    require_few_missing(str(records.path), [], [f"the still of {name}" for name in without], 0)
    conditions = np.array([f"cam{camera:.0f}" for camera in columns["camera"][probes]])
    return Protocol(
        gallery, probes, conditions, None if groups is None else (groups[gallery], groups[probes])
    ), split


def group_texts(table: AttributeTable, name: str, keys: np.ndarray) -> np.ndarray:
    """The group of each record, as text: a column of texts, truth values or numbers."""
    return _as_texts(table.column(name, keys), lambda number: f"{number:g}")


def _columns(
    table: AttributeTable, records: Records, names: tuple[str, ...], kind: str
) -> dict[str, np.ndarray]:
    lacking = [name for name in names if name not in table.columns]
    if lacking:
        raise UserError(
            f"{table.path}: expected the columns that 'prepare attributes {kind}' writes ({', '.join(names)}), got no "
            f"{lacking[0]!r}; make the table with it, from the names file of this data set"
        )
    return {name: table.column(name, records.keys) for name in names}


def _true(values: np.ndarray) -> np.ndarray:
    return values.astype(bool) if values.dtype.kind in "bf" else np.isin(values, ("True", "true", "1"))


def _as_texts(values: np.ndarray, number: Callable[[float], str]) -> np.ndarray:
    if values.dtype.kind == "f":
        return np.array([number(value) for value in values.tolist()], dtype=str)
    return values.astype(str)


def _require_one_identity(records: Records, names: np.ndarray, used: np.ndarray) -> None:
    """UserError where a subject has images of several labels, or a label images of several subjects."""
    pairs = np.unique(
        np.stack([np.unique(names[used], return_inverse=True)[1], records.labels[used]]), axis=1
    )
    for row, what in ((0, "subject"), (1, "label")):
        values, counts = np.unique(pairs[row], return_counts=True)
        if (counts > 1).any():
            value = values[np.argmax(counts)]
            name = np.unique(names[used])[value] if row == 0 else value
            other = "labels" if row == 0 else "subjects"
            raise UserError(
                f"{records.path}: expected one identity for each subject, got {what} {name} with "
                f"{counts.max()} {other}; make the records again from a folder for each subject"
            )


def _split(
    names: np.ndarray, groups: np.ndarray | None, subjects: Subjects, train: float | None, where: str
) -> Split:
    everyone = np.unique(names)
    if subjects.file is not None:
        test = _read_subjects(Path(subjects.file), everyone)
        chosen = set(test)
        return Split(tuple(n for n in everyone.tolist() if n not in chosen), test, Path(subjects.file).name)
    rng = np.random.default_rng((subjects.seed, _SPLIT))
    if train < 1:
        parts = _by_group(names, groups, everyone)
        drawn = [name for part in parts for name in rng.permutation(part)[: int(train * len(part))].tolist()]
    else:
        if groups is not None:
            raise UserError(
                f"--train-subjects: expected a share below 1 with --group, for each group alike, got {train:g}"
            )
        if train > len(everyone) - 2:
            raise UserError(
                f"--train-subjects: expected at most {len(everyone) - 2} of {len(everyone)} subjects, so that two are "
                f"left for the test, got {train:g}"
            )
        drawn = rng.permutation(everyone)[: int(train)].tolist()
    chosen = set(drawn)
    test = tuple(name for name in everyone.tolist() if name not in chosen)
    if len(test) < 2:
        raise UserError(f"{where}: expected two test subjects or more, got {len(test)} of {len(everyone)}")
    return Split(tuple(sorted(drawn)), test, f"seed {subjects.seed}" if drawn else "all subjects")


def _by_group(names: np.ndarray, groups: np.ndarray | None, everyone: np.ndarray) -> list[np.ndarray]:
    """The subjects of each group. UserError for one with several."""
    if groups is None:
        return [everyone]
    pairs = np.unique(np.stack([names, groups]), axis=1)
    subjects, counts = np.unique(pairs[0], return_counts=True)
    if (counts > 1).any():
        name = subjects[np.argmax(counts)]
        raise UserError(
            f"--group: expected one group for each subject, got {', '.join(pairs[1][pairs[0] == name])} for {name}"
        )
    return [pairs[0][pairs[1] == group] for group in np.unique(pairs[1])]


def _read_subjects(path: Path, everyone: np.ndarray) -> tuple[str, ...]:
    """Names of a file, one a line, as the table has them; numbers may lack zeros in front."""
    with reading(path):
        try:
            given = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}: expected names of subjects, one a line, got a file that is no text"
            ) from error
    given = [name for name in given if name]
    known = {_plain(name): name for name in everyone.tolist()}
    unknown = [name for name in given if _plain(name) not in known]
    if unknown or not given:
        raise UserError(
            f"{path}: expected names of subjects such as {everyone.tolist()[0]!r}, one a line, got {len(unknown)} others of "
            f"{len(given)}" + (f", the first is {unknown[0]!r}" if unknown else "")
        )
    twice = [name for name in dict.fromkeys(given) if given.count(name) > 1]
    if twice:
        raise UserError(f"{path}: expected every subject once, got {twice[0]!r} more than once")
    return tuple(sorted(known[_plain(name)] for name in given))


def _plain(name: str) -> str:
    return name.lstrip("0") or "0" if name.isdigit() else name
