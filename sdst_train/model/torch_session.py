"""The torch session: the same protocol as ONNX Runtime and TensorRT, on the device where a model lies.

Shapes: B batch, T clips, K layers, V video width, F width, L tokens, X text width, M moments.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sdst_runtime.errors import DeviceError, InputError, SessionError
from sdst_runtime.grounding.decode import HEAD_OUTPUTS, PRESENCE
from sdst_runtime.sessions.base import PROJECTED, ProcessSession, TensorInfo, require_inputs

from .cuda_graph import GraphCache
from .sdst import SDST

Part = Literal["ground", "projection", "head"]


class TorchSession(ProcessSession):
    """Runs a model, or one of its two parts, on numpy arrays, in inference mode and in the types that it has.

    `part`: "ground" takes video, video_mask, text and text_mask; "projection" and "head" are the models of a bundle.
    Several threads may call `run` at once.
    """

    metadata: Mapping[str, str] = {}

    def __init__(self, model: SDST, part: Part = "ground", *, graphs: int = 0) -> None:
        """`graphs`: shapes whose run is kept as a CUDA graph, the ones used last; 0 launches every kernel anew.

        Raises InputError for graphs of a model that does not lie on a GPU.
        """
        super().__init__(f"the torch model ({part})")
        self.device = next(model.parameters()).device
        if graphs < 0 or (graphs and self.device.type != "cuda"):
            raise InputError(f"graphs: expected 0 on {self.device.type}, got {graphs}; CUDA graphs need a GPU")
        self._function, self.inputs, self.outputs = _signature(model.eval(), part)
        self._graphs = GraphCache(self._function, self.device, graphs) if graphs else None
        self._one_at_a_time = threading.Lock()  # a graph's buffers hold one call

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name. Inputs that are not contiguous are copied.

        Raises InputError when a name, type or shape of the inputs is wrong, SessionError when torch fails and in a
        session that is closed or was opened by another process, DeviceError when the GPU has too little memory; the
        session can then be used on.
        """
        self._require_open()
        require_inputs(self.name, self.inputs, inputs)
        given = {name: torch.from_numpy(np.require(inputs[name], requirements=["C", "W"])) for name in self.inputs}
        try:
            with torch.inference_mode():
                outputs = self._run(given)
        except torch.OutOfMemoryError as error:
            if self._graphs:
                self._graphs.clear()
            torch.cuda.empty_cache()
            raise DeviceError(
                f"{self.name}: too little memory on {self.device} for {_shapes(given)}; give less at once"
            ) from error
        except RuntimeError as error:
            raise SessionError(f"{self.name}: torch failed on {_shapes(given)}: {error}") from error
        return {name: out.numpy() for name, out in zip(self.outputs, outputs, strict=True)}

    def _release(self) -> None:  # the model is the caller's
        if self._graphs:
            with self._one_at_a_time:
                self._graphs.clear()

    def _run(self, given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        if self._graphs:
            with self._one_at_a_time:
                return self._graphs.run(given)
        outputs = self._function(**{name: x.to(self.device) for name, x in given.items()})
        return tuple(out.cpu() for out in outputs)


Tensors = dict[str, TensorInfo]


def _signature(model: SDST, part: Part) -> tuple[Callable[..., tuple[Tensor, ...]], Tensors, Tensors]:
    """The function of the model that `part` names, what goes in and what comes out."""
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
    if config.presence:
        moments[PRESENCE] = TensorInfo(real, ("B",))
    if part == "ground":
        return lambda **x: _float32(model.ground(**x)), {**video, **text}, moments
    projected = {PROJECTED: TensorInfo(_type_of_projection(model), ("B", "T", config.layers, config.width))}
    if part == "projection":
        return lambda **x: (model.project(**x),), video, projected
    inputs = {**projected, "video_mask": video["video_mask"], **text}
    return lambda **x: _float32(model.ground_projected(**x)), inputs, moments


def _type_of_projection(model: SDST) -> np.dtype[Any]:
    weight = model.project_video[-1].weight
    assert isinstance(weight, Tensor)
    return torch.empty(0, dtype=weight.dtype).numpy().dtype


def _float32(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(out.float() for out in outputs)


def _shapes(arrays: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {list(x.shape)}" for name, x in arrays.items())
