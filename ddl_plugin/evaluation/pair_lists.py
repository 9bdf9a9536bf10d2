"""The pairs of verification benchmarks, from the files that their authors distribute.

Every reader gives the pairs fold after fold: 10-fold accuracy cuts a set into ten blocks in its order, and a block of
pairs of one kind alone would say nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ddl_plugin.errors import UserError
from ddl_plugin.files import reading

_FOLDS = 10
_SHOWN = 3  # names in a message
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
#: Where CPLFW (the first) and CALFW have the pictures as they were taken, below their folder. The "aligned images" of
#: both are funnelled, not cropped: the last resort.
_PICTURES = (
    "images",
    "images&landmarks/images&landmarks/images",
    "images&landmarks/images",
    "aligned images",
)


@dataclass(frozen=True)
class PairList:
    """images: paths below `root`, each once; first, second: int64 (n,), a place in `images` each; issame: bool (n,).

    columns: what the distribution says of each image (age, view), name -> (len(images),).
    """

    root: Path
    images: list[str]
    first: np.ndarray
    second: np.ndarray
    issame: np.ndarray
    columns: dict[str, np.ndarray] = field(default_factory=dict)


class _Pairs:
    """Pairs as they are read."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._pairs: list[tuple[int, int, bool]] = []

    def add(self, first: str, second: str, same: bool) -> None:
        names = [os.path.normpath(name) for name in (first, second)]
        places = [self._places.setdefault(name, len(self._places)) for name in names]
        self._pairs.append((*places, same))

    def done(self, where: Path, root: Path, columns: dict[str, np.ndarray] | None = None) -> PairList:
        if not self._pairs:
            raise UserError(f"{where}: expected pairs of images, got none")
        table = np.array(self._pairs, dtype=np.int64)
        for same, what in ((1, "of the same person"), (0, "of different persons")):
            if not (table[:, 2] == same).any():
                raise UserError(f"{where}: expected pairs {what}, got none among {len(table)}")
        images = list(self._places)
        if columns is None:
            columns = {}
        return PairList(root, images, table[:, 0], table[:, 1], table[:, 2].astype(bool), columns)


def read_lfw(root: Path, pairs: Path | None = None) -> PairList:
    """LFW: root/NAME/NAME_0001.jpg, and pairs.txt: '10 300', then of each fold 300 lines 'NAME 1 2' and 300 lines
    'NAME 1 OTHER 2'. A list with one number in its first line (pairsDevTest.txt) is put into ten folds."""
    path = _found(pairs, root / "pairs.txt", root.parent / "pairs.txt")
    lines = list(_lines(path))
    number, header = lines[0]
    cells_of_header = header.split()
    if not 1 <= len(cells_of_header) <= 2 or not all(cell.isdigit() for cell in cells_of_header):
        raise UserError(
            f"{path}, line {number}: expected the numbers of folds and of pairs, '10 300', got {header!r}"
        )
    *several, each = map(int, cells_of_header)
    folds = several[0] if several else 1
    if len(lines) - 1 != 2 * folds * each:
        raise UserError(
            f"{path}: expected {folds} x 2 x {each} pairs, as its first line says, got {len(lines) - 1} lines"
        )
    name_of = _by_number(root)
    pairs_of: tuple[list[tuple[str, str]], ...] = ([], [])  # of different persons, of the same
    for i, (number, line) in enumerate(lines[1:]):
        same = i // each % 2 == 0
        cells = line.split("\t") if "\t" in line else line.split()
        if len(cells) != (3 if same else 4) or not all(c.isdigit() for c in (cells[1], cells[-1])):
            kind = "'NAME 1 2'" if same else "'NAME 1 OTHER 2'"
            raise UserError(f"{path}, line {number}: expected a pair {kind}, got {line!r}")
        first, second = cells[0], cells[0] if same else cells[2]
        pairs_of[same].append((name_of(first, int(cells[1])), name_of(second, int(cells[-1]))))
    return _folded(pairs_of[True], pairs_of[False], folds if several else _FOLDS, path, root)


