"""A double of TensorRT for RTX's Python module, over the mocked TensorRT of tests/mocked_tensorrt.py.

The real module runs nothing without a GPU, and there are no headers to build a mock of its library from. So what it
shares with TensorRT is TensorRT's real bindings over our mock, and what it has of its own is written here, in the shape
of the real bindings: test_rtx_contract.py holds every name against them. An engine is one of the mock's, whose nodes
are computed by the plugin in $SDST_PLUGINS in the place of the function's body.

Kernels: a context "compiles" one for each set of input shapes that it runs and its runtime cache does not hold.
"""

from __future__ import annotations

import enum
import importlib
import json
import os
from typing import Any, ClassVar

_trt: Any = importlib.import_module("tensorrt")
globals().update({name: value for name, value in vars(_trt).items() if not name.startswith("_")})
__version__ = "1.7.1.116"


class _Told:
    """What tests read and set."""

    validity: tuple[Any, int]  # what get_engine_validity says
    machine = "GPU A, driver 1"  # runtime caches of another are not taken
    compiled: ClassVar[list[str]] = []  # kernels, in order
    configs: ClassVar[list[IRuntimeConfig]] = []  # with which contexts were made


class EngineValidity(enum.Enum):
    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class EngineInvalidityDiagnostics(enum.Enum):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    OLD_CUDA_DRIVER = 4
    OLD_CUDA_RUNTIME = 8
    INSUFFICIENT_GPU_MEMORY = 16
    MALFORMED_ENGINE = 32
    CUDA_ERROR = 64


class CudaGraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class IRuntimeCache:
    def __init__(self) -> None:
        self._kernels: set[str] = set()

    def serialize(self) -> bytes:
        return json.dumps([_Told.machine, sorted(self._kernels)]).encode()

    def deserialize(self, blob: bytes) -> bool:
        machine, kernels = json.loads(blob)
        if machine != _Told.machine:
            return False
        self._kernels.update(kernels)
        return True


class IRuntimeConfig:
    def __init__(self) -> None:
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
        self._strategy = _trt.ExecutionContextAllocationStrategy.STATIC
        self._cache: IRuntimeCache | None = None

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self._cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy

    def get_execution_context_allocation_strategy(self) -> Any:
        return self._strategy


class IExecutionContext:
    def __init__(self, context: Any, config: IRuntimeConfig) -> None:
        self._context, self._config = context, config
        self._shapes: dict[str, tuple[int, ...]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = tuple(shape)
        return self._context.set_input_shape(name, shape)

    def execute_async_v3(self, stream_handle: int) -> bool:
        kernel, cache = json.dumps(sorted(self._shapes.items())), self._config._cache
        if cache is not None and kernel not in cache._kernels:
            cache._kernels.add(kernel)
            _Told.compiled.append(kernel)
        return self._context.execute_async_v3(stream_handle)


class ICudaEngine:
    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, runtime_config: IRuntimeConfig) -> IExecutionContext:
        _Told.configs.append(runtime_config)
        return IExecutionContext(self._engine.create_execution_context(runtime_config._strategy), runtime_config)


class Runtime:
    def __init__(self, logger: Any) -> None:
        self._runtime = _trt.Runtime(logger)
        _trt.get_plugin_registry().load_library(os.environ["SDST_PLUGINS"])  # the nodes' arithmetic

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def get_engine_validity(self, buffer: bytes) -> tuple[EngineValidity, int]:
        return _Told.validity

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        engine = self._runtime.deserialize_cuda_engine(serialized_engine)
        return None if engine is None else ICudaEngine(engine)


_Told.validity = (EngineValidity.VALID, 0)
