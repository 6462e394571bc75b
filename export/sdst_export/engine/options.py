"""How an engine is to be built, and for which of NVIDIA's libraries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sdst_runtime.errors import InputError
from sdst_runtime.sessions.tensorrt.compat import Target, is_jetson, load_tensorrt, version_numbers
from sdst_runtime.sessions.tensorrt.rtx import RTX_GPUS, require_capabilities
from sdst_runtime.sessions.tensorrt.sidecar import EngineFlags

LEVEL = 3


@dataclass(frozen=True)
class EngineOptions:
    """How to build. What is for TensorRT only stays as it is for TensorRT for RTX, and the other way round."""

    workspace_mib: int | None = None  # of the GPU's memory while kernels are tried; None: all
    level: int = LEVEL  # 0..5: how long TensorRT looks for fast kernels
    timing_cache: Path | None = None  # None: that of the cache folder
    version_compatible: bool = False  # runs on later TensorRTs of the same major, a little slower
    hardware_compatible: bool = False  # runs on Ampere and later, slower; not on Jetson
    embed_plugin: bool = False  # the plugin's library inside the plan, which is then version compatible too
    target: Target = "tensorrt"
    compute: tuple[str, ...] = ()  # for RTX: compute capabilities of the GPUs, "8.9"; none: RTX_GPUS

    def flags(self) -> EngineFlags:
        """What of it goes into the sidecar.

        An embedded plugin makes the engine version compatible: in others TensorRT embeds none and says nothing
        (NvInfer.h, IBuilderConfig::setPluginsToSerialize).
        """
        portable = self.version_compatible or self.embed_plugin
        return EngineFlags(self.workspace_mib, self.level, portable, self.hardware_compatible, self.embed_plugin)

    def capabilities(self) -> tuple[str, ...]:
        """The compute capabilities that an engine for RTX is for, each once, in order; of TensorRT none."""
        return tuple(sorted(set(self.compute or RTX_GPUS), key=version_numbers)) if self.target == "rtx" else ()


def require_options(options: EngineOptions) -> None:
    """Raise InputError for what cannot be built, DependencyError for RTX without TensorRT for RTX."""
    if options.target == "rtx":
        _require_rtx(options)
        return
    if options.compute:
        raise InputError("compute: TensorRT builds for the GPU that is here; give it with  --target rtx  only")
    if not 0 <= options.level <= 5:
        raise InputError(f"level: expected 0 to 5, got {options.level}")
    if options.workspace_mib is not None and options.workspace_mib < 1:
        raise InputError(f"workspace: expected at least 1 MiB, got {options.workspace_mib}")
    if options.hardware_compatible and is_jetson():
        raise InputError(
            "hardware compatible: expected a GPU of a PC or server, TensorRT has it not on Jetson; leave it"
        )
    if options.timing_cache is not None and options.timing_cache.is_dir():
        raise InputError(f"timing cache: expected a file, {options.timing_cache} is a directory")


def _require_rtx(options: EngineOptions) -> None:
    given = {
        "workspace": options.workspace_mib is not None,
        "level": options.level != LEVEL,
        "timing cache": options.timing_cache is not None,
        "version compatible": options.version_compatible,
        "hardware compatible": options.hardware_compatible,
        "embed plugin": options.embed_plugin,
    }
    for name, is_given in given.items():
        if is_given:
            raise InputError(f"{name}: TensorRT for RTX has no such option; leave it, or build with  --target tensorrt")
    require_capabilities(load_tensorrt("rtx"), options.compute)
