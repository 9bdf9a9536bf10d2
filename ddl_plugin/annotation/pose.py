"""Head pose of every image of a data set by ONNX models: yaw, pitch and roll in degrees, as an attribute table.

Signs, whatever the model: yaw > 0 where the face is turned to the left of the picture, pitch > 0 where it looks
up, roll > 0 where it leans clockwise.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from ddl_plugin.annotation.bin_images import BinImages
from ddl_plugin.annotation.pose_models import PoseModel
from ddl_plugin.data.attributes import AttributeTable, made_by, require_output
from ddl_plugin.data.records import DamagedRecordError, Records
from ddl_plugin.data.shards import shard_path, shard_paths, shard_range
from ddl_plugin.errors import UserError
from ddl_plugin.files import write_text

COLUMNS = ("yaw", "pitch", "roll")
#: Images of one unit of work. Parts for several machines are cut between units, so that a model sees the same
#: batches, and gives the same last bits, whoever does the work.
UNIT = 256
#: |yaw| in degrees, of the summary.
YAW_EDGES = (0, 10, 20, 30, 45, 60, 90, 180)

_TO_DO, _DONE, _UNREADABLE, _NO_POSE = range(4)  # the fourth column of the work file
_ROW = 4 * 4  # bytes


@dataclass(frozen=True)
class PoseResult:
    table: AttributeTable
    unreadable: np.ndarray  # int64 record numbers of images that cannot be decoded: NaN in the table
    without_pose: np.ndarray  # int64 record numbers for which a model gives NaN: NaN in the table
    found: int  # images that an interrupted run had done already
    seconds: float  # for the other ones

    @property
    def images_per_second(self) -> float:
        return (len(self.table.keys) - self.found) / max(self.seconds, 1e-9)


def estimate_pose(
    records: Records | BinImages,
    models: Sequence[PoseModel],
    output: str | os.PathLike,
    *,
    shard: tuple[int, int] | None = None,
    threads: int = 1,
    progress: bool = False,
) -> PoseResult:
    """Write the pose of every image to the table `output`; of several models, the mean of their angles.

    What is done is kept in `output`.part: killed and started again, it goes on there, and ends in the same bytes.

    Args:
        shard: (i, n) for part i of n, written to `shard_path(output, i, n)`; see `merge_poses`.
        threads: images are decoded and models run by as many at a time.

    Raises:
        UserError: where `output` cannot be written, where another run is working on it, and where the work
        file was made from other records or models.
    """
    output = Path(output)
    require_output(output)
    models = sorted(models, key=lambda model: model.source["sha256"])  # whose mean has no order
    keys = np.sort(np.concatenate([records.keys, records.damaged]))
    provenance = made_by(
        "prepare pose",
        records=records.fingerprint(),
        images=len(keys),
        models=[model.source for model in models],
    )
    begin, end = 0, len(keys)
    if shard is not None:
        begin, end = _part(len(keys), *shard)
        output = shard_path(output, *shard)
        provenance["shard"] = list(shard)
    started = time.perf_counter()
    with _WorkFile(output, provenance, begin, end) as work:
        todo = work.units_to_do()
        found = end - begin - sum(stop - start for start, stop in todo)
        hidden = None if progress else True  # None: shown in a terminal alone
        bar = tqdm(total=end - begin, initial=found, desc="pose", unit="image", disable=hidden)
        with bar:
            for start, rows in _poses(records, keys, models, todo, threads):
                work.write(start, rows)
                bar.update(len(rows))
        result = _result(keys[begin:end], work.rows(), provenance, found, time.perf_counter() - started)
        result.table.save(output)
        work.remove()
    return result


def merge_poses(output: str | os.PathLike) -> AttributeTable:
    """Join the parts of `output` into the table that one run would have written.

    Raises:
        UserError: for parts that are missing, or made from other records or models than the first one.
    """
    require_output(output)
    paths = shard_paths(output)
    tables = [AttributeTable.load(path) for path in paths]
    whole = _whole(tables[0])
    for i, (path, table) in enumerate(zip(paths, tables, strict=True)):
        if whole is None or _whole(table) != whole or table.provenance["shard"] != [i, len(paths)]:
            raise UserError(
                f"--merge: expected parts of one table by 'prepare pose', from the same records and models, got "
                f"another in {path}; make it again with --shard {i}/{len(paths)}"
            )
    keys = np.concatenate([table.keys for table in tables])
    columns = {name: np.concatenate([table.columns[name] for table in tables]) for name in COLUMNS}
    if len(keys) != whole["images"]:
        raise UserError(f"--merge: expected the poses of {whole['images']} images, got {len(keys)}")
    merged = AttributeTable(keys, columns, provenance=whole)
    merged.save(output)
    return merged


def _part(images: int, i: int, n: int) -> tuple[int, int]:
    """[begin, end) of part i of n: whole units."""
    units = -(-images // UNIT)
    if n > units:
        raise UserError(
            f"--shard: expected at most {units} parts of {images} images ({UNIT} at a time), got {n} parts"
        )
    begin, end = shard_range(units, i, n)
    return begin * UNIT, min(end * UNIT, images)


def yaw_counts(yaw: np.ndarray) -> np.ndarray:
    """Images with |yaw| from each of YAW_EDGES to below the next; NaN counts nowhere."""
    return np.histogram(np.abs(yaw[np.isfinite(yaw)]), YAW_EDGES)[0]


def _whole(table: AttributeTable) -> dict[str, Any] | None:
    """A part's provenance without what makes it a part; None where it is no part of a pose table."""
    about = dict(table.provenance or {})
    if about.pop("shard", None) is None or set(table.columns) != set(COLUMNS) or "images" not in about:
        return None
    return about


