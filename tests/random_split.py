"""Rows and features of random numbers in the real formats: a small data set for tests and for the version matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sdst_runtime.contracts import FeatureSpec, TextFeatures, VideoFeatures
from sdst_runtime.data.features import text_feature_path, video_feature_path, write_text_features, write_video_features

DURATIONS_S = (24, 17, 30, 21.5)
QUERIES = 12  # of each split


def annotation(rng: np.random.Generator, qid: int, split: str) -> dict:
    video = qid % len(DURATIONS_S)
    duration = DURATIONS_S[video]
    start = int(rng.integers(0, 10))
    end = int(rng.integers(start + 2, 17))
    clips = list(range(start, end))
    return {
        "qid": qid,
        "query": f"{split} query {qid // 2}",
        "vid": f"{split}_{video}",
        "duration": duration,
        "relevant_windows": [[start, end]],
        "relevant_clip_ids": clips,
        "saliency_scores": rng.integers(0, 5, (len(clips), 3)).tolist(),
    }


def write_features(rows: list[dict], directory: Path, spec: FeatureSpec, rng: np.random.Generator) -> None:
    """Three layers, of which the model takes the last two; half-precision video."""
    for vid, duration in {row["vid"]: row["duration"] for row in rows}.items():
        shape = (int(np.ceil(duration)), spec.layers, spec.video_width)
        features = rng.normal(size=shape).astype(np.float16)
        write_video_features(video_feature_path(directory, vid), VideoFeatures(features, duration, spec))
    for query in {row["query"]: None for row in rows}:
        features = rng.normal(size=(spec.layers, int(rng.integers(4, 9)), spec.text_width)).astype(np.float32)
        write_text_features(text_feature_path(directory, query), TextFeatures(features, query, spec))
