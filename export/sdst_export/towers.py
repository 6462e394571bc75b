"""The frozen towers to ONNX: the very modules that extracted the features for training."""

from __future__ import annotations

import onnx
import torch

from sdst_train.backbone.towers import Backbone

from .graph import export_module


def export_vision(backbone: Backbone) -> onnx.ModelProto:
    """clips N frames S S 3 uint8 RGB -> features N K V float32; dynamic N."""
    spec = backbone.spec
    clips = torch.zeros(2, spec.frames_per_clip, spec.image_size, spec.image_size, 3, dtype=torch.uint8)
    return export_module(
        backbone.vision, {"clips": clips}, ["features"], {"clips": {0: "N"}}, _metadata(backbone, "vision")
    )


def export_text(backbone: Backbone) -> onnx.ModelProto:
    """token_ids B L int64, token_mask B L bool -> features B K L X float32; dynamic B and L."""
    inputs = {"token_ids": torch.ones(2, 9, dtype=torch.int64), "token_mask": torch.ones(2, 9, dtype=torch.bool)}
    dynamic = {name: {0: "B", 1: "L"} for name in inputs}
    return export_module(backbone.text, inputs, ["features"], dynamic, _metadata(backbone, "text"))


def _metadata(backbone: Backbone, kind: str) -> dict[str, str]:
    return {"sdst.spec": backbone.spec.to_json(), "sdst.kind": kind}
