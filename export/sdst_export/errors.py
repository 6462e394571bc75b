"""The error of the export room."""

from __future__ import annotations

from sdst_runtime.errors import SdstError


class ExportError(SdstError):
    """The exported graph is not what was asked for."""


class EngineError(ExportError):
    """TensorRT could not build the engine, or built another than was asked for."""
