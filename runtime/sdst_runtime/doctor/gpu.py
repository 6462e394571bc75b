"""The checks of `sdst doctor` that serve GPUs: driver, CUDA, TensorRT, pycuda and the compiled sdst::RDSA.

What a library is for is found out by using it: the op is run on small inputs and compared with a float64 oracle.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

from ..errors import ContractError, DependencyError, DeviceError, SdstError
from ..grounding.bundle import Bundle
from ..machine import gpus
from ..sessions.onnxruntime import CUDA
from ..sessions.ort import import_onnxruntime
from ..sessions.plugin_library import HOST_CODE, TYPES, PluginDevice, RdsaLibrary, RdsaProblem, open_plugin_library
from ..sessions.tensorrt.compat import load_tensorrt
from ..sessions.tensorrt.device import Device
from ..sessions.tensorrt.pycuda_device import open_pycuda_device
from ..sessions.tensorrt.rtx import known_capabilities
from .check import Check, split_message
from .rdsa_oracle import CHECK_HEADS, CHECK_POINTS, check_inputs, rdsa_oracle

RunOnCuda = Callable[[RdsaLibrary], np.ndarray]

TOLERANCE = 1e-5  # of float32 on inputs of order 1
_DRIVER = ("libcuda.so.1",)
_RUNTIME = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "/usr/local/cuda/lib64/libcudart.so")


def check_driver() -> Check:
    """The NVIDIA driver, through nvidia-smi or, as on Jetson, through its library."""
    found = gpus()
    if found:
        lines = [f"{gpu.name}, compute capability {gpu.capability}, driver {gpu.driver}" for gpu in found]
        return Check("NVIDIA driver", "fine", "; ".join(lines))
    library = _load(_DRIVER)
    if library is None:
        return Check("NVIDIA driver", "absent", "not installed: neither nvidia-smi nor libcuda.so.1", _DRIVER_MEND)
    status, speaks = library.cuInit(0), ctypes.c_int()
    if status:
        return Check("NVIDIA driver", "fault", f"libcuda.so.1 is there, cuInit gives error {status}", _INIT_MEND)
    library.cuDriverGetVersion(ctypes.byref(speaks))
    return Check("NVIDIA driver", "fine", f"libcuda.so.1, speaks CUDA {_cuda_version(speaks.value)}")


def check_cuda() -> Check:
    """CUDA's runtime library, and whether the driver is new enough for it."""
    library = _load(_RUNTIME)
    if library is None:
        return Check("CUDA runtime", "absent", f"not installed: none of {', '.join(_RUNTIME)}", _CUDA_MEND)
    own, speaks = ctypes.c_int(), ctypes.c_int()
    library.cudaRuntimeGetVersion(ctypes.byref(own))
    library.cudaDriverGetVersion(ctypes.byref(speaks))
    found = f"CUDA {_cuda_version(own.value)}"
    if 0 < speaks.value < own.value // 1000 * 1000:  # within a major version older drivers serve newer runtimes
        mend = f"install a driver for CUDA {own.value // 1000}, or an older CUDA"
        return Check("CUDA runtime", "fault", f"{found}, the driver speaks CUDA {_cuda_version(speaks.value)}", mend)
    return Check("CUDA runtime", "fine", found)


def check_tensorrt() -> Check:
    """The Python package, its library behind it, and the version."""
    try:
        trt = load_tensorrt()
    except DependencyError as error:
        state = "absent" if find_spec("tensorrt") is None else "fault"
        return Check("TensorRT", state, *split_message(str(error)))
    return Check("TensorRT", "fine", str(trt.__version__))


def check_rtx() -> Check:
    """TensorRT for RTX, and the GPUs that it builds engines for, with or without one here."""
    try:
        trt = load_tensorrt("rtx")
    except DependencyError as error:
        state = "absent" if find_spec("tensorrt_rtx") is None else "fault"
        return Check("TensorRT for RTX", state, *split_message(str(error)))
    return Check("TensorRT for RTX", "fine", f"{trt.__version__}, builds for {' '.join(known_capabilities(trt))}")


def check_pycuda() -> Check:
    """pycuda with a GPU behind it."""
    try:
        facts = open_pycuda_device().facts
    except DependencyError as error:
        return Check("pycuda", "absent" if find_spec("pycuda") is None else "fault", *split_message(str(error)))
    except SdstError as error:
        return Check("pycuda", "fault", str(error), _INIT_MEND)
    return Check("pycuda", "fine", f"{facts.gpu}, compute capability {facts.sm}")


