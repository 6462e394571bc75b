"""Sessions: one way to run a model file, whatever runs it.

A session maps named numpy arrays to named numpy arrays. `open_session` picks the runner by the file's suffix.
Shapes: B batch, T clips, K layers, V video width, F width, L tokens, X text width, M moments.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import ContractError, InputError


@dataclass(frozen=True)
class TensorInfo:
    """Type and shape of an input or output; a free axis has a name, and axes of one name have one size."""

    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"


class Session(Protocol):
    """Runs one model. A context manager; closed at its end."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the exporter wrote into the file."""
        ...

    @property
    def inputs(self) -> Mapping[str, TensorInfo]: ...

    @property
    def outputs(self) -> Mapping[str, TensorInfo]: ...

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name. Raises InputError when a name, type or shape of the inputs is wrong."""
        ...

    def close(self) -> None:
        """Give back what the session holds; a second call does nothing."""
        ...

    def __enter__(self) -> Session: ...

    def __exit__(self, kind: Any, error: Any, trace: Any, /) -> None: ...


class GroundingModel:
    """The head behind one `run`: the projection of the video, then what follows for the sentence.

    Inputs video B T K V float32, video_mask B T bool, text B K L X float32, text_mask B L bool; outputs spans B M 2
    (start, end, fractions of the valid clips), scores B M, saliency B T. For many sentences about one video run
    `projection` once and `head` for each.
    """

    def __init__(self, projection: Session, head: Session) -> None:
        """Raises ContractError when one model's `projected` is not the other's: files of two exports."""
        self.projection, self.head = projection, head
        have, need = projection.outputs[PROJECTED], head.inputs[PROJECTED]
        if have != need:
            raise ContractError(f"{PROJECTED}: the projection gives {have}, the head takes {need}; export both again")
        self.metadata = head.metadata
        self.inputs = {**projection.inputs, **head.inputs}
        del self.inputs[PROJECTED]
        self.outputs = head.outputs

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name. Raises InputError when a name, type or shape of the inputs is wrong."""
        require_inputs("the head", self.inputs, inputs)
        projected = self.projection.run({name: inputs[name] for name in self.projection.inputs})
        given = {**inputs, **projected}
        return self.head.run({name: given[name] for name in self.head.inputs})

    def close(self) -> None:
        """Close both sessions."""
        self.projection.close()
        self.head.close()

    def __enter__(self) -> GroundingModel:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


HOST_CODE = "SDST_ENGINE_HOST_CODE"  # of the environment: "1" lets engines run code that they carry
PROJECTED = "projected"  # B T K F, from the projection to the head
GROUNDING_MODELS = ("projection", "head")  # of a bundle: what GroundingModel runs, in this order


def require_inputs(model: str, expected: Mapping[str, TensorInfo], inputs: Mapping[str, np.ndarray]) -> None:
    """Raise InputError, naming the input, unless names, types and shapes are the expected ones."""
    if inputs.keys() != expected.keys():
        raise InputError(f"{model}: expected inputs {sorted(expected)}, got {sorted(inputs)}")
    sizes: dict[str, tuple[int, str]] = {}  # of each free axis, and the input that first had it
    for name, info in expected.items():
        array = inputs[name]
        fits = array.dtype == info.dtype and array.ndim == len(info.shape)
        if not fits or any(isinstance(n, int) and n != got for n, got in zip(info.shape, array.shape, strict=True)):
            raise InputError(
                f"{model}: input {name!r}: expected {info}, got {TensorInfo(array.dtype, array.shape)}; "
                "give the features and types of the bundle's contract"
            )
        for axis, got in zip(info.shape, array.shape, strict=True):
            size, first = sizes.setdefault(str(axis), (got, name))
            if size != got:
                raise InputError(f"{model}: axis {axis} is {size} in {first!r} and {got} in {name!r}; give one size")


def open_session(path: Path, threads: int | None = None) -> Session:
    """A session for a model file. Raises InputError for a suffix that nothing here runs."""
    if Path(path).suffix == ".onnx":
        from .onnxruntime import OnnxRuntimeSession

        return OnnxRuntimeSession(path, threads)
    if Path(path).suffix == ".plan":
        from .tensorrt import TensorRTSession

        return TensorRTSession(path, engine_host_code_allowed=os.environ.get(HOST_CODE) == "1")
    raise InputError(f"{path}: expected a .onnx or .plan file, got {Path(path).suffix or 'no suffix'}")
