"""The torch session: the same protocol as ONNX Runtime and TensorRT, for evaluation beside them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from sdst_runtime.decode import HEAD_OUTPUTS

from .model import SDST


class TorchSession:
    """Runs a model's `ground` on numpy arrays, in inference mode, on the device where the model lies."""

    metadata: Mapping[str, str] = {}

    def __init__(self, model: SDST) -> None:
        self.model = model.eval()
        self.device = next(model.parameters()).device

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name, float32, from the inputs of `SDST.ground` by name."""
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array).to(self.device) for name, array in inputs.items()}
            outputs = self.model.ground(**tensors)
        return {name: out.float().cpu().numpy() for name, out in zip(HEAD_OUTPUTS, outputs, strict=True)}
