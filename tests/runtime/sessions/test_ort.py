"""ONNX Runtime is imported in one place, with its telemetry off before it is."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

from places import ROOT

from sdst_runtime.sessions.ort import NO_TELEMETRY

ONE_PLACE = "runtime/sdst_runtime/sessions/ort.py"
ROOMS = ("sdst", "runtime", "sdst_train", "export", "calib", "benchmarks")


def imports(source: str) -> bool:
    """Whether a module names onnxruntime in an import statement or as the text of one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "onnxruntime" for alias in node.names):
            return True
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "onnxruntime":
            return True
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            name = str(node.args[0].value).split(".")[0]
            if called in ("import_module", "require_package", "__import__") and name == "onnxruntime":
                return True
    return False


def test_no_other_module_imports_it():
    found = [
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
        if imports(path.read_text())
    ]
    assert found == [ONE_PLACE]
    ways = (
        "import onnxruntime as ort",
        "from onnxruntime.capi import x",
        "import_module('onnxruntime')",
        "r('onnxruntime', '')",
    )
    assert [imports(way) for way in ways] == [True, True, True, False]


_FRESH = """
import sys
from pathlib import Path

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            import os
            print("set" if os.environ.get("ORT_DISABLE_TELEMETRY") == "1" else "not set")

sys.meta_path.insert(0, Watch())
from sdst_runtime.sessions.onnxruntime import OnnxRuntimeSession
from sdst_runtime.doctor.installation import ASSETS
import numpy as np
with OnnxRuntimeSession(ASSETS / "check.onnx", threads=1, device="cpu") as session:
    session.run({"given": np.zeros((2, 3), np.float32)})
"""


def test_the_variable_is_set_before_the_import_and_nothing_is_written(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != NO_TELEMETRY}
    environment |= {"TMPDIR": str(tmp_path), "TMP": str(tmp_path), "TEMP": str(tmp_path)}
    command = [sys.executable, "-c", _FRESH]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "set"
    assert list(tmp_path.iterdir()) == []


def test_the_script_for_polygraphy_sets_it_too():
    text = (ROOT / "calib/sdst_calib/parity/polygraphy_script.py").read_text()
    assert text.index(f'os.environ["{NO_TELEMETRY}"] = "1"') < text.index("\nimport onnxruntime\n")
