"""A verification set made of a list of pairs: images read and aligned by several processes, written as one .bin.

No pair is ever left out: a set with other pairs is another benchmark. An image that cannot be used ends the work,
except for faces that were not found, of which as many as the caller allows are cut from the middle of their picture.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ddl_plugin.data.attributes import AttributeTable, made_by
from ddl_plugin.data.records import jpeg
from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.bins import SIDE, fingerprint, write_bin
from ddl_plugin.evaluation.pair_lists import PairList, repeated
from ddl_plugin.ingest.align import open_detector, require_insightface
from ddl_plugin.ingest.listing import make_listing
from ddl_plugin.ingest.treatment import (
    BAD_LANDMARKS,
    NO_FACE,
    NO_LANDMARKS,
    OUTCOME,
    SKIPPED,
    STORED,
    Treatment,
    Worker,
)
from ddl_plugin.ingest.workers import in_order, number_of_workers

_AT_A_TIME = 16  # images of a job
_SHOWN = 3  # names in a message
_NO_FACES = (NO_FACE, NO_LANDMARKS, BAD_LANDMARKS)
_MIDDLE = (
    7 / 8
)  # of the shorter side: what InsightFace's packers cut where they find no face, without its margin

Progress = Callable[..., Iterable]


@dataclass(frozen=True)
class Packing:
    """detector: the .onnx of a face detector; landmarks: a file of five points an image; neither: the images are
    aligned already, 112x112. max_fallback: faces that may be cut from the middle. workers: processes."""

    detector: str | None = None
    landmarks: str | None = None
    max_fallback: int = 0
    workers: int | None = None

    @property
    def aligns(self) -> bool:
        return self.detector is not None or self.landmarks is not None


def pack(
    pairs: PairList, output: str | os.PathLike, packing: Packing, progress: Progress = iter
) -> dict[str, Any]:
    """Write `output`, a .bin, and beside it a table of what is known of its images; returns a report.

    The table (`table_path`) has a row for each image of the .bin, 0, 1, ..: `face_size` where faces were aligned (the
    side, in pixels of the original, of what became 112 pixels; NaN for one that was cut from the middle), `fallback`
    (it was), and the columns of `pairs`.

    Raises UserError, before anything is written, naming the images that cannot be used.
    """
    if packing.aligns:
        require_insightface()
        if packing.detector is not None:
            open_detector(packing.detector)  # a mistake shows before the work
    workers = number_of_workers(packing.workers)
    outcomes, images = _treated(pairs, packing, workers, progress)
    fallback = _fall_back(pairs, packing, outcomes, images)
    places = np.stack([pairs.first, pairs.second], axis=1).ravel()
    write_bin(output, [images[place] for place in places.tolist()], pairs.issame.tolist())
    _write_table(pairs, packing, outcomes, fallback, places, output)
    stored = {text: int((outcomes["state"] == state).sum()) for state, text in STORED.items()}
    return {
        "pairs": len(pairs.issame),
        "same": int(pairs.issame.sum()),
        "different": int((~pairs.issame).sum()),
        "images": len(pairs.images),
        "stored": {text: count for text, count in stored.items() if count},
        "fallback": [pairs.images[place] for place in fallback],
        "several_faces": int((outcomes["faces"] > 1).sum()),
        "damaged": [pairs.images[place] for place in np.flatnonzero(outcomes["damaged"]).tolist()],
        "notes": repeated(pairs),
    }


def table_path(output: str | os.PathLike) -> Path:
    """Where the table of a .bin's images lies: lfw.bin has lfw_images.npz."""
    output = Path(output)
    return output.with_name(f"{output.stem}_images.npz")


