"""Sessions on ONNX Runtime, on a CPU or a CUDA GPU. sdst::RDSA runs as the function that the file itself carries.

Inputs and outputs are bound where they lie in the caller's memory, so on a CPU nothing is copied. Against a plain
`InferenceSession.run` that saves no time which could be told from noise (docs/benchmarking.md): the outputs are small.

How an int8 model is opened depends on the processor's int8 products (int8_products.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import bounds
from ..errors import ContractError, DependencyError, InputError, SessionError, foreign_errors
from ..machine import DeviceChoice, usable_cores
from .base import ProcessSession, TensorInfo, require_inputs
from .int8_products import FLOAT_PRODUCTS, MERGED_PAIRS, NO_ROUNDING, has_pairs, products_are_exact
from .ort import import_onnxruntime

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"


class OnnxRuntimeSession(ProcessSession):
    """An ONNX file on ONNX Runtime. `run` may be called from several threads at once, each call on its own arrays.

    `device` says where it runs, "cpu" or "cuda".
    """

    def __init__(
        self, path: Path, threads: int | None = None, device: DeviceChoice = "auto", as_written: bool = False
    ) -> None:
        """`threads` within one operator; default: all cores this process may use. `device` "auto" is the
        CUDA provider where it is installed and starts, else the CPU. `as_written`: Q/DQ around products that
        this processor cannot compute in int8 round all the same, as an engine would; otherwise they are left out.

        Raises InputError for a file that cannot be loaded, ContractError for one whose inputs or outputs no model
        of this project has, DependencyError when "cuda" cannot be had.
        """
        if threads is not None:
            bounds.require("threads", threads, bounds.THREADS)
        self.path = Path(path)
        super().__init__(self.path.name)
        if not self.path.is_file():
            raise InputError(f"{path}: no such model; export a bundle with  sdst export")
        self._session: Any = _load(self.path, threads or usable_cores(), device, as_written)
        self.device = "cuda" if CUDA in self._session.get_providers() else "cpu"
        if device == "cuda" and self.device != "cuda":
            raise DependencyError(
                "device cuda: ONNX Runtime has its CUDA provider and could not start it; look for the missing driver,"
                " CUDA or cuDNN with  sdst doctor  or use the device cpu"
            )
        with foreign_errors(f"{path}: its metadata cannot be read", "export it again"):
            self.metadata: Mapping[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self.inputs = {value.name: _info(value, self.path) for value in self._session.get_inputs()}
        self.outputs = {value.name: _info(value, self.path) for value in self._session.get_outputs()}
        free = {axis for info in self.inputs.values() for axis in info.shape if isinstance(axis, str)}
        for name, info in self.outputs.items():
            if unknown := [axis for axis in info.shape if isinstance(axis, str) and axis not in free]:
                raise ContractError(
                    f"{path}: output {name} {info}: no input has the axis {unknown[0]}, so its size is not known;"
                    " export it again"
                )

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name, in arrays of their own. Inputs that are not contiguous are copied.

        Raises InputError when a name, type or shape of the inputs is wrong, SessionError when ONNX Runtime fails and
        in a session that is closed or was opened by another process.
        """
        session = self._session  # held, so that a close in another thread lets this run end
        self._require_open()
        require_inputs(self.name, self.inputs, inputs)
        given = {name: np.ascontiguousarray(inputs[name]) for name in self.inputs}
        binding = session.io_binding()
        for name, array in given.items():
            binding.bind_cpu_input(name, array)
        try:
            outputs = self._bind_outputs(binding, _axes(self.inputs, given))
            session.run_with_iobinding(binding)
        except Exception as error:  # the binding raises many types that share no base
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in given.items())
            raise SessionError(f"{self.name}: ONNX Runtime failed on {shapes}: {_first_line(error)}") from error
        return outputs

    def _release(self) -> None:
        self._session = None

    def _bind_outputs(self, binding: Any, axes: Mapping[str, int]) -> dict[str, np.ndarray]:
        outputs = {}
        for name, info in self.outputs.items():
            array = outputs[name] = np.empty([axes[n] if isinstance(n, str) else n for n in info.shape], info.dtype)
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return outputs


_ONNX_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


def _load(path: Path, threads: int, device: DeviceChoice, as_written: bool) -> Any:
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # By default a model's threads spin for a while after a run, on the cores that the bundle's next model needs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        providers = _providers(ort.get_available_providers(), device)
        # On a CPU the fused residual and norm is slower than the two (docs/benchmarking.md).
        slower = ["SkipLayerNormFusion"] if providers == [CPU] else []
        pairs = has_pairs(path)
        if pairs and providers == [CPU] and products_are_exact():
            slower += [MERGED_PAIRS]
        elif pairs and not products_are_exact():
            options.add_session_config_entry(*FLOAT_PRODUCTS)
            if not as_written:
                options.add_session_config_entry(*NO_ROUNDING)
        return ort.InferenceSession(str(path), options, providers=providers, disabled_optimizers=slower)
    except DependencyError:
        raise
    except Exception as error:  # the binding raises many types that share no base
        raise InputError(f"{path}: ONNX Runtime cannot load it ({_first_line(error)}); export it again") from error


def _providers(available: list[str], device: DeviceChoice) -> list[str]:
    if device == "cuda" and CUDA not in available:
        raise DependencyError(
            f"device cuda: this ONNX Runtime has no CUDA provider, only {', '.join(available)}: run"
            "  pip uninstall onnxruntime && pip install onnxruntime-gpu"
        )
    return [CPU] if device == "cpu" or CUDA not in available else [CUDA, CPU]


def _info(value: Any, path: Path) -> TensorInfo:
    """Raises ContractError for a type that no model of this project has, and for an axis without name or size."""
    if value.type not in _ONNX_TYPES:
        raise ContractError(
            f"{path}: {value.name} is {value.type}, expected one of {', '.join(_ONNX_TYPES)}; export it again"
        )
    shape = tuple(value.shape)
    if not all(isinstance(n, str) or (isinstance(n, int) and n >= 0) for n in shape):
        raise ContractError(f"{path}: {value.name} has an axis without name or size, {list(shape)}; export it again")
    return TensorInfo(np.dtype(_ONNX_TYPES[value.type]), shape)


def _axes(expected: Mapping[str, TensorInfo], arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Size of each free axis, by its name."""
    return {
        axis: size
        for name, info in expected.items()
        for axis, size in zip(info.shape, arrays[name].shape, strict=True)
        if isinstance(axis, str)
    }


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
