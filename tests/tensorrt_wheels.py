"""NVIDIA's Python packages for tests, from PyPI, and fresh processes in which `import tensorrt` is one of them.

They are proprietary: fetched by pip into $SDST_TEST_CACHE, by default ~/.cache/sdst-tests, never kept in this
repository. A test that needs one is skipped, saying which, where pip cannot fetch it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from places import ROOT, TESTS


@dataclass(frozen=True)
class Wheel:
    """A distribution on PyPI."""

    distribution: str
    version: str

    def __str__(self) -> str:
        return self.version


def cache_folder() -> Path:
    """Where what is fetched is kept from one test run to the next."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sdst-tests"
    return Path(os.environ.get("SDST_TEST_CACHE") or default)


def tensorrt_package(wheels: Sequence[Wheel], bindings: str) -> Path:
    """The folder with what the wheels hold and a package `tensorrt` that is their package `bindings`.

    The package `tensorrt` itself is on NVIDIA's index only; all it does is this. Fetched once for all test runs.
    """
    cache = cache_folder()
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    target = cache / f"{wheels[0].distribution}-{wheels[0].version}-{python}"
    if not target.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as directory:
            unpacked = Path(directory) / "unpacked"
            for wheel in wheels:
                _fetch(wheel, Path(directory) / wheel.distribution, unpacked)
            text = f"from {bindings} import *\nfrom {bindings} import __version__\n"
            (unpacked / "tensorrt.py").write_text(text, encoding="utf-8")
            if not target.is_dir():
                unpacked.rename(target)
    return target


def call_with_tensorrt(
    packages: Sequence[Path], function: Callable[..., Any], arguments: Sequence[str], environment: Mapping[str, str]
) -> Any:
    """What a function of a test module returns (JSON) when a fresh process calls it with these arguments.

    There `import tensorrt` takes it from the folders `packages`. Fails the test, with what the process wrote, when the
    process fails.
    """
    own = Path(sys.modules[function.__module__].__file__ or "").parent  # where the function's test module lies
    paths = [*map(str, (*packages, own, TESTS)), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment}
    command = [sys.executable, "-c", _CALL, function.__module__, function.__name__, *arguments]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, f"exit code {process.returncode}\n{process.stdout}{process.stderr}"
    return json.loads(process.stdout.splitlines()[-1])


# Were TensorRT itself installed, the bindings would take its libraries from tensorrt_libs.
_CALL = """
import importlib, json, sys
sys.modules["tensorrt_libs"] = None
module, function, *arguments = sys.argv[1:]
print(json.dumps(getattr(importlib.import_module(module), function)(*arguments)))
"""


def _fetch(wheel: Wheel, directory: Path, unpacked: Path) -> None:
    requirement = f"{wheel.distribution}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--retries", "1", "-c", str(ROOT / "constraints.txt"), "--dest", str(directory), requirement]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode != 0:
        reason = process.stderr.strip().splitlines()[-1:]
        pytest.skip(f"needs {requirement} from PyPI, which pip could not fetch: {' '.join(reason)}")
    (file,) = directory.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(unpacked)
