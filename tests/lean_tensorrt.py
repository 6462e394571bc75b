"""TensorRT's lean runtimes, from PyPI: NVIDIA's own plugin registry, which works without a GPU and without a driver.

No trt.Runtime may be made: without a driver that ends the process. Nothing can be built or run with them here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorrt_wheels import Wheel, call_with_tensorrt, tensorrt_package


@dataclass(frozen=True)
class LeanTensorRT:
    """The lean runtime of one version; `str()` is the name of its registry."""

    version: str

    def __str__(self) -> str:
        return f"registry {self.version}"

    def packages(self) -> Path:
        """The folder where `tensorrt` is the lean bindings. Skips the test where PyPI is out of reach."""
        names = ("tensorrt-lean-cu13-bindings", "tensorrt-lean-cu13-libs")
        return tensorrt_package([Wheel(name, self.version) for name in names], "tensorrt_lean_bindings")

    def library(self) -> Path:
        """libnvinfer_lean.so."""
        return self.packages() / "tensorrt_lean_libs" / f"libnvinfer_lean.so.{self.version.split('.')[0]}"

    def call(self, function: Callable[..., Any], *arguments: object) -> Any:
        """What a function of a test module returns (JSON) in a fresh process where `import tensorrt` is this one."""
        return call_with_tensorrt([self.packages()], function, [str(argument) for argument in arguments], {})


LEAN = (LeanTensorRT("10.16.1.11"), LeanTensorRT("11.4.0.106"))