def _folded(
    same: list[tuple[str, str]], different: list[tuple[str, str]], folds: int, path: Path, root: Path
) -> PairList:
    """As many pairs of either kind in each fold, in their order: those of the same person first."""
    if len(same) % folds or len(same) != len(different):
        raise UserError(
            f"{path}: expected {folds} folds of as many pairs of the same as of different persons, got {len(same)} and "
            f"{len(different)} pairs"
        )
    each = len(same) // folds
    found = _Pairs()
    for begin in range(0, len(same), each):
        for part, is_same in ((same, True), (different, False)):
            for first, second in part[begin : begin + each]:
                found.add(first, second, is_same)
    return found.done(path, root)


def _by_number(root: Path) -> Callable[[str, int], str]:
    """LFW's path of image n of a person; where the folder holds another kind of image, with its suffix."""
    suffixes: dict[str, str] = {}

    def name(person: str, number: int) -> str:
        stem = f"{person}/{person}_{number:04d}"
        if person not in suffixes:
            there = [suffix for suffix in _SUFFIXES if (root / f"{stem}{suffix}").is_file()]
            suffixes[person] = there[0] if there else ".jpg"
        return stem + suffixes[person]

    return name


def read_cfp(root: Path, kind: str) -> PairList:
    """CFP: root/Protocol/Pair_list_F.txt and Pair_list_P.txt ('12 ../Data/Images/002/frontal/02.jpg'), and
    Protocol/Split/FF|FP/01../same.txt and diff.txt ('12,34': lines of the two lists; FP: frontal, profile).

    kind: FF (frontal against frontal) or FP (frontal against profile). columns: `view`, frontal or profile.
    """
    protocol = root / "Protocol"
    frontal = _cfp_images(protocol / "Pair_list_F.txt")
    other = _cfp_images(protocol / "Pair_list_P.txt") if kind == "FP" else frontal
    folder = protocol / "Split" / kind
    if not folder.is_dir():
        raise UserError(f"{folder}: expected the folds 01 to 10 of CFP, got no such folder")
    folds = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: path.name)
    if not folds:
        raise UserError(f"{folder}: expected the folds 01 to 10 of CFP, got an empty folder")
    found = _Pairs()
    for fold in folds:
        for name, same in (("same.txt", True), ("diff.txt", False)):
            path = fold / name
            for number, line in _lines(path):
                cells = [cell.strip() for cell in line.split(",")]
                if len(cells) != 2 or not all(cell.isdigit() for cell in cells):
                    raise UserError(f"{path}, line {number}: expected two numbers '12,34', got {line!r}")
                for cell, images, which in zip(cells, (frontal, other), ("F", kind[1]), strict=True):
                    if int(cell) not in images:
                        raise UserError(
                            f"{path}, line {number}: expected numbers of Pair_list_{which}.txt, got {cell}"
                        )
                found.add(frontal[int(cells[0])], other[int(cells[1])], same)
    result = found.done(folder, root)
    views = np.array(["profile" if "profile" in Path(name).parts else "frontal" for name in result.images])
    return PairList(root, result.images, result.first, result.second, result.issame, {"view": views})


def _cfp_images(path: Path) -> dict[int, str]:
    """Number -> path below CFP's folder."""
    images = {}
    for number, line in _lines(path):
        cells = line.split(None, 1)
        if len(cells) != 2 or not cells[0].isdigit():
            raise UserError(
                f"{path}, line {number}: expected '12 ../Data/Images/002/frontal/02.jpg', got {line!r}"
            )
        images[int(cells[0])] = os.path.normpath(os.path.join("Protocol", cells[1].replace("\\", "/")))  # noqa: PTH118
    return images


