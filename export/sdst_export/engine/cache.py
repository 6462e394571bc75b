"""Engines and timings that were made before, in $SDST_CACHE, by default ~/.cache/sdst.

An engine is found again when graph, weights, TensorRT, GPU, driver, plugin, profiles and flags are the same; one for
RTX when graph, weights, TensorRT for RTX, compute capabilities and profiles are. Timings of
kernels belong to one GPU and one TensorRT and make later builds shorter.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
from pathlib import Path

from sdst_runtime.errors import SdstError
from sdst_runtime.files import atomic_files, cache_folder
from sdst_runtime.sessions.tensorrt.sidecar import MachineRecord, Sidecar, read_plan, read_sidecar, sidecar_path
from sdst_runtime.strict_json import dump_json

_RESULTS = ("plan_sha256", "plan_bytes", "build_s", "layers")  # fields that a build gives, not what it is built from


def timing_cache_path(machine: MachineRecord) -> Path:
    """The file of timings of this GPU and TensorRT."""
    name = re.sub(r"[^\w.]+", "-", f"{machine.gpu}-sm{machine.sm}-trt{machine.tensorrt}")
    return cache_folder() / "timing" / f"{name}.cache"


def engine_key(wanted: Sidecar) -> str:
    """Hex digest of everything that an engine is built from."""
    fields = {name: value for name, value in dataclasses.asdict(wanted).items() if name not in _RESULTS}
    return hashlib.sha256(dump_json(fields, sort_keys=True).encode()).hexdigest()


def find_engine(wanted: Sidecar) -> Path | None:
    """A whole engine of the same key, or None."""
    plan = _place(wanted)
    try:
        found = read_sidecar(plan)
        read_plan(plan, found)
    except SdstError:  # not there, or damaged: it is built again
        return None
    return plan if engine_key(found) == engine_key(wanted) else None


def keep_engine(plan: Path, sidecar: Sidecar) -> None:
    """Copy a finished engine into the cache. Raises InputError when that cannot be written."""
    copy_engine(plan, _place(sidecar))


def copy_engine(plan: Path, target: Path) -> None:
    """Copy a plan and its sidecar, whole or not at all. Raises InputError when `target` cannot be written."""
    with atomic_files((target, sidecar_path(target))) as folder:
        shutil.copyfile(plan, folder / target.name)
        shutil.copyfile(sidecar_path(plan), folder / sidecar_path(target).name)


def _place(sidecar: Sidecar) -> Path:
    return cache_folder() / "engines" / engine_key(sidecar)[:32] / f"{sidecar.kind}.plan"
