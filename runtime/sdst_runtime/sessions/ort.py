"""The one place where ONNX Runtime is imported, in all rooms.

From 1.31 on its Linux builds report to Microsoft: they look up a telemetry host and write a file `.ses` into the
temporary folder, through links. Only ORT_DISABLE_TELEMETRY, set before the import, stops both.
"""

from __future__ import annotations

import os
from typing import Any

from ..errors import require_package

NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"


def import_onnxruntime() -> Any:
    """The module onnxruntime, its telemetry off in this process and those it starts. Raises DependencyError."""
    os.environ[NO_TELEMETRY] = "1"
    return require_package("onnxruntime", "")
