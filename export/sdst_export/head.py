"""The trained head to ONNX, in two files: the projection, which runs once a video, and what a sentence needs.

RDSA is lowered; batch, clips and tokens are free. Shapes: B batch, T clips, K steps or stored layers, V video width,
F width, L tokens, X text width, M moments.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from onnxscript import ir
from torch import Tensor, nn

from sdst_runtime.grounding.decode import HEAD_OUTPUTS
from sdst_runtime.sessions.base import PROJECTED
from sdst_train.loop.checkpoint import Checkpoint
from sdst_train.model.sdst import SDST

from .errors import ExportError
from .graph import Node, export_module, rdsa_nodes
from .half import Precision, half_head, kept_modules
from .keep import KEPT_MODULES
from .rdsa_op import symbolic_rdsa


def export_projection(
    checkpoint: Checkpoint, precision: Precision = "fp32", keep: Sequence[str] = ()
) -> ir.Model:  # fmt: skip
    """ONNX of `SDST.project`: video B T K V float32, video_mask B T bool -> projected B T K F, half in fp16.

    `keep` names modules that stay float32 in fp16. Raises ExportError when a weight exceeds float16.
    """
    model = lowered(checkpoint, precision, keep)
    inputs, dynamic = _video(checkpoint)
    metadata = _metadata(checkpoint, "projection", precision)
    graph = export_module(_Project(model), inputs, [PROJECTED], dynamic, metadata)
    graph.meta[KEPT_MODULES] = kept_modules(model, keep)
    return graph


def export_head(checkpoint: Checkpoint, precision: Precision = "fp32", keep: Sequence[str] = ()) -> ir.Model:
    """ONNX of `SDST.ground_projected`: projected B T K F (half in fp16), video_mask B T bool, text B K L X float32,
    text_mask B L bool -> spans B M 2, scores B M, saliency B T, float32.

    `keep` names modules that stay float32 in fp16. Raises ExportError when a weight exceeds float16, and unless the
    graph holds one sdst::RDSA node a step (none for the other kinds of attention).
    """
    config, spec = checkpoint.config.model, checkpoint.spec
    model = lowered(checkpoint, precision, keep)
    inputs, dynamic = _video(checkpoint)
    with torch.no_grad():
        projected = model.project(**inputs)
    inputs = {PROJECTED: projected, "video_mask": inputs["video_mask"]}
    inputs["text"] = torch.randn(len(projected), spec.layers, 7, spec.text_width)
    inputs["text_mask"] = torch.ones(len(projected), 7, dtype=torch.bool)
    dynamic = {PROJECTED: dynamic["video"], "video_mask": dynamic["video_mask"]}
    dynamic |= {"text": {0: "B", 2: "L"}, "text_mask": {0: "B", 1: "L"}}
    metadata = _metadata(checkpoint, "head", precision) | {"sdst.steps": str(config.layers)}
    graph = export_module(_Ground(model), inputs, HEAD_OUTPUTS, dynamic, metadata)
    graph.meta[KEPT_MODULES] = kept_modules(model, keep)
    require_rdsa(graph.graph, config.layers if config.attention == "rdsa" else 0)
    return graph


def lowered(checkpoint: Checkpoint, precision: Precision, keep: Sequence[str] = ()) -> SDST:
    """A copy of the model as it is exported: RDSA as one op, types of `precision`. It runs in the tracer only."""
    model = copy.deepcopy(checkpoint.model).lower(symbolic_rdsa)
    return half_head(model, keep) if precision == "fp16" else model


def require_rdsa(nodes: Iterable[Node], steps: int) -> None:
    """Raise ExportError unless `nodes`, the top level of a graph, hold `steps` sdst::RDSA nodes."""
    found = len(rdsa_nodes(nodes))
    if found != steps:
        raise ExportError(f"expected {steps} sdst::RDSA nodes, one a step, the graph has {found}")


class _Project(nn.Module):
    """`SDST.project` as a module's forward."""

    def __init__(self, model: SDST) -> None:
        super().__init__()
        self.model = model

    def forward(self, video: Tensor, video_mask: Tensor) -> Tensor:
        return self.model.project(video, video_mask)


class _Ground(nn.Module):
    """`SDST.ground_projected` as a module's forward."""

    def __init__(self, model: SDST) -> None:
        super().__init__()
        self.model = model

    def forward(self, projected: Tensor, video_mask: Tensor, text: Tensor, text_mask: Tensor) -> tuple[Tensor, ...]:
        return self.model.ground_projected(projected, video_mask, text, text_mask)


def _video(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
    """Inputs to trace with, and their free axes."""
    spec, B, T = checkpoint.spec, 2, 12
    video = torch.randn(B, T, spec.layers, spec.video_width)
    free = {0: "B", 1: "T"}
    return {"video": video, "video_mask": torch.ones(B, T, dtype=torch.bool)}, {"video": free, "video_mask": free}


def _metadata(checkpoint: Checkpoint, kind: str, precision: Precision) -> dict[str, str]:
    told = {"sdst.spec": checkpoint.spec.to_json(), "sdst.kind": kind, "sdst.precision": precision}
    lengths = {"sdst.usual_clips": checkpoint.usual_clips, "sdst.longest_clips": checkpoint.longest_clips}
    return told | {name: str(clips) for name, clips in lengths.items() if clips}
