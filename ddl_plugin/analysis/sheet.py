"""A sheet of sample faces of each set of a partition, so that a person sees at a glance whether it is right."""

from __future__ import annotations

import ast
import os
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ddl_plugin.data.attributes import AttributeTable
from ddl_plugin.data.embeddings import View
from ddl_plugin.data.faces import SHAPE
from ddl_plugin.data.partition import Partition
from ddl_plugin.data.records import DamagedRecordError, Records
from ddl_plugin.errors import UserError
from ddl_plugin.files import replaced
from ddl_plugin.settings import Degradation

COLUMNS, LINES = 12, 2  # faces of a set
_NAMES_MOST = 3  # attributes under a face
_SAMPLES = 103  # what random numbers are for: part of their key beside the seed
_GAP, _TITLE, _TEXT = 6, 34, 15  # pixels
_FACE, _FACE_BOLD = cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX
_INK, _PALE, _PAPER = (30, 30, 30), (225, 225, 225), (255, 255, 255)


@dataclass(frozen=True)
class _Row:
    title: str
    positions: np.ndarray  # of the samples
    view: View


def write_sheet(
    path: str | os.PathLike,
    records: Records,
    partition: Partition,
    attributes: AttributeTable | None,
    *,
    seed: int = 0,
) -> None:
    """Write `contact_sheet` as a .png, whole or not at all."""
    sheet = contact_sheet(records, partition, attributes, seed=seed)
    with replaced(path) as temporary:
        temporary.write_bytes(cv2.imencode(".png", sheet[..., ::-1])[1].tobytes())


def contact_sheet(
    records: Records, partition: Partition, attributes: AttributeTable | None, *, seed: int = 0
) -> np.ndarray:
    """Up to 24 faces of each set, and of the images that are in none: uint8 (H, W, 3) RGB.

    Each face is of another identity where there are so many; under it stand the attributes that the rules name,
    by the first of which the faces of a set are sorted. Degraded sets are shown degraded. The same seed gives the
    same sheet.
    """
    names = _named(partition)[:_NAMES_MOST] if attributes is not None else []
    blocks = [
        _block(records, row, _values(attributes, names, records, row.positions))
        for row in _rows(records, partition, seed)
    ]
    return np.concatenate(blocks)


def _rows(records: Records, partition: Partition, seed: int) -> list[_Row]:
    rows = []
    for k, d in enumerate(partition.distributions):
        rng = np.random.default_rng((seed, _SAMPLES, k))
        title = f"{d.name}: {d.label} - {len(d.positions)} images of {d.identities} identities"
        samples = sample(d.positions, records.labels[d.positions], COLUMNS * LINES, rng)
        rows.append(_Row(title, samples, View.of(d.name, d.degradation, k, seed)))
    rest = np.flatnonzero(~partition.members(len(records)).any(axis=0))
    if rest.size:
        rng = np.random.default_rng((seed, _SAMPLES, len(rows)))
        labels = records.labels[rest]
        title = f"in no set - {len(rest)} images of {len(np.unique(labels))} identities"
        rows.append(_Row(title, sample(rest, labels, COLUMNS * LINES, rng), View("clean", Degradation())))
    return rows


def sample(positions: np.ndarray, labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Up to `count` of `positions`, one of each of as many identities as can be, ascending; labels: theirs."""
    order = rng.permutation(len(positions))
    _, firsts = np.unique(labels[order], return_index=True)  # in this order, one image of each identity
    firsts = rng.permutation(firsts)[:count]
    others = np.setdiff1d(np.arange(len(order)), firsts)[: count - len(firsts)]
    return np.sort(positions[order[np.concatenate([firsts, others])]])


def _named(partition: Partition) -> list[str]:
    """Names of the attributes in the sets' rules, in the order in which they occur."""
    names: dict[str, None] = {}
    for distribution in partition.distributions:
        rule = distribution.rule
        if rule is not None:
            tree = ast.walk(ast.parse(rule.strip(), mode="eval"))
            found = [node for node in tree if isinstance(node, ast.Name) and node.id != "abs"]
            names |= dict.fromkeys(n.id for n in sorted(found, key=lambda n: (n.lineno, n.col_offset)))
    return list(names)


def _values(
    attributes: AttributeTable | None, names: Sequence[str], records: Records, positions: np.ndarray
) -> dict[str, list]:
    """Attributes of the samples: name -> a value each, None where the table has none."""

    def value(name: str, key: np.ndarray):
        try:
            return attributes.column(name, key)[0]
        except UserError:
            return None

    keys = records.keys[positions]
    return {name: [value(name, keys[i : i + 1]) for i in range(len(keys))] for name in names}


def _block(records: Records, row: _Row, values: dict[str, list]) -> np.ndarray:
    """A title, and lines of faces with their attributes below them."""
    order = _sorted_by(next(iter(values.values()), None), len(row.positions))
    height, width = SHAPE[0] + _TEXT * len(values) + _GAP, SHAPE[1] + _GAP
    lines = -(-len(order) // COLUMNS)
    block = np.full((_TITLE + lines * height, COLUMNS * width + _GAP, 3), 255, np.uint8)
    block[: _TITLE - _GAP] = _PALE
    _write(block, row.title, _GAP, _TITLE - 14, 0.55, _FACE_BOLD)
    for place, i in enumerate(order):
        top, left = _TITLE + place // COLUMNS * height, _GAP + place % COLUMNS * width
        block[top : top + SHAPE[0], left : left + SHAPE[1]] = _face(records, row, i)
        for line, (name, own) in enumerate(values.items()):
            text = f"{name} {_shown(own[i])}"
            _write(block, text, left, top + SHAPE[0] + 11 + line * _TEXT, 0.38, _FACE)
    return block


def _face(records: Records, row: _Row, i: int) -> np.ndarray:
    """The face; a grey square with its record number for a damaged one."""
    position = int(row.positions[i])
    try:
        return row.view.image(records, position)
    except DamagedRecordError:
        square = np.full(SHAPE, 200, np.uint8)
        _write(square, f"record {records.keys[position]}", 4, 50, 0.38, _FACE)
        _write(square, "is damaged", 4, 66, 0.38, _FACE)
        return square


def _sorted_by(values: list | None, count: int) -> list[int]:
    """The samples by rising value; as they are where there is none."""
    if values is None:
        return list(range(count))
    return sorted(range(count), key=lambda i: (values[i] is None, values[i] if values[i] is not None else 0))


def _shown(value) -> str:
    if value is None:
        return "?"
    return f"{value:.3g}" if isinstance(value, (float, np.floating)) else str(value)


def _write(image: np.ndarray, text: str, left: int, baseline: int, scale: float, font: int) -> None:
    """One line of text, smaller where it would not fit."""
    # OpenCV's fonts hold ASCII alone.
    plain = text.encode("ascii", "replace").decode()
    room = image.shape[1] - left - _GAP
    scale *= min(1.0, room / max(cv2.getTextSize(plain, font, scale, 1)[0][0], 1))
    cv2.putText(image, plain, (left, baseline), font, scale, _INK, 1, cv2.LINE_AA)
