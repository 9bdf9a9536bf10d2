"""What is wrong with a .rec: found without trusting anything in it, said in plain words, one line for each kind.

First the index and the records' headers, then, unless only a quick look is asked for, every image is decoded.
"""

from __future__ import annotations

import os
import re
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ddl_plugin.errors import UserError
from ddl_plugin.ingest.decoding import Decoder
from ddl_plugin.ingest.frames import (
    BAD_PARTS,
    CUT,
    HEAD,
    HEADER_BYTES,
    NO_MAGIC,
    OK,
    SHORT,
    FrameFile,
    read_index,
)
from ddl_plugin.ingest.workers import in_order, number_of_workers

SIDE = 112

#: What is said of each kind of fault. {records}: 'records 3, 8 and 5 more'; {count}: how many.
_TEXTS = {
    "no index": "no {idx} beside it, so no record can be read by its number; they are numbered here as they "
    "follow each other; MXNet's tools/rec2idx.py makes one",
    "bad index lines": "{idx}: {count} lines are not 'number<TAB>offset', the first is line {line}",
    "duplicate keys": "{idx} lists {records} more than once; readers take one of the places, which differ",
    "one place twice": "{idx} places {records} where another record is already",
    "index past the end": "{idx} places {records} past the end of the .rec ({size} bytes): the .rec was cut, or "
    "the .idx belongs to another one",
    "missing keys": "{idx} has no {records} of the 0..{last} that there should be",
    "no record there": "{records}: no record begins where {idx} says",
    "broken parts": "{records}: parts of a split record that do not fit together",
    "truncated tail": "{records}: the .rec ends ({size} bytes) before the record does",
    "too short": "{records}: shorter than its own header says",
    "empty records": "{records}: neither an image nor the range of an identity",
    "overlapping records": "{records}: begins within another record",
    "records without a key": "{count} whole records lie between the others or after them that {idx} does not "
    "list, the first at offset {place}",
    "gaps": "{count} bytes between the records or after them belong to none, the first at offset {place}",
    "no header record": "no header record: record 0 should give (images + 1, images + 1 + identities), got {got}; "
    "identities are known from each image's own label alone; 'prepare records' writes the set with one",
    "header counts": "the header record says ({said}), the file holds {images} images and {identities} ranges of "
    "identities, for which it should say ({should})",
    "ranges without a header": "{records}: range of an identity, though no header record counts them",
    "images after ranges": "{records}: image among or after the ranges of the identities",
    "bad ranges": "{records}: range of an identity that is not within the images 1..{last}",
    "identities without images": "{records}: range of an identity without an image",
    "images in no range": "{records}: image that is in no identity's range",
    "images in several ranges": "{records}: image that is in several identities' ranges",
    "labels mixed in a range": "{records}: range of one identity over images of different labels",
    "identities not grouped": "{records}: ranges that share their label with another: an identity's images lie apart",
    "bad labels": "{records}: label that is no whole number >= 0",
    "labels beyond the header": "{records}: label of {limit} or more, though the header record counts {limit} "
    "identities",
    "labels beyond property": "{records}: label of {limit} or more, though 'property' says {limit} classes",
    "no property file": "no file 'property' beside it, from which InsightFace's trainers take the number of classes",
    "bad property file": "the file 'property' should begin with 'classes,112,112', got {got}",
    "size in property": "the file 'property' says images of {got}, not 112x112",
    "undecodable images": "{records}: image that cannot be decoded",
    "damaged images": "{records}: JPEG data that is damaged: it can be decoded, but part of the picture may be wrong",
    "other sizes": "{records}: image that is not 112x112 but {sizes}",
    "no images": "there is no image in it",
}
_FIRST = 5  # record numbers shown of a finding
_HEADS_AT_A_TIME = 1 << 12
_IMAGES_A_JOB = 64
#: float32, in which the header's counts and the ranges are stored, counts exactly up to here.
_EXACT = 1 << 24

_LOOK = np.dtype([("decoded", "?"), ("damaged", "?"), ("width", "<u4"), ("height", "<u4")])


@dataclass(frozen=True)
class Finding:
    """One kind of fault: what it is, how often, and the numbers of the first records that have it."""

    kind: str
    text: str
    count: int
    records: tuple[int, ...] = ()


