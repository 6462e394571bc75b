"""Grounding data in memory: annotations in the QVHighlights form beside feature files.

Shapes: B batch, T clips, K layers, V and X widths, L tokens, W windows. Numpy only: training adds its own tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .contracts import FeatureSpec
from .errors import InputError
from .features import read_text_features, read_video_features, text_feature_path, video_feature_path
from .files import read_jsonl


@dataclass(frozen=True)
class Sample:
    """One query on one video."""

    row: dict[str, Any]  # the annotation
    video: np.ndarray  # T K V, shared by all queries of the video
    text: np.ndarray  # K L X
    windows: np.ndarray  # W 2, fractions of the valid length, at least one clip wide
    saliency: np.ndarray  # T, mean score of the annotators, 0 outside relevant clips


def load_samples(annotations: Path, features: Path, needed: FeatureSpec) -> list[Sample]:
    """Read all samples of an annotation file with their features.

    Raises InputError naming the file and qid of a broken annotation or feature file, ContractError when features were
    made under another contract than `needed`.
    """
    videos: dict[str, np.ndarray] = {}
    texts: dict[str, np.ndarray] = {}
    samples = []
    for row in read_jsonl(annotations):
        missing = {"qid", "query", "vid", "duration", "relevant_windows"} - row.keys()
        if missing:
            raise InputError(f"{annotations}, qid {row.get('qid', '?')}: lacks {', '.join(sorted(missing))}")
        vid, query = row["vid"], row["query"]
        if vid not in videos:
            videos[vid] = read_video_features(video_feature_path(features, vid), needed).features
        if query not in texts:
            texts[query] = read_text_features(text_feature_path(features, query), needed).features
        samples.append(make_sample(row, videos[vid], texts[query], needed.clip_s))
    if not samples:
        raise InputError(f"{annotations}: no annotations in it")
    return samples


def make_sample(row: dict[str, Any], video: np.ndarray, text: np.ndarray, clip_s: float) -> Sample:
    """Windows clamped to the video, swapped when reversed, widened to one clip; saliency spread over the clips.

    Raises InputError when there is no window or a clip id lies outside the video.
    """
    clips = len(video)
    extent = clips * clip_s
    windows = np.sort(np.asarray(row["relevant_windows"], dtype=np.float64).reshape(-1, 2), axis=1)
    if len(windows) == 0:
        raise InputError(f"qid {row['qid']}: no relevant window; leave the query out of the annotations")
    windows = windows.clip(0, min(extent, row["duration"]))
    centre, width = windows.mean(1), np.maximum(windows[:, 1] - windows[:, 0], clip_s)
    centre = centre.clip(width / 2, np.maximum(extent - width / 2, width / 2))
    windows = np.stack((centre - width / 2, centre + width / 2), axis=1).clip(0, extent) / extent
    return Sample(row, video, text, windows.astype(np.float32), _saliency(row, clips, clip_s))


def _saliency(row: dict[str, Any], clips: int, clip_s: float) -> np.ndarray:
    """Mean annotator score of each clip; 1 inside the windows where nobody scored."""
    saliency = np.zeros(clips, dtype=np.float32)
    if row.get("relevant_clip_ids"):
        ids = np.asarray(row["relevant_clip_ids"])
        inside = (ids >= 0) & (ids < clips)
        scores = np.asarray(row["saliency_scores"], dtype=np.float32).mean(-1)
        saliency[ids[inside]] = scores[inside]
    if not saliency.any():
        middle = (np.arange(clips) + 0.5) * clip_s
        for start, end in row["relevant_windows"]:
            saliency[(middle >= start) & (middle <= end)] = 1
        if not saliency.any():
            start, end = row["relevant_windows"][0]
            saliency[int(np.clip((start + end) / 2 / clip_s, 0, clips - 1))] = 1
    return saliency


def pad_inputs(videos: Sequence[np.ndarray], texts: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The head's inputs from one video (T K V) and one sentence (K L X) a row.

    Returns video B T K V float32, video_mask B T bool, text B K L X float32, text_mask B L bool; padding is zero.
    """
    B = len(videos)
    T, L = max(len(v) for v in videos), max(t.shape[1] for t in texts)
    video = np.zeros((B, T, *videos[0].shape[1:]), np.float32)
    text = np.zeros((B, texts[0].shape[0], L, texts[0].shape[2]), np.float32)
    video_mask, text_mask = np.zeros((B, T), bool), np.zeros((B, L), bool)
    for i, (v, t) in enumerate(zip(videos, texts, strict=True)):
        video[i, : len(v)], video_mask[i, : len(v)] = v, True
        text[i, :, : t.shape[1]], text_mask[i, : t.shape[1]] = t, True
    return {"video": video, "video_mask": video_mask, "text": text, "text_mask": text_mask}


def batches_by_length(samples: Sequence[Sample], batch_size: int) -> Iterator[list[Sample]]:
    """All samples in batches of similar length, nothing random."""
    order = sorted(range(len(samples)), key=lambda i: len(samples[i].video))
    for start in range(0, len(order), batch_size):
        yield [samples[i] for i in order[start : start + batch_size]]
