"""A bundle of ONNX files to a bundle of engines, for this machine or for RTX GPUs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.progress import Progress

from sdst_runtime.distribution import own_version
from sdst_runtime.errors import InputError
from sdst_runtime.files import copy_file, make_directory, remove
from sdst_runtime.grounding.bundle import MANIFEST, TOKENIZER, Bundle, copy_scores, write_manifest
from sdst_runtime.sessions.plugin_library import LIBRARIES, Brought, find_plugin_library
from sdst_runtime.sessions.tensorrt.device import Device
from sdst_runtime.sessions.tensorrt.sidecar import Sidecar, sidecar_path

from .build import build_engine
from .options import EngineOptions, require_options
from .profiles import Bucket


def build_bundle(
    bundle: Bundle,
    out: Path,
    buckets: Sequence[Bucket],
    options: EngineOptions,
    device: Device | None,
    bar: Progress,
    say: Callable[[str], None] = lambda line: None,
) -> Bundle:
    """Write the engines of all models, their sidecars, the plugin's library, tokenizer.json and, last, bundle.json.

    While files change the directory has no bundle.json and is no bundle. `device` is None for RTX. Raises what
    `build_engine` does, and InputError when `out` is the bundle itself or the bundle holds engines already.
    """
    _require_place(bundle, out)
    require_options(options)
    make_directory(out)
    remove(out / MANIFEST)
    beside, brought = [], bundle.brought(device.plugin_device) if device else None
    for name in bundle.models:
        say(f"building {name}.plan")
        plan = out / f"{name}.plan"
        own = options if name == "head" else dataclasses.replace(options, embed_plugin=False)
        sidecar = build_engine(bundle.path(name), plan, buckets, own, device, bar, brought)
        say(f"  {sidecar.plan_bytes / 2**20:.1f} MiB of {sidecar.layers} layers in {sidecar.build_s:.0f} s")
        beside.append(sidecar_path(plan).name)
        if device and brought and _needs_library(sidecar):
            beside.append(_copy_library(device, brought, out))
    copy_file(bundle.directory / TOKENIZER, out / TOKENIZER)
    copy_scores(bundle.scores_path, out)
    models = {name: f"{name}.plan" for name in bundle.models}
    return write_manifest(out, bundle.manifest.spec, models, own_version(), beside)


def _require_place(bundle: Bundle, out: Path) -> None:
    if out.resolve() == bundle.directory.resolve():
        raise InputError(f"--out: expected another directory than the bundle, got {out}")
    engines = [name for name in bundle.models if bundle.path(name).suffix != ".onnx"]
    if engines:
        raise InputError(f"{bundle.directory}: expected a bundle of ONNX files, it has {bundle.path(engines[0]).name}")


def _needs_library(sidecar: Sidecar) -> bool:
    return sidecar.plugin is not None and not sidecar.flags.embed_plugin


def _copy_library(device: Device, brought: Brought, out: Path) -> str:
    """The library travels with its engines."""
    name = LIBRARIES[device.plugin_device]
    copy_file(find_plugin_library(device.plugin_device, brought), out / name)
    return name
