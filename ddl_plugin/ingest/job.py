"""Data sets written from other sources: by several processes, in one order, resumable, and whole or not at all.

Work files lie in OUTPUT/train.part until the set is complete. A checkpoint says up to which image everything is
on the disk; a run that was ended goes on from there and writes the same bytes as one that was not.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ddl_plugin.cli import write_json
from ddl_plugin.data.attributes import AttributeTable
from ddl_plugin.data.records import header_record, image_record, range_record
from ddl_plugin.errors import UserError
from ddl_plugin.files import sha256
from ddl_plugin.ingest.align import open_detector, require_insightface
from ddl_plugin.ingest.listing import Listing, make_listing
from ddl_plugin.ingest.sources import Left
from ddl_plugin.ingest.treatment import OUTCOME, SKIPPED, STORED, TOO_FEW, Treatment, Worker
from ddl_plugin.ingest.workers import in_order, number_of_workers

WORK_FOLDER = "train.part"
REPORT = "report.json"
NAMES = "train_names.txt"
#: Attribute table with the column `face_size`, where something was aligned or resized.
SIZES = "train_size.npz"

_REC, _IDX, _PROPERTY = "train.rec", "train.idx", "property"
_PUBLISHED = (_REC, _PROPERTY, NAMES, SIZES, REPORT, _IDX)
_STATE, _OUTCOMES = "state.json", "outcomes.bin"
_ROWS_A_JOB = 64
_CHECKPOINT_SECONDS = 10.0
_FIRST = 5
_LINES_AT_A_TIME = 1 << 16


def write_records(
    sources: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    treatment: Treatment | None = None,
    root: str | os.PathLike | None = None,
    landmarks: str | os.PathLike | None = None,
    keep: str | os.PathLike | None = None,
    drop: str | os.PathLike | None = None,
    min_images: int = 1,
    workers: int | None = None,
    force: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write train.rec, .idx, property and train_names.txt into `output`; returns what report.json says.

    Labels are 0, 1, .. in the order of the sources' identities (by number where all names are numbers, else by
    name; those of a .rec by label), without gaps. The bytes written do not depend on `workers`.
    A run with the same arguments goes on where an earlier one was ended. A set that is there already is
    replaced with `force` alone, or left as it is where it was made from the same.
    root, landmarks, keep, drop, min_images: see `listing.make_listing`. say: told what an earlier run has done.
    Raises UserError.
    """
    output = Path(output)
    treatment = treatment or Treatment()
    workers = number_of_workers(workers)
    _check(sources, output, treatment, landmarks, min_images)
    work = output / WORK_FOLDER
    listed = {"root": root, "landmarks": landmarks, "keep": keep, "drop": drop, "min_images": min_images}
    try:
        work.mkdir(parents=True, exist_ok=True)
        with _locked(work), _swept(work):
            _publish_finished(work, output)
            listing = make_listing(sources, work, **listed)
            made_from = _made_from(listing, treatment, min_images)
            report = _already_made(output, made_from, force)
            if report is not None:
                say(f"{output / _REC} is there already, made from the same: nothing to do")
            else:
                done = _resumable(work, made_from, force)
                if done:
                    say(f"{work}: going on after {done} of {len(listing.rows)} images")
                writing = _Writing(work, listing, made_from, min_images, done)
                writing.run(treatment, workers, progress)
                report = writing.finish(treatment)
                _publish_finished(work, output)
            return report
    except OSError as error:
        raise UserError(
            f"{work}: cannot be written ({error.strerror or error}); make room and run the same command again: it "
            f"goes on where it stopped; {output / _REC} is as it was"
        ) from error


# -- before the work -------------------------------------------------------------------------------


def _check(sources, output: Path, treatment: Treatment, landmarks, min_images: int) -> None:
    if min_images < 1:
        raise UserError(f"--min-images: expected a whole number >= 1, got {min_images}")
    if not treatment.min_face >= 0:
        raise UserError(f"--min-face: expected a number of pixels >= 0, got {treatment.min_face}")
    if output.exists() and not output.is_dir():
        raise UserError(
            f"--output: expected a folder, got the file {output}; name a folder, which is made if need be"
        )
    resolved = [Path(source).resolve() for source in sources]
    twice = next((path for i, path in enumerate(resolved) if path in resolved[:i]), None)
    if twice is not None:
        raise UserError(f"SOURCE: expected each source once, got {twice} twice")
    for source in resolved:
        if output.resolve().is_relative_to(source) or (output / _REC).resolve() == source:
            raise UserError(
                f"--output: expected a folder of its own, got {output}, which holds or lies in {source}"
            )
    given = treatment.detector is not None, landmarks is not None
    if all(given):
        raise UserError("--detector, --landmarks: expected one of the two, got both; leave one out")
    if any(given) and not treatment.align:
        raise UserError("--detector, --landmarks: expected --align with it, got none; add --align")
    if treatment.align:
        require_insightface()
        if not any(given) and not any(Path(source).suffix == ".lst" for source in sources):
            raise UserError(
                "--align: expected --detector MODEL.onnx or --landmarks FILE, or a .lst with landmarks, got none"
            )
    if treatment.align and treatment.detector is not None:
        open_detector(treatment.detector)  # a mistake shows before the sources are listed


