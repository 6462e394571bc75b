"""A bundle in three guises (torch, fp32, fp16) and a small data set that fits it, for the tests of parity."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from sdst_runtime.contracts import FeatureSpec, TextFeatures, VideoFeatures
from sdst_runtime.data.config import DataConfig
from sdst_runtime.data.dataset import Sample, load_split
from sdst_runtime.data.features import text_feature_path, video_feature_path, write_text_features, write_video_features
from sdst_runtime.files import write_jsonl, write_text
from sdst_runtime.grounding.bundle import Bundle, write_manifest

LENGTHS = (9, 12, 12, 15)  # clips of the videos, in turn


@dataclasses.dataclass(frozen=True)
class World:
    """Files of one tiny model, and data that fit it."""

    checkpoint: Path
    fp32: Path
    fp16: Path
    config: Path

    def samples(self) -> list[Sample]:
        data = json.loads(self.config.read_text())["data"]
        return load_split(DataConfig(**data), "val").samples


def make_world(checkpoint: Path, fp32: Path, fp16: Path, root: Path) -> World:
    """With data in `root`."""
    return World(checkpoint, fp32, fp16, write_data(root, Bundle.open(fp32).manifest.spec))


def write_data(root: Path, spec: FeatureSpec, queries: int = 12, seed: int = 0) -> Path:
    """Noise as features, one window a query; gives the config.json for --data."""
    rng = np.random.default_rng(seed)
    rows = []
    for qid in range(queries):
        T, vid, query = LENGTHS[qid % len(LENGTHS)], f"v{qid}", f"event {qid}"
        start = int(rng.integers(0, T - 4))
        clips = list(range(start, start + 3))
        rows.append(
            {
                "qid": qid, "query": query, "vid": vid, "duration": T * spec.clip_s,
                "relevant_windows": [[start * spec.clip_s, (start + 3) * spec.clip_s]],
                "relevant_clip_ids": clips, "saliency_scores": [[4, 3, 4]] * len(clips),
            }
        )  # fmt: skip
        video = rng.normal(size=(T, spec.layers, spec.video_width)).astype(np.float32)
        text = rng.normal(size=(spec.layers, int(rng.integers(3, 7)), spec.text_width)).astype(np.float32)
        write_video_features(video_feature_path(root / "features", vid), VideoFeatures(video, T * spec.clip_s, spec))
        write_text_features(text_feature_path(root / "features", query), TextFeatures(text, query, spec))
    write_jsonl(root / "val.jsonl", rows)
    data = {"root": str(root), "train": "", "val": "val.jsonl", "test": "", "clip_s": spec.clip_s}
    write_text(root / "config.json", json.dumps({"data": data}))
    return root / "config.json"


def changed_bundle(source: Path, to: Path, change: Callable[[onnx.ModelProto], object], model: str = "head") -> Path:
    """A copy of a bundle whose `model` `change` has altered; its digests are right."""
    shutil.copytree(source, to)
    graph = onnx.load(to / f"{model}.onnx")
    change(graph)
    onnx.save(graph, to / f"{model}.onnx")
    manifest = Bundle.open(source).manifest
    write_manifest(to, manifest.spec, manifest.models, manifest.sdst_version)
    return to


def plant(graph: onnx.ModelProto, place: str, factor: float) -> tuple[str, str]:
    """Make the first MatMul or Gemm of a module use a weight of its own, scaled; gives the node and its tensor."""
    node = next(n for n in graph.graph.node if n.name.startswith(f"{place}/") and n.op_type in ("MatMul", "Gemm"))
    weight = next(w for w in graph.graph.initializer if w.name == node.input[1])
    values = onnx.numpy_helper.to_array(weight)
    graph.graph.initializer.append(onnx.numpy_helper.from_array((values * factor).astype(values.dtype), "planted"))
    node.input[1] = "planted"
    return node.name, node.output[0]


def with_spec(model: onnx.ModelProto, **changes) -> None:
    """Another feature contract in the metadata of a model."""
    entry = next(entry for entry in model.metadata_props if entry.key == "sdst.spec")
    spec = dataclasses.replace(FeatureSpec.from_json(entry.value, "test"), **changes)
    entry.value = spec.to_json()
