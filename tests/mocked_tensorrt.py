"""TensorRT's real Python bindings over a mock of libnvinfer: what a machine without GPU and TensorRT can run of them.

The bindings of three versions come from PyPI (tensorrt_wheels.py). plugins/tests/mock is built against the TensorRT
headers in TENSORRT_INCLUDE_DIR (tensorrt_headers.py), for each version the nearest of its major. The mock runs text
engines, which `engine_bytes` writes, with plugin nodes only: each node runs the host path of the real
libsdst_plugins_host.so, on host pointers. Its builder takes such a text from an ONNX file's metadata, "sdst.mock".
Addresses of tensors must be aligned to 256 bytes, as TensorRT demands.

    tensorrt = mocked_tensorrt(BINDINGS[0])           # skips the test, saying what it needs
    tensorrt.call(function, "argument")               # in a fresh process; there, `import tensorrt` is the mocked one

Shape letters: B batch, T clips, M moments, F width, H heads, P points, E = 3 * 2 * H * P.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from tensorrt_headers import built, header_folders, header_version, nearest_headers, require_build_tools
from tensorrt_wheels import Wheel, call_with_tensorrt, tensorrt_package

Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]  # minimum, optimum, maximum of each input with a dynamic dimension

BINDINGS = (
    Wheel("tensorrt-cu12-bindings", "10.3.0"),
    Wheel("tensorrt-cu13-bindings", "10.16.1.11"),
    Wheel("tensorrt-cu13-bindings", "11.4.0.106"),
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

    bindings: Wheel
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
        environment = {"LD_LIBRARY_PATH": str(self.libraries), "SDST_PLUGINS": str(self.plugin)}
        return call_with_tensorrt(self.paths(), function, arguments, environment)


def mocked_tensorrt(bindings: Wheel) -> MockedTensorRT:
    """The mock under these bindings, built and fetched once a process. Skips the test when the machine lacks a part."""
    headers = nearest_headers(bindings.version)
    require_build_tools()
    packages = binding_packages(bindings)
    plugin = built(header_folders()[0], "sdst_plugins_host") / "libsdst_plugins_host.so"
    parser = _parser_headers(headers)
    mock = built(headers, "sdst_mock", "-DSDST_CUDA=OFF", f"-DSDST_MOCK_PARSER_INCLUDE_DIR={parser}") / "mock"
    return MockedTensorRT(bindings, plugin, packages, mock, builds=(parser / "NvOnnxParser.h").is_file())


def building_tensorrt(bindings: Wheel) -> MockedTensorRT:
    """`mocked_tensorrt` with a parser and a builder. Skips the test where NvOnnxParser.h is missing too."""
    mocked = mocked_tensorrt(bindings)
    if not mocked.builds:
        pytest.skip("needs NvOnnxParser.h of this major in TENSORRT_INCLUDE_DIR")
    return mocked


def binding_packages(bindings: Wheel) -> Path:
    """The folder with the packages `tensorrt` and `tensorrt_bindings`."""
    return tensorrt_package([bindings], "tensorrt_bindings")


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


def _parser_headers(headers: Path) -> Path:
    """Where NvOnnxParser.h is: some versions lack it, and that of another of the same major does for the mock."""
    folders = [folder for folder in (headers, *header_folders()) if (folder / "NvOnnxParser.h").is_file()]
    major = header_version(headers)[0]
    return next((folder for folder in folders if header_version(folder)[0] == major), headers)
