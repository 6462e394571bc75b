"""What a machine has of all that this project can use, found out by using it: `examine` gives one Check a part.

A part is fine, absent (nothing is wrong, something cannot be done) or at fault. Inference on a CPU needs those marked
`needed`; the others serve GPUs. Nothing here raises for what it finds.
"""

from __future__ import annotations

import importlib
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from ..contracts import PRECISION_KEY
from ..distribution import install_command
from ..errors import ContractError, DependencyError, SdstError
from ..grounding.bundle import Bundle
from ..machine import instructions, usable_cores
from ..sessions.base import Session, limit_of
from ..sessions.int8_products import products_are_exact
from ..sessions.ort import import_onnxruntime
from .check import Check, split_message
from .gpu import (
    RunOnCuda,
    check_cuda,
    check_driver,
    check_onnxruntime_cuda,
    check_plugin,
    check_pycuda,
    check_rtx,
    check_tensorrt,
)
from .installation import check_annotations, check_onnxruntime, check_video

OLDEST_PYTHON = (3, 10)
PACKAGES = ("numpy", "onnxruntime", "av", "tokenizers", "safetensors", "pydantic", "tyro", "rich", "jinja2")
LEAST_FREE_BYTES = 1 << 30
SIZES = {"B": 2, "N": 2, "T": 12, "L": 5}  # of the random inputs that a bundle's models are run on, at most


@dataclass(frozen=True)
class Examination:
    """All checks, in the order in which they depend on each other."""

    checks: tuple[Check, ...]

    @property
    def faults(self) -> tuple[Check, ...]:
        """Needed parts that are not fine: inference on a CPU does not work."""
        return tuple(check for check in self.checks if check.needed and check.state != "fine")


def examine(bundle: Path | None = None, run_cuda: RunOnCuda | None = None) -> Examination:
    """Check this machine, and a bundle when one is given.

    `run_cuda` computes sdst::RDSA on `rdsa_oracle.check_inputs` with a CUDA library where pycuda cannot.
    """
    opened, of_bundle = check_bundle(bundle) if bundle is not None else (None, [])
    checks = [
        check_python(),
        check_packages(),
        check_onnxruntime(),
        check_int8(),
        check_video(),
        check_annotations(),
        check_disk(bundle or Path.cwd()),
        check_onnxruntime_cuda(),
        check_driver(),
        check_cuda(),
        check_tensorrt(),
        check_rtx(),
        check_pycuda(),
        check_plugin("host", opened),
        check_plugin("cuda", opened, run_cuda),
    ]
    return Examination((*checks, *of_bundle))


def check_python() -> Check:
    """Python itself, 3.10 or newer."""
    have = platform.python_version()
    if sys.version_info < OLDEST_PYTHON:
        return Check("Python", "fault", have, "install Python 3.10 or newer", needed=True)
    return Check("Python", "fine", f"{have}, {usable_cores()} cores", needed=True)


def check_packages() -> Check:
    """The packages that a plain installation brings."""
    missing = [name for name in PACKAGES if not _imports(name)]
    if missing:
        return Check("packages", "fault", f"cannot import {', '.join(missing)}", install_command(), needed=True)
    found = ", ".join(f"{name} {_version(name)}" for name in PACKAGES if name not in ("onnxruntime", "av"))
    return Check("packages", "fine", found, needed=True)


def check_int8() -> Check:
    """How int8 models run on this processor, tried on a small known product."""
    sets = " ".join(instructions()) or "instructions unknown"
    try:
        exact = products_are_exact()
    except SdstError as error:
        return Check("int8 products", "fault", *split_message(str(error)), needed=True)
    floats = "saturate here, so int8 models are computed in float: right, and no faster than fp32"
    return Check("int8 products", "fine", f"{'exact' if exact else floats} ({sets})", needed=True)


def check_disk(place: Path) -> Check:
    """Free space where models and engines are written, and for temporary files."""
    existing = next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())
    free = {path: shutil.disk_usage(path).free for path in (existing, Path(tempfile.gettempdir()))}
    found = ", ".join(f"{path}: {size / 1e9:.1f} GB free" for path, size in free.items())
    if min(free.values()) < LEAST_FREE_BYTES:
        return Check("disk", "fault", found, "free at least 1 GB: exports and engine builds write the weights twice")
    return Check("disk", "fine", found)


def check_bundle(directory: Path) -> tuple[Bundle | None, list[Check]]:
    """The files and digests of a bundle, and each of its models run on random inputs; None for one at fault."""
    try:
        bundle = Bundle.open(directory)
    except SdstError as error:
        return None, [Check("bundle", "fault", *split_message(str(error)), needed=True)]
    spec, size = bundle.manifest.spec, sum((directory / name).stat().st_size for name in bundle.manifest.files)
    files = f"{directory}: {len(bundle.manifest.files)} files, {size / 1e6:.1f} MB, features of {spec.backbone}"
    return bundle, [
        Check("bundle", "fine", files, needed=True),
        *(_guarded(f"bundle: {model}", lambda model=model: _run_model(bundle, model)) for model in bundle.models),
    ]


def _guarded(name: str, run: Callable[[], str]) -> Check:
    try:
        return Check(name, "fine", run(), needed=True)
    except SdstError as error:
        return Check(name, "fault", *split_message(str(error)), needed=True)


def _run_model(bundle: Bundle, model: str) -> str:
    """Run a model; says on what and in which precision. Raises ContractError for outputs that are not finite."""
    with bundle.session(model) as session:
        outputs = session.run(random_inputs(session))
        for name, array in outputs.items():
            if not np.isfinite(array.astype(np.float64)).all():
                raise ContractError(f"{bundle.path(model)}: {name} holds NaN or infinity; export it again")
        runner = type(session).__name__.removesuffix("Session")
        precision = session.metadata.get(PRECISION_KEY, "no precision told")
        return f"{bundle.path(model).name} ran on {runner}, {precision}"


def random_inputs(session: Session) -> dict[str, np.ndarray]:
    """Inputs of a model, within what its file says that it takes; all clips and tokens valid."""
    rng, inputs = np.random.default_rng(0), {}
    rows, clips = limit_of(session, "sdst.max_batch", 1), limit_of(session, "sdst.max_clips", SIZES["T"])
    sizes = SIZES | {"B": min(SIZES["B"], rows), "T": min(SIZES["T"], clips)}
    for name, info in session.inputs.items():
        shape = [sizes.get(axis, 1) if isinstance(axis, str) else axis for axis in info.shape]
        if info.dtype == np.bool_:
            inputs[name] = np.ones(shape, bool)
        elif info.dtype.kind in "iu":
            inputs[name] = rng.integers(0, 4, shape).astype(info.dtype)
        else:
            inputs[name] = rng.standard_normal(shape).astype(info.dtype)
    return inputs


def _imports(name: str) -> bool:
    try:
        import_onnxruntime() if name == "onnxruntime" else importlib.import_module(name)
    except (ImportError, DependencyError):
        return False
    return True


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"
