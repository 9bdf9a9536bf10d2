"""InsightFace's verification sets: .bin, a pickle of (encoded images, same or not), read without trust.

A pickle can name any callable and have it called. Here every global a file asks for is looked up in a short
table of stand-ins defined below; nothing is imported, and anything else is refused by its name.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ddl_plugin.errors import UserError
from ddl_plugin.files import replaced, sha256

SIDE = 112  # pixels

_KINDS = ("b1", "?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")


class _StandIn:
    """A callable that a pickle can call but not alter."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a state for a function")


def _text(value: str | bytes) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else value


class _Dtype:
    """What `numpy.dtype` is to a .bin file: booleans or whole numbers, little-endian or of one byte."""

    def __init__(self, kind: str | bytes, *_: Any) -> None:
        self.kind = _text(kind)
        if self.kind not in _KINDS:
            raise pickle.UnpicklingError(f"an array of type {self.kind!r}")

    def __setstate__(self, state: tuple) -> None:
        if _text(state[1]) == ">":
            raise pickle.UnpicklingError("a big-endian array")

    def check(self, raw: bytes) -> None:
        if len(raw) % np.dtype(self.kind).itemsize:
            raise pickle.UnpicklingError(f"an array of {len(raw)} bytes of type {self.kind!r}")

    def decode(self, raw: bytes | str) -> list[int]:
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        return np.frombuffer(raw, dtype=np.dtype(self.kind)).astype(np.int64).tolist()


class _Array:
    """What a pickled `numpy.ndarray` becomes: the labels, or an encoded image, as InsightFace's packers of CFP and
    AgeDB store it (what cv2.imencode gives)."""

    def __init__(self, dtype: _Dtype | None = None, raw: bytes | str = b"") -> None:
        if not isinstance(raw, (bytes, bytearray, str)):  # bytes(10**12) would be a terabyte of zeros
            raise pickle.UnpicklingError(f"a {type(raw).__name__} as the content of an array")
        self._raw = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)
        self._dtype = dtype
        if dtype is not None:
            dtype.check(self._raw)

    def __setstate__(self, state: tuple) -> None:
        _version, _shape, dtype, _fortran, raw = state
        self.__init__(dtype, raw)

    def integers(self) -> list[int]:
        return self._dtype.decode(self._raw) if self._dtype else []

    def content(self) -> bytes | None:
        """The bytes of an array of bytes; None of another one."""
        return self._raw if self._dtype and self._dtype.kind == "u1" else None


def _encode(text: str, encoding: str | bytes) -> bytes:
    if _text(encoding) not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")


def _numpy_globals() -> dict[tuple[str, str], _StandIn]:
    scalar = _StandIn(lambda dtype, raw: dtype.decode(raw)[0])
    rebuild = _StandIn(lambda *_: _Array())
    from_buffer = _StandIn(lambda raw, dtype, *_: _Array(dtype, raw))
    table = {
        ("_codecs", "encode"): _StandIn(_encode),
        ("numpy", "dtype"): _StandIn(_Dtype),
        ("numpy", "ndarray"): _StandIn(lambda *_: _Array()),
    }
    for core in ("numpy.core", "numpy._core"):
        table[f"{core}.multiarray", "scalar"] = scalar
        table[f"{core}.multiarray", "_reconstruct"] = rebuild
        table[f"{core}.numeric", "_frombuffer"] = from_buffer
    return table


class _RefusedError(Exception):
    """The pickle asks for a global that no verification set needs."""


class _Unpickler(pickle.Unpickler):
    _TABLE = _numpy_globals()

    def find_class(self, module: str, name: str) -> _StandIn:
        try:
            return self._TABLE[module, name]
        except KeyError:
            raise _RefusedError(f"{module}.{name}") from None


