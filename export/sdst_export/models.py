"""The four models of a bundle to ONNX: the frozen towers, and the trained model in two files.

The towers are the very modules that extracted the features for training. Of the trained model the projection runs once
a video, and the head holds what a sentence needs; RDSA is lowered. Shapes: B batch, T clips, K steps or stored layers,
V video width, F width, L tokens, X text width, M moments, N clips of the vision model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from onnxscript import ir
from torch import Tensor, nn

from sdst_runtime.contracts import FP16, FP32, KIND_KEY, PRECISION_KEY, SPEC_KEY, STEPS_KEY, FeatureSpec
from sdst_runtime.grounding.decode import HEAD_OUTPUTS
from sdst_runtime.sessions.base import PROJECTED
from sdst_train.backbone.towers import Backbone
from sdst_train.loop.checkpoint import Checkpoint
from sdst_train.model.sdst import SDST

from .errors import ExportError
from .graph import Node, export_module, rdsa_nodes
from .half import Precision, Tower, half_head, half_products
from .rdsa_op import symbolic_rdsa


def export_vision(backbone: Backbone, precision: Precision = FP32, keep: Sequence[str] = ()) -> ir.Model:
    """clips N frames S S 3 uint8 RGB -> features N K V float32; dynamic N.

    `keep` names modules that stay float32 in fp16. Raises ExportError as `half_products` does.
    """
    spec = backbone.spec
    clips = torch.zeros(2, spec.frames_per_clip, spec.image_size, spec.image_size, 3, dtype=torch.uint8)
    tower, metadata = _typed(backbone.vision, precision, keep), _metadata(spec, "vision", precision)
    return export_module(tower, {"clips": clips}, ["features"], {"clips": {0: "N"}}, metadata)


def export_text(backbone: Backbone, precision: Precision = FP32, keep: Sequence[str] = ()) -> ir.Model:
    """token_ids B L int64, token_mask B L bool -> features B K L X float32; dynamic B and L. `keep`: `export_vision`.

    Raises ExportError as `half_products` does.
    """
    inputs = {"token_ids": torch.ones(2, 9, dtype=torch.int64), "token_mask": torch.ones(2, 9, dtype=torch.bool)}
    dynamic = {name: {0: "B", 1: "L"} for name in inputs}
    tower, metadata = _typed(backbone.text, precision, keep), _metadata(backbone.spec, "text", precision)
    return export_module(tower, inputs, ["features"], dynamic, metadata)


@dataclass(frozen=True)
class Lowered:
    """A trained model in the form that both of its files are traced from. It runs in the tracer only."""

    model: SDST
    checkpoint: Checkpoint  # that it was made of
    precision: Precision


def lower(checkpoint: Checkpoint, precision: Precision = FP32, keep: Sequence[str] = ()) -> Lowered:
    """A copy of the checkpoint's model with RDSA as one op, in the types of `precision`.

    `keep` names modules that stay float32 in fp16. Raises ExportError as `half_head` does.
    """
    model = copy.deepcopy(checkpoint.model).lower(symbolic_rdsa)
    return Lowered(half_head(model, keep) if precision == FP16 else model, checkpoint, precision)


def export_projection(lowered: Lowered) -> ir.Model:
    """ONNX of `SDST.project`: video B T K V float32, video_mask B T bool -> projected B T K F, half in fp16."""
    inputs, dynamic = _video(lowered.checkpoint.spec)
    return export_module(_Project(lowered.model), inputs, [PROJECTED], dynamic, _trained(lowered, "projection"))


def export_head(lowered: Lowered) -> ir.Model:
    """ONNX of `SDST.ground_projected`: projected B T K F (half in fp16), video_mask B T bool, text B K L X float32,
    text_mask B L bool -> spans B M 2, scores B M, saliency B T, float32.

    Raises ExportError unless the graph holds one sdst::RDSA node a step (none for the other kinds of attention).
    """
    config, spec = lowered.checkpoint.config.model, lowered.checkpoint.spec
    video, dynamic = _video(spec)
    with torch.no_grad():
        projected = lowered.model.project(**video)
    inputs = {PROJECTED: projected, "video_mask": video["video_mask"]}
    inputs["text"] = torch.randn(len(projected), spec.layers, 7, spec.text_width)
    inputs["text_mask"] = torch.ones(len(projected), 7, dtype=torch.bool)
    dynamic = {PROJECTED: dynamic["video"], "video_mask": dynamic["video_mask"]}
    dynamic |= {"text": {0: "B", 2: "L"}, "text_mask": {0: "B", 1: "L"}}
    metadata = _trained(lowered, "head") | {STEPS_KEY: str(config.layers)}
    graph = export_module(_Ground(lowered.model), inputs, HEAD_OUTPUTS, dynamic, metadata)
    require_rdsa(graph.graph, config.layers if config.attention == "rdsa" else 0)
    return graph


def require_rdsa(nodes: Iterable[Node], steps: int) -> None:
    """Raise ExportError unless `nodes`, the top level of a graph, hold `steps` sdst::RDSA nodes."""
    count = len(rdsa_nodes(nodes))
    if count != steps:
        raise ExportError(f"expected {steps} sdst::RDSA nodes, one a step, the graph has {count}")


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


def _video(spec: FeatureSpec) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
    """Inputs to trace with, and their free axes."""
    B, T = 2, 12
    video = torch.randn(B, T, spec.layers, spec.video_width)
    free = {0: "B", 1: "T"}
    return {"video": video, "video_mask": torch.ones(B, T, dtype=torch.bool)}, {"video": free, "video_mask": free}


def _typed(tower: Tower, precision: Precision, keep: Sequence[str]) -> Tower:
    return half_products(tower, keep) if precision == FP16 else tower


def _metadata(spec: FeatureSpec, kind: str, precision: Precision) -> dict[str, str]:
    return {SPEC_KEY: spec.to_json(), KIND_KEY: kind, PRECISION_KEY: precision}


def _trained(lowered: Lowered, kind: str) -> dict[str, str]:
    checkpoint = lowered.checkpoint
    lengths = {"sdst.usual_clips": checkpoint.usual_clips, "sdst.longest_clips": checkpoint.longest_clips}
    stated = {name: str(clips) for name, clips in lengths.items() if clips}
    return _metadata(checkpoint.spec, kind, lowered.precision) | stated
