"""What TensorRT for RTX has and TensorRT has not: several GPUs an engine, its validity, kernels compiled when it runs.

`trt` is the module `tensorrt_rtx`. Source: its bindings' own documentation, version 1.7.1.116, and NVIDIA's
documentation of TensorRT for RTX. test_rtx_contract.py holds every name against the bindings.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ...errors import ContractError, InputError
from .compat import LOGGER, take_errors
from .sidecar import Sidecar, rebuild

RTX_GPUS = ("8.6", "8.9", "12.0")  # Ampere, Ada Lovelace and Blackwell: what NVIDIA's engines are for by default
_NOT_A_GPU = ("NONE", "CURRENT")  # members of ComputeCapability

_MENDS = {  # trt.EngineInvalidityDiagnostics by name
    "OLD_CUDA_DRIVER": "update the NVIDIA driver",
    "OLD_CUDA_RUNTIME": "update CUDA",
    "INSUFFICIENT_GPU_MEMORY": "free memory of the GPU",
    "CUDA_ERROR": "look at the driver with  sdst doctor",
}


def known_capabilities(trt: Any) -> dict[str, Any]:
    """Members of trt.ComputeCapability by number: "8.9" for SM89."""
    members = trt.ComputeCapability.__members__.items()
    numbers = {name.removeprefix("SM"): member for name, member in members if name not in _NOT_A_GPU}
    return {f"{number[:-1]}.{number[-1]}": member for number, member in numbers.items()}


def require_capabilities(trt: Any, compute: Sequence[str]) -> None:
    """Raise InputError naming the first compute capability that TensorRT for RTX does not know, and those it knows."""
    known = known_capabilities(trt)
    for one in compute:
        if one not in known:
            raise InputError(
                f"compute: expected some of {' '.join(known)}, got {one!r}: TensorRT for RTX {trt.__version__} builds"
                " for no other; for another GPU build on it with  --target tensorrt"
            )


def set_capabilities(trt: Any, config: Any, compute: Sequence[str]) -> bool:
    """Let the engine be for GPUs of these compute capabilities. False when TensorRT for RTX refuses."""
    known = known_capabilities(trt)
    config.num_compute_capabilities = len(compute)
    return all(config.set_compute_capability(known[one], index) for index, one in enumerate(compute))


def registered_plugins(trt: Any, ops: Collection[str]) -> list[str]:
    """Which of the ops have a plugin in this process. The parser would end the process at a node of such an op.

    Asked without `get_creator`, which logs an error for one that is not there.
    """
    registry = trt.get_plugin_registry()
    return sorted({creator.name for creator in registry.all_creators} & set(ops))


def reads_header(trt: Any, runtime: Any, plan: bytes) -> bool:
    """Whether the plan begins as an engine of this version does: all that is told of one without a GPU."""
    _, flags = runtime.get_engine_validity(plan)
    return not {"MALFORMED_ENGINE", "VERSION_MISMATCH"} & set(_diagnostics(trt, flags))


def require_valid(trt: Any, runtime: Any, logger: Any, path: Path, plan: bytes, sidecar: Sidecar) -> None:
    """Raise ContractError with TensorRT's own diagnostics unless it says that the plan runs here.

    One that runs but not as fast as it could is a warning.
    """
    validity, flags = runtime.get_engine_validity(plan)
    if validity == trt.EngineValidity.VALID:
        return
    names = _diagnostics(trt, flags)
    said = f"{path}: TensorRT for RTX says that the engine is"
    reason = ", ".join(names) or take_errors(logger)
    mend = next((_MENDS[name] for name in names if name in _MENDS), rebuild(path, sidecar))
    if validity == trt.EngineValidity.SUBOPTIMAL:
        LOGGER.warning("%s slower here than it could be: %s; %s", said, ", ".join(names) or "no reason told", mend)
        return
    raise ContractError(f"{said} not valid here: {reason}; {mend}")


def make_runtime_config(trt: Any, engine: Any, runtime_cache: Any, cuda_graphs: bool) -> Any:
    """What a context is made with: memory of the caller's, CUDA graphs of TensorRT's own, kernels compiled lazily.

    For shapes that are new a kernel for any shape runs, while one for these shapes is compiled beside it.
    """
    runtime_config = engine.create_runtime_config()
    graphs = trt.CudaGraphStrategy
    runtime_config.cuda_graph_strategy = graphs.WHOLE_GRAPH_CAPTURE if cuda_graphs else graphs.DISABLED
    lazily = trt.DynamicShapesKernelSpecializationStrategy.LAZY
    runtime_config.dynamic_shapes_kernel_specialization_strategy = lazily
    runtime_config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    if not runtime_config.set_runtime_cache(runtime_cache):
        LOGGER.warning("TensorRT for RTX took no runtime cache: kernels are compiled at each start")
    return runtime_config


def _diagnostics(trt: Any, flags: int) -> list[str]:
    return [name for name, flag in trt.EngineInvalidityDiagnostics.__members__.items() if flags & flag.value]
