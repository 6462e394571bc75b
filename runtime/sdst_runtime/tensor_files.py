"""Safetensors files of ours with several arrays: written atomically, with a digest of what they hold.

The digest is there because safetensors itself has none: a bit that turned on a disk would change an answer silently.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError, require_package
from .files import pack_header, unpack_header, write_bytes

_DIGEST = "arrays_sha256"


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], **stated: str) -> None:
    """Write arrays and what is stated of them. Raises InputError when `path` cannot be written."""
    numpy_io: Any = require_package("safetensors.numpy", "")
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_bytes(path, numpy_io.save(whole, pack_header(**stated, **{_DIGEST: _digest(whole.items())})))


def read_arrays(path: Path, stated: tuple[str, ...], mend: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All arrays of a file by name, and the values of `stated`.

    Raises InputError, which `mend` ends, when the file is missing, broken or changed, or lacks one of `stated`.
    """
    safetensors: Any = require_package("safetensors", "")
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; {mend}")
    try:
        with safetensors.safe_open(path, "numpy") as stored:
            metadata = stored.metadata()
            arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  it is no dict
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); {mend}") from error
    header = unpack_header(metadata, (*stated, _DIGEST), path)
    if header[_DIGEST] != _digest(arrays.items()):
        raise InputError(f"{path}: its arrays are not those that were written, the file is damaged; {mend}")
    return arrays, header


def _digest(arrays: Iterable[tuple[str, np.ndarray]]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays, key=lambda item: item[0]):
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data if array.size else b"")
    return digest.hexdigest()