@dataclass(frozen=True)
class Report:
    """What is in a .rec, and what is wrong with it; `decoded` is False after a quick look."""

    path: Path
    images: int
    identities: int
    images_per_identity: tuple[int, float, int]  # least, median, most
    decoded: bool
    findings: tuple[Finding, ...]


def check_records(
    path: str | os.PathLike, *, decode: bool = True, workers: int | None = None, progress: bool = False
) -> Report:
    """Check a .rec, or the train.rec of a folder. UserError only where there is none or it cannot be read."""
    path, workers = Path(path), number_of_workers(workers)
    if path.is_dir():
        path = path / "train.rec"
    if not path.is_file():
        raise UserError(f"{path}: expected a .rec file, or a folder with train.rec, got nothing there")
    if path.suffix != ".rec":
        raise UserError(
            f"{path}: expected a .rec file, or a folder with train.rec, got a file of another kind; "
            "give the .rec, whose .idx lies beside it"
        )
    check = _Check(path)
    check.index()
    check.records()
    check.header()
    check.labels()
    if decode:
        check.images(workers, progress)
    return check.report(decode)


class _Check:
    """Each step adds its findings. `keys`, `offsets` and `heads` of the records are in the order of the offsets."""

    def __init__(self, path: Path):
        self.path = path
        self.idx = path.with_suffix(".idx")
        self.found: list[Finding] = []
        self.file = FrameFile(path)

    def say(self, kind: str, records: np.ndarray | tuple = (), *, count: int | None = None, **values) -> None:
        """Add a finding about `records`, or `count` things; none where there are none."""
        count = len(records) if count is None else count
        if not count:
            return
        first = tuple(np.sort(records)[:_FIRST].tolist()) if len(records) else ()
        text = _TEXTS[kind].format(
            records=_listed(first, count), count=count, idx=self.idx.name, size=self.file.size, **values
        )
        self.found.append(Finding(kind, text, count, first))

    # -- where records are -------------------------------------------------------------------------

    def index(self) -> None:
        """`listed`: all record numbers of the index; `keys` and `offsets`: those within the file, each place once."""
        if not self.idx.is_file():
            self.say("no index", count=1)
            self.offsets = self.file.scan(0, self.file.size)
            self.keys = self.listed = np.arange(len(self.offsets))
            return
        index = read_index(self.idx)
        self.say("bad index lines", count=index.bad_lines, line=index.first_bad_line)
        self.listed, times = np.unique(index.keys, return_counts=True)
        self.say("duplicate keys", self.listed[times > 1])
        outside = index.offsets > self.file.size - 8  # bytes of a frame's beginning
        self.say("index past the end", index.keys[outside])
        keys, offsets = index.keys[~outside], index.offsets[~outside]
        order = np.lexsort((keys, offsets))
        keys, offsets = keys[order], offsets[order]
        again = np.diff(offsets, prepend=-1) == 0
        self.say("one place twice", keys[again & (np.diff(keys, prepend=-1) != 0)])
        self.keys, self.offsets = keys[~again], offsets[~again]

    def records(self) -> None:
        """`heads` of the records, which of them are `good`, and what lies between them."""
        parts = [
            self.file.heads(self.offsets[begin : begin + _HEADS_AT_A_TIME])
            for begin in range(0, len(self.offsets), _HEADS_AT_A_TIME)
        ]
        self.heads = np.concatenate([np.empty(0, HEAD), *parts])
        state = self.heads["state"]
        self.say("no record there", self.keys[state == NO_MAGIC])
        self.say("broken parts", self.keys[state == BAD_PARTS])
        self.say("truncated tail", self.keys[state == CUT])
        self.say("too short", self.keys[state == SHORT])
        placed = np.flatnonzero((state == OK) | (state == SHORT))
        begins = np.append(self.offsets[placed], self.file.size)
        reach = np.maximum.accumulate(np.append(0, self.heads["end"][placed]))
        overlapping = placed[begins[:-1] < reach[:-1]]
        self.say("overlapping records", self.keys[overlapping])
        self.good = state == OK
        self.good[overlapping] = False
        gaps = begins > reach
        self._gaps(reach[gaps].tolist(), begins[gaps].tolist())

    def _gaps(self, begins: list[int], ends: list[int]) -> None:
        """What lies between records, and is not said yet because the index points there."""
        unlisted, loose = 0, 0
        places: dict[str, int] = {}
        for begin, end in zip(begins, ends, strict=True):
            known = np.searchsorted(self.offsets, [begin, end])
            if known[0] < known[1]:
                continue
            whole = int((self.file.heads(self.file.scan(begin, end))["state"] == OK).sum())
            places.setdefault("records without a key" if whole else "gaps", begin)
            unlisted += whole
            loose += 0 if whole else end - begin
        self.say("records without a key", count=unlisted, place=places.get("records without a key"))
        self.say("gaps", count=loose, place=places.get("gaps"))

    # -- what the records say ----------------------------------------------------------------------

    def header(self) -> None:
        """Which records are images and which are ranges (`is_image`, `is_range`), held against record 0."""
        flag = self.heads["flag"]
        content = self.heads["length"] > HEADER_BYTES + 4 * flag.astype(np.int64)
        ranges = self.good & ~content & (flag == 2)
        zero = np.flatnonzero(self.keys == 0)
        self.has_header = bool(zero.size and ranges[zero[0]])
        self.is_image = self.good & content
        self.is_range = ranges & (self.keys != 0)
        self.counted = 0.0  # identities, by the header record
        self.say("empty records", self.keys[self.good & ~content & ~ranges])
        if self.has_header:
            self._counts(self.heads["more"][zero[0]].astype(np.float64))
            return
        got = "an image there" if zero.size and self.is_image[zero[0]] else "none"
        self.say("no header record", count=1, got=got)
        self.say("ranges without a header", self.keys[self.is_range])

    def _counts(self, said: np.ndarray) -> None:
        images, identities = int(self.is_image.sum()), int(self.is_range.sum())
        should = np.array([images + 1, images + 1 + identities])
        room = np.spacing(np.float32(should[1])) if should[1] > _EXACT else 0
        self.counted = said[1] - said[0]
        if not (np.abs(said - should) <= room).all():
            self.say(
                "header counts",
                count=1,
                said=", ".join(f"{number:.9g}" for number in said),
                images=images,
                identities=identities,
                should=f"{should[0]}, {should[1]}",
            )
        self._missing(int(max(self.listed[-1], should[1] - 1)))
        ranges = self.keys[self.is_range]
        if len(ranges):
            self.say("images after ranges", self.keys[self.is_image & (self.keys > ranges.min())])

    def _missing(self, last: int) -> None:
        """Record numbers of 0..last that the index lacks."""
        count = last + 1 - len(self.listed)
        before = np.append(-1, self.listed)
        steps = np.flatnonzero(np.diff(np.append(before, last + 1)) > 1)[:_FIRST]
        ends = np.append(self.listed, last + 1)
        first = [
            number for i in steps for number in range(before[i] + 1, min(ends[i], before[i] + 1 + _FIRST))
        ]
        self.say("missing keys", np.array(first[:_FIRST]), count=count, last=last)

    def labels(self) -> None:
        """Labels by themselves, against the identities' ranges and against `property`."""
        heads, keys = self.heads[self.is_image], self.keys[self.is_image]
        # An image with several labels has them after its header; the first is its identity.
        labels = np.where(heads["flag"] > 0, heads["more"][:, 0], heads["label"]).astype(np.float64)
        whole = np.isfinite(labels) & (labels >= 0) & (labels == np.floor(labels))
        self.say("bad labels", keys[~whole])
        self.identity_labels = labels[whole]
        if self.counted >= 1:
            beyond = keys[whole & (labels >= self.counted)]
            self.say("labels beyond the header", beyond, limit=f"{self.counted:.0f}")
        if (
            self.has_header and self.is_range.any() and len(keys) and keys.max() < _EXACT
        ):  # then ranges are exact
            order = np.argsort(keys, kind="stable")
            self._ranges(keys[order], labels[order])
        if self.path.stem == "train":
            self._property(keys, labels)

    def _ranges(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Every image, by rising number, in one range; every range of one label; every label in one range."""
        numbers = self.keys[self.is_range]
        bounds = self.heads["more"][self.is_range].astype(np.float64)
        last = int(images[-1])
        valid = (bounds == np.floor(bounds)).all(1)  # NaN is not
        valid &= (bounds[:, 0] >= 1) & (bounds[:, 0] <= bounds[:, 1]) & (bounds[:, 1] <= last + 1)
        self.say("bad ranges", numbers[~valid], last=last)
        numbers = numbers[valid]
        begin, end = np.searchsorted(images, bounds[valid].T)
        filled = begin < end
        self.say("identities without images", numbers[~filled])
        numbers, begin, end = numbers[filled], begin[filled], end[filled]
        cover = np.bincount(begin, minlength=len(images) + 1) - np.bincount(end, minlength=len(images) + 1)
        cover = np.cumsum(cover)[:-1]
        self.say("images in no range", images[cover == 0])
        self.say("images in several ranges", images[cover > 1])
        changes = np.append(0, np.cumsum(labels[1:] != labels[:-1]))
        self.say("labels mixed in a range", numbers[changes[end - 1] > changes[begin]])
        label, times = np.unique(labels[begin], return_counts=True)
        self.say("identities not grouped", numbers[np.isin(labels[begin], label[times > 1])])

    def _property(self, keys: np.ndarray, labels: np.ndarray) -> None:
        file = self.path.with_name("property")
        if not file.is_file():
            self.say("no property file", count=1)
            return
        with file.open("rb") as opened:
            line = opened.read(1 << 10).decode(errors="replace").partition("\n")[0].strip()
        match = re.fullmatch(r"(\d{1,9})\s*,\s*(\d{1,9})\s*,\s*(\d{1,9})", line, re.ASCII)
        if not match:
            self.say("bad property file", count=1, got=ascii(line[:40]))
            return
        classes, height, width = map(int, match.groups())
        self.say("labels beyond property", keys[labels >= classes], limit=classes)
        self.say("size in property", count=int((height, width) != (SIDE, SIDE)), got=f"{width}x{height}")

    # -- pixels ------------------------------------------------------------------------------------

    def images(self, workers: int, progress: bool) -> None:
        """Decode every image."""
        offsets, keys = self.offsets[self.is_image], self.keys[self.is_image]
        begins = range(0, len(offsets), _IMAGES_A_JOB)
        jobs = (offsets[begin : begin + _IMAGES_A_JOB] for begin in begins)
        looks = np.zeros(len(offsets), _LOOK)
        results = in_order(_Look, (self.path,), jobs, min(workers, len(begins)))
        bar = tqdm(total=len(offsets), desc="check", unit="image", disable=None if progress else True)
        with closing(results), bar:
            for begin, part in zip(begins, results, strict=True):
                looks[begin : begin + len(part)] = part
                bar.update(len(part))
        decoded = looks["decoded"]
        self.say("undecodable images", keys[~decoded])
        self.say("damaged images", keys[decoded & looks["damaged"]])
        other = decoded & ((looks["width"] != SIDE) | (looks["height"] != SIDE))
        sizes, counts = np.unique(looks[["width", "height"]][other], return_counts=True)
        common = np.argsort(-counts, kind="stable")[:_FIRST].tolist()
        listed = ", ".join(f"{sizes[i]['width']}x{sizes[i]['height']} ({counts[i]})" for i in common)
        self.say("other sizes", keys[other], sizes=listed + (", .." if len(sizes) > _FIRST else ""))

    # -- the end -----------------------------------------------------------------------------------

    def report(self, decoded: bool) -> Report:
        images = int(self.is_image.sum())
        self.say("no images", count=int(images == 0))
        counts = np.unique(self.identity_labels, return_counts=True)[1]
        each = (
            (int(counts.min()), float(np.median(counts)), int(counts.max())) if len(counts) else (0, 0.0, 0)
        )
        self.file.close()
        return Report(self.path, images, len(counts), each, decoded, tuple(self.found))


def _listed(first: tuple[int, ...], count: int) -> str:
    """'record 3', or 'records 3, 8 and 5 more'."""
    more = f" and {count - len(first)} more" if count > len(first) else ""
    return ("record " if count == 1 else "records ") + ", ".join(map(str, first)) + more


class _Look:
    """look(offsets) -> _LOOK (n,) of the images there; for a worker process."""

    def __init__(self, path: Path):
        self._file = FrameFile(path)
        self._decode = Decoder()

    def __call__(self, offsets: np.ndarray) -> np.ndarray:
        looks = np.zeros(len(offsets), _LOOK)
        for i, offset in enumerate(offsets.tolist()):
            found = self._file.image(offset)
            pixels, damaged = self._decode(found[1]) if found else (None, False)
            if pixels is not None:
                looks[i] = (True, damaged, pixels.shape[1], pixels.shape[0])
        return looks
