"""TensorRTSession: an engine file that `sdst build` made, run on the GPU. RtxSession (rtx_session.py) is one, too.

Shapes are those of the model (docs/architecture.md); every free axis may take any size that a profile holds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ContractError, InputError
from ..base import ProcessSession, TensorInfo, require_inputs
from ..plugin_library import Brought, RdsaLibrary, find_stated_library
from .compat import (
    PRODUCTS,
    Target,
    load_tensorrt,
    make_runtime,
    numpy_dtype,
    register_plugin,
    shared_logger,
    take_errors,
)
from .device import Device
from .dlpack import DeviceArray, is_on_device, read_tensor
from .lane import EngineParts, Input, Lane
from .pool import Pool
from .sidecar import (
    MachineRecord,
    PluginRecord,
    Profile,
    ShapeRange,
    Sidecar,
    read_plan,
    read_sidecar,
    rebuild,
    require_machine,
    require_plugin,
    require_target,
    require_tensors,
)


class TensorRTSession(ProcessSession):
    """Runs an engine. Any number of threads may call `run`; `workers` of them at a time, the others wait.

    The first call of some shapes is slow (memory, kernels), the second captures a CUDA graph; `warm_up` does both
    beforehand.
    """

    target: Target = "tensorrt"

    def __init__(
        self,
        path: Path,
        *,
        workers: int = 1,
        cuda_graphs: bool = True,
        engine_host_code_allowed: bool = False,
        device: Device | None = None,
    ) -> None:
        """`engine_host_code_allowed` lets code run that came with the plan, inside it or as a library of sdst::RDSA
        beside it that is not the installed one: only for files that you trust.

        `device` is by default the GPU through pycuda. Raises InputError for a missing file, ContractError for an
        engine of another TensorRT, GPU or plugin and for an altered one, DependencyError when TensorRT, pycuda or the
        plugin library is missing, DeviceError when the GPU fails.
        """
        if workers < 1:
            raise InputError(f"workers: expected at least 1, got {workers}")
        self.path = Path(path)
        super().__init__(self.path.name)
        self._sidecar = read_sidecar(self.path)
        require_target(self.path, self._sidecar, self.target)
        trt = load_tensorrt(self.target)
        self._device = _open_device() if device is None else device
        facts = self._device.facts
        self._here = MachineRecord(trt.__version__, facts.sm, facts.gpu, facts.driver, facts.cuda)
        require_machine(self.path, self._sidecar, self._here)
        _require_host_code(self.path, self._sidecar, engine_host_code_allowed)
        plan = read_plan(self.path, self._sidecar)
        self.metadata: Mapping[str, str] = self._sidecar.metadata()
        with self._device.current():
            _load_plugin(trt, self.path, self._sidecar, self._device, engine_host_code_allowed)
            parts = self._load_engine(trt, plan, engine_host_code_allowed)
            lanes = [Lane(parts) for _ in range(workers)]
        if not cuda_graphs:
            parts.no_graphs.set()
        self.inputs, self.outputs = parts.inputs, parts.outputs
        self._pool = Pool(lanes, self._closed_error)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Outputs by name, as numpy arrays of their own.

        An input is a numpy array, or an array on the session's GPU with `__dlpack__` or `__cuda_array_interface__`,
        which is read where it lies; when it is overwritten afterwards nothing happens here. Raises InputError when a
        name, type or shape is wrong or no profile holds the shapes, SessionError in a session that is closed or was
        opened by another process, DeviceError when the GPU fails; out of memory, the session gives its buffers back and
        stays usable.
        """
        self._require_open()
        with self._pool.one() as lane, self._device.current():
            given = self._read(inputs, lane)
            return lane.run(_profile(lane.parts, given), given)

    def run_on_device(self, inputs: Mapping[str, Any]) -> dict[str, DeviceArray]:
        """As `run`, with outputs that stay on the GPU: for torch.from_dlpack and the like."""
        self._require_open()
        with self._pool.one() as lane, self._device.current():
            given = self._read(inputs, lane)
            return lane.run_on_device(_profile(lane.parts, given), given)

    def warm_up(self) -> None:
        """Run the usual shapes of every profile in every worker: memory is allocated and graphs are captured."""
        self._require_open()
        with self._pool.all() as lanes, self._device.current():
            for lane in lanes:
                for index, profile in enumerate(lane.parts.profiles):
                    ones = {name: np.ones(profile[name].opt, info.dtype) for name, info in self.inputs.items()}
                    for _ in range(2):  # the second call captures
                        lane.run(index, ones)

    def _release(self) -> None:
        lanes = self._pool.close()  # once the calls under way have ended
        with self._device.current():
            self._before_release()
            while lanes:  # let go here too, streams and contexts need the device current
                lanes.pop().close()

    def _load_engine(self, trt: Any, plan: bytes, host_code: bool) -> EngineParts:
        """What the lanes share. Raises ContractError when TensorRT refuses the plan or it is not its sidecar's."""
        path, sidecar, logger = self.path, self._sidecar, shared_logger(trt)
        mend = rebuild(path, sidecar)
        runtime = make_runtime(trt, logger, host_code)
        self._require_valid(trt, runtime, logger, plan)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise ContractError(f"{path}: {PRODUCTS[self.target]} cannot load it: {take_errors(logger)}; {mend}")
        found: dict[Any, dict[str, TensorInfo]] = {trt.TensorIOMode.INPUT: {}, trt.TensorIOMode.OUTPUT: {}}
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            dtype = numpy_dtype(engine.get_tensor_dtype(name))
            found[engine.get_tensor_mode(name)][name] = TensorInfo(dtype, tuple(engine.get_tensor_shape(name)))
        inputs = {name: record.info() for name, record in sidecar.inputs.items()}
        outputs = {name: record.info() for name, record in sidecar.outputs.items()}
        require_tensors(path, "input", inputs, found[trt.TensorIOMode.INPUT], mend)
        require_tensors(path, "output", outputs, found[trt.TensorIOMode.OUTPUT], mend)
        profiles = _profiles(engine, inputs)
        if profiles != sidecar.profiles:
            raise ContractError(f"{path}: its profiles are not those of its sidecar; {mend}")
        return EngineParts(
            path.name, trt, logger, engine, inputs, outputs, profiles, self._device, threading.Event(),
            threading.Lock(), self._runtime_config(trt, engine),
        )  # fmt: skip

    def _require_valid(self, trt: Any, runtime: Any, logger: Any, plan: bytes) -> None:
        """What the library can say of a plan before it is loaded: of TensorRT nothing."""

    def _runtime_config(self, trt: Any, engine: Any) -> Callable[[], Any] | None:
        """What makes that with which a context is made, in a library that has such a thing."""
        return None

    def _before_release(self) -> None:
        """What is to be done while contexts are still there, with none of them running."""

    def _read(self, inputs: Mapping[str, Any], lane: Lane) -> dict[str, Input]:
        if inputs.keys() != self.inputs.keys():
            raise InputError(f"{self.name}: expected inputs {sorted(self.inputs)}, got {sorted(inputs)}")
        given: dict[str, Any] = {}
        for name in self.inputs:
            value, on_device = inputs[name], is_on_device(inputs[name], self._device)
            given[name] = read_tensor(name, value, self._device, lane.compute) if on_device else np.asarray(value)
        require_inputs(self.name, self.inputs, given)
        return given


