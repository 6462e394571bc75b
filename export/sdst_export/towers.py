"""The frozen towers to ONNX: the very modules that extracted the features for training, in float32 or float16."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from onnxscript import ir

from sdst_train.backbone.towers import Backbone

from .graph import export_module
from .half import Precision, Tower, half_products, kept_modules
from .keep import KEPT_MODULES


def export_vision(backbone: Backbone, precision: Precision = "fp32", keep: Sequence[str] = ()) -> ir.Model:
    """clips N frames S S 3 uint8 RGB -> features N K V float32; dynamic N. Raises ExportError (see `half_products`)."""
    spec = backbone.spec
    clips = torch.zeros(2, spec.frames_per_clip, spec.image_size, spec.image_size, 3, dtype=torch.uint8)
    tower = _typed(backbone.vision, precision, keep)
    metadata = _metadata(backbone, "vision", precision)
    graph = export_module(tower, {"clips": clips}, ["features"], {"clips": {0: "N"}}, metadata)
    graph.meta[KEPT_MODULES] = kept_modules(backbone.vision, keep)
    return graph


def export_text(backbone: Backbone, precision: Precision = "fp32", keep: Sequence[str] = ()) -> ir.Model:
    """token_ids B L int64, token_mask B L bool -> features B K L X float32; dynamic B and L.

    Raises ExportError (see `half_products`).
    """
    inputs = {"token_ids": torch.ones(2, 9, dtype=torch.int64), "token_mask": torch.ones(2, 9, dtype=torch.bool)}
    dynamic = {name: {0: "B", 1: "L"} for name in inputs}
    tower = _typed(backbone.text, precision, keep)
    graph = export_module(tower, inputs, ["features"], dynamic, _metadata(backbone, "text", precision))
    graph.meta[KEPT_MODULES] = kept_modules(backbone.text, keep)
    return graph


def _typed(tower: Tower, precision: Precision, keep: Sequence[str]) -> Tower:
    return half_products(tower, keep) if precision == "fp16" else tower


def _metadata(backbone: Backbone, kind: str, precision: Precision) -> dict[str, str]:
    return {"sdst.spec": backbone.spec.to_json(), "sdst.kind": kind, "sdst.precision": precision}