def check_onnxruntime_cuda() -> Check:
    """The CUDA provider of ONNX Runtime."""
    name = "ONNX Runtime on CUDA"
    try:
        ort = import_onnxruntime()
    except DependencyError as error:
        return Check(name, "absent", str(error.__cause__), "run  pip install onnxruntime-gpu")
    if CUDA in ort.get_available_providers():
        return Check(name, "fine", "its CUDA provider is there")
    mend = "with an NVIDIA GPU run  pip uninstall onnxruntime && pip install onnxruntime-gpu"
    return Check(name, "absent", "not installed: no CUDA provider", mend)


def check_plugin(device: PluginDevice, bundle: Bundle | None = None, run_cuda: RunOnCuda | None = None) -> Check:
    """The compiled sdst::RDSA: found, loaded, and run against the oracle: by pycuda, else by `run_cuda`.

    A bundle's own library is left alone but for the user's word.
    """
    name = f"sdst::RDSA for {device}"
    try:
        library = open_plugin_library(device, bundle.brought(device) if bundle else None)
    except DependencyError as error:
        found = "the bundle's library was not loaded" if HOST_CODE in str(error) else "not installed"
        return Check(name, "absent", found, str(error).rpartition(": ")[2])
    except SdstError as error:
        return Check(name, "fault", *split_message(str(error)))
    found = f"{library.info.path}, {_built(library)}"
    try:
        return Check(name, "fine", f"{found}, {_run_plugin(library, run_cuda)}")
    except SdstError as error:
        return Check(name, "fault", f"{found}: {error}", "run  sdst plugins build" + (" --host" * (device == "host")))


def run_on_device(library: RdsaLibrary, device: Device) -> np.ndarray:
    """The op on `check_inputs` in a device's memory, B M F float32. Raises DeviceError or InputError."""
    inputs = check_inputs()
    B, T, F = inputs["value"].shape
    M, E = inputs["reference"].shape[1], inputs["endpoints"].shape[2]
    out = np.zeros((B, M, F), np.float32)
    with device.current():
        stream = device.stream()
        arrays = {**inputs, "out": out}
        blocks = {name: device.allocate(array.nbytes) for name, array in arrays.items()}
        pinned = {name: device.allocate_pinned(array.nbytes) for name, array in arrays.items()}
        try:
            for name, array in inputs.items():
                staged = pinned[name].bytes[: array.nbytes]
                staged[:] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
                device.copy_to_device(blocks[name].address, staged, stream)
            problem = RdsaProblem(
                *(blocks[name].address for name in ("value", "endpoints", "reference", "length", "out")),
                B, T, M, CHECK_HEADS, CHECK_POINTS, F // CHECK_HEADS, TYPES["float32"], T * F, F, T * E, E,
            )  # fmt: skip
            library.rdsa(problem, stream.handle)
            staged = pinned["out"].bytes[: out.nbytes]
            device.copy_to_host(staged, blocks["out"].address, stream)
            stream.synchronize()
            out[:] = staged.view(np.float32).reshape(out.shape)
        finally:
            for memory in (*blocks.values(), *pinned.values()):
                memory.free()
    return out


def require_right(out: np.ndarray) -> str:
    """How far `out` is from the oracle on `check_inputs`. Raises ContractError when too far."""
    expected = rdsa_oracle(**check_inputs(), num_heads=CHECK_HEADS, num_points=CHECK_POINTS)
    error = float(np.abs(out - expected).max())
    if not error <= TOLERANCE:  # NaN too
        raise ContractError(f"its result is {error:.1e} away from the oracle, expected at most {TOLERANCE:.0e}")
    return f"ran, {error:.1e} away from the oracle"


_DRIVER_MEND = "for a GPU install NVIDIA's driver; in a container start it with  --gpus all"
_INIT_MEND = "load the driver (reboot after an update), or start the container with  --gpus all"
_CUDA_MEND = "for TensorRT and CUDA graphs install the CUDA toolkit 12.2 or newer, or put its lib64 on LD_LIBRARY_PATH"


def _run_plugin(library: RdsaLibrary, run_cuda: RunOnCuda | None) -> str:
    if library.info.device == "host":
        out = library.rdsa_numpy(**check_inputs(), num_heads=CHECK_HEADS, num_points=CHECK_POINTS)
        return require_right(out)
    try:
        device = open_pycuda_device()
    except (DependencyError, DeviceError):
        if run_cuda is None:
            return "loads; not run: that needs a GPU, and pycuda or torch"
        return require_right(run_cuda(library))
    return require_right(run_on_device(library, device))


def _built(library: RdsaLibrary) -> str:
    info = library.info
    if info.device == "host":
        return "for this CPU"
    plugin = f"TensorRT plugin, headers {info.tensorrt}" if info.tensorrt else "no TensorRT plugin"
    return f"CUDA {info.cuda}, {' '.join(f'sm_{number}' for number in info.architectures)}, {plugin}"


def _load(names: tuple[str, ...]) -> Any:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