def _result(
    keys: np.ndarray, rows: np.ndarray, provenance: dict[str, Any], found: int, seconds: float
) -> PoseResult:
    columns = {name: rows[:, i].astype(np.float64) for i, name in enumerate(COLUMNS)}
    return PoseResult(
        table=AttributeTable(keys, columns, provenance=provenance),
        unreadable=keys[rows[:, 3] == _UNREADABLE],
        without_pose=keys[rows[:, 3] == _NO_POSE],
        found=found,
        seconds=seconds,
    )


def _poses(
    records: Records | BinImages,
    keys: np.ndarray,
    models: Sequence[PoseModel],
    units: list[tuple[int, int]],
    threads: int,
) -> Iterator[tuple[int, np.ndarray]]:
    """(start, rows of the work file) of each unit [start, stop) of `keys`, in their order."""
    with ThreadPoolExecutor(threads, "pose") as pool:
        pending: deque = deque()
        try:
            for start, stop in units:
                pending.append((start, pool.submit(_unit, records, keys[start:stop], models)))
                if len(pending) > threads:
                    begun, unit = pending.popleft()
                    yield begun, unit.result()
            while pending:
                begun, unit = pending.popleft()
                yield begun, unit.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _unit(records: Records | BinImages, keys: np.ndarray, models: Sequence[PoseModel]) -> np.ndarray:
    rows = np.full((len(keys), 4), np.nan, np.float32)
    rows[:, 3] = _UNREADABLE
    images, read = [], []
    for row, key in enumerate(keys):
        position = int(np.searchsorted(records.keys, key))
        if position == len(records) or records.keys[position] != key:
            continue  # left out when the records were opened
        try:
            images.append(cv2.cvtColor(records.image(position), cv2.COLOR_RGB2BGR))
            read.append(row)
        except DamagedRecordError:
            continue
    if images:
        angles = np.mean([model(images) for model in models], axis=0, dtype=np.float64)
        finite = np.isfinite(angles).all(axis=1)
        rows[read, :3] = np.where(finite[:, None], angles, np.nan)
        rows[read, 3] = np.where(finite, _DONE, _NO_POSE)
    return rows


class _WorkFile:
    """OUTPUT.part, a .npy (images, 4) float32: yaw, pitch, roll and how far the image is; OUTPUT.part.json says
    what it is made from. A context manager: one process at a time.

    A row is either whole or still zeros, whenever the process or the machine stops.
    """

    def __init__(self, output: Path, provenance: dict[str, Any], begin: int, end: int):
        self._path = output.with_name(output.name + ".part")
        self._about = self._path.with_name(self._path.name + ".json")
        self._made_from = provenance
        self._begin, self._end = begin, end
        self._file: int | None = None

    def __enter__(self) -> _WorkFile:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            self._lock()
            if not self._resumes():
                self._start()
        except OSError as error:
            self.__exit__()
            raise self._unwritable(error) from error
        except UserError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"--output: another run is working on {self._path}; wait for it, or use another --output"
            ) from error

    def _resumes(self) -> bool:
        """Whether the file holds work of this kind; `UserError` where it holds other work."""
        if not self._about.is_file():
            return False
        try:
            recorded = json.loads(self._about.read_text(encoding="utf-8"))
        except ValueError:
            recorded = None
        size = os.fstat(self._file).st_size
        if recorded != self._made_from or size < (self._end - self._begin) * _ROW:
            raise UserError(
                f"--output: {self._path} holds unfinished work from other records or models; delete it, or use "
                "another --output"
            )
        self._offset = size - (self._end - self._begin) * _ROW
        return True

    def _start(self) -> None:
        os.ftruncate(self._file, 0)
        shape = (self._end - self._begin, 4)
        with os.fdopen(os.dup(self._file), "wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            self._offset = file.tell()
            file.truncate(self._offset + shape[0] * _ROW)
        # Without its .json the file counts for nothing: it is written last.
        write_text(self._about, json.dumps(self._made_from, indent=2) + "\n")

    def units_to_do(self) -> list[tuple[int, int]]:
        """[start, stop) of whole units."""
        waiting = self.rows()[:, 3] == _TO_DO
        starts = range(self._begin, self._end, UNIT)
        units = ((start, min(start + UNIT, self._end)) for start in starts)
        return [
            (start, stop) for start, stop in units if waiting[start - self._begin : stop - self._begin].any()
        ]

    def write(self, start: int, rows: np.ndarray) -> None:
        """Not through a map: on a full disk that ends the process, where a write raises an error."""
        data, at = rows.tobytes(), self._offset + (start - self._begin) * _ROW
        try:
            if os.pwrite(self._file, data, at) < len(data):
                raise OSError(28, "No space left on device")
        except OSError as error:
            raise self._unwritable(error) from error

    def rows(self) -> np.ndarray:
        """float32 (images, 4)"""
        shape = (self._end - self._begin, 4)
        return np.array(np.memmap(self._path, np.float32, "r", self._offset, shape))

    def remove(self) -> None:
        self._about.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"{self._path}: cannot be written ({error.strerror or error}); what is done is kept: make room, or "
            "give another --output, and run it again"
        )
