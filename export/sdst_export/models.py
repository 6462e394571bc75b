"""The models of a bundle to ONNX: the frozen towers, and the trained model in three files.

The towers are the very modules that extracted the features for training. Of the trained model the projection runs once
a video, and the head holds what a sentence needs; RDSA is lowered. The sentence is the part of the head that holds a
corpus' videos against a sentence. Shapes: B batch, T clips, K steps or stored layers,
V video width, F width, L tokens, X text width, M moments, N clips of the vision model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from onnxscript import ir

from sdst_runtime.contracts import FP16, FP32, KIND_KEY, PRECISION_KEY, SPEC_KEY, STEPS_KEY, FeatureSpec
from sdst_runtime.grounding.decode import HEAD_OUTPUTS, PRESENCE
from sdst_runtime.sessions.base import PROJECTED, SENTENCE
from sdst_train.backbone.towers import Backbone
from sdst_train.loop.checkpoint import Checkpoint
from sdst_train.model.sdst import SDST

from .errors import ExportError
from .graph import Type, write_graph
from .half import Precision, Tower, half_head, half_products, kept_modules
from .lowering.blocks import Blocks
from .lowering.builder import BOOL, FLOAT, INT64, UINT8, GraphBuilder
from .lowering.head import ground, pool_sentence, project, projected_type
from .lowering.towers import read, see
from .rdsa_op import Node, rdsa_nodes

FEATURES = "features"  # output of both towers


def export_vision(backbone: Backbone, precision: Precision = FP32, keep: Sequence[str] = ()) -> ir.Model:
    """clips N frames S S 3 uint8 RGB -> features N K V float32; dynamic N.

    `keep` names modules that stay float32 in fp16. Raises ExportError as `half_products` does.
    """
    spec = backbone.spec
    b = GraphBuilder()
    b.name(see(b, _typed(backbone.vision, precision, keep)), FEATURES)
    inputs = {"clips": (UINT8, ["N", spec.frames_per_clip, spec.image_size, spec.image_size, 3])}
    outputs = {FEATURES: (FLOAT, ["N", spec.layers, spec.video_width])}
    return write_graph(b, inputs, outputs, _metadata(spec, "vision", precision))


def export_text(backbone: Backbone, precision: Precision = FP32, keep: Sequence[str] = ()) -> ir.Model:
    """token_ids B L int64, token_mask B L bool -> features B K L X float32; dynamic B and L. `keep`: `export_vision`.

    Raises ExportError as `half_products` does.
    """
    b, spec = GraphBuilder(), backbone.spec
    b.name(read(b, _typed(backbone.text, precision, keep)), FEATURES)
    inputs = {"token_ids": (INT64, ["B", "L"]), "token_mask": (BOOL, ["B", "L"])}
    outputs = {FEATURES: (FLOAT, ["B", spec.layers, "L", spec.text_width])}
    return write_graph(b, inputs, outputs, _metadata(spec, "text", precision))


@dataclass(frozen=True)
class Lowered:
    """A trained model in the form that its files are written from."""

    model: SDST
    checkpoint: Checkpoint  # that it was made of
    precision: Precision
    kept: frozenset[str]  # modules that stay float32 in fp16


def lower(checkpoint: Checkpoint, precision: Precision = FP32, keep: Sequence[str] = ()) -> Lowered:
    """A copy of the checkpoint's model in its lowered form, in the types of `precision`.

    `keep` names modules that stay float32 in fp16. Raises ExportError as `half_head` does.
    """
    model = copy.deepcopy(checkpoint.model).lower()
    kept = frozenset(kept_modules(model, keep))
    return Lowered(half_head(model, keep) if precision == FP16 else model, checkpoint, precision, kept)


def export_projection(lowered: Lowered) -> ir.Model:
    """ONNX of `SDST.project`: video B T K V float32, video_mask B T bool -> projected B T K F, half in fp16."""
    b, spec = GraphBuilder(), lowered.checkpoint.spec
    projected = b.name(project(b, _blocks(b, lowered), lowered.model, spec.layers), PROJECTED)
    inputs = {
        "video": (FLOAT, ["B", "T", spec.layers, spec.video_width]),
        "video_mask": (BOOL, ["B", "T"]),
    }
    outputs = {PROJECTED: (projected.dtype, _projected_shape(lowered))}
    return write_graph(b, inputs, outputs, _trained(lowered, "projection"))


def export_head(lowered: Lowered) -> ir.Model:
    """ONNX of `SDST.ground_projected`: projected B T K F (half in fp16), video_mask B T bool, text B K L X float32,
    text_mask B L bool -> spans B M 2, scores B M, saliency B T and, of a model that predicts it, presence B, float32.

    Raises ExportError unless the graph holds one sdst::RDSA node a step (none for the other kinds of attention).
    """
    config, spec = lowered.checkpoint.config.model, lowered.checkpoint.spec
    b = GraphBuilder()
    names = (*HEAD_OUTPUTS, PRESENCE) if config.presence else HEAD_OUTPUTS
    for name, tensor in zip(names, ground(b, _blocks(b, lowered), lowered.model, spec.layers), strict=True):
        b.name(tensor, name)
    inputs = {
        PROJECTED: (projected_type(lowered.model), _projected_shape(lowered)),
        "video_mask": (BOOL, ["B", "T"]),
        **_text_inputs(lowered),
    }
    shapes = (["B", config.queries, 2], ["B", config.queries], ["B", "T"], ["B"])
    outputs = {name: (FLOAT, shape) for name, shape in zip(names, shapes)}
    metadata = _trained(lowered, "head") | {STEPS_KEY: str(config.layers)}
    graph = write_graph(b, inputs, outputs, metadata, config.width if config.attention == "rdsa" else None)
    require_rdsa(graph.graph, config.layers if config.attention == "rdsa" else 0)
    return graph


def export_sentence(lowered: Lowered) -> ir.Model:
    """ONNX of the projected and pooled text of each step: text B K L X float32, text_mask B L bool -> sentence B K F
    float32, of length one, in the order of the steps of `projected`.
    """
    b, config = GraphBuilder(), lowered.checkpoint.config.model
    b.name(pool_sentence(b, _blocks(b, lowered), lowered.model, lowered.checkpoint.spec.layers), SENTENCE)
    outputs = {SENTENCE: (FLOAT, ["B", config.layers, config.width])}
    return write_graph(b, _text_inputs(lowered), outputs, _trained(lowered, "sentence"))


def require_rdsa(nodes: Iterable[Node], steps: int) -> None:
    """Raise ExportError unless `nodes`, the top level of a graph, hold `steps` sdst::RDSA nodes."""
    count = len(rdsa_nodes(nodes))
    if count != steps:
        raise ExportError(f"expected {steps} sdst::RDSA nodes, one a step, the graph has {count}")


def _blocks(b: GraphBuilder, lowered: Lowered) -> Blocks:
    return Blocks(b, lowered.model, lowered.precision == FP16, lowered.kept)


def _text_inputs(lowered: Lowered) -> dict[str, Type]:
    spec = lowered.checkpoint.spec
    return {"text": (FLOAT, ["B", spec.layers, "L", spec.text_width]), "text_mask": (BOOL, ["B", "L"])}


def _projected_shape(lowered: Lowered) -> list[int | str]:
    config = lowered.checkpoint.config.model
    return ["B", "T", config.layers, config.width]


def _typed(tower: Tower, precision: Precision, keep: Sequence[str]) -> Tower:
    return half_products(tower, keep) if precision == FP16 else tower


def _metadata(spec: FeatureSpec, kind: str, precision: Precision) -> dict[str, str]:
    return {SPEC_KEY: spec.to_json(), KIND_KEY: kind, PRECISION_KEY: precision}


def _trained(lowered: Lowered, kind: str) -> dict[str, str]:
    checkpoint = lowered.checkpoint
    lengths = {"sdst.usual_clips": checkpoint.usual_clips, "sdst.longest_clips": checkpoint.longest_clips}
    stated = {name: str(clips) for name, clips in lengths.items() if clips}
    return _metadata(checkpoint.spec, kind, lowered.precision) | stated
