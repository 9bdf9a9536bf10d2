"""What is done with one image on its way into a data set: taken as it is, aligned, resized, or left out for a reason."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ddl_plugin.data.records import jpeg
from ddl_plugin.ingest import sources
from ddl_plugin.ingest.align import SIDE, crop, main_face, open_detector
from ddl_plugin.ingest.decoding import Decoder
from ddl_plugin.ingest.frames import MAX_IMAGE_BYTES, FrameFile
from ddl_plugin.ingest.listing import LANDMARKS_FILE, ROWS_FILE

#: How an image was stored, and why one was left out, in `OUTCOME["state"]`; the texts are the report's.
AS_IT_IS, CONVERTED, RESIZED, ALIGNED = range(1, 5)
STORED = {
    AS_IT_IS: "as they are",
    CONVERTED: "as JPEG",
    RESIZED: "resized to 112x112",
    ALIGNED: "aligned to 112x112",
}
MISSING, NOT_READ, TOO_MANY_BYTES, NOT_DECODED, NO_FACE, NO_LANDMARKS, BAD_LANDMARKS = range(10, 17)
SMALL, NOT_SQUARE, WRONG_SIZE, LISTED_TWICE, TOO_FEW, OTHER_LABEL = range(17, 23)
SKIPPED = {
    MISSING: "no such file",
    NOT_READ: "cannot be read",
    TOO_MANY_BYTES: f"more than {MAX_IMAGE_BYTES >> 20} MiB",
    NOT_DECODED: "cannot be decoded",
    NO_FACE: "no face found",
    NO_LANDMARKS: "no landmarks given",
    BAD_LANDMARKS: "landmarks of no face",
    SMALL: "face smaller than --min-face",
    NOT_SQUARE: "not square: --resize would distort it",
    WRONG_SIZE: "not 112x112",
    LISTED_TWICE: "listed more than once",
    TOO_FEW: "identity with fewer than --min-images",
    OTHER_LABEL: "label is not that of its identity",
}
_KNOWN = {sources.LISTED_TWICE: LISTED_TWICE, sources.TOO_FEW: TOO_FEW}

OUTCOME = np.dtype(
    [
        ("state", "u1"),
        ("bytes", "<u4"),  # of its record in the .rec, 0 where it was left out
        ("face_size", "<f4"),  # side, in pixels of the source, of what became 112 pixels
        ("faces", "u1"),  # faces found by the detector, at most 255
        ("damaged", "?"),  # its JPEG data is damaged, yet can be decoded
    ]
)

_KEPT_FORMATS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # every reader of the frameworks decodes them
_KEPT_BYTES = 1 << 20  # 112x112 pixels are 37 KB: the rest is no image


@dataclass(frozen=True)
class Treatment:
    """align: faces that are not aligned yet are, by `detector` where it is given, else by their landmarks;
    resize: images of another size are scaled whole; min_face: pixels of the source, below which a face is left out.
    """

    align: bool = False
    detector: str | None = None
    resize: bool = False
    min_face: float = 0.0


class Worker:
    """worker((begin, end)) -> (OUTCOME (n,), the encoded images of those stored) of these rows of a listing.

    Outcomes come with `bytes` still 0: the records are made where their numbers are known.
    """

    def __init__(
        self,
        folder: Path,
        listed: tuple[sources.Source, ...],
        treatment: Treatment,
    ):
        self._rows = np.load(folder / ROWS_FILE, mmap_mode="r")
        self._points = np.load(folder / LANDMARKS_FILE, mmap_mode="r")
        self._paths = (folder / sources.PATHS_FILE).open("rb")
        self._sources = listed
        self._recs = {i: FrameFile(source.path) for i, source in enumerate(listed) if source.is_rec}
        self._treatment = treatment
        self._detector = open_detector(treatment.detector) if treatment.detector else None
        self._decode = Decoder()

    def __call__(self, span: tuple[int, int]) -> tuple[np.ndarray, list[bytes]]:
        outcomes = np.zeros(span[1] - span[0], OUTCOME)
        images = []
        entries = self._rows[slice(*span)].tolist()  # tuples: fields of a NumPy row cost a microsecond each
        for i, entry in enumerate(map(sources.Entry._make, entries)):
            image = self._treat(span[0] + i, entry, outcomes[i])
            if image is not None:
                images.append(image)
        return outcomes, images

    def _treat(self, row: int, entry: sources.Entry, outcome: np.void) -> bytes | None:
        """Fill `outcome`; the image to be stored, if it is."""
        if entry.known != sources.NOTHING:
            outcome["state"] = _KNOWN[entry.known]
            return None
        data = self._read(entry)
        if isinstance(data, int):
            outcome["state"] = data
            return None
        pixels, damaged = self._decode(data)
        if damaged:
            outcome["damaged"] = True
        if pixels is None:
            outcome["state"] = NOT_DECODED
            return None
        if self._treatment.align and not entry.aligned:
            return self._aligned(row, pixels, outcome)
        return self._whole(data, pixels, outcome)

    def _read(self, entry: sources.Entry) -> bytes | int:
        """The encoded image, or why there is none."""
        if entry.source in self._recs:
            found = self._recs[entry.source].image(entry.at)
            if found is None:
                return NOT_READ
            return found[1] if found[0] == entry.label else OTHER_LABEL
        path = os.path.join(self._sources[entry.source].root, sources.path_of(self._paths, entry))  # noqa: PTH118
        try:
            # Opening a pipe must not wait for its other end.
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return MISSING
        except OSError:
            return NOT_READ
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                return NOT_READ
            if found.st_size > MAX_IMAGE_BYTES:
                return TOO_MANY_BYTES
            return os.read(fd, found.st_size)
        except OSError:
            return NOT_READ
        finally:
            os.close(fd)

    def _aligned(self, row: int, pixels: np.ndarray, outcome: np.void) -> bytes | None:
        landmarks = self._landmarks(row, pixels, outcome)
        if landmarks is None:
            return None
        found = crop(pixels, landmarks)
        if found is None:
            outcome["state"] = BAD_LANDMARKS
            return None
        face, outcome["face_size"] = found
        if outcome["face_size"] < self._treatment.min_face:
            outcome["state"] = SMALL
            return None
        outcome["state"] = ALIGNED
        return jpeg(face)

    def _landmarks(self, row: int, pixels: np.ndarray, outcome: np.void) -> np.ndarray | None:
        if self._detector is None:
            points = self._points[row] if len(self._points) else np.full(sources.LANDMARKS, np.nan)
            if np.isnan(points).any():
                outcome["state"] = NO_LANDMARKS
                return None
            return points.reshape(5, 2)
        boxes, landmarks = self._detector(pixels)
        outcome["faces"] = min(len(boxes), 255)
        if not len(boxes):
            outcome["state"] = NO_FACE
            return None
        return landmarks[main_face(boxes, pixels.shape)]

    def _whole(self, data: bytes, pixels: np.ndarray, outcome: np.void) -> bytes | None:
        height, width = pixels.shape[:2]
        if (height, width) == (SIDE, SIDE):
            if data.startswith(_KEPT_FORMATS) and len(data) <= _KEPT_BYTES:
                outcome["state"] = AS_IT_IS
                return data
            outcome["state"] = CONVERTED
            return jpeg(pixels)
        if not self._treatment.resize:
            outcome["state"] = WRONG_SIZE
        elif height != width:
            outcome["state"] = NOT_SQUARE
        else:
            outcome["face_size"] = height
            if height < self._treatment.min_face:
                outcome["state"] = SMALL
                return None
            outcome["state"] = RESIZED
            how = cv2.INTER_AREA if height > SIDE else cv2.INTER_CUBIC
            return jpeg(cv2.resize(pixels, (SIDE, SIDE), interpolation=how))
        return None