def read_cross(root: Path, pairs: Path | None, name: str) -> PairList:
    """CPLFW and CALFW: pairs_CPLFW.txt or pairs_CALFW.txt, two lines a pair, 'FILE.jpg LABEL' each.

    LABEL is 0 for different persons; for the same person CPLFW has 1, CALFW the number of the fold. The files list
    all pairs of the same person first; they are put into ten folds here, of equal parts of either kind in their
    order, as LFW's are. The images lie in root, or where the distributions have them in it.
    """
    path = _found(pairs, root / name, root.parent / name)
    lines = list(_lines(path))
    if len(lines) % 2:
        raise UserError(f"{path}: expected two lines for each pair, got {len(lines)} lines")
    same, different = [], []
    for (number, line), (_, following) in zip(lines[::2], lines[1::2], strict=True):
        cells = [text.rsplit(None, 1) for text in (line, following)]
        if any(len(pair) != 2 or not pair[1].isdigit() for pair in cells):
            raise UserError(
                f"{path}, line {number}: expected two lines 'FILE.jpg LABEL', got {line!r}, {following!r}"
            )
        (first, label), (second, again) = cells
        if label != again:
            raise UserError(
                f"{path}, line {number}: expected one label for both images of a pair, got {label} and {again}; "
                "is a line missing before it?"
            )
        (different if label == "0" else same).append((first, second))
    folder = _images_folder(root, [first for first, _ in same[:1]])
    return _folded(same, different, _FOLDS, path, folder)


def _images_folder(root: Path, names: list[str]) -> Path:
    """root, or the folder in it where the distribution has its images."""
    for folder in (root, *(root / name for name in _PICTURES)):
        if all((folder / name).is_file() for name in names):
            return folder
    return root


def read_agedb(root: Path, pairs: Path | None = None) -> PairList:
    """AgeDB-30: 04_FINAL_protocol_30_years.mat and 03_Protocol_Images/, as InsightFace's own packer read them.

    The .mat has `splits`: ten cells, each a matrix of 2 x pairs cells with a name and an age; a name begins with
    the number of its person, and an underscore. columns: `age`.
    """
    path = _found(pairs, root / "04_FINAL_protocol_30_years.mat")
    folder = root / "03_Protocol_Images"
    if not folder.is_dir():
        raise UserError(f"{folder}: expected the images of AgeDB's protocols, got no such folder")
    found = _Pairs()
    ages: dict[str, float] = {}
    for split in _agedb_splits(path):
        for (first, age), (second, other) in split.T.tolist():
            ages[f"{first}.jpg"], ages[f"{second}.jpg"] = age, other
            found.add(f"{first}.jpg", f"{second}.jpg", first.split("_", 1)[0] == second.split("_", 1)[0])
    result = found.done(path, folder)
    columns = {"age": np.array([ages[name] for name in result.images])}
    return PairList(folder, result.images, result.first, result.second, result.issame, columns)


def _agedb_splits(path: Path) -> Iterator[np.ndarray]:
    """Object arrays (2, pairs) of (name, age)."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise UserError(f"{path}: needs SciPy ({error}): pip install 'scipy>=1.11,<1.16'") from error
    with reading(path):
        try:
            for cell in loadmat(path)["splits"].ravel():
                # A struct with one field, the matrix of cells; each cell is a struct of a name and an age.
                matrix = cell.ravel()[0][0]
                if matrix.dtype != object or matrix.ndim != 2 or matrix.shape[0] != 2:
                    raise ValueError(f"a {matrix.dtype} array {matrix.shape}")
                result = np.empty(matrix.shape, object)
                for at, item in np.ndenumerate(matrix):
                    entry = item.ravel()[0]
                    result[at] = (str(np.ravel(entry[0])[0]), float(np.ravel(entry[1])[0]))
                yield result
        except OSError:
            raise
        except Exception as error:  # SciPy's own, and what a file of another structure leads to
            raise UserError(
                f"{path}: expected AgeDB's protocol with `splits`, got another file ({error!r})"
            ) from error


def read_list(root: Path, pairs: Path | None) -> PairList:
    """Any pairs: a text file of lines 'PATH PATH LABEL', 1 for the same person, 0 for different ones; tabs, commas or
    spaces. Its order is kept, as InsightFace's packer of its own lists (pairs_label.txt) keeps it."""
    path = _found(pairs, root / "pairs_label.txt")
    found = _Pairs()
    for number, line in _lines(path):
        separator = next((mark for mark in ("\t", ",") if mark in line), None)
        cells = [cell.strip() for cell in line.split(separator)]
        if len(cells) != 3 or cells[2] not in ("0", "1"):
            raise UserError(f"{path}, line {number}: expected 'PATH PATH 0' or 'PATH PATH 1', got {line!r}")
        found.add(cells[0], cells[1], cells[2] == "1")
    return found.done(path, root)


