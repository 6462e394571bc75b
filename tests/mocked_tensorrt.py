"""TensorRT's real Python bindings over a mock of libnvinfer: what a machine without GPU and TensorRT can run of them.

The bindings of three versions come from PyPI (they are proprietary: fetched, never kept in this repository) into
$SDST_TEST_CACHE, by default ~/.cache/sdst-tests. plugins/tests/mock is built against the TensorRT headers in
TENSORRT_INCLUDE_DIR (folders of NvInfer.h, parted by os.pathsep), for each version the nearest of its major. The mock
runs text engines, which `engine_bytes` writes, with plugin nodes only: each node runs the host path of the real
libsdst_plugins_host.so, on host pointers. Its builder takes such a text from an ONNX file's metadata, "sdst.mock".
Addresses of tensors must be aligned to 256 bytes, as TensorRT demands.

    tensorrt = mocked_tensorrt(BINDINGS[0])           # skips the test, saying what it needs
    tensorrt.call(function, "argument")               # in a fresh process; there, `import tensorrt` is the mocked one

Shape letters: B batch, T clips, M moments, F width, H heads, P points, E = 3 * 2 * H * P.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from places import ROOT, TESTS

Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]  # minimum, optimum, maximum of each input with a dynamic dimension


@dataclass(frozen=True)
class Bindings:
    """A distribution on PyPI that holds `tensorrt_bindings`."""

    distribution: str
    version: str

    def __str__(self) -> str:
        return self.version


BINDINGS = (
    Bindings("tensorrt-cu12-bindings", "10.3.0"),
    Bindings("tensorrt-cu13-bindings", "10.16.1.11"),
    Bindings("tensorrt-cu13-bindings", "11.4.0.106"),
)


@dataclass(frozen=True)
class EngineTensor:
    """A tensor of a text engine. A dimension is a size, -1 in an input for a dynamic one, "input:axis" elsewhere."""

    name: str
    role: Literal["input", "output", "internal"]
    dtype: str  # float, half, int32, ...: trt.DataType in lower case
    dims: tuple[int | str, ...]


@dataclass(frozen=True)
class EngineNode:
    """A plugin node of a text engine."""

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    fields: Mapping[str, int] = field(default_factory=dict)
    plugin: str = "RDSA"
    version: str = "1"
    namespace: str = "sdst"


@dataclass(frozen=True)
class MockedTensorRT:
    """The bindings of one version over the mock, and the plugin library to load."""

    bindings: Bindings
    plugin: Path  # libsdst_plugins_host.so
    packages: Path  # holds tensorrt and tensorrt_bindings
    libraries: Path  # holds the mocks
    builds: bool  # whether the builder is mocked, which needs NvOnnxParser.h

    def paths(self) -> list[Path]:
        """What the process finds packages in first."""
        return [self.packages]

    def call(self, function: Callable[..., Any], *arguments: str) -> Any:
        """What a function of a test module returns (JSON) when a fresh process calls it with these arguments.

        Fails the test, with what the process wrote, when the process fails.
        """
        own = Path(sys.modules[function.__module__].__file__ or "").parent  # where the function's test module lies
        paths = [*map(str, (*self.paths(), own, TESTS)), os.environ.get("PYTHONPATH", "")]
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, paths)))
        environment |= {"LD_LIBRARY_PATH": str(self.libraries), "SDST_PLUGINS": str(self.plugin)}
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


def mocked_tensorrt(bindings: Bindings) -> MockedTensorRT:
    """The mock under these bindings, built and fetched once a process. Skips the test when the machine lacks a part."""
    headers = _nearest_headers(bindings)
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    packages = binding_packages(bindings)
    plugin = _built(_header_directories()[0], "sdst_plugins_host") / "libsdst_plugins_host.so"
    libraries = _built(headers, "sdst_mock", _parser_headers(headers)) / "mock"
    builds = (_parser_headers(headers) / "NvOnnxParser.h").is_file()
    return MockedTensorRT(bindings, plugin, packages, libraries, builds)


def engine_bytes(
    tensors: Sequence[EngineTensor], nodes: Sequence[EngineNode], profiles: Sequence[Profile] = ()
) -> bytes:
    """A text engine, as plugins/tests/mock/plan.h describes it."""
    lines = ["sdst-mock-engine 1"]
    lines += [_line("tensor", tensor.name, tensor.role, tensor.dtype, *tensor.dims) for tensor in tensors]
    for profile in profiles:
        lines.append("profile")
        for name, (least, usual, most) in profile.items():
            lines.append(_line("shape", name, *least, "|", *usual, "|", *most))
    for node in nodes:
        lines.append(_line("node", node.name, node.plugin, node.version, node.namespace))
        lines += [_line("field", name, value) for name, value in node.fields.items()]
        lines += [_line("reads", *node.reads), _line("writes", *node.writes)]
    text = "\n".join(lines) + "\n"
    return f"{text}adler32 {zlib.adler32(text.encode()):08x}\n".encode()


def rdsa_engine(
    F: int, H: int, P: int, most: tuple[int, int, int], dtype: Literal["float", "half"] = "float", E: int | None = None
) -> bytes:
    """An engine of one RDSA node with inputs value, endpoints, reference, length and output out, and one profile.

    The profile reaches from 1 to `most` in (B, T, M). E is what the node wants unless it is given.
    """
    B, T, M = most
    E = 3 * 2 * H * P if E is None else E
    tensors = [
        EngineTensor("value", "input", dtype, (-1, -1, F)),
        EngineTensor("endpoints", "input", "float", (-1, -1, E)),
        EngineTensor("reference", "input", "float", (-1, -1, 2)),
        EngineTensor("length", "input", "int32", (-1,)),
        EngineTensor("out", "output", dtype, ("value:0", "reference:1", F)),
    ]
    inputs = ("value", "endpoints", "reference", "length")
    node = EngineNode("step_0", inputs, ("out",), {"num_heads": H, "num_points": P})
    profile = {
        "value": ((1, 1, F), (B, T, F), (B, T, F)),
        "endpoints": ((1, 1, E), (B, T, E), (B, T, E)),
        "reference": ((1, 1, 2), (B, M, 2), (B, M, 2)),
        "length": ((1,), (B,), (B,)),
    }
    return engine_bytes(tensors, [node], [profile])


def _line(*words: object) -> str:
    return " ".join(map(str, words))


def _header_directories() -> list[Path]:
    listed = os.environ.get("TENSORRT_INCLUDE_DIR", "")
    if not listed:
        pytest.skip("needs TENSORRT_INCLUDE_DIR: folders with the headers of TensorRT (github.com/NVIDIA/TensorRT)")
    return [Path(directory) for directory in listed.split(os.pathsep)]


def _header_version(directory: Path) -> tuple[int, int]:
    text = (directory / "NvInferVersion.h").read_text(encoding="utf-8")
    found = re.findall(r"#define (?:NV_TENSORRT|TRT)_(?:MAJOR|MINOR)(?:_ENTERPRISE)? (\d+)", text)
    return int(found[0]), int(found[1])


def _nearest_headers(bindings: Bindings) -> Path:
    major, minor, *_ = map(int, bindings.version.split("."))
    versions = {directory: _header_version(directory) for directory in _header_directories()}
    fitting = [directory for directory, version in versions.items() if version[0] == major]
    if not fitting:
        pytest.skip(f"needs headers of TensorRT {major}.x in TENSORRT_INCLUDE_DIR")
    return min(fitting, key=lambda directory: abs(versions[directory][1] - minor))


def binding_packages(bindings: Bindings) -> Path:
    """The folder with the packages `tensorrt` and `tensorrt_bindings`."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sdst-tests"
    cache = Path(os.environ.get("SDST_TEST_CACHE") or default)
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    target = cache / f"{bindings.distribution}-{bindings.version}-{python}"
    if not target.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as directory:
            unpacked = Path(directory) / "unpacked"
            _fetch(bindings, Path(directory), unpacked)
            _write_tensorrt_package(unpacked)
            if not target.is_dir():
                unpacked.rename(target)
    return target