def _open_device() -> Device:
    from .pycuda_device import open_pycuda_device

    return open_pycuda_device()


def _require_host_code(path: Path, sidecar: Sidecar, allowed: bool) -> None:
    if sidecar.flags.has_host_code and not allowed:
        raise ContractError(
            f"{path}: the engine carries code that runs on this machine; if you trust the file, say"
            " engine_host_code_allowed=True or set SDST_ENGINE_HOST_CODE=1, else build it without --version-compatible"
            " and --embed-plugin"
        )


def _load_plugin(trt: Any, path: Path, sidecar: Sidecar, device: Device, allowed: bool) -> None:
    """Load the library that the sidecar names by its digest, and no other: code is not run to be looked at."""
    if sidecar.plugin is None or sidecar.flags.embed_plugin:
        return
    brought = Brought(path.parent, sidecar.plugin.sha256, allowed)
    plugin = RdsaLibrary(find_stated_library(device.plugin_device, brought)).info
    require_plugin(path, sidecar.plugin, PluginRecord(plugin.version, plugin.sha256))
    register_plugin(trt, plugin)


def _profiles(engine: Any, inputs: Mapping[str, TensorInfo]) -> tuple[Profile, ...]:
    return tuple(
        {name: ShapeRange(*map(tuple, engine.get_tensor_profile_shape(name, index))) for name in inputs}
        for index in range(engine.num_optimization_profiles)
    )


def _profile(parts: EngineParts, given: Mapping[str, Input]) -> int:
    """The first profile that holds the shapes, which is the smallest: a plan has them in order of size."""
    for index, profile in enumerate(parts.profiles):
        if all(profile[name].holds(tuple(value.shape)) for name, value in given.items()):
            return index
    raise InputError(_outside(parts.name, parts.profiles, given))


def _outside(model: str, profiles: tuple[Profile, ...], given: Mapping[str, Input]) -> str:
    """Which input is to blame: the first that no profile holds, else all, which no one profile holds together."""
    alone = [name for name, value in given.items() if not any(p[name].holds(tuple(value.shape)) for p in profiles)]
    names = alone[:1] or list(given)
    got = ", ".join(f"{name!r} {list(given[name].shape)}" for name in names)
    held = "; ".join(", ".join(f"{name} {profile[name]}" for name in names) for profile in profiles)
    return (
        f"{model}: input {got} lies outside every profile, which hold {held}; give less at once or build with"
        " other --profiles"
    )
