"""A small bundle for the int8 tests: a planted layer, and queries whose windows are what it answers itself."""

from __future__ import annotations

import dataclasses
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from onnxscript import ir

from sdst_calib.int8.calibrate import Queries
from sdst_calib.int8.quantise import find_products
from sdst_export.graph import save_model
from sdst_runtime.contracts import FeatureSpec, TextFeatures, VideoFeatures
from sdst_runtime.data.config import DataConfig
from sdst_runtime.data.dataset import Sample, make_sample
from sdst_runtime.data.features import text_feature_path, video_feature_path, write_text_features, write_video_features
from sdst_runtime.files import write_json, write_jsonl
from sdst_runtime.grounding.bundle import Bundle, write_manifest
from sdst_runtime.grounding.decode import predict
from sdst_train.loop.checkpoint import load_checkpoint

FEW = {"head": ("sparse", "project_text", "dense.cross", "dense.self_attention", "actionness")}


@contextmanager
def silent(title: str):
    yield lambda done, total: None


@dataclasses.dataclass(frozen=True)
class World:
    """A bundle with a planted layer, and queries whose windows are what it answers itself."""

    bundle: Bundle
    queries: Queries
    config: Path  # of the same queries in files


def plant(head: onnx.ModelProto) -> onnx.ModelProto:
    """One hidden unit of the dense FFN gets values of 1e4 that nobody uses: they leave no int8 code to the others."""
    weights = {product.layer: product.weight for product in find_products(head)}
    into = next(node for node in head.graph.node if node.name.startswith("dense.ffn.0/Add"))
    held = {tensor.name: tensor for tensor in head.graph.initializer}
    bias = next(name for name in into.input if name in held)
    for name, place, value in (
        (weights["dense.ffn.0"], np.s_[:, 0], 1e3),
        (bias, np.s_[0], 1e4),
        (weights["dense.ffn.2"], np.s_[0, :], 0),
    ):
        array = numpy_helper.to_array(held[name]).copy()
        array[place] = value
        held[name].CopyFrom(numpy_helper.from_array(array, name))
    return head


def with_models(source: Path, out: Path, **models: onnx.ModelProto | ir.Model) -> Bundle:
    """A copy of a bundle with other models."""
    shutil.copytree(source, out)
    for name, model in models.items():
        save_model(ir.from_proto(model) if isinstance(model, onnx.ModelProto) else model, out / f"{name}.onnx")
    manifest = Bundle.open(source).manifest
    return write_manifest(out, manifest.spec, manifest.models, manifest.sdst_version)


def random_samples(spec: FeatureSpec, count: int) -> list[Sample]:
    rng, samples = np.random.default_rng(5), []
    for qid in range(count):
        T = int(rng.integers(12, 25))
        row = {"qid": qid, "query": f"the red circle {qid}", "vid": f"v{qid}", "duration": float(T)}
        row |= {"relevant_windows": [[0, 4]], "relevant_clip_ids": [0, 1], "saliency_scores": [[3, 4, 3]] * 2}
        video = rng.standard_normal((T, spec.layers, spec.video_width)).astype(np.float32)
        text = rng.standard_normal((spec.layers, 5, spec.text_width)).astype(np.float32)
        samples.append(make_sample(row, video, text, spec.clip_s))
    return samples


def answered(bundle: Bundle, samples: list[Sample]) -> list[Sample]:
    with bundle.grounding_model(1) as head:
        rows = predict(head, samples, bundle.manifest.spec.clip_s)
    found = []
    for sample, row in zip(samples, rows, strict=True):
        start, end, _ = row["pred_relevant_windows"][0]
        true = sample.row | {"relevant_windows": [[start, max(end, start + 1)]]}
        found.append(make_sample(true, sample.video, sample.text, 1.0))
    return found


def write_features(samples: list[Sample], root: Path, spec: FeatureSpec) -> None:
    for sample in samples:
        video = VideoFeatures(np.asarray(sample.video), sample.row["duration"], spec)
        write_video_features(video_feature_path(root / "features", sample.row["vid"]), video)
        text = TextFeatures(np.asarray(sample.text), sample.row["query"], spec)
        write_text_features(text_feature_path(root / "features", sample.row["query"]), text)


def dead(head: onnx.ModelProto) -> onnx.ModelProto:
    """No hidden unit of the dense FFN is ever above 0, so its second product reads only zeros."""
    into = next(node for node in head.graph.node if node.name.startswith("dense.ffn.0/Add"))
    bias = next(tensor for tensor in head.graph.initializer if tensor.name in into.input)
    bias.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(bias), -1e4), bias.name))
    return head


def make_world(exported, root: Path) -> World:
    head = plant(onnx.load(exported.directory / "head.onnx"))
    bundle = with_models(exported.directory, root / "bundle", head=head)
    samples = answered(bundle, random_samples(bundle.manifest.spec, 36))
    write_jsonl(root / "train.jsonl", [sample.row for sample in samples[24:]])
    write_jsonl(root / "val.jsonl", [sample.row for sample in samples[:24]])
    write_features(samples, root, bundle.manifest.spec)
    data = DataConfig(root=str(root), train="train.jsonl", val="val.jsonl", test="", clip_s=1.0)
    config = dataclasses.replace(load_checkpoint(exported.checkpoint_path).config, data=data)
    write_json(root / "config.json", dataclasses.asdict(config))
    return World(bundle, Queries(samples[24:], samples[:24], data), root / "config.json")