@dataclass(frozen=True)
class BinSet:
    """One verification set: pair i is images 2i and 2i + 1.

    Images stay encoded; `images` decodes a range of them.
    """

    name: str
    encoded: Sequence[bytes]
    issame: np.ndarray  # bool (pairs,)

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.issame)

    def images(self, start: int, stop: int) -> np.ndarray:
        """Images start .. stop - 1, uint8 (n, 112, 112, 3) RGB."""
        return np.stack([self._image(i) for i in range(start, stop)])

    def describe(self, i: int) -> str:
        """How messages call image i."""
        return f"image {i} of {self.name} (pair {i // 2}, {('first', 'second')[i % 2]})"

    def _image(self, i: int) -> np.ndarray:
        image = None
        if self.encoded[i]:
            image = cv2.imdecode(np.frombuffer(self.encoded[i], np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            raise UserError(
                f"{self.describe(i)}: expected a JPEG or PNG image, got {len(self.encoded[i])} bytes that "
                f"are none; download or build the set again"
            )
        if image.shape[:2] != (SIDE, SIDE):
            height, width = image.shape[:2]
            raise UserError(
                f"{self.describe(i)}: expected {SIDE}x{SIDE} pixels, got {width}x{height}; align the faces first"
            )
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def load_bin(path: str | os.PathLike) -> BinSet:
    """Read a .bin file written by Python 2 or 3, any pickle protocol, executing nothing in it.

    Raises:
        UserError: no such file, a pickle that asks for anything but byte strings and NumPy arrays of booleans or
            whole numbers (the global is named), a cut file, a wrong structure, an empty set.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            # 'bytes': Python 2's str objects are the encoded images.
            value = _Unpickler(file, encoding="bytes").load()
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a verification set: {error.strerror or error}") from error
    except _RefusedError as error:
        raise UserError(
            f"{path}: expected a pickle of images and labels only, but it asks for {error}; nothing was executed. "
            f"Do not trust this file"
        ) from error
    except Exception as error:
        # Damaged pickles raise nearly anything: EOFError, ValueError, KeyError, OverflowError, MemoryError ..
        raise UserError(
            f"{path}: expected a verification .bin (a pickle), got a damaged or other file "
            f"({type(error).__name__}: {error}); download or build it again"
        ) from error
    return _checked(path, value)


def fingerprint(path: str | os.PathLike) -> str:
    """'name:digest' of a .bin file and its content: what a table of its images says that it was made from."""
    return f"{Path(path).name}:{sha256(path)[:32]}"


def _checked(path: Path, value: Any) -> BinSet:
    def wrong(got: str) -> UserError:
        return UserError(
            f"{path}: expected a pair (images, labels) with two images for each label, got {got}"
        )

    if not (isinstance(value, (tuple, list)) and len(value) == 2):
        raise wrong(f"a {type(value).__name__}")
    encoded, labels = value
    if isinstance(labels, _Array):
        labels = labels.integers()
    for part, what in ((encoded, "images"), (labels, "labels")):
        if not isinstance(part, (list, tuple)):
            raise wrong(f"{what} of type {type(part).__name__}")
    if len(encoded) != 2 * len(labels):
        raise wrong(f"{len(encoded)} images and {len(labels)} labels")
    if not labels:
        raise UserError(f"{path}: expected at least one pair, got an empty verification set")
    encoded = [image.content() if isinstance(image, _Array) else image for image in encoded]
    for i, image in enumerate(encoded):
        if not isinstance(image, (bytes, bytearray)):
            raise wrong(f"{'an array' if image is None else f'a {type(image).__name__}'} as image {i}")
    for i, label in enumerate(labels):
        if not isinstance(label, int) or label not in (0, 1):
            raise wrong(f"{label!r} as label {i}")
    return BinSet(path.stem, encoded, np.array(labels, dtype=bool))


def write_bin(path: str | os.PathLike, encoded: Sequence[bytes], issame: Sequence[bool]) -> None:
    """Write a verification set that InsightFace's own loaders read: images 2i, 2i + 1 are pair i.

    Args:
        encoded: JPEG or PNG file contents.
        issame: bool for each pair.

    The file is the old one or the whole new one, never a part.
    """
    if len(encoded) != 2 * len(issame):
        raise UserError(
            f"{path}: expected two images for each label, got {len(encoded)} images and {len(issame)} labels"
        )
    content = ([bytes(image) for image in encoded], [bool(same) for same in issame])
    with replaced(path) as temporary, temporary.open("wb") as file:
        pickle.dump(content, file, protocol=pickle.HIGHEST_PROTOCOL)