def _fetch(bindings: Bindings, directory: Path, unpacked: Path) -> None:
    requirement = f"{bindings.distribution}=={bindings.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--retries", "1", "-c", str(ROOT / "constraints.txt"), "--dest", str(directory), requirement]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode != 0:
        reason = process.stderr.strip().splitlines()[-1:]
        pytest.skip(f"needs {requirement} from PyPI, which pip could not fetch: {' '.join(reason)}")
    (wheel,) = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)


def _write_tensorrt_package(directory: Path) -> None:
    """The package `tensorrt` is on NVIDIA's index only; all it does is this."""
    text = "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n"
    (directory / "tensorrt.py").write_text(text, encoding="utf-8")


def _parser_headers(headers: Path) -> Path:
    """Where NvOnnxParser.h is: some versions lack it, and that of another of the same major does for the mock."""
    folders = [headers, *_header_directories()]
    found = (
        d for d in folders if (d / "NvOnnxParser.h").is_file() and _header_version(d)[0] == _header_version(headers)[0]
    )
    return next(found, headers)


@functools.cache
def _built(headers: Path, target: str, parser_headers: Path | None = None) -> Path:
    """The folder that CMake built `target` in, against these headers."""
    directory = Path(tempfile.mkdtemp(prefix="sdst-mock-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    configure = ["cmake", "-S", str(ROOT), "-B", str(directory), f"-DTENSORRT_INCLUDE_DIR={headers}", "-DSDST_CUDA=OFF"]
    configure += [f"-DPython3_EXECUTABLE={sys.executable}", "-DCMAKE_CXX_FLAGS_RELEASE=-O1"]
    configure += [f"-DSDST_MOCK_PARSER_INCLUDE_DIR={parser_headers or headers}"]
    for command in (configure, ["cmake", "--build", str(directory), "--target", target]):
        process = subprocess.run(command, capture_output=True, text=True)
        assert process.returncode == 0, f"{' '.join(command)}\n{process.stdout}{process.stderr}"
    return directory
