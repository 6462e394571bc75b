"""A data set small enough to train on in seconds: noise plus events, told apart by a word. In memory or as files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from sdst_runtime.contracts import FeatureSpec, TextFeatures, VideoFeatures
from sdst_runtime.data.config import DataConfig
from sdst_runtime.data.dataset import Sample, make_sample
from sdst_runtime.data.features import text_feature_path, video_feature_path, write_text_features, write_video_features
from sdst_runtime.files import write_jsonl, write_text
from sdst_train.config import LossConfig, ModelConfig, TrainConfig

WIDTH, LAYERS, CLIP_S = 24, 2, 2.0
SPEC = FeatureSpec(
    backbone="test", backbone_sha256="0" * 64, layers=LAYERS, pool="adaptive", frames_per_clip=4, clip_s=CLIP_S,
    image_size=56, resize="bicubic", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), video_width=WIDTH,
    text_model="test", max_tokens=8, text_width=WIDTH,
)  # fmt: skip
MODEL = ModelConfig(
    video_width=WIDTH, text_width=WIDTH, layers=LAYERS, width=64, heads=4, points=4, queries=5, ffn_ratio=2,
    input_dropout=0.05, drop_path=0.0,
)  # fmt: skip
CONFIG = TrainConfig(
    epochs=20, batch_size=16, learning_rate=3e-3, schedule="cosine", warmup_steps=6, gradient_clip=1.0, ema_decay=0.9,
    device="cpu", model=MODEL, loss=LossConfig(highlight=0.3, overlap="giou"),
)  # fmt: skip
TINY_MODEL = dataclasses.replace(MODEL, width=16, heads=2, input_dropout=0.3, drop_path=0.1)
TINY = dataclasses.replace(CONFIG, epochs=2, batch_size=4, model=TINY_MODEL)
KINDS = np.random.default_rng(99).standard_normal((2, 6, WIDTH))  # what an event looks like, and its word


def make_samples(count: int, seed: int = 0) -> list[Sample]:
    """One sentence a video, that tells two or three events apart; the features are noise plus the events."""
    rng = np.random.default_rng(seed)
    samples = []
    for qid in range(count):
        T, wanted = int(rng.integers(10, 17)), int(rng.integers(6))
        video, events, t = rng.normal(size=(T, LAYERS, WIDTH)) * 0.5, [], int(rng.integers(0, 3))
        while t < T - 2:
            n = min(int(rng.integers(2, 5)), T - t)
            kind = wanted if not events else int((wanted + rng.integers(1, 6)) % 6)
            events.append((kind, t, n))
            t += n + int(rng.integers(1, 4))
        kinds = rng.permutation([kind for kind, _, _ in events])  # so that the wanted one is anywhere
        windows = []
        for kind, (_, start, n) in zip(kinds, events, strict=True):
            video[start : start + n] += KINDS[0, kind]
            if kind == wanted:
                windows.append([start * CLIP_S, (start + n) * CLIP_S])
        text = rng.normal(size=(LAYERS, 3, WIDTH)) * 0.3
        text[:, 1] += KINDS[1, wanted]
        clips = [t for start, end in windows for t in range(int(start / CLIP_S), int(end / CLIP_S))]
        row = {
            "qid": qid, "query": f"event {wanted} of {qid}", "vid": f"v{qid}", "duration": T * CLIP_S,
            "relevant_windows": windows, "relevant_clip_ids": clips, "saliency_scores": [[3, 4, 3]] * len(clips),
        }  # fmt: skip
        samples.append(make_sample(row, video.astype(np.float32), text.astype(np.float32), CLIP_S))
    return samples


def make_row(**changes) -> dict:
    return {"qid": 7, "query": "q", "vid": "v", "duration": 20.0, "relevant_windows": [[4.0, 8.0]]} | changes


def sample_of(clips: int = 10, **changes) -> Sample:
    features = np.zeros((clips, LAYERS, WIDTH), np.float32), np.zeros((LAYERS, 3, WIDTH), np.float32)
    return make_sample(make_row(**changes), *features, CLIP_S)


def write_dataset(root: Path, train: list[Sample], val: list[Sample]) -> DataConfig:
    """Annotations and loose feature files; `val` shares qids and videos with `train` where they are the same."""
    for split, samples in (("train", train), ("val", val)):
        write_jsonl(root / f"{split}.jsonl", [sample.row for sample in samples])
        for sample in samples:
            video = VideoFeatures(np.asarray(sample.video), sample.row["duration"], SPEC)
            write_video_features(video_feature_path(root / "features", sample.row["vid"]), video)
            text = TextFeatures(np.asarray(sample.text), sample.row["query"], SPEC)
            write_text_features(text_feature_path(root / "features", sample.row["query"]), text)
    return DataConfig(root=str(root), train="train.jsonl", val="val.jsonl", test="", clip_s=CLIP_S)


def write_config(path: Path, config: TrainConfig) -> Path:
    """A config.json for the command line."""
    write_text(path, json.dumps(dataclasses.asdict(config)))
    return path
