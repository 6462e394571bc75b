"""Triton's models as sessions of a bundle, which sdst_ground asks by BLS: Triton's word for calls between models."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import SessionError
from ...grounding.bundle import Bundle
from ...sessions.base import ClosedAtEnd, Session, TensorInfo
from .repository import SIGNATURES


class ModelUnavailable(SessionError):
    """One of Triton's models gave no answer: it is not loaded, its process died, or the server is stopping."""


def triton_utils() -> Any:
    """Triton's own module, which only its processes have."""
    return importlib.import_module("triton_python_backend_utils")


class TritonSession(ClosedAtEnd):
    """A session that is one of Triton's models."""

    def __init__(self, name: str, signature: Mapping[str, Any]) -> None:
        """`signature` is the model's in models.json."""
        self.name = name
        self.metadata: Mapping[str, str] = signature["metadata"]
        self.inputs, self.outputs = (
            {
                tensor: TensorInfo(np.dtype(told["dtype"]), tuple(told["shape"]))
                for tensor, told in signature[side].items()
            }
            for side in ("inputs", "outputs")
        )

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name. Raises ModelUnavailable with Triton's message when there are none."""
        utils = triton_utils()
        response = utils.InferenceRequest(
            model_name=self.name,
            requested_output_names=list(self.outputs),
            inputs=[utils.Tensor(name, np.ascontiguousarray(array)) for name, array in inputs.items()],
            preferred_memory=utils.PreferredMemory(utils.TRITONSERVER_MEMORY_CPU, 0),
        ).exec()
        if response.has_error():
            raise ModelUnavailable(f"{self.name}: {response.error().message()}")
        return {n: np.array(utils.get_output_tensor_by_name(response, n).as_numpy()) for n in self.outputs}

    def close(self) -> None:
        """The model is Triton's."""


class UnaskedSession(TritonSession):
    """Answers zeros where Triton's model would be asked: while the server starts it lets no model ask another."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs of the right shapes."""
        sizes = {axis: n for name, info in self.inputs.items() for axis, n in zip(info.shape, inputs[name].shape)}
        shapes = {name: [sizes.get(n, n) for n in info.shape] for name, info in self.outputs.items()}
        return {name: np.zeros(shape, self.outputs[name].dtype) for name, shape in shapes.items()}


@dataclass(frozen=True)
class TritonBundle(Bundle):
    """The bundle whose models are Triton's; tokenizer.json lies in its folder."""

    kind: type[TritonSession] = TritonSession

    def session(self, model: str, threads: int | None = None, as_written: bool = False) -> Session:
        """A model of Triton's, as it opened it. Raises ContractError when the bundle is older than the model."""
        self.path(model)
        signatures = json.loads((self.directory / SIGNATURES).read_text(encoding="utf-8"))
        session = self.kind(model, signatures[model])
        self._require_own(model, session)
        return session
