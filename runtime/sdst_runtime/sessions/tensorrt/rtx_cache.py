"""Kernels that TensorRT for RTX compiled when an engine ran, kept for the next start: $SDST_CACHE/rtx.

A file belongs to one plan, one version of TensorRT for RTX, one GPU and one driver. It is a line with the SHA-256 of
what follows, then TensorRT's own bytes. One that cannot be used costs a warning and the compilation, never the session.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...files import cache_folder, write_bytes
from .compat import LOGGER
from .sidecar import MachineRecord

_HEADER = b"sdst runtime cache 1 "


def runtime_cache_path(plan_sha256: str, here: MachineRecord) -> Path:
    """Where the kernels of a plan for this machine are kept."""
    name = f"{plan_sha256[:32]}-{here.gpu}-sm{here.sm}-rtx{here.tensorrt}-driver{here.driver}"
    return cache_folder() / "rtx" / f"{re.sub(r'[^A-Za-z0-9_.]+', '-', name)}.cache"


class RuntimeCache:
    """An IRuntimeCache and its file. Calls of TensorRT's are made inside `device.current()`."""

    def __init__(self, path: Path, runtime_cache: Any) -> None:
        """Load what was kept, if TensorRT takes it."""
        self.path, self.runtime_cache = path, runtime_cache
        self._kept = b""  # digest of what the file holds
        fault = self._load()
        if fault:
            LOGGER.warning("%s: %s; kernels are compiled anew", path, fault)

    def keep(self) -> None:
        """Write the kernels if there are others than the file holds."""
        blob = bytes(self.runtime_cache.serialize() or b"")
        digest = hashlib.sha256(blob).hexdigest().encode()
        if not blob or digest == self._kept:
            return
        try:
            write_bytes(self.path, _HEADER + digest + b"\n" + blob)
        except InputError as error:
            LOGGER.warning("compiled kernels are not kept for the next start: %s", error)
            return
        self._kept = digest

    def _load(self) -> str:
        """What is wrong with the file; nothing when it was loaded or is not there."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return ""
        except OSError as error:
            return f"cannot be read ({error.strerror or error})"
        line, _, blob = data.partition(b"\n")
        if line != _HEADER + hashlib.sha256(blob).hexdigest().encode():
            return "is damaged"
        if not self.runtime_cache.deserialize(blob):
            return "TensorRT for RTX does not take it: of another version, GPU or driver"
        self._kept = line.removeprefix(_HEADER)
        return ""
