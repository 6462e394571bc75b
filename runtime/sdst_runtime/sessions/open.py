"""Opens a model file with the runner that its suffix names."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import InputError
from .base import Session

HOST_CODE = "SDST_ENGINE_HOST_CODE"  # of the environment: "1" lets engines run code that they carry


def open_session(path: Path, threads: int | None = None) -> Session:
    """A session for a model file. Raises InputError for a suffix that nothing here runs."""
    if Path(path).suffix == ".onnx":
        from .onnxruntime import OnnxRuntimeSession

        return OnnxRuntimeSession(path, threads)
    if Path(path).suffix == ".plan":
        from .tensorrt import TensorRTSession

        return TensorRTSession(path, engine_host_code_allowed=os.environ.get(HOST_CODE) == "1")
    raise InputError(f"{path}: expected a .onnx or .plan file, got {Path(path).suffix or 'no suffix'}")