def _treated(
    pairs: PairList, packing: Packing, workers: int, progress: Progress
) -> tuple[np.ndarray, list[bytes]]:
    """OUTCOME (images,), and the encoded images, b"" for those that there are none of."""
    with tempfile.TemporaryDirectory(prefix="ddl_plugin_") as name:
        folder = Path(name)
        listed = folder / "images.txt"
        # One identity for each image: the rows keep the order of the list.
        listed.write_bytes(
            b"".join(os.fsencode(image) + b"\t%d\n" % i for i, image in enumerate(pairs.images))
        )
        listing = make_listing([listed], folder, root=pairs.root, landmarks=packing.landmarks)
        treatment = Treatment(align=packing.aligns, detector=packing.detector)
        total = len(listing.rows)
        jobs = [(begin, min(begin + _AT_A_TIME, total)) for begin in range(0, total, _AT_A_TIME)]
        results = in_order(Worker, (folder, listing.sources, treatment), jobs, min(workers, len(jobs)))
        outcomes = np.zeros(total, OUTCOME)
        images = [b""] * total
        for (begin, end), (found, encoded) in zip(jobs, progress(results, total=len(jobs)), strict=True):
            outcomes[begin:end] = found
            stored = iter(encoded)
            for i in np.flatnonzero(np.isin(found["state"], list(STORED))).tolist():
                images[begin + i] = next(stored)
    return outcomes, images


def _fall_back(pairs: PairList, packing: Packing, outcomes: np.ndarray, images: list[bytes]) -> list[int]:
    """Fill `images` where no face was found; which these are. UserError for all that cannot be used."""
    state = outcomes["state"]
    unusable = np.isin(state, [code for code in SKIPPED if code not in _NO_FACES])
    if unusable.any():
        remedy = "" if packing.aligns else "; align them with --detector or --landmarks" * _any_size(state)
        raise UserError(
            f"{pairs.root}: expected every image of the pairs, got {_counted(pairs, state, unusable)}{remedy}; a set "
            "without some pairs would be another benchmark: nothing is written"
        )
    faceless = np.isin(state, _NO_FACES)
    if faceless.sum() > packing.max_fallback:
        raise UserError(
            f"{pairs.root}: expected a face in every image, got {_counted(pairs, state, faceless)}; give their "
            f"--landmarks, or let the middle of these pictures stand for the face with --max-fallback {faceless.sum()}"
        )
    places = np.flatnonzero(faceless).tolist()
    for place in places:
        images[place] = jpeg(_middle(pairs.root / pairs.images[place]))
    return places


def _any_size(state: np.ndarray) -> bool:
    sizes = [code for code, text in SKIPPED.items() if text.startswith("not 112x112")]
    return bool(np.isin(state, sizes).any())


def _middle(path: Path) -> np.ndarray:
    """The middle of a picture, 7/8 of its shorter side, as a face: uint8 (112, 112, 3) BGR."""
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    height, width = pixels.shape[:2]
    side = max(1, int(_MIDDLE * min(height, width)))
    top, left = (height - side) // 2, (width - side) // 2
    how = cv2.INTER_AREA if side > SIDE else cv2.INTER_CUBIC
    return cv2.resize(pixels[top : top + side, left : left + side], (SIDE, SIDE), interpolation=how)


def _counted(pairs: PairList, state: np.ndarray, which: np.ndarray) -> str:
    """'3 no such file (a.jpg, b.jpg, ..), 1 cannot be decoded (c.jpg)'."""
    parts = []
    for code in np.unique(state[which]).tolist():
        places = np.flatnonzero(which & (state == code)).tolist()
        names = ", ".join(pairs.images[place] for place in places[:_SHOWN])
        parts.append(f"{len(places)} {SKIPPED[code]} ({names}{', ..' if len(places) > _SHOWN else ''})")
    return ", ".join(parts)


def _write_table(
    pairs: PairList,
    packing: Packing,
    outcomes: np.ndarray,
    fallback: list[int],
    places: np.ndarray,
    output: str | os.PathLike,
) -> None:
    path = table_path(output)
    columns = dict(pairs.columns)
    if packing.aligns:
        fell_back = np.zeros(len(pairs.images), bool)
        fell_back[fallback] = True
        columns["fallback"] = fell_back
        columns["face_size"] = np.where(fell_back, np.nan, outcomes["face_size"].astype(np.float64))
    if not columns:
        path.unlink(missing_ok=True)  # of a set that stood here before
        return
    columns = {name: values[places] for name, values in columns.items()}
    about = made_by("prepare bin", records=fingerprint(output))
    AttributeTable(np.arange(len(places)), columns, path, about).save(path)
