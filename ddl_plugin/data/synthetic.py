"""The embedded data set: drawn faces in InsightFace's files, with their true yaw and resolution.

A folder of it holds

    train.rec .idx property    training identities, labels 0..identities-1
    attributes.npz             record, yaw, pitch, roll (degrees), resolution (pixels), identity
    val.rec .idx               other identities, labels 0..validation-1
    val_attributes.npz         the same columns; `identity` counts on from the training identities
    easy.bin hard.bin          verification pairs of val.rec: both |yaw| < 10, both |yaw| > 45 degrees
    identification.csv         gallery: one frontal image per identity of val.rec; probes: the other easy, and the hard
    dataset.json               what it was made from; written last

Every identity has its own random stream, so the files do not depend on the number of processes.
"""

from __future__ import annotations

import csv
import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from ddl_plugin.cli import write_json
from ddl_plugin.data.attributes import AttributeTable
from ddl_plugin.data.records import Records, RecordWriter
from ddl_plugin.data.synthetic_face import Head, draw_conditions
from ddl_plugin.errors import UserError

IDENTITIES, IMAGES = 240, 16
MIN_IDENTITIES, MIN_IMAGES = 8, 8
EASY_YAW, HARD_YAW, MAX_YAW = 10.0, 45.0, 75.0  # degrees
FOLDS, PAIRS_PER_FOLD = 10, 30  # of each kind: the same person, two persons

_KIND, _VERSION = "ddl_plugin synthetic faces", 1
_DESCRIPTION = "dataset.json"
_COLUMNS = ("yaw", "pitch", "roll", "resolution", "identity")


