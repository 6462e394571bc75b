"""Opens a model file with the runner that its suffix names."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from .base import Session


def open_session(path: Path, threads: int | None = None) -> Session:
    """A session for a model file. Raises InputError for a suffix that nothing here runs."""
    if Path(path).suffix == ".onnx":
        from .onnxruntime import OnnxRuntimeSession

        return OnnxRuntimeSession(path, threads)
    if Path(path).suffix == ".plan":
        from .plugin_library import host_code_allowed
        from .tensorrt import TensorRTSession

        return TensorRTSession(path, engine_host_code_allowed=host_code_allowed())
    raise InputError(f"{path}: expected a .onnx or .plan file, got {Path(path).suffix or 'no suffix'}")