@contextmanager
def _swept(work: Path) -> Iterator[None]:
    """Remove the work folder at the end, unless it holds work that can be gone on with."""
    try:
        yield
    finally:
        if not (work / _STATE).exists():
            shutil.rmtree(work, ignore_errors=True)
            with suppress(OSError):  # the output, where nothing else is in it
                work.parent.rmdir()


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    folder = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UserError(
            f"--output: another run is writing {work.parent}; wait for it, or use another folder"
        ) from error
    finally:
        os.close(folder)


def _made_from(listing: Listing, treatment: Treatment, min_images: int) -> dict[str, Any]:
    return {
        "sources": [str(source.path.resolve()) for source in listing.sources],
        "images": len(listing.rows),
        "align": treatment.align,
        "detector": treatment.detector and sha256(treatment.detector),
        "resize": treatment.resize,
        "min_face": treatment.min_face,
        "min_images": min_images,
        "listed": listing.digest,
    }


def _difference(recorded: dict[str, Any], made_from: dict[str, Any]) -> str | None:
    """'min_face 20 instead of 0' for the first thing that differs."""
    for key, value in made_from.items():
        if recorded.get(key) != value:
            return f"{key} {recorded.get(key)!r} instead of {value!r}"
    return None


def _already_made(output: Path, made_from: dict[str, Any], force: bool) -> dict[str, Any] | None:
    """The report of the set in `output` where it was made from the same; UserError for another one."""
    if force or not (output / _REC).is_file():
        return None
    report = _read_json(output / REPORT)
    different = (
        _difference(report["made_from"], made_from) if "made_from" in report else "not made by this command"
    )
    if different is None and (output / _IDX).is_file():
        return report
    raise UserError(
        f"--output: {output} holds another data set ({different or 'without its .idx'}); "
        "use --force to replace it, or name another folder"
    )


def _resumable(work: Path, made_from: dict[str, Any], force: bool) -> int:
    """Rows done by an earlier run; UserError where that one made something else."""
    state = _read_json(work / _STATE)
    different = _difference(state.get("made_from", {}), made_from)
    if not state or (force and different):
        return 0
    if different:
        raise UserError(
            f"--output: {work} holds unfinished work ({different}); use --force to begin anew, or name another folder"
        )
    return int(state["rows"])


