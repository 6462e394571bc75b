"""libsdst_triton_plugins.so in NVIDIA's own plugin registries of TensorRT 10 and 11, opened as Triton opens it.

Triton's TensorRT backend calls dlopen(file, RTLD_NOW | RTLD_LOCAL) for each file of `plugins=` and nothing else. A test
takes the host build. Functions whose names begin with `in_process_` run in a fresh process, as in test_registry.py.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from lean_tensorrt import LEAN, LeanTensorRT
from places import ROOT
from tensorrt_headers import (
    HEADERS,
    MISSING,
    built,
    header_folders,
    header_name,
    header_version,
    require_build_tools,
)

from sdst import plugins
from sdst.cli import main
from sdst_runtime.sessions.tensorrt.compat import PLUGIN, load_tensorrt

LIBRARY, TRITON_LIBRARY = "libsdst_plugins_host.so", "libsdst_triton_plugins_host.so"
SAYS = "libsdst_triton_plugins.so: "


def pairs(same_major: bool) -> list[Any]:
    """Headers and registries of one major, or of two."""
    return [
        pytest.param(headers, lean, id=f"{header_name(headers)} {lean}")
        for headers in HEADERS
        for lean in LEAN
        if (str(header_version(headers)[0]) == lean.version.split(".")[0]) == same_major
    ] or [pytest.param(None, None, marks=pytest.mark.skip(MISSING))]


def copied(headers: Path, folder: Path, *names: str) -> Path:
    """The folder with these of the libraries, built with these headers, and nothing else."""
    require_build_tools()
    for name in names:
        shutil.copy(built(headers, "sdst_plugins_host") / name, folder)
    return folder


def in_process_open(*files: str) -> dict[str, Any]:
    """Whether the registry knows sdst::RDSA before and after each file was opened, and what was written to stderr."""
    registry = load_tensorrt().get_plugin_registry()
    found = [registry.get_creator(*PLUGIN) is not None]
    with tempfile.TemporaryFile() as log:
        stderr = os.dup(2)
        os.dup2(log.fileno(), 2)
        for file in files:
            ctypes.CDLL(file, os.RTLD_NOW | os.RTLD_LOCAL)
            found.append(registry.get_creator(*PLUGIN) is not None)
        os.dup2(stderr, 2)
        log.seek(0)
        return {"found": found, "said": log.read().decode().splitlines()}


@pytest.mark.parametrize(("headers", "lean"), pairs(same_major=True))
def test_opening_it_registers_the_plugin(headers: Path, lean: LeanTensorRT, tmp_path):
    """The plugin library alone does not."""
    folder = copied(headers, tmp_path, LIBRARY, TRITON_LIBRARY)
    said = lean.call(in_process_open, folder / LIBRARY, folder / TRITON_LIBRARY)
    assert said == {"found": [False, False, True], "said": []}


@pytest.mark.parametrize(("headers", "lean"), pairs(same_major=True))
def test_a_second_one_changes_nothing(headers: Path, lean: LeanTensorRT, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        copied(headers, folder, LIBRARY, TRITON_LIBRARY)
    said = lean.call(in_process_open, first / TRITON_LIBRARY, second / TRITON_LIBRARY)
    assert said == {"found": [False, True, True], "said": []}


@pytest.mark.parametrize(("headers", "lean"), pairs(same_major=False))
def test_another_major_is_refused(headers: Path, lean: LeanTensorRT, tmp_path):
    folder = copied(headers, tmp_path, LIBRARY, TRITON_LIBRARY)
    answer = lean.call(in_process_open, folder / TRITON_LIBRARY)
    own, other = header_version(headers)[0], lean.version.split(".")[0]
    assert answer["found"] == [False, False]
    (line,) = answer["said"]
    assert line.startswith(f"{SAYS}expected TensorRT {own}, whose headers it was built with, got {other} (/")
    assert line.endswith("); build it for yours:  sdst plugins build --tensorrt DIR")


@pytest.mark.parametrize(("headers", "lean"), pairs(same_major=True))
def test_without_the_plugin_library_beside_it(headers: Path, lean: LeanTensorRT, tmp_path):
    folder = copied(headers, tmp_path, TRITON_LIBRARY)
    line = f"{SAYS}expected the plugin library beside it, {folder / LIBRARY}, got none; copy both into one folder"
    assert lean.call(in_process_open, folder / TRITON_LIBRARY) == {"found": [False, False], "said": [line]}


@pytest.mark.parametrize(("headers", "lean"), pairs(same_major=True))
def test_something_else_beside_it(headers: Path, lean: LeanTensorRT, tmp_path):
    folder = copied(headers, tmp_path, TRITON_LIBRARY)
    (folder / LIBRARY).write_text("not a library")
    answer = lean.call(in_process_open, folder / TRITON_LIBRARY)
    assert answer["found"] == [False, False]
    words = f"{SAYS}TensorRT refused {folder / LIBRARY}; build both again:  sdst plugins build --tensorrt DIR"
    assert answer["said"][-1] == words


@pytest.mark.parametrize(
    "headers", HEADERS or [pytest.param(None, marks=pytest.mark.skip(MISSING), id="none")], ids=header_name
)
def test_without_tensorrt_in_the_process(headers: Path, tmp_path):
    folder = copied(headers, tmp_path, LIBRARY, TRITON_LIBRARY)
    program = "import ctypes, sys; ctypes.CDLL(sys.argv[1]); print('lives')"
    command = [sys.executable, "-c", program, str(folder / TRITON_LIBRARY)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    expected = (
        f"expected TensorRT {header_version(headers)[0]}, whose headers it was built with, got none in this process"
    )
    assert done.stderr == f"{SAYS}{expected}; build it for yours:  sdst plugins build --tensorrt DIR\n"
    assert done.stdout == "lives\n"


def test_sdst_plugins_build_brings_it(tmp_path, capsys, monkeypatch):
    headers, sources, out = header_folders()[0], tmp_path / "sources", tmp_path / "out"
    require_build_tools()
    shutil.copytree(ROOT / "plugins", sources / "plugins")
    shutil.copy(ROOT / "CMakeLists.txt", sources)
    monkeypatch.setattr(plugins, "SOURCES", sources)
    monkeypatch.setenv("COLUMNS", "300")
    command = ["plugins", "build", "--host", "--tensorrt", str(headers), "--out", str(out)]
    assert main(command) == 0
    assert sorted(path.name for path in out.iterdir()) == [LIBRARY, TRITON_LIBRARY]
    assert re.search(rf"^for Triton +{out / TRITON_LIBRARY} *$", capsys.readouterr().out, re.MULTILINE)
    (sources / "plugins" / "triton" / "register.cpp").write_text("#error this cannot be compiled")
    assert main(command) == 2
    assert sorted(path.name for path in out.iterdir()) == [LIBRARY, TRITON_LIBRARY]
