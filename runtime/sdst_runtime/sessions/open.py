"""Opens a model file with the runner that its suffix names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from .base import Session

if TYPE_CHECKING:
    from .tensorrt import TensorRTSession


def open_session(path: Path, threads: int | None = None, as_written: bool = False) -> Session:
    """A session for a model file; `as_written` as of OnnxRuntimeSession. Raises InputError for an unknown suffix."""
    if Path(path).suffix == ".onnx":
        from .onnxruntime import OnnxRuntimeSession

        return OnnxRuntimeSession(path, threads, as_written=as_written)
    if Path(path).suffix == ".plan":
        return open_engine(path)
    raise InputError(f"{path}: expected a .onnx or .plan file, got {Path(path).suffix or 'no suffix'}")


def open_engine(path: Path, workers: int = 1, cuda_graphs: bool = True) -> TensorRTSession:
    """A session for an engine, of the library that its sidecar names. Raises what the session raises."""
    from .plugin_library import host_code_allowed
    from .tensorrt import RtxSession, TensorRTSession
    from .tensorrt.sidecar import read_sidecar

    if read_sidecar(Path(path)).target == "rtx":
        return RtxSession(path, workers=workers, cuda_graphs=cuda_graphs)
    return TensorRTSession(path, workers=workers, cuda_graphs=cuda_graphs, engine_host_code_allowed=host_code_allowed())
