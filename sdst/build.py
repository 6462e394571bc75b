"""`sdst build`: a bundle of ONNX files to a bundle of engines, of TensorRT for this machine or for RTX GPUs."""

from __future__ import annotations

import sys
from pathlib import Path

import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from sdst_export.engine.engine_bundle import build_bundle
from sdst_export.engine.options import LEVEL, EngineOptions
from sdst_export.engine.profiles import default_buckets, parse_buckets
from sdst_runtime.errors import DependencyError
from sdst_runtime.grounding.bundle import Bundle
from sdst_runtime.sessions.tensorrt.compat import Target, load_tensorrt
from sdst_runtime.sessions.tensorrt.device import Device
from sdst_runtime.sessions.tensorrt.pycuda_device import open_pycuda_device

from .consoles import description
from .next_step import advise
from .progress import progress_of


def build(
    bundle: tyro.conf.Positional[Path],
    *,
    out: Path,
    target: Target = "tensorrt",
    compute: tuple[str, ...] = (),
    profiles: tuple[str, ...] = (),
    workspace: int | None = None,
    level: int = LEVEL,
    timing_cache: Path | None = None,
    version_compatible: bool = False,
    hardware_compatible: bool = False,
    embed_plugin: bool = False,
) -> None:
    """Build engines of a bundle's models: of TensorRT for this GPU, or of TensorRT for RTX on any machine; minutes.

    Args:
        bundle: Directory that  sdst export  wrote.
        out: Directory of the bundle of engines.
        target: tensorrt: for the GPU of this machine. rtx: for RTX GPUs, built on x86-64 Linux without any.
        compute: With rtx: compute capabilities of the GPUs, as 8.6 8.9 12.0, which is the default.
        profiles: Buckets of video lengths as CLIPS or CLIPSxROWS, ROWS videos at once; default 75 150 300 600 1200.
        workspace: TensorRT only, as all below. Most MiB of GPU memory that trying kernels may take; default all.
        level: How long to look for fast kernels, 0 to 5.
        timing_cache: File of kernel timings that makes later builds shorter; default one a GPU in ~/.cache/sdst.
        version_compatible: Engines also run on later TensorRTs of the same major.
        hardware_compatible: Engines also run on other GPUs from Ampere on; not on Jetson.
        embed_plugin: Put the plugin's library into the head's engine instead of beside it; makes it version compatible.
    """
    buckets = parse_buckets(profiles) if profiles else default_buckets()
    options = EngineOptions(
        workspace, level, timing_cache, version_compatible, hardware_compatible, embed_plugin, target, compute
    )
    models = Bundle.open(bundle)
    device = _open_device() if target == "tensorrt" else None
    with _bar() as bar:
        built = build_bundle(models, out, buckets, options, device, bar, lambda line: print(line, file=sys.stderr))  # noqa: T201
    print(built.directory)  # noqa: T201
    advise("sdst", "bench", built.directory)


def _open_device() -> Device:
    """This machine's GPU. Raises DependencyError, which names the other target, where it or TensorRT is missing."""
    try:
        load_tensorrt()
        return open_pycuda_device()
    except DependencyError as error:
        raise DependencyError(f"{error}; for RTX GPUs build here with  --target rtx  (docs/deploy.md)") from error


def _bar() -> Progress:
    """Lines of TensorRT's phases; they vanish as the phases end."""
    columns = (description(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return progress_of(columns)
