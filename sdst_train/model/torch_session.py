"""The torch session: the same protocol as ONNX Runtime and TensorRT, on the device where a model lies.

Shapes: B batch, T clips, K layers, V video width, F width, L tokens, X text width, M moments.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sdst_runtime.errors import DeviceError, InputError
from sdst_runtime.grounding.decode import HEAD_OUTPUTS
from sdst_runtime.sessions.base import PROJECTED, TensorInfo, require_inputs

from .cuda_graph import GraphCache
from .sdst import SDST

Part = Literal["ground", "projection", "head"]


class TorchSession:
    """Runs a model, or one of its two halves, on numpy arrays, in inference mode and in the types that it has.

    `part`: "ground" takes video, video_mask, text and text_mask; "projection" and "head" are the models of a bundle.
    Several threads may call `run` at once. A session does not survive a fork: each process opens its own.
    """

    metadata: Mapping[str, str] = {}

    def __init__(self, model: SDST, part: Part = "ground", *, graphs: int = 0) -> None:
        """`graphs`: shapes whose run is kept as a CUDA graph, the ones used last; 0 launches every kernel anew.

        Raises InputError for graphs of a model that does not lie on a GPU.
        """
        self.device = next(model.parameters()).device
        if graphs < 0 or (graphs and self.device.type != "cuda"):
            raise InputError(f"graphs: expected 0 on {self.device.type}, got {graphs}; CUDA graphs need a GPU")
        self.part = part
        self._half = _half_of(model.eval(), part)
        self.inputs, self.outputs = self._half.inputs, self._half.outputs
        self._graphs = GraphCache(self._half.function, self.device, graphs) if graphs else None
        self._one_at_a_time = threading.Lock()  # a graph's buffers hold one call
        self._process, self._closed = os.getpid(), False

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name. Inputs that are not contiguous are copied.

        Raises InputError when a name, type or shape of the inputs is wrong and in a session that is closed or was
        opened by another process, DeviceError when the GPU has too little memory; the session can then be used on.
        """
        self._require_open()
        require_inputs(self._name, self.inputs, inputs)
        given = {name: torch.from_numpy(np.require(inputs[name], requirements=["C", "W"])) for name in self.inputs}
        try:
            with torch.inference_mode():
                outputs = self._run(given)
        except torch.OutOfMemoryError as error:
            if self._graphs:
                self._graphs.clear()
            torch.cuda.empty_cache()
            shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in given.items())
            raise DeviceError(
                f"{self._name}: too little memory on {self.device} for {shapes}; give less at once"
            ) from error
        return {name: out.numpy() for name, out in zip(self.outputs, outputs, strict=True)}

    def close(self) -> None:
        """Give back the graphs; the model is the caller's. A second call does nothing."""
        self._closed = True
        if self._graphs:
            with self._one_at_a_time:
                self._graphs.clear()

    def __enter__(self) -> TorchSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def _name(self) -> str:
        return f"the torch model ({self.part})"

    def _require_open(self) -> None:
        if self._closed:
            raise InputError(f"{self._name}: the session is closed; open the model again")
        if self._process != os.getpid():  # neither CUDA nor OpenMP's threads came along
            raise InputError(
                f"{self._name}: the session was opened by process {self._process} and this is its fork {os.getpid()};"
                " open the model in each process"
            )

    def _run(self, given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        if self._graphs:
            with self._one_at_a_time:
                return self._graphs.run(given)
        outputs = self._half.function(**{name: x.to(self.device) for name, x in given.items()})
        return tuple(out.cpu() for out in outputs)


@dataclass(frozen=True)
class _Half:
    """A function of the model, and what goes in and out."""

    function: Callable[..., tuple[Tensor, ...]]
    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]


def _half_of(model: SDST, part: Part) -> _Half:
    config = model.config
    real, boolean = np.dtype(np.float32), np.dtype(np.bool_)
    video = {
        "video": TensorInfo(real, ("B", "T", "K", config.video_width)),
        "video_mask": TensorInfo(boolean, ("B", "T")),
    }
    text = {
        "text": TensorInfo(real, ("B", "K", "L", config.text_width)),
        "text_mask": TensorInfo(boolean, ("B", "L")),
    }
    shapes = (("B", config.queries, 2), ("B", config.queries), ("B", "T"))
    moments = {name: TensorInfo(real, shape) for name, shape in zip(HEAD_OUTPUTS, shapes, strict=True)}
    if part == "ground":
        return _Half(lambda **x: _float32(model.ground(**x)), {**video, **text}, moments)
    projected = {PROJECTED: TensorInfo(_type_of_projection(model), ("B", "T", config.layers, config.width))}
    if part == "projection":
        return _Half(lambda **x: (model.project(**x),), video, projected)
    inputs = {**projected, "video_mask": video["video_mask"], **text}
    return _Half(lambda **x: _float32(model.ground_projected(**x)), inputs, moments)


def _type_of_projection(model: SDST) -> np.dtype[Any]:
    weight = model.project_video[-1].weight
    assert isinstance(weight, Tensor)
    return torch.empty(0, dtype=weight.dtype).numpy().dtype


def _float32(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(out.float() for out in outputs)
