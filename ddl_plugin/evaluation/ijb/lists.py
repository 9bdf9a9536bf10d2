"""The lists of IJB-B and IJB-C as arrays: images with their templates and media, pairs, galleries and probes.

The order of the lines means nothing: images are put in the order of template, medium and name, templates in
that of their numbers.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddl_plugin.data.delimited import read_header, read_table
from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.ijb import alignment
from ddl_plugin.evaluation.ijb.layout import Layout
from ddl_plugin.evaluation.ijb.problems import Problems
from ddl_plugin.files import reading

_POINTS = [f"{axis}{i}" for i in range(1, 6) for axis in "xy"]
_BLOCK = 1 << 22  # bytes of the pairs read at a time
_WIDEST_TABLE = 1 << 26  # numbers of templates up to here are looked up in a table


@dataclass(frozen=True)
class Images:
    """One row an image of a template, in the order of template, medium, name."""

    names: np.ndarray  # bytes (N,), below the folder of the images
    templates: np.ndarray  # int64 (N,), ascending
    media: np.ndarray  # int64 (N,)
    landmarks: np.ndarray  # float32 (N, 5, 2); NaN where there are none
    scores: np.ndarray  # float32 (N,), of the detector

    def __len__(self) -> int:
        return len(self.names)

    def name(self, row: int) -> str:
        return self.names[row].decode("utf-8", "replace")

    def digest(self) -> str:
        """Of what decides the embeddings: which images, where the faces are in them, and the order."""
        result = hashlib.sha256(str(self.names.dtype).encode())
        result.update(np.ascontiguousarray(self.names))
        result.update(np.ascontiguousarray(self.landmarks))
        return result.hexdigest()


@dataclass(frozen=True)
class Pairs:
    """Templates to compare, as rows of the sorted template numbers; -1 for a template without images."""

    first: np.ndarray  # int32 (M,)
    second: np.ndarray  # int32 (M,)
    same: np.ndarray  # bool (M,)

    def __len__(self) -> int:
        return len(self.same)


@dataclass(frozen=True)
class Members:
    """The templates of a gallery or of the probes, ascending by number, and who is in them."""

    name: str
    templates: np.ndarray  # int64 (n,), numbers
    subjects: np.ndarray  # int64 (n,)
    rows: np.ndarray  # int32 (n,) of the sorted template numbers; -1 for a template without images

    def __len__(self) -> int:
        return len(self.templates)


def read_images(layout: Layout, problems: Problems) -> Images:
    """The images of all templates, with their landmarks found by name.

    Raises UserError for lists that are none, or with more problems than are allowed.
    """
    listed = read_table(
        layout.media, names=["image", "template", "medium"], delimiter=" ", quotes=False,
        whole=["template", "medium"], texts=["image"],
    )  # fmt: skip
    columns = ["image", *_POINTS, "score"]
    points = read_table(layout.landmarks, names=columns, delimiter=" ", quotes=False, texts=["image"])
    if not len(listed["image"]):
        raise UserError(f"{layout.media}: expected lines 'image template medium', got none")
    values = np.stack([_numbers(points[name]) for name in columns[1:]], axis=1)
    values = values[_lines_of(listed["image"], points["image"], layout, problems)]
    order = np.lexsort((listed["image"], listed["medium"], listed["template"]))
    images = Images(
        *(listed[name][order] for name in ("image", "template", "medium")),
        landmarks=values[order, :-1].reshape(-1, 5, 2),
        scores=values[order, -1],
    )
    repeated = np.flatnonzero(
        (images.names[1:] == images.names[:-1])
        & (images.templates[1:] == images.templates[:-1])
        & (images.media[1:] == images.media[:-1])
    )
    problems.add(
        f"repeated lines in {layout.media.name}", len(repeated), len(images),
        map(images.name, repeated), "counted as often as they are listed",
    )  # fmt: skip
    wrong = np.flatnonzero(~(alignment.usable(images.landmarks) & np.isfinite(images.scores)))
    problems.add(
        "images without usable landmarks and score", len(wrong), len(images),
        map(images.name, wrong), "left out of their templates",
    )  # fmt: skip
    beyond = np.flatnonzero((images.scores < 0) | (images.scores > 1))
    problems.add(
        "images with a detector's score outside 0..1", len(beyond), len(images),
        map(images.name, beyond), "used as they are",
    )  # fmt: skip
    return images


def _numbers(column: np.ndarray) -> np.ndarray:
    """float32 (n,), NaN for what is no number."""
    if column.dtype.kind == "f":
        return column.astype(np.float32)
    return np.array([_number(cell) for cell in column], np.float32)


def _number(cell: bytes) -> float:
    try:
        return float(cell)
    except ValueError:
        return np.nan


def _lines_of(wanted: np.ndarray, given: np.ndarray, layout: Layout, problems: Problems) -> np.ndarray:
    """The line of landmarks of each image listed, (N,)."""
    if len(wanted) == len(given) and (wanted == given).all():  # as the published lists are
        return np.arange(len(wanted))
    order = np.argsort(given, kind="stable")
    names = given[order]
    repeated = np.flatnonzero(names[1:] == names[:-1])
    problems.add(
        f"images repeated in {layout.landmarks.name}", len(repeated), len(given),
        map(bytes.decode, names[repeated]), "the first line of each is taken",
    )  # fmt: skip
    at = np.minimum(np.searchsorted(names, wanted), max(len(names) - 1, 0))
    found = names[at] == wanted if len(names) else np.zeros(len(wanted), bool)
    if not found.all():
        lacking = wanted[~found]
        raise UserError(
            f"{layout.landmarks}: expected a line for every image of {layout.media.name}, got none for "
            f"{len(lacking):,} of {len(wanted):,}, the first is {lacking[0].decode()}; take both lists from one "
            "source"
        )
    return order[at]


def read_pairs(path: Path, templates: np.ndarray, problems: Problems) -> Pairs:
    """The pairs of a list 'template template label' (label 1: same subject), millions a second.

    templates: int64 (T,), the numbers of the templates that have images, ascending.
    """
    rows_of = _row_finder(templates)
    parts: list[list[np.ndarray]] = [[], [], []]
    unknown, names = 0, {}  # a dict keeps the order of the first few
    for numbers in _triples(path):
        sides = [rows_of(numbers[:, i]) for i in (0, 1)]
        lacking = np.flatnonzero((sides[0] < 0) | (sides[1] < 0))
        unknown += len(lacking)
        for pair in lacking[: 5 - len(names)]:
            names.update({f"{numbers[pair, 0]} {numbers[pair, 1]}": None})
        for part, array in zip(parts, (*sides, numbers[:, 2] == 1), strict=True):
            part.append(array)
    if not parts[0]:
        raise UserError(f"{path}: expected lines 'template template label', got none")
    columns = []
    for part in parts:
        columns.append(np.concatenate(part))
        part.clear()
    pairs = Pairs(*columns)
    problems.add(
        "pairs of templates without images", unknown, len(pairs), names,
        "kept in the totals, rejected at every threshold",
    )  # fmt: skip
    _count_repeated(pairs, templates, problems)
    return pairs


def _count_repeated(pairs: Pairs, templates: np.ndarray, problems: Problems) -> None:
    known = (pairs.first >= 0) & (pairs.second >= 0)
    keys = pairs.first.astype(np.int64)
    keys *= len(templates)
    keys += pairs.second
    keys = keys if known.all() else keys[known]
    keys.sort()
    repeated = keys[1:][keys[1:] == keys[:-1]]
    first, second = np.divmod(np.unique(repeated)[:5], len(templates))
    problems.add(
        "repeated pairs", len(repeated), len(pairs),
        (f"{templates[a]} {templates[b]}" for a, b in zip(first, second, strict=True)),
        "counted as often as they are listed",
    )  # fmt: skip


def _triples(path: Path) -> Iterator[np.ndarray]:
    """The lines of the file as int64 (n, 3), block by block; the label is 0 or 1."""
    with reading(path), path.open("rb") as file:
        line, rest = 1, b""
        while part := file.read(_BLOCK):
            block = rest + part
            end = block.rfind(b"\n") + 1
            block, rest = block[:end], block[end:]
            numbers = _cut(block)
            if numbers is None:
                break
            yield _checked(path, numbers, line)
            line += len(numbers)
        else:
            numbers = _cut(rest + b"\n") if rest else np.empty((0, 3), np.int64)
            if numbers is not None:
                if len(numbers):
                    yield _checked(path, numbers, line)
                return
    yield _checked(path, _slowly(path)[line - 1 :], line)


def _cut(block: bytes) -> np.ndarray | None:
    """The numbers of lines 'a b c'; None where any line is something else."""
    text = np.frombuffer(block, np.uint8)
    breaks = text < ord("0")
    ends = np.flatnonzero(breaks)
    kinds = text[ends].reshape(-1, 3) if len(ends) % 3 == 0 else np.empty((0, 3))
    one_apart = len(ends) and ends[0] > 0 and (np.diff(ends) > 1).all()
    if text.max(initial=0) > ord("9") or not one_apart or (kinds != list(b"  \n")).any() or not len(kinds):
        return None if len(block) else np.empty((0, 3), np.int64)
    if np.diff(ends).max() > 16:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        numbers = np.fromstring(block, np.int64, sep=" ")
    return numbers.reshape(-1, 3) if len(numbers) == len(ends) else None


def _slowly(path: Path) -> np.ndarray:
    """All lines, with what the fast way cannot follow (blank lines, Windows line ends), or a UserError."""
    names = ["template", "other template", "label"]
    columns = read_table(path, names=names, delimiter=" ", quotes=False, whole=names)
    return np.stack([columns[name] for name in names], axis=1).astype(np.int64)


def _checked(path: Path, numbers: np.ndarray, line: int) -> np.ndarray:
    wrong = np.flatnonzero((numbers[:, 2] != 0) & (numbers[:, 2] != 1))
    if len(wrong):
        raise UserError(
            f"{path}: line {line + wrong[0]} or after it: expected the label 0 or 1, got {numbers[wrong[0], 2]}"
        )
    return numbers


def _row_finder(templates: np.ndarray):
    """rows(numbers (n,)) -> int32 (n,): where they are among `templates`, -1 for those that are not."""
    highest = int(templates[-1])
    if highest < _WIDEST_TABLE:
        table = np.full(highest + 2, -1, np.int32)
        table[templates] = np.arange(len(templates), dtype=np.int32)
        return lambda numbers: table[np.minimum(numbers, highest + 1)]

    def searched(numbers: np.ndarray) -> np.ndarray:
        at = np.minimum(np.searchsorted(templates, numbers), len(templates) - 1)
        return np.where(templates[at] == numbers, at, -1).astype(np.int32)

    return searched


def read_members(path: Path, name: str, templates: np.ndarray, problems: Problems) -> Members:
    """A gallery or the probes: a CSV with a header line whose first columns are the template and the subject.

    A line a template, or a line an image of it.
    """
    header = read_header(path)
    if len(header) < 2 or header[0].isdigit() or header[0] == header[1]:
        raise UserError(
            f"{path}: expected a header line of a template's and a subject's column, got {','.join(header)!r}"
        )
    columns = read_table(path, whole=header[:2])
    numbers, subjects = (columns[column].astype(np.int64) for column in header[:2])
    if not len(numbers):
        raise UserError(f"{path}: expected lines 'template,subject', got none")
    unique, first, counts = np.unique(numbers, return_index=True, return_counts=True)
    torn = np.unique(numbers[subjects != subjects[first][np.searchsorted(unique, numbers)]])
    problems.add(
        f"templates of several subjects in {path.name}", len(torn), len(unique), torn,
        "the first line of each is taken",
    )  # fmt: skip
    if len(header) == 2:
        repeated = unique[counts > 1]
        problems.add(
            f"repeated lines in {path.name}", len(numbers) - len(unique), len(numbers), repeated,
            "counted once",
        )  # fmt: skip
    rows = _row_finder(templates)(unique)
    lacking = np.flatnonzero(rows < 0)
    problems.add(
        f"templates of {path.name} without images", len(lacking), len(unique), unique[lacking],
        "kept in the totals, never found",
    )  # fmt: skip
    return Members(name, unique, subjects[first], rows)
