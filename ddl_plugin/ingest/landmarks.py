"""Landmarks of images from a text file, joined to the images by name."""

from __future__ import annotations

import array
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ddl_plugin.errors import UserError
from ddl_plugin.ingest.sources import (
    IMAGE_SUFFIXES,
    LANDMARKS,
    Source,
    entries,
    lines,
    listed_paths,
    name_hashes,
    no_points,
    shown,
)


def file_landmarks(path: Path, rows: np.ndarray, folder: Path, sources: tuple[Source, ...]) -> np.ndarray:
    """Points for the rows (ROW) from a file of lines 'path, x1, y1, .., x5, y5' (commas or white space).

    float32 (n, 10), NaN for rows without. Paths are those below the source, the suffix may be missing; for a .rec
    record numbers. Raises UserError for a file that cannot be understood or fits no row.
    """
    names = name_hashes(map(_without_suffix, _row_names(rows, folder, sources)))
    order = np.argsort(names, kind="stable")
    twice = np.flatnonzero(np.diff(names[order]) == 0)
    result = no_points(len(rows))
    given, values = _given_points(path)
    at = np.searchsorted(names, given, sorter=order)
    at[at == len(names)] = 0
    row = order[at] if len(order) else at
    fits = (names[row] == given) if len(order) else np.zeros(len(given), bool)
    if not fits.any():
        raise UserError(f"{path}: expected landmarks of the images listed, got those of {len(given)} others")
    result[row[fits]] = values[fits]
    # Two images whose names differ in the suffix alone: whose points these are is not known.
    result[order[twice]] = result[order[twice + 1]] = np.nan
    return result


def _row_names(rows: np.ndarray, folder: Path, sources: tuple[Source, ...]) -> Iterator[bytes]:
    numbers = (row.number for row in entries(rows))
    for number, (source, name) in zip(numbers, listed_paths(rows, folder), strict=True):
        yield b"%d" % number if sources[source].is_rec else name


def _without_suffix(name: bytes) -> bytes:
    """A path without ./ and an image's suffix, which lists of landmarks often leave out."""
    name = os.path.normpath(name)
    stem, dot, suffix = name.rpartition(b".")
    return stem if (dot + suffix).lower() in IMAGE_SUFFIXES else name


def _given_points(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the names and points float32 (n, 10) of a file of landmarks."""
    names, values = array.array("Q"), array.array("f")
    for number, line in lines(path):
        separator = b"," if b"," in line else None
        fields = line.strip().rsplit(separator, LANDMARKS)
        try:
            points = [float(field) for field in fields[1:]]
            if len(points) != LANDMARKS:
                raise ValueError
        except ValueError as error:
            if number == 1:
                continue  # a header line
            raise UserError(
                f"{path}: line {number}: expected 'path, x1, y1, .., x5, y5', got {shown(line)[:80]!r}"
            ) from error
        name = _without_suffix(fields[0].strip().strip(b'"'))
        names.frombytes(hashlib.blake2b(name, digest_size=8).digest())
        values.extend(points)
    if not names:
        raise UserError(f"{path}: expected lines 'path, x1, y1, .., x5, y5', got none")
    return np.frombuffer(names, np.uint64), np.frombuffer(values, np.float32).reshape(-1, LANDMARKS)
