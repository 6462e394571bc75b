"""What an engine file was built from, for and on: NAME.plan.json beside NAME.plan, checked before the plan is touched.

An engine of TensorRT runs on the TensorRT and the GPU it was built with, and with the plugin it was built with. One of
TensorRT for RTX runs on the version it was built with and on GPUs of the compute capabilities it was built for. Sizes
are in bytes, times in seconds; shapes are minimum, optimum and maximum of an optimisation profile.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...contracts import KIND_KEY, PRECISION_KEY, SPEC_KEY, STEPS_KEY, FeatureSpec
from ...errors import ContractError, InputError
from ...files import write_json
from ...strict_json import read_strict
from ..base import ModelKind, TensorInfo
from .compat import PRODUCTS, Target, version_numbers

FORMAT = 1
SUFFIX = ".json"  # after the plan's own

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ShapeRange:
    """Shapes that one input may have in one profile."""

    min: Shape
    opt: Shape
    max: Shape

    def holds(self, shape: Shape) -> bool:
        """Whether `shape` lies inside."""
        return len(shape) == len(self.max) and all(a <= n <= b for a, n, b in zip(self.min, shape, self.max))

    def __str__(self) -> str:
        return f"{list(self.min)} to {list(self.max)}"


Profile = dict[str, ShapeRange]  # input -> its shapes


@dataclass(frozen=True)
class TensorRecord:
    """Type and shape of an input or output; free axes have names."""

    dtype: str
    shape: tuple[int | str, ...]

    def info(self) -> TensorInfo:
        """The same as a session tells it."""
        return TensorInfo(np.dtype(self.dtype), self.shape)


@dataclass(frozen=True)
class PluginRecord:
    """The library of sdst::RDSA that the engine was built with."""

    version: str
    sha256: str


@dataclass(frozen=True)
class MachineRecord:
    """Where an engine was built, or is to run. Of an engine for RTX the version only: it is built without a GPU."""

    tensorrt: str  # its version, or that of TensorRT for RTX
    sm: str  # compute capability, "8.7"
    gpu: str
    driver: str
    cuda: str


@dataclass(frozen=True)
class EngineFlags:
    """How an engine was built."""

    workspace_mib: int | None  # None: as much as there is
    level: int  # builder optimisation level, 0..5
    version_compatible: bool  # runs on later TensorRTs of the same major
    hardware_compatible: bool  # runs on Ampere and later
    embed_plugin: bool  # the plugin lies inside the plan

    @property
    def has_host_code(self) -> bool:
        """Whether the plan carries code that runs on the host while it is loaded."""
        return self.version_compatible or self.embed_plugin


@dataclass(frozen=True)
class Sidecar:
    """NAME.plan.json."""

    format: int
    sdst_version: str
    kind: ModelKind
    precision: str
    spec: FeatureSpec
    steps: int  # of the head's refinement; 0 in the others
    inputs: dict[str, TensorRecord]
    outputs: dict[str, TensorRecord]
    limits: dict[str, int]  # what callers must keep to: max_clips, max_batch; if known, usual_clips, longest_clips
    machine: MachineRecord
    plugin: PluginRecord | None  # None: the engine needs none
    graph_sha256: str
    weights_sha256: str | None  # None: the weights lie in the graph's file
    profiles: tuple[Profile, ...]
    flags: EngineFlags
    plan_sha256: str
    plan_bytes: int
    build_s: float
    target: Target = "tensorrt"
    compute: tuple[str, ...] = ()  # for RTX: the compute capabilities that it runs on, "8.9"
    layers: int = 0  # of the network that was built; 0: not told

    def metadata(self) -> dict[str, str]:
        """What an ONNX file of the same model says of itself, and the limits."""
        own = {SPEC_KEY: self.spec.to_json(), KIND_KEY: self.kind, PRECISION_KEY: self.precision}
        steps = {STEPS_KEY: str(self.steps)} if self.kind == "head" else {}
        return own | steps | {f"sdst.{name}": str(limit) for name, limit in self.limits.items()}


def sidecar_path(plan: Path) -> Path:
    """NAME.plan.json of NAME.plan."""
    return plan.with_name(plan.name + SUFFIX)


def write_sidecar(plan: Path, sidecar: Sidecar) -> None:
    """Write NAME.plan.json. Raises InputError when it cannot be written."""
    write_json(sidecar_path(plan), dataclasses.asdict(sidecar))


def read_sidecar(plan: Path) -> Sidecar:
    """Parse NAME.plan.json strictly. Raises InputError when it is missing, ContractError when it does not parse."""
    path = sidecar_path(plan)
    if not path.is_file():
        raise InputError(f"{plan}: expected {path.name} beside it, found none; {rebuild(plan)}")
    sidecar = read_strict(Sidecar, path, rebuild(plan))
    if sidecar.format != FORMAT:
        raise ContractError(f"{path}: format {sidecar.format}, this sdst reads {FORMAT}; {rebuild(plan)}")
    return sidecar


def require_target(plan: Path, sidecar: Sidecar, target: Target) -> None:
    """Raise ContractError unless the engine is one of this library."""
    if sidecar.target != target:
        built, wanted = PRODUCTS[sidecar.target], PRODUCTS[target]
        raise ContractError(f"{plan}: expected an engine of {wanted}, it is one of {built}; open it with open_session")


def require_machine(plan: Path, sidecar: Sidecar, here: MachineRecord) -> None:
    """Raise ContractError, naming the field and both values, unless the engine runs on the machine `here`."""
    built, flags = sidecar.machine, sidecar.flags
    if sidecar.target == "rtx":
        _require_rtx(plan, sidecar, here)
        return
    if not _runs_on_tensorrt(built.tensorrt, here.tensorrt, flags.version_compatible):
        _refuse(plan, "TensorRT", built.tensorrt, here.tensorrt)
    if flags.hardware_compatible:
        if version_numbers(here.sm) < (8, 0):
            _refuse(plan, "compute capability", "8.0 or later", here.sm)
        return
    if built.sm != here.sm:
        _refuse(plan, "compute capability", built.sm, here.sm)
    if built.gpu != here.gpu:
        _refuse(plan, "GPU", built.gpu, here.gpu)


def require_plugin(plan: Path, record: PluginRecord, here: PluginRecord) -> None:
    """Raise ContractError unless the plugin library is the one that the engine was built with."""
    if record.version != here.version:
        _refuse(plan, "plugin version", record.version, here.version)
    if record.sha256 != here.sha256:
        _refuse(plan, "plugin sha256", record.sha256[:12], here.sha256[:12])


def read_plan(plan: Path, sidecar: Sidecar) -> bytes:
    """The plan's bytes. Raises InputError when it is missing, ContractError when it is cut short or altered."""
    try:
        data = plan.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {plan}: {error.strerror or error}; {rebuild(plan, sidecar)}") from error
    mend = f"copy it again or {rebuild(plan, sidecar)}"
    if len(data) != sidecar.plan_bytes:
        raise ContractError(f"{plan}: expected {sidecar.plan_bytes} bytes, got {len(data)}; {mend}")
    digest = hashlib.sha256(data).hexdigest()
    if digest != sidecar.plan_sha256:
        raise ContractError(f"{plan}: expected sha256 {sidecar.plan_sha256[:12]}, got {digest[:12]}; {mend}")
    return data