#: Name of a layout -> (what it is, reader(root, pairs file or None)).
LAYOUTS: dict[str, tuple[str, Callable[[Path, Path | None], PairList]]] = {
    "lfw": ("LFW: DIR/NAME/NAME_0001.jpg, pairs.txt", read_lfw),
    "cfp_ff": ("CFP, frontal against frontal: DIR/Protocol, DIR/Data", lambda root, _: read_cfp(root, "FF")),
    "cfp_fp": ("CFP, frontal against profile: DIR/Protocol, DIR/Data", lambda root, _: read_cfp(root, "FP")),
    "cplfw": (
        "CPLFW: DIR or DIR/images, pairs_CPLFW.txt",
        lambda root, pairs: read_cross(root, pairs, "pairs_CPLFW.txt"),
    ),
    "calfw": (
        "CALFW: DIR or DIR/images, pairs_CALFW.txt",
        lambda root, pairs: read_cross(root, pairs, "pairs_CALFW.txt"),
    ),
    "agedb_30": ("AgeDB-30: DIR/03_Protocol_Images, 04_FINAL_protocol_30_years.mat", read_agedb),
    "list": ("your own: lines 'PATH PATH LABEL' of --pairs, paths below DIR", read_list),
}


def _found(given: Path | None, *usual: Path) -> Path:
    for path in usual if given is None else (given,):
        if path.is_file():
            return path
    places = " or ".join(dict.fromkeys(map(str, usual)))
    if given is not None:
        raise UserError(f"--pairs: expected the file of the pairs, got {given}, which is not there")
    raise UserError(f"{places}: expected the file of the pairs, got nothing there; give it with --pairs")


def _lines(path: Path) -> list[tuple[int, str]]:
    """(number from 1, text) of the lines that are not blank. UserError for a file without any."""
    with reading(path):
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: expected a text file in UTF-8, got another ({error})") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise UserError(f"{path}: expected pairs of images, got an empty file")
    return lines


def repeated(pairs: PairList) -> list[str]:
    """Pairs that stand in the list more than once, in either order, and pairs of one image with itself: in words."""
    low, high = np.minimum(pairs.first, pairs.second), np.maximum(pairs.first, pairs.second)
    _, first, counts = np.unique(low * len(pairs.images) + high, return_index=True, return_counts=True)
    again = np.sort(first[counts > 1])
    notes = []
    if again.size:
        notes.append(f"{int((counts - 1).sum())} pairs are listed again: {_some(pairs, again)}")
    itself = np.flatnonzero(low == high)
    if itself.size:
        notes.append(f"{itself.size} pairs are of an image with itself: {_some(pairs, itself)}")
    return notes


def _some(pairs: PairList, which: np.ndarray) -> str:
    names = [
        f"{pairs.images[pairs.first[i]]} and {pairs.images[pairs.second[i]]}" for i in which[:_SHOWN].tolist()
    ]
    return "; ".join(names) + (", .." if which.size > _SHOWN else "")
