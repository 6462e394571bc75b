"""TensorRT 10.3 to 11.x and TensorRT for RTX behind one set of functions: what differs between versions stands here.

What only TensorRT for RTX has stands in rtx.py. `tensorrt` or `tensorrt_rtx` is imported when it is needed. Objects of
TensorRT are passed as `Any`: its stubs differ from version to version. test_tensorrt_contract.py holds every name that
this project uses against the bindings of three versions, test_rtx_contract.py against those of TensorRT for RTX.
"""

from __future__ import annotations

import importlib
import logging
import platform
import threading
from collections import deque
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...distribution import install_command
from ...errors import ContractError, DependencyError, DeviceError
from ..plugin_library import PluginInfo

LOGGER = logging.getLogger("sdst.tensorrt")
Target = Literal["tensorrt", "rtx"]  # which of NVIDIA's two libraries builds an engine and runs it
PRODUCTS: dict[Target, str] = {"tensorrt": "TensorRT", "rtx": "TensorRT for RTX"}
MODULES: dict[Target, str] = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
OLDEST: dict[Target, tuple[int, int]] = {"tensorrt": (10, 3), "rtx": (1, 7)}
PLUGIN = ("RDSA", "1", "sdst")  # name, version, namespace: plugins/README.md

_TYPES = {  # trt.DataType by name: its numbers, and what trt.nptype knows, vary
    "FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64, "INT32": np.int32, "INT8": np.int8,
    "UINT8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
_MOST_ERRORS = 4  # that are kept for a thread
_EXPECTED = (  # warnings of the ONNX parser: a function's nodes are named alike at each call; int64 inputs get int64
    "already exists, the output tensors of this new instance will not be queryable",
    "has Int64 binding",
)
_NO_DRIVER = "checkMacros.cpp::catchCudaError"  # TensorRT for RTX logs it after every error where there is no driver
_making_logger = threading.Lock()
_loggers: dict[str, Any] = {}  # the logger of this process for each module, never let go
_registering = threading.Lock()
_registered: list[PluginInfo] = []  # the library of this process, at most one


def load_tensorrt(target: Target = "tensorrt") -> Any:
    """The module `tensorrt` or `tensorrt_rtx`.

    Raises DependencyError saying what to install here when it is missing or too old.
    """
    product, oldest = PRODUCTS[target], OLDEST[target]
    try:
        trt = importlib.import_module(MODULES[target])
    except (ImportError, OSError) as error:  # OSError: the bindings are there, their library is not
        raise DependencyError(f"{product} cannot be imported ({error}): {_how_to_install(target)}") from error
    if version_numbers(trt.__version__)[:2] < oldest:
        least = ".".join(map(str, oldest))
        raise DependencyError(f"expected {product} {least} or newer, got {trt.__version__}: {_how_to_install(target)}")
    return trt


def version_numbers(version: str) -> tuple[int, ...]:
    """(10, 16, 1, 11) of "10.16.1.11"; what follows the numbers is left out."""
    numbers: list[int] = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def is_jetson() -> bool:
    """Whether this is a Jetson, whose TensorRT comes with JetPack."""
    return Path("/etc/nv_tegra_release").is_file()


def shared_logger(trt: Any) -> Any:
    """The process's one trt.ILogger: it hands warnings to `logging` and keeps a thread's last errors for `take_errors`.

    One for each library, because TensorRT keeps the first logger it is given for the whole process, also when its
    session is gone.
    """
    with _making_logger:
        if trt.__name__ not in _loggers:
            _loggers[trt.__name__] = _make_logger(trt)
        return _loggers[trt.__name__]


def take_errors(logger: Any) -> str:
    """The errors logged on this thread since its last call, in one line."""
    lines = []
    while logger.errors.lines:
        lines.append(logger.errors.lines.popleft())
    return "; ".join(lines) or "TensorRT logged no reason"


def numpy_dtype(dtype: Any) -> np.dtype[Any]:
    """NumPy's name of a trt.DataType. Raises ContractError for one that NumPy lacks."""
    if dtype.name not in _TYPES:
        raise ContractError(f"expected tensors of {', '.join(_TYPES)}, the engine has one of {dtype.name}; export anew")
    return np.dtype(_TYPES[dtype.name])


def make_runtime(trt: Any, logger: Any, host_code: bool) -> Any:
    """A trt.Runtime; `host_code` lets engines run code that they carry."""
    runtime = trt.Runtime(logger)
    runtime.engine_host_code_allowed = host_code
    return runtime


def make_context(
    trt: Any, engine: Any, logger: Any, profile: int, scratch: tuple[int, int], stream: int, runtime_config: Any = None
) -> Any:  # fmt: skip
    """An execution context on an optimisation profile; `scratch` is the address and size of its working memory.

    `runtime_config` is that of TensorRT for RTX, which says USER_MANAGED itself (rtx.make_runtime_config). The index
    is checked here: the bindings of 10.3.0 end the process when set_optimization_profile_async fails.
    """
    if not 0 <= profile < engine.num_optimization_profiles:
        raise ContractError(f"the engine has {engine.num_optimization_profiles} profiles, asked for number {profile}")
    own_memory = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    context = engine.create_execution_context(own_memory if runtime_config is None else runtime_config)
    if context is None:
        raise DeviceError(f"TensorRT made no execution context: {take_errors(logger)}")
    if profile and not context.set_optimization_profile_async(profile, stream):  # a context starts on profile 0
        raise DeviceError(f"TensorRT did not switch to profile {profile}: {take_errors(logger)}")
    context.set_device_memory(*scratch)  # after the switch: it is the size for this profile
    return context


def scratch_bytes(engine: Any, profile: int) -> int:
    """Bytes of working memory that a context on this profile needs. 10.3.0 computes the same by the older call."""
    return max(int(engine.get_device_memory_size_for_profile_v2(profile)), 0)


def register_plugin(trt: Any, plugin: PluginInfo) -> None:
    """Make TensorRT know the library's op, once a process.

    Raises ContractError when another library has it already, DependencyError when this one cannot be registered.
    """
    with _registering:
        if _registered:
            if _registered[0].sha256 != plugin.sha256:
                raise ContractError(
                    f"sdst::RDSA of {_registered[0].path} (sha256 {_registered[0].sha256[:12]}) is loaded in this"
                    f" process, {plugin.path} has {plugin.sha256[:12]}; use one library a process"
                )
            return
        registry = trt.get_plugin_registry()
        if registry.get_creator(*PLUGIN) is None:
            registry.load_library(str(plugin.path))  # None tells nothing: also for one that is registered
        if registry.get_creator(*PLUGIN) is None:
            headers = f"headers of {plugin.tensorrt}" if plugin.tensorrt else "no TensorRT headers"
            raise DependencyError(
                f"{plugin.path}: TensorRT {trt.__version__} cannot use it (it was built with {headers}): run"
                "  sdst plugins build  where the headers are"
            )
        _registered.append(plugin)


def make_network(trt: Any, builder: Any) -> Any:
    """A strongly typed network, of the graph's own types: in 10.x a choice, in 11 every network is one."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return builder.create_network(0 if flag is None else 1 << int(flag))


def plugin_layers(trt: Any, network: Any) -> list[str]:
    """Names of the plugin layers of a parsed network."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    return [layer.name for layer in layers if layer.type == trt.LayerType.PLUGIN_V3]


def parser_errors(parser: Any) -> list[str]:
    """What the ONNX parser found wrong, an entry of one line each."""
    return [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]


def _parser_error(error: Any) -> str:
    lines = dict.fromkeys(" ".join(line.split()) for line in error.desc().splitlines() if _NO_DRIVER not in line)
    return f"{'; '.join(filter(None, lines))} (node {error.node_name() or error.node()}, {error.node_operator()})"


class _Errors(threading.local):
    """The last errors of each thread."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=_MOST_ERRORS)


def _make_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors = _Errors()

        def log(self, severity: Any, msg: str) -> None:
            if severity.name in ("ERROR", "INTERNAL_ERROR"):
                if _NO_DRIVER not in msg:
                    self.errors.lines.append(" ".join(msg.split()))
                LOGGER.debug("%s", msg)  # a thread of TensorRT's own takes none
            elif severity.name == "WARNING" and not any(words in msg for words in _EXPECTED):
                LOGGER.warning("%s", msg)
            else:
                LOGGER.debug("%s", msg)

    return Logger()


def _how_to_install(target: Target) -> str:
    if target == "rtx":
        if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
            return "it is used on Linux x86-64 only; use the ONNX bundle here"
        return install_command("rtx")
    if is_jetson():
        return (
            "it comes with JetPack: run  sudo apt install nvidia-jetpack  and make the environment with"
            "  python3 -m venv --system-site-packages"
        )
    if platform.system() != "Linux":
        return "engines run on Linux only; use the ONNX bundle here"
    return install_command("tensorrt")