def require_tensors(
    plan: Path, which: str, told: Mapping[str, TensorInfo], found: Mapping[str, TensorInfo], mend: str
) -> None:  # fmt: skip
    """Raise ContractError unless the engine's tensors are the sidecar's.

    -1 in `found` fits any axis: TensorRT does not always see that an output's is fixed.
    """
    for name in sorted(told.keys() | found.keys()):
        if name not in told or name not in found or not same_tensor(told[name], found[name]):
            raise ContractError(
                f"{plan}: {which} {name}: the sidecar says {told.get(name)}, the engine has {found.get(name)}; {mend}"
            )


def same_tensor(told: TensorInfo, found: TensorInfo) -> bool:
    """Whether type and fixed axes agree; -1 in `found` fits any axis."""
    return (
        told.dtype == found.dtype
        and len(told.shape) == len(found.shape)
        and all(isinstance(a, str) or b in (a, -1) for a, b in zip(told.shape, found.shape))
    )


def rebuild(plan: Path, sidecar: Sidecar | None = None, sm: str = "") -> str:
    """The command that mends an engine which does not fit; `sm` is a compute capability that one for RTX lacks."""
    if sidecar is None or sidecar.target == "tensorrt":
        return f"build it here with  sdst build BUNDLE --out {plan.parent}"
    compute = " ".join(dict.fromkeys((*sidecar.compute, *filter(None, [sm]))))
    return f"build it with  sdst build BUNDLE --target rtx --compute {compute} --out {plan.parent}"


def _require_rtx(plan: Path, sidecar: Sidecar, here: MachineRecord) -> None:
    """Engines of one version run on no other (NVIDIA's documentation, Engine Compatibility, Version Compatibility)."""
    if sidecar.machine.tensorrt != here.tensorrt:
        raise ContractError(
            f"{plan}: TensorRT for RTX: the engine was built for {sidecar.machine.tensorrt}, here is {here.tensorrt};"
            f" {rebuild(plan, sidecar)}"
        )
    if here.sm not in sidecar.compute:
        raise ContractError(
            f"{plan}: compute capability: the engine was built for {', '.join(sidecar.compute) or 'none'},"
            f" {here.gpu} has {here.sm}; {rebuild(plan, sidecar, here.sm)}"
        )


def _runs_on_tensorrt(built: str, here: str, version_compatible: bool) -> bool:
    if not version_compatible:
        return built == here
    old, new = version_numbers(built), version_numbers(here)
    return old[:1] == new[:1] and old <= new


def _refuse(plan: Path, field: str, built: str, here: str) -> None:
    raise ContractError(f"{plan}: {field}: the engine was built for {built}, here is {here}; {rebuild(plan)}")
