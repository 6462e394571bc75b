"""TensorRT's headers for tests, and what cmake builds against them.

TENSORRT_INCLUDE_DIR names folders of NvInfer.h, parted by os.pathsep; `make test-tensorrt` sets it. Without it a test
that needs headers is skipped.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from places import ROOT

MISSING = "needs TENSORRT_INCLUDE_DIR: folders with the headers of TensorRT (make test-tensorrt, CONTRIBUTING.md)"
HEADERS = tuple(Path(folder) for folder in os.environ.get("TENSORRT_INCLUDE_DIR", "").split(os.pathsep) if folder)


def header_folders() -> tuple[Path, ...]:
    """HEADERS; skips the test when there are none."""
    if not HEADERS:
        pytest.skip(MISSING)
    return HEADERS


def header_version(folder: Path) -> tuple[int, int]:
    """(10, 16) of the headers in a folder."""
    text = (folder / "NvInferVersion.h").read_text(encoding="utf-8")
    found = re.findall(r"#define (?:NV_TENSORRT|TRT)_(?:MAJOR|MINOR)(?:_ENTERPRISE)? (\d+)", text)
    return int(found[0]), int(found[1])


def header_name(folder: Path) -> str:
    """ "headers 10.16", for the names of tests; the folder where it holds no headers."""
    try:
        return "headers " + ".".join(map(str, header_version(folder)))
    except (OSError, IndexError):
        return str(folder)


def nearest_headers(version: str) -> Path:
    """Of the headers of the version's major those of the nearest minor; skips the test when there are none."""
    major, minor, *_ = map(int, version.split("."))
    versions = {folder: header_version(folder) for folder in header_folders()}
    fitting = [folder for folder, found in versions.items() if found[0] == major]
    if not fitting:
        pytest.skip(f"needs headers of TensorRT {major}.x in TENSORRT_INCLUDE_DIR")
    return min(fitting, key=lambda folder: abs(versions[folder][1] - minor))


def require_build_tools() -> None:
    """Skip the test that calls this where nothing can be built."""
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")


@functools.cache
def built(headers: Path, target: str, *options: str) -> Path:
    """The folder that cmake built `target` in, against these headers; removed when the tests end."""
    directory = Path(tempfile.mkdtemp(prefix="sdst-headers-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    configure = ["cmake", "-S", str(ROOT), "-B", str(directory), f"-DTENSORRT_INCLUDE_DIR={headers}"]
    configure += [f"-DPython3_EXECUTABLE={sys.executable}", "-DCMAKE_CXX_FLAGS_RELEASE=-O1"]
    configure += options or ["-DSDST_CUDA=OFF"]
    for command in (configure, ["cmake", "--build", str(directory), "--target", target]):
        process = subprocess.run(command, capture_output=True, text=True)
        assert process.returncode == 0, f"{' '.join(command)}\n{process.stdout}{process.stderr}"
        if "its headers need cuda_runtime_api.h" in process.stdout:
            pytest.skip("needs cuda_runtime_api.h, which the TensorRT headers include (a CUDA toolkit)")
    return directory
