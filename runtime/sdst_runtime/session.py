"""Sessions: one way to run a model file, whatever runs it.

A session maps named numpy arrays to named numpy arrays. `open_session` picks the runner by the file's suffix.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .errors import InputError, require_package
from .machine import usable_cores


class Session(Protocol):
    """Runs one model. `metadata` is what the exporter wrote into the file."""

    @property
    def metadata(self) -> Mapping[str, str]: ...

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name. Raises InputError when a name, type or rank of the inputs is wrong."""
        ...


class OnnxRuntimeSession:
    """An ONNX file on ONNX Runtime's CPU provider. sdst::RDSA runs as the function that the file itself carries."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        """`threads` within one operator; default: all cores this process may use."""
        ort: Any = require_package("onnxruntime", "")
        options = ort.SessionOptions()
        if threads is not None and threads < 1:
            raise InputError(f"threads: expected at least 1, got {threads}")
        options.intra_op_num_threads = threads or usable_cores()
        options.log_severity_level = 3
        if not Path(path).is_file():
            raise InputError(f"{path}: no such model; export a bundle with  sdst export")
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the binding raises many types that share no base
            reason = str(error).splitlines()[0]
            raise InputError(f"{path}: ONNX Runtime cannot load it ({reason}); export it again") from error
        self.path = Path(path)
        self.metadata: Mapping[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self.inputs = {i.name: (i.type, i.shape) for i in self._session.get_inputs()}
        self.outputs = [o.name for o in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name. Raises InputError when a name, type or shape of the inputs is wrong."""
        self._check(inputs)
        values = self._session.run(self.outputs, dict(inputs))
        return dict(zip(self.outputs, values, strict=True))

    def _check(self, inputs: Mapping[str, np.ndarray]) -> None:
        if inputs.keys() != self.inputs.keys():
            raise InputError(f"{self.path.name}: expected inputs {sorted(self.inputs)}, got {sorted(inputs)}")
        for name, (kind, shape) in self.inputs.items():
            array = inputs[name]
            want = _ONNX_TYPES.get(kind)
            fits = array.ndim == len(shape) and all(
                not isinstance(size, int) or size == got for size, got in zip(shape, array.shape, strict=True)
            )
            if array.dtype != want or not fits:
                raise InputError(
                    f"{self.path.name}: input {name!r}: expected {kind} {shape}, got {array.dtype} {list(array.shape)}"
                )


_ONNX_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


def open_session(path: Path, threads: int | None = None) -> Session:
    """A session for a model file. Raises InputError for a suffix that nothing here runs."""
    if Path(path).suffix == ".onnx":
        return OnnxRuntimeSession(path, threads)
    raise InputError(f"{path}: expected a .onnx file, got {Path(path).suffix or 'no suffix'}")
