"""MXNet's .params files (what `mx.nd.save` writes) read and written with NumPy alone.

A file is, little-endian: uint64 0x112, uint64 0, uint64 number of arrays, the arrays, uint64 number of names,
and each name as uint64 length and UTF-8 bytes. An array is, by the version of MXNet that wrote it:

    V3 (1.6+, NumPy shapes)  uint32 0xF993FACA, int32 storage, int32 ndim, int64 dims, context, data
    V2 (0.12+)               uint32 0xF993FAC9, int32 storage, uint32 ndim, int64 dims, context, data
    V1 (0.11)                uint32 0xF993FAC8, uint32 ndim, int64 dims, context, data
    before                   uint32 ndim, uint32 dims, context, data

where context is int32 device type (1 CPU, 2 GPU), int32 device number, int32 type of the elements.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

import numpy as np

from ddl_plugin.errors import UserError
from ddl_plugin.files import reading, replaced

_FILE_MAGIC = 0x112
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_DENSE = 0
_CPU = 1
_MAX_DIMS = 32

#: MXNet's number of an element type -> NumPy's type.
_DTYPES = {
    flag: np.dtype(name)
    for flag, name in enumerate(("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8", "?"))
}  # fmt: skip
_FLAGS = {dtype: flag for flag, dtype in _DTYPES.items()}

Arrays = dict[str, np.ndarray]


class _Reader:
    """A cursor over the file's bytes whose every read checks that the bytes are there."""

    def __init__(self, path: Path, data: mmap.mmap, mapped: bool):
        self.path = path
        self.mapped = mapped
        self.data = data
        self.offset = 0
        self.place = "the header"

    def take(self, size: int) -> int:
        """Move past `size` bytes and return where they began."""
        start, left = self.offset, len(self.data) - self.offset
        if size > left:
            raise UserError(
                f"{self.path}: truncated .params file: expected {size} more bytes for {self.place}, got {left}; "
                f"copy or save it again"
            )
        self.offset += size
        return start

    def unpack(self, form: str) -> tuple:
        form = "<" + form
        return struct.unpack_from(form, self.data, self.take(struct.calcsize(form)))

    def number(self, form: str) -> int:
        return self.unpack(form)[0]

    def fail(self, what: str) -> UserError:
        return UserError(f"{self.path}: damaged or foreign .params file: {self.place}: {what}")


def _read_shape(reader: _Reader) -> tuple[int, ...] | None:
    """The dimensions of the next array; None for MXNet's empty array, which has no context and no data."""
    magic = reader.number("I")
    if magic in (_V2, _V3):
        storage = reader.number("i")
        if storage != _DENSE:
            raise reader.fail(f"expected dense storage, got sparse storage type {storage}")
    versioned = magic in (_V1, _V2, _V3)
    ndim = reader.number("i" if magic == _V3 else "I") if versioned else magic
    if magic == _V3 and ndim == -1:
        return None
    if not 0 <= ndim <= _MAX_DIMS:
        raise reader.fail(f"expected at most {_MAX_DIMS} dimensions, got {ndim}")
    if ndim == 0 and magic != _V3:
        return None
    shape = reader.unpack(f"{ndim}{'q' if versioned else 'I'}")
    if min(shape, default=0) < 0:
        raise reader.fail(f"expected dimensions >= 0, got shape {shape}")
    return shape


def _read_array(reader: _Reader) -> np.ndarray:
    shape = _read_shape(reader)
    if shape is None:
        return np.empty(0, np.float32)
    _device_type, _device, flag = reader.unpack("iii")  # arrays saved from GPUs hold the same bytes
    if flag not in _DTYPES:
        raise reader.fail(f"expected an element type 0..{max(_DTYPES)}, got {flag}")
    dtype = _DTYPES[flag]
    count = 1
    for size in shape:  # Python's integers: a damaged shape must not overflow
        count *= size
    start = reader.take(count * dtype.itemsize)
    array = np.frombuffer(reader.data, dtype, count, start).reshape(shape)
    return array if reader.mapped else array.copy()


def _read_all(reader: _Reader) -> Arrays:
    magic, _reserved, count = reader.unpack("QQQ")
    if magic != _FILE_MAGIC:
        raise reader.fail(f"expected it to begin with {_FILE_MAGIC:#x} as mx.nd.save writes, got {magic:#x}")
    arrays = []
    for index in range(count):
        reader.place = f"array {index + 1} of {count}"
        arrays.append(_read_array(reader))
    reader.place = "the names"
    names = reader.number("Q")
    if names != count:
        raise reader.fail(f"expected {count} names, one per array, got {names}")
    result: Arrays = {}
    for array in arrays:
        size = reader.number("Q")
        start = reader.take(size)
        try:
            result[reader.data[start : start + size].decode()] = array
        except UnicodeDecodeError as error:
            raise reader.fail("a name is not UTF-8") from error
    return result


def load_params(path: str | os.PathLike, *, mapped: bool = False) -> tuple[Arrays, Arrays]:
    """Read a checkpoint's parameters: ({name: array} of arguments, {name: array} of auxiliary states).

    Arrays keep the type they were saved in. With `mapped` they are read-only views of the file, which stays open as
    long as any of them lives and must not be changed meanwhile. Raises UserError for a missing, unreadable, truncated or foreign file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such .params file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: truncated .params file: it is empty; copy or save it again")
    with reading(path), path.open("rb") as file:
        # Not closed here: the views keep it, and where there are none it goes with this function.
        named = _read_all(_Reader(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), mapped))
    split: dict[str, Arrays] = {"arg": {}, "aux": {}}
    for name, array in named.items():
        kind, colon, rest = name.partition(":")
        if not colon or kind not in split:
            raise UserError(
                f"{path}: expected names like 'arg:conv0_weight' and 'aux:bn0_moving_mean', got {name!r}; "
                f"save with mx.model.save_checkpoint or HybridBlock.export"
            )
        split[kind][rest] = array
    return split["arg"], split["aux"]


def _pack_array(name: str, array: np.ndarray) -> bytes:
    """Everything of one array that stands before its data."""
    dtype = array.dtype.newbyteorder("<")
    if dtype not in _FLAGS:
        raise ValueError(f"{name}: MXNet has no element type {array.dtype}")
    if array.ndim == 0 or array.size == 0:
        raise ValueError(
            f"{name}: a .params file holds no scalars and no empty arrays, got shape {array.shape}"
        )
    head = struct.pack("<IiI", _V2, _DENSE, array.ndim)
    return head + struct.pack(f"<{array.ndim}qiii", *array.shape, _CPU, 0, _FLAGS[dtype])


def save_params(path: str | os.PathLike, arg: Arrays, aux: Arrays) -> None:
    """Write what `mx.nd.save` writes for the same arrays, byte for byte, atomically.

    Raises ValueError for what the format cannot hold: scalars, empty arrays, complex numbers, text.
    """
    named = {f"arg:{name}": np.asarray(array) for name, array in arg.items()}
    named.update({f"aux:{name}": np.asarray(array) for name, array in aux.items()})
    heads = {name: _pack_array(name, array) for name, array in named.items()}
    with replaced(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<QQQ", _FILE_MAGIC, 0, len(named)))
        for name, array in named.items():
            file.write(heads[name])
            file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
        file.write(struct.pack("<Q", len(named)))
        for name in named:
            text = name.encode()
            file.write(struct.pack("<Q", len(text)) + text)
