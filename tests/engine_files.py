"""Engine files for TensorRTSession under the mock: a plan of two sdst::RDSA nodes and its sidecar.

The second node's clips are the first one's moments, so that the plan has an internal tensor and needs working memory.
Shape letters: B batch, T clips, M moments, F width, H heads, P points, E = 3 * 2 * H * P.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from host_device import HostDevice
from mocked_tensorrt import EngineNode, EngineTensor, engine_bytes
from rdsa_cases import RdsaCase, make_inputs

from sdst_runtime.contracts import FeatureSpec
from sdst_runtime.doctor.rdsa_oracle import rdsa_oracle
from sdst_runtime.errors import SdstError
from sdst_runtime.files import sha256_file
from sdst_runtime.sessions.tensorrt import TensorRTSession
from sdst_runtime.sessions.tensorrt.sidecar import (
    EngineFlags,
    MachineRecord,
    PluginRecord,
    Profile,
    ShapeRange,
    Sidecar,
    TensorRecord,
    write_sidecar,
)

F, H, P = 32, 2, 4
E = 3 * 2 * H * P
TOLERANCE = 2e-5  # float32 arithmetic in two nodes, values of order 1
SMALL, LARGE = (2, 8, 5), (4, 24, 9)  # most B, T, M of the two profiles
SPEC = FeatureSpec(
    "tiny", "0" * 64, 2, "mean", 2, 1.0, 16, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 8, "tiny", 12, 8
)  # fmt: skip
INPUTS = {
    "value": TensorRecord("float32", ("B", "T", F)),
    "endpoints": TensorRecord("float32", ("B", "T", E)),
    "reference": TensorRecord("float32", ("B", "M", 2)),
    "length": TensorRecord("int32", ("B",)),
    "endpoints_2": TensorRecord("float32", ("B", "M", E)),
    "length_2": TensorRecord("int32", ("B",)),
}
OUTPUTS = {"out": TensorRecord("float32", ("B", "M", F))}
PROFILES = tuple(
    {
        name: ShapeRange(*(tuple({"B": b, "T": t, "M": m}.get(n, n) for n in record.shape) for b, t, m in sizes))
        for name, record in INPUTS.items()
    }
    for sizes in (((1, 1, 1), SMALL, SMALL), ((1, 1, 1), (2, 12, 9), LARGE))
)


def plan_bytes() -> bytes:
    """The plan, as the mock reads it."""

    def tensor(name: str, record: TensorRecord) -> EngineTensor:
        sizes = tuple(-1 if isinstance(n, str) else n for n in record.shape)
        return EngineTensor(name, "input", "int32" if record.dtype == "int32" else "float", sizes)

    moments = ("value:0", "reference:1", F)
    tensors = [tensor(name, record) for name, record in INPUTS.items()]
    tensors += [EngineTensor("hidden", "internal", "float", moments), EngineTensor("out", "output", "float", moments)]
    fields = {"num_heads": H, "num_points": P}
    nodes = [
        EngineNode("sdst::RDSA.step1", ("value", "endpoints", "reference", "length"), ("hidden",), fields),
        EngineNode("sdst::RDSA.step2", ("hidden", "endpoints_2", "reference", "length_2"), ("out",), fields),
    ]
    return engine_bytes(tensors, nodes, [_shapes(profile) for profile in PROFILES])


def write_engine(directory: str | Path, tensorrt: str, plugin: str | Path, /, **changes: Any) -> Path:
    """head.plan and its sidecar; `changes` are fields of the sidecar that say something else."""
    plan = Path(directory) / "head.plan"
    plan.write_bytes(plan_bytes())
    write_sidecar(plan, dataclasses.replace(sidecar(plan.read_bytes(), tensorrt, sha256_file(Path(plugin))), **changes))
    return plan


def sidecar(plan: bytes, tensorrt: str = "10.3.0", plugin_sha256: str = "1" * 64) -> Sidecar:
    """What fits HostDevice and these versions."""
    return Sidecar(
        format=1, sdst_version="0.1.0", kind="head", precision="fp32", spec=SPEC, steps=2, inputs=INPUTS,
        outputs=OUTPUTS, limits={"max_clips": 24, "max_batch": 4},
        machine=MachineRecord(tensorrt, "8.7", "Mock GPU", "570.10", "12.6"),
        plugin=PluginRecord("1", plugin_sha256), graph_sha256="2" * 64, weights_sha256=None, profiles=PROFILES,
        flags=EngineFlags(None, 3, False, False, False), plan_sha256=hashlib.sha256(plan).hexdigest(),
        plan_bytes=len(plan), build_s=1.5,
    )  # fmt: skip


def engine_inputs(B: int, T: int, M: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs of the engine, with lengths from 1 to T."""
    rng = np.random.default_rng(seed)
    lengths = tuple(int(n) for n in rng.integers(1, T + 1, B))
    inputs = make_inputs(RdsaCase("engine", B, T, M, F, H, P, lengths, "inside", "unit"), seed)
    inputs = {name: inputs[name].astype(INPUTS[name].dtype) for name in ("value", "endpoints", "reference", "length")}
    inputs["endpoints_2"] = rng.standard_normal((B, M, E)).astype(np.float32)
    inputs["length_2"] = rng.integers(1, M + 1, B).astype(np.int32)
    return inputs


def engine_oracle(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """What the engine answers, by the float64 oracle: B M F."""
    hidden = rdsa_oracle(inputs["value"], inputs["endpoints"], inputs["reference"], inputs["length"], H, P)
    return rdsa_oracle(hidden, inputs["endpoints_2"], inputs["reference"], inputs["length_2"], H, P)


def message(call: Callable[[], Any]) -> str:
    """The type and words, one line, of the SdstError that a call raises; "nothing" when it raises none."""
    try:
        call()
    except SdstError as error:
        words = f"{type(error).__name__}: {error}"
    else:
        words = "nothing"
    assert "\n" not in words
    return words


def opened(plan: str, **options: Any) -> tuple[TensorRTSession, HostDevice]:
    device = options.setdefault("device", HostDevice())
    return TensorRTSession(Path(plan), **options), device


def worst(session: TensorRTSession, B: int, T: int, M: int, seed: int = 0) -> float:
    """Largest difference between the session's answer and the oracle's."""
    inputs = engine_inputs(B, T, M, seed)
    out = session.run(inputs)["out"]
    assert (out.shape, out.dtype) == ((B, M, 32), np.float32)
    return float(np.abs(out - engine_oracle(inputs)).max())


def _shapes(profile: Profile) -> dict[str, tuple[tuple[int, ...], ...]]:
    return {name: (shapes.min, shapes.opt, shapes.max) for name, shapes in profile.items()}
