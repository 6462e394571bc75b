"""Feature arrays that stay in their file until they are used, and file headers read without the arrays.

A StoredArray reads at every use, so that a data set larger than memory can be trained on. It pickles to a path.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .. import bounds
from ..errors import InputError, foreign_errors, require_package
from ..strict_json import Misfit, parse, parse_value

Shape = tuple[int, ...]
Index = tuple[slice, ...]

_NOT_READABLE = "not a readable feature file"
_AGAIN = "extract it again"
_FETCH = "fetch the released features again"


@dataclass(frozen=True)
class StoredArray:
    """A float16 or float32 array in a file. `stored[:, -4:]` and `np.asarray(stored)` read it, or that part of it.

    Reading raises InputError naming the file when it is gone, broken, or holds NaN or infinity.
    """

    shape: Shape
    read: Callable[[Index], np.ndarray]  # picklable; gets a slice for each axis, none of them open

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | Index) -> np.ndarray:
        leading = index if isinstance(index, tuple) else (index,)
        slices = leading + (slice(None),) * (len(self.shape) - len(leading))
        return self.read(tuple(slice(*s.indices(n)[:2]) for s, n in zip(slices, self.shape, strict=True)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = self[:]
        return values if dtype is None else values.astype(dtype, copy=False)

    def first(self, length: int) -> StoredArray:
        """The first `length` entries of the first axis, still not read."""
        return replace(self, shape=(min(length, len(self)), *self.shape[1:]))


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself."""

    metadata: dict[str, str]
    shapes: dict[str, Shape]


def read_header(path: Path) -> Header:
    """The header of a safetensors file of float16 or float32. Raises InputError when it is missing or broken."""
    try:
        with Path(path).open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            size = stream.seek(0, 2)
            stream.seek(8)
            text = stream.read(length) if length <= size - 8 else b"{}"
        entries, metadata = _entries(text)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such feature file; extract the features of this data set first") from error
    except (OSError, struct.error, Misfit) as error:
        raise InputError(f"{path}: {_NOT_READABLE} ({error}); {_AGAIN}") from error
    end = max((entry.data_offsets[1] for entry in entries.values()), default=0)
    if size != 8 + length + end:
        raise InputError(f"{path}: {_NOT_READABLE} ({size} bytes, its header tells of {8 + length + end}); {_AGAIN}")
    for name, entry in entries.items():
        if entry.dtype not in _BYTES:
            raise InputError(f"{path}: expected features in float16 or float32, got {entry.dtype}; {_AGAIN}")
        start, stop = entry.data_offsets
        if min(entry.shape, default=0) < 0 or math.prod(entry.shape) * _BYTES[entry.dtype] != stop - start:
            told = f"{name} of shape {entry.shape} in {stop - start} bytes"
            raise InputError(f"{path}: {_NOT_READABLE} ({told}); {_AGAIN}")
    return Header(metadata, {name: entry.shape for name, entry in entries.items()})


@dataclass(frozen=True)
class _Entry:
    """A tensor in a safetensors header."""

    dtype: str
    shape: Shape
    data_offsets: tuple[int, int]


_BYTES = {"F16": 2, "F32": 4}


def _entries(text: bytes) -> tuple[dict[str, _Entry], dict[str, str]]:
    """Tensors and metadata of a safetensors header. Raises Misfit."""
    content = parse(dict[str, Any], text)
    metadata = parse_value(dict[str, str], content.pop("__metadata__", {}))
    return parse_value(dict[str, _Entry], content), metadata


class TensorFile:
    """A safetensors file, mapped when first read and kept so; once more in each process that it is sent to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._process = 0
        self._opened: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return TensorFile, (self.path,)

    def read(self, key: str, index: Index) -> np.ndarray:
        """A part of the tensor `key`. Raises InputError naming the file when it is gone, broken or not finite."""
        safetensors: Any = require_package("safetensors", "")
        with foreign_errors(f"{self.path}: {_NOT_READABLE}", _AGAIN):
            if self._process != os.getpid():
                self._opened, self._process = safetensors.safe_open(self.path, "numpy"), os.getpid()
            values = self._opened.get_slice(key)[index]
        return _finite(values, self.path)


def read_tensor(path: Path, index: Index) -> np.ndarray:
    """A part of the tensor `features` of a file of its own, which is closed again; errors as TensorFile.read."""
    return TensorFile(path).read("features", index)


def read_npz_shape(path: Path, key: str) -> Shape:
    """The shape of a float16 or float32 array in an npz file, without decompressing it.

    Raises InputError, also for an array of more than ARRAY_BYTES: a few kilobytes can be made to say and to become any
    number of them.
    """
    with _npz_member(path, key) as (_, shape, _, _):
        return shape


def read_npz(path: Path, key: str, index: Index) -> np.ndarray:
    """A part of an array of an npz file. Raises what `read_npz_shape` does, and InputError unless it is finite."""
    with _npz_member(path, key) as (stream, shape, dtype, order):
        content = stream.read(math.prod(shape) * dtype.itemsize)
        values = np.frombuffer(content, dtype).reshape(shape, order=order)[index].copy()
    return _finite(values, path)


@contextmanager
def _npz_member(path: Path, key: str) -> Iterator[tuple[Any, Shape, np.dtype, Literal["C", "F"]]]:
    """An array's stream, behind its header, and what the header says, once that fits what the archive says.

    The one place where archives are opened: whatever zipfile, its decompressors and numpy's parser of a header in
    Python's syntax raise for a damaged one, within the block too, is an InputError.
    """
    if not Path(path).exists():
        raise InputError(f"{path}: no such feature file; {_FETCH}")
    with (
        foreign_errors(f"{path}: {_NOT_READABLE} with an array {key}", _FETCH),
        zipfile.ZipFile(path) as archive,
        archive.open(f"{key}.npy") as stream,
    ):
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(stream)
        _require_array(path, key, shape, dtype)
        declared, told = archive.getinfo(f"{key}.npy").file_size, math.prod(shape) * dtype.itemsize
        if declared != stream.tell() + told:
            raise ValueError(f"{declared} bytes, its header tells of {stream.tell() + told}")
        yield stream, shape, dtype, "F" if is_fortran else "C"


def _require_array(path: Path, key: str, shape: Shape, dtype: np.dtype) -> None:
    if dtype not in (np.float16, np.float32):
        raise InputError(f"{path}: expected {key} in float16 or float32, got {dtype}")
    if min(shape, default=0) < 0 or (size := math.prod(shape) * dtype.itemsize) > bounds.ARRAY_BYTES:
        size = f"{size:,d} bytes" if min(shape, default=0) >= 0 else f"shape {shape}"
        raise InputError(f"{path}: expected {key} of at most {bounds.ARRAY_BYTES:,d} bytes, got {size}; {_FETCH}")


def _finite(values: np.ndarray, path: Path) -> np.ndarray:
    if values.dtype == np.float16:  # numpy's isfinite takes eight times as long: all bits of the exponent are set
        fits = ((values.view(np.uint16) & 0x7C00) != 0x7C00).all()
    else:
        fits = np.isfinite(values).all()
    if not fits:
        raise InputError(f"{path}: contains NaN or infinity; {_AGAIN}")
    return values
