"""The trained head to ONNX: lowered RDSA, dynamic batch, clips and tokens."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from onnxscript import ir
from torch import nn

from sdst_runtime.decode import HEAD_OUTPUTS
from sdst_train.checkpoint import Checkpoint
from sdst_train.model import SDST

from .errors import ExportError
from .graph import Node, export_module, rdsa_nodes
from .rdsa_op import symbolic_rdsa


class _Ground(nn.Module):
    """`SDST.ground` as a module's forward."""

    def __init__(self, model: SDST) -> None:
        super().__init__()
        self.model = model

    def forward(self, video, video_mask, text, text_mask):
        return self.model.ground(video, video_mask, text, text_mask)


def export_head(checkpoint: Checkpoint) -> ir.Model:
    """ONNX of `SDST.ground`: video B T K V, video_mask B T, text B K L X, text_mask B L -> spans, scores, saliency.

    Raises ExportError unless the graph holds one sdst::RDSA node a step (none for the other kinds of attention).
    """
    config, spec = checkpoint.config.model, checkpoint.spec
    B, T, L, K = 2, 12, 7, spec.layers
    inputs = {
        "video": torch.randn(B, T, K, spec.video_width),
        "video_mask": torch.ones(B, T, dtype=torch.bool),
        "text": torch.randn(B, K, L, spec.text_width),
        "text_mask": torch.ones(B, L, dtype=torch.bool),
    }
    dynamic = {
        "video": {0: "B", 1: "T"},
        "video_mask": {0: "B", 1: "T"},
        "text": {0: "B", 2: "L"},
        "text_mask": {0: "B", 1: "L"},
    }
    metadata = {"sdst.spec": spec.to_json(), "sdst.kind": "head", "sdst.precision": "fp32"}
    metadata["sdst.steps"] = str(config.layers)
    module = _Ground(copy.deepcopy(checkpoint.model).lower(symbolic_rdsa))
    model = export_module(module, inputs, HEAD_OUTPUTS, dynamic, metadata)
    require_rdsa(model.graph, config.layers if config.attention == "rdsa" else 0)
    return model


def require_rdsa(nodes: Iterable[Node], steps: int) -> None:
    """Raise ExportError unless `nodes`, the top level of a graph, hold `steps` sdst::RDSA nodes."""
    found = len(rdsa_nodes(nodes))
    if found != steps:
        raise ExportError(f"expected {steps} sdst::RDSA nodes, one a step, the graph has {found}")