def _read_json(path: Path) -> dict[str, Any]:
    """Content of one of this module's files; nothing where it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


# -- the work --------------------------------------------------------------------------------------


class _Writing:
    """The .rec as it grows, in `work`: image records in the order of the listing's rows."""

    def __init__(self, work: Path, listing: Listing, made_from: dict[str, Any], min_images: int, done: int):
        self._work, self._listing, self._made_from = work, listing, made_from
        self._min_images = min_images
        self._begin(done)

    def _begin(self, done: int) -> None:
        """Open the files, cut to what the checkpoint vouches for."""
        for name in (_REC, _OUTCOMES):
            (self._work / name).touch()
        self._rec = (self._work / _REC).open("r+b")
        self._outcomes = (self._work / _OUTCOMES).open("r+b")
        before = np.fromfile(self._outcomes, OUTCOME, done)
        header = header_record(0, 0)  # rewritten when the counts are known
        self._row = len(before)
        self._at = len(header) + int(before["bytes"].sum(dtype=np.int64))
        identities = self._listing.rows["identity"][: self._row][before["bytes"] > 0]
        self._images = len(identities)
        self._identity = int(identities[-1]) if len(identities) else -1  # the one that is being written
        self._of_identity = int((identities == self._identity).sum())
        self._label = len(np.unique(identities)) - 1
        size = os.fstat(self._rec.fileno()).st_size
        if done and size < self._at:
            raise UserError(
                f"{self._work}: expected a {_REC} of {self._at} bytes, got {size}; delete the folder to begin anew"
            )
        self._outcomes.truncate(self._row * OUTCOME.itemsize)
        self._outcomes.seek(0, os.SEEK_END)
        self._rec.truncate(self._at)
        self._rec.write(header)
        self._rec.seek(0, os.SEEK_END)
        self._start = self._here()  # of the identity that is being written
        self._saved = time.monotonic()

    def run(self, treatment: Treatment, workers: int, progress: bool) -> None:
        rows = len(self._listing.rows)
        begins = range(self._row, rows, _ROWS_A_JOB)
        jobs = ((begin, min(begin + _ROWS_A_JOB, rows)) for begin in begins)
        arguments = (self._work, self._listing.sources, treatment)
        results = in_order(Worker, arguments, jobs, min(workers, len(begins)))
        with (
            closing(results),
            tqdm(
                total=rows,
                initial=self._row,
                desc="records",
                unit="image",
                disable=None if progress else True,
            ) as bar,
        ):
            try:
                for found, images in results:
                    self._add(found, images)
                    bar.update(len(found))
                    if time.monotonic() - self._saved > _CHECKPOINT_SECONDS:
                        self._checkpoint()
            except BaseException:
                with suppress(OSError, UserError):  # on a full disk the checkpoint before this one holds
                    self._checkpoint()
                raise
        self._end_identity()

    def _here(self) -> tuple[int, int, int]:
        return self._row, self._at, self._images

    def _add(self, found: np.ndarray, images: list[bytes]) -> None:
        waiting = iter(images)
        identities = self._listing.rows["identity"][self._row : self._row + len(found)].tolist()
        states = found["state"].tolist()
        for i, identity in enumerate(identities):
            if states[i] in STORED:
                if identity != self._identity:
                    self._end_identity()
                    self._identity, self._of_identity, self._label = identity, 0, self._label + 1
                    self._start = self._here()
                record = image_record(self._images + 1, self._label, next(waiting))
                found["bytes"][i] = len(record)
                self._rec.write(record)
                self._at += len(record)
                self._images += 1
                self._of_identity += 1
            self._outcomes.write(found[i].tobytes())
            self._row += 1

    def _end_identity(self) -> None:
        """Take the identity that was being written out again if too few of its images could be stored."""
        if not 0 < self._of_identity < self._min_images:
            return
        row, self._at, self._images = self._start
        self._rec.seek(self._at)
        self._rec.truncate()
        self._outcomes.seek(row * OUTCOME.itemsize)
        written = np.frombuffer(self._outcomes.read(), OUTCOME).copy()
        few = written["bytes"] > 0
        written["state"][few], written["bytes"][few] = TOO_FEW, 0
        self._outcomes.seek(row * OUTCOME.itemsize)
        self._outcomes.write(written.tobytes())
        self._label -= 1
        self._of_identity = 0

    def _checkpoint(self) -> None:
        """Vouch for what is written, but not for an identity that may have to be taken out again."""
        for file in (self._rec, self._outcomes):
            file.flush()
            os.fsync(file.fileno())
        rows = self._start[0] if 0 < self._of_identity < self._min_images else self._row
        write_json(self._work / _STATE, {"made_from": self._made_from, "rows": rows})
        self._saved = time.monotonic()

    # -- the end -----------------------------------------------------------------------------------

    def finish(self, treatment: Treatment) -> dict[str, Any]:
        """Complete the files in the work folder; they are the set from here on. Returns the report."""
        self._outcomes.flush()
        found = np.fromfile(self._work / _OUTCOMES, OUTCOME)
        stored = np.flatnonzero(found["bytes"])
        if not len(stored):
            (self._work / _STATE).unlink(missing_ok=True)
            reasons = _reasons(self._listing, found) | self._listing.left
            counts = ", ".join(f"{text}: {left.count}" for text, left in reasons.items())
            raise UserError(f"SOURCE: expected images to store, got none ({counts or 'no image at all'})")
        identities = self._listing.rows["identity"][stored]
        labels = np.cumsum(np.diff(identities, prepend=identities[0]) != 0)
        sizes = self._write_ranges(found["bytes"][stored], labels)
        self._write_idx(sizes)
        self._write_names(stored, labels)
        if treatment.align or treatment.resize:
            numbers = np.arange(1, len(stored) + 1, dtype=np.int64)
            known = found["face_size"][stored].astype(np.float64)
            known[known == 0] = np.nan
            AttributeTable(numbers, {"face_size": known}).save(self._work / SIZES)
        (self._work / _PROPERTY).write_text(f"{labels[-1] + 1},112,112\n")
        report = _report(self._listing, found, labels, self._made_from)
        write_json(self._work / REPORT, report)
        self._close()
        write_json(self._work / _STATE, {"made_from": self._made_from, "finished": True})
        return report

    def _write_ranges(self, sizes: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Add a record for each identity, and the counts to the first; bytes of all records, in their order."""
        bounds = np.append(np.flatnonzero(np.diff(labels, prepend=-1)) + 1, len(labels) + 1)
        count = len(bounds) - 1
        for i, (first, end) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
            self._rec.write(range_record(len(labels) + 1 + i, first, end))
        header = header_record(len(labels), count)
        self._rec.seek(0)
        self._rec.write(header)
        each = len(range_record(0, 0, 0))
        return np.concatenate([[len(header)], sizes.astype(np.int64), np.full(count, each)])

    def _write_idx(self, sizes: np.ndarray) -> None:
        offsets = np.cumsum(sizes) - sizes
        with _synced(self._work / _IDX) as file:
            for begin in range(0, len(offsets), _LINES_AT_A_TIME):
                part = offsets[begin : begin + _LINES_AT_A_TIME].tolist()
                file.write("".join(f"{begin + i}\t{at}\n" for i, at in enumerate(part)).encode())

    def _write_names(self, stored: np.ndarray, labels: np.ndarray) -> None:
        names = self._listing.identities
        with _synced(self._work / NAMES) as file:
            for begin in range(0, len(stored), _LINES_AT_A_TIME):
                part = slice(begin, begin + _LINES_AT_A_TIME)
                rows, label = stored[part], labels[part].tolist()
                identity = self._listing.rows["identity"][rows].tolist()
                lines = (
                    f"{begin + 1 + i}\t{label[i]}\t{names[identity[i]]}\t{source}\n"
                    for i, source in enumerate(self._listing.names(rows))
                )
                file.write("".join(lines).encode())

    def _close(self) -> None:
        for file in (self._rec, self._outcomes):
            file.flush()
            os.fsync(file.fileno())
            file.close()


@contextmanager
def _synced(path: Path):
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _publish_finished(work: Path, output: Path) -> None:
    """Give the files of a finished set their names, also where a run was ended in the midst of that.

    The .idx goes first and comes last: where it is there, it belongs to the .rec.
    """
    if not _read_json(work / _STATE).get("finished"):
        return
    if (work / _IDX).exists():
        (output / _IDX).unlink(missing_ok=True)
        if not (work / SIZES).exists() and (work / _REC).exists():
            (output / SIZES).unlink(missing_ok=True)
        for name in _PUBLISHED:
            if (work / name).exists():
                (work / name).replace(output / name)
    (work / _STATE).unlink()


# -- the report ------------------------------------------------------------------------------------


def _report(
    listing: Listing, found: np.ndarray, labels: np.ndarray, made_from: dict[str, Any]
) -> dict[str, Any]:
    each = np.bincount(labels)
    states = np.bincount(found["state"], minlength=256)
    stored = found["bytes"] > 0
    left = _reasons(listing, found) | listing.left
    notes = {
        "JPEG data damaged, stored all the same": _rows_left(listing, stored & found["damaged"]),
        "several faces, the largest and most central taken": _rows_left(
            listing, stored & (found["faces"] > 1)
        ),
    }
    return {
        "images": len(labels),
        "identities": len(each),
        "images_per_identity": {
            "min": int(each.min()),
            "median": float(np.median(each)),
            "max": int(each.max()),
        },
        "stored": {text: int(states[state]) for state, text in STORED.items() if states[state]},
        "notes": {text: _as_json(note) for text, note in notes.items() if note.count},
        "skipped": {text: _as_json(reason) for text, reason in left.items()},
        "made_from": made_from,
    }


def _reasons(listing: Listing, found: np.ndarray) -> dict[str, Left]:
    found_states = set(np.unique(found["state"]).tolist())
    return {
        text: _rows_left(listing, found["state"] == state)
        for state, text in SKIPPED.items()
        if state in found_states
    }


def _rows_left(listing: Listing, chosen: np.ndarray) -> Left:
    rows = np.flatnonzero(chosen)
    return Left(len(rows), list(listing.names(rows[:_FIRST])))


def _as_json(left: Left) -> dict[str, Any]:
    return {"count": left.count, "first": left.first}