def validation_identities(identities: int) -> int:
    """A third as many as for training, and enough for ten folds."""
    return max(MIN_IDENTITIES, identities // 3)


def generate(
    folder: str | os.PathLike,
    *,
    identities: int = IDENTITIES,
    images: int = IMAGES,
    seed: int = 0,
    processes: int | None = None,
    progress: bool = True,
    force: bool = False,
) -> dict:
    """Write the data set into `folder` and return what its dataset.json says.

    Complete or absent: it is written beside `folder` and then renamed. A folder that already holds this very
    data set is left as it is; one that holds a differently made one is replaced only with `force`; one with
    anything else never.

    Args:
        identities: for training, >= 8; a third as many others are drawn for validation.
        images: per identity, >= 8; half of them with |yaw| < 10 degrees, about a third with |yaw| > 45.
        seed: >= 0; same seed and counts, same files.
        processes: default: as many as this process may use processors.
        progress: show a bar on stderr.

    Takes about 20 s of two processors by default, and 35 MB of disk.
    """
    settings = {"kind": _KIND, "version": _VERSION, "identities": identities, "images": images, "seed": seed}
    for name, low in (("identities", MIN_IDENTITIES), ("images", MIN_IMAGES), ("seed", 0)):
        if settings[name] < low:
            raise UserError(f"{name}: expected a whole number >= {low}, got {settings[name]}")
    folder = Path(folder)
    found = _found(folder)
    if found is not None and settings.items() <= found.items():
        return found
    _refuse(folder, found, settings, force)
    with _complete_or_absent(folder) as part:
        counts = _write(part, settings, processes or len(os.sched_getaffinity(0)), progress)
        write_json(part / _DESCRIPTION, settings | counts)
    return settings | counts


def ensure(folder: str | os.PathLike) -> dict:
    """The description of the data set in `folder`, however many identities; made with the defaults if absent."""
    folder = Path(folder)
    found = _found(folder)
    if found is not None and found.get("version") == _VERSION:
        return found
    return generate(folder)


def contact_sheet(folder: str | os.PathLike, *, rows: int = 12) -> np.ndarray:
    """The first `rows` training identities, one a row, by rising yaw: uint8 (112 * rows, 112 * images, 3) RGB."""
    records = Records(folder)
    yaw = AttributeTable.load(Path(folder) / "attributes.npz").column("yaw", records.keys)
    lines = []
    for label in range(min(rows, records.num_classes)):
        mine = np.flatnonzero(records.labels == label)
        lines.append(np.hstack(records.images(mine[np.argsort(yaw[mine])])))
    return np.vstack(lines)


# -- the folder --------------------------------------------------------------------------------------


def _found(folder: Path) -> dict | None:
    """The description of the data set in `folder`, or None if there is none of this kind."""
    try:
        description = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return description if isinstance(description, dict) and description.get("kind") == _KIND else None


def _refuse(folder: Path, found: dict | None, settings: dict, force: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if found is None:
        what = "a folder with other files" if folder.is_dir() else "a file"
        raise UserError(
            f"{folder}: expected a new folder or one with a synthetic data set, got {what}; name another one"
        )
    if not force:
        differs = ", ".join(
            f"{name} {found.get(name)} instead of {value}"
            for name, value in settings.items()
            if found.get(name) != value
        )
        raise UserError(
            f"{folder}: expected no data set or the same one, got one with {differs}; "
            "use --force to replace it, or name another folder"
        )


@contextmanager
def _complete_or_absent(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` that takes its place when the block ends well and vanishes otherwise."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part"))
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written: {error.strerror}; give another folder or make room"
        ) from error
    try:
        yield part
        part.chmod(0o755)
        if folder.exists():
            old = part.with_suffix(".old")
            folder.rename(old)
            part.rename(folder)
            shutil.rmtree(old)
        else:
            part.rename(folder)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written: {error.strerror}; give another folder or make room"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


# -- drawing -----------------------------------------------------------------------------------------


def draw_yaws(rng: np.random.Generator, images: int) -> np.ndarray:
    """Degrees, float64 (images,), in random order: half below 10, 5/16 (at least 3) above 45, the rest between."""
    easy = images // 2
    hard = max(3, round(images * 5 / 16))
    sizes = np.concatenate(
        [
            rng.uniform(0, EASY_YAW - 0.5, easy),
            rng.uniform(HARD_YAW + 0.5, MAX_YAW, hard),
            rng.uniform(EASY_YAW, HARD_YAW, images - easy - hard),
        ]
    )
    return rng.permutation(sizes * rng.choice([-1.0, 1.0], images))


def draw_person(task: tuple[int, int, int]) -> tuple[list[bytes], np.ndarray]:
    """(seed, identity, images) -> JPEG files and their attributes, float64 (images, 5) in the order of the table."""
    seed, identity, images = task
    rng = np.random.default_rng([seed, identity])
    head = Head(rng)
    files, rows = [], np.empty((images, len(_COLUMNS)))
    for row, yaw in zip(rows, draw_yaws(rng, images), strict=True):
        c = draw_conditions(rng, yaw)
        picture = cv2.cvtColor(head.render(c), cv2.COLOR_RGB2BGR)
        files.append(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, c.jpeg])[1].tobytes())
        row[:] = c.yaw, c.pitch, c.roll, c.resolution, identity
    return files, rows


def _start_worker() -> None:
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle


@contextmanager
def _people(processes: int):
    """A `map` that keeps the order, over `processes` processes."""
    if processes == 1:
        yield map
        return
    # Not forked: the caller may have MXNet's threads running.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker)
    try:
        yield pool.map
    except BrokenProcessPool as error:
        raise UserError(
            "a drawing process ended early: expected memory for it, and a main script that may be imported again "
            "(if __name__ == '__main__'); or call with processes=1"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


# -- the files ---------------------------------------------------------------------------------------


def _write(folder: Path, settings: dict, processes: int, progress: bool) -> dict:
    seed, images, training = (settings[name] for name in ("seed", "images", "identities"))
    validation = validation_identities(training)
    tasks = [(seed, identity, images) for identity in range(training + validation)]
    with _people(processes) as each:
        bar = tqdm(
            each(draw_person, tasks),
            total=len(tasks),
            unit="person",
            desc="drawing",
            disable=None if progress else True,
        )
        people = iter(bar)
        train_rows = _write_records(folder, "train", itertools.islice(people, training))
        val_rows = _write_records(folder, "val", people)
    _save_attributes(folder / "attributes.npz", train_rows)
    _save_attributes(folder / "val_attributes.npz", val_rows)
    yaw, identity = np.abs(val_rows[:, 0]), val_rows[:, 4].astype(int)
    rng = np.random.default_rng([seed, training + validation])
    records = Records(folder / "val.rec")
    pairs = {}
    for name, chosen in (("easy", yaw < EASY_YAW), ("hard", yaw > HARD_YAW)):
        pairs[f"{name}_pairs"] = _write_pairs(
            folder / f"{name}.bin", records, np.flatnonzero(chosen), identity, rng
        )
    _write_protocol(folder / "identification.csv", val_rows)
    return {
        "validation_identities": validation,
        "train_images": len(train_rows),
        "validation_images": len(val_rows),
        **pairs,
    }


def _write_records(folder: Path, name: str, people: Iterable[tuple[list[bytes], np.ndarray]]) -> np.ndarray:
    """Write the persons to `name`.rec; returns their attributes."""
    table = []
    with RecordWriter(folder, name) as writer:
        for label, (files, rows) in enumerate(people):
            for file in files:
                writer.add(file, label)
            table.append(rows)
    return np.concatenate(table)


def _save_attributes(path: Path, rows: np.ndarray) -> None:
    columns = dict(zip(_COLUMNS, rows.T, strict=True))
    for name in ("resolution", "identity"):
        columns[name] = columns[name].astype(np.int64)
    AttributeTable(columns=columns, keys=np.arange(1, len(rows) + 1)).save(path)


def choose_pairs(identity: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows, int64 (n, 2), and bool (n,) whether of one person: ten folds, in each n/20 same, then n/20 other.

    Every pair is listed once. At most 30 of each kind a fold; fewer where there are not as many of one person.
    """
    first, second = np.triu_indices(len(identity), 1)
    same = identity[first] == identity[second]
    count = min(PAIRS_PER_FOLD, int(same.sum()) // FOLDS, int((~same).sum()) // FOLDS)
    blocks = []
    for kind in (same, ~same):
        take = rng.choice(np.flatnonzero(kind), count * FOLDS, replace=False)
        blocks.append(take.reshape(FOLDS, count))
    take = np.stack(blocks, axis=1).ravel()
    return np.column_stack([first[take], second[take]]), same[take]


def _write_pairs(path: Path, records: Records, chosen: np.ndarray, identity: np.ndarray, rng) -> int:
    """InsightFace's verification set: a pickle of the files, two a pair, and the list of answers."""
    pairs, same = choose_pairs(identity[chosen], rng)
    content = ([records.payload(i) for i in chosen[pairs].ravel()], same.tolist())
    path.write_bytes(pickle.dumps(content, protocol=4))
    return len(same)


def _write_protocol(path: Path, rows: np.ndarray) -> None:
    """The gallery image of an identity is its easy one of the highest resolution."""
    yaw, resolution, identity = np.abs(rows[:, 0]), rows[:, 3], rows[:, 4]
    easy = np.flatnonzero(yaw < EASY_YAW)
    best = easy[np.lexsort((yaw[easy], -resolution[easy], identity[easy]))]
    gallery = best[np.unique(identity[best], return_index=True)[1]]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["record", "role", "condition"])
        for kind, role, chosen in (
            ("easy", "gallery", gallery),
            ("easy", "probe", np.setdiff1d(easy, gallery)),
            ("hard", "probe", np.flatnonzero(yaw > HARD_YAW)),
        ):
            writer.writerows([i + 1, role, kind] for i in chosen)
