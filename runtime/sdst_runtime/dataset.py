"""Grounding data in memory: annotations in the QVHighlights form beside feature files.

Shapes: B batch, T clips, K layers, V and X widths, L tokens, W windows. Numpy only: training adds its own tensors.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .contracts import FeatureSpec
from .errors import InputError, first_fault
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
    rows = read_jsonl(annotations)
    for row in rows:
        check_annotation(row, annotations)
    _check_qids([row["qid"] for row in rows], annotations)
    for row in rows:
        vid, query = row["vid"], row["query"]
        if vid not in videos:
            videos[vid] = read_video_features(video_feature_path(features, vid), needed).features
        if query not in texts:
            texts[query] = read_text_features(text_feature_path(features, query), needed).features
        samples.append(make_sample(row, videos[vid], texts[query], needed.clip_s))
    if not samples:
        raise InputError(f"{annotations}: no annotations in it")
    return samples


@dataclass(frozen=True)
class _Annotation:
    """What a row must hold; more is allowed."""

    qid: int | str
    query: str
    vid: str
    duration: float
    relevant_windows: list[tuple[float, float]]
    relevant_clip_ids: list[int] = field(default_factory=list)
    saliency_scores: list[list[float]] = field(default_factory=list)


@cache
def _annotation_adapter() -> Any:
    from pydantic import ConfigDict, TypeAdapter, with_config

    return TypeAdapter(with_config(ConfigDict(allow_inf_nan=False))(_Annotation))


def check_annotation(row: dict[str, Any], source: str | Path) -> None:
    """Raise InputError naming `source`, the qid and the first field that does not fit the QVHighlights form."""
    from pydantic import ValidationError

    try:
        parsed = _annotation_adapter().validate_json(json.dumps(row), strict=True)
    except ValidationError as error:
        raise InputError(f"{source}, qid {row.get('qid', '?')}: {first_fault(error)}") from error
    if not parsed.relevant_windows or parsed.duration <= 0:
        what = "no relevant window" if not parsed.relevant_windows else f"duration is {parsed.duration}"
        raise InputError(f"{source}, qid {row['qid']}: {what}; mend the row or leave it out of the annotations")
    ids, scores = len(parsed.relevant_clip_ids), len(parsed.saliency_scores)
    if min((score for row in parsed.saliency_scores for score in row), default=0) < 0:
        raise InputError(f"{source}, qid {row['qid']}: saliency_scores: expected scores of 0 or more")
    widths = {len(row) for row in parsed.saliency_scores}
    if ids != scores or len(widths) > 1 or 0 in widths:
        raise InputError(
            f"{source}, qid {row['qid']}: expected one row of saliency_scores, all of one length, for each of "
            f"{ids} relevant_clip_ids, got {scores} rows"
        )


def _check_qids(qids: Sequence[int | str], source: str | Path) -> None:
    if len({type(qid) for qid in qids}) > 1:
        raise InputError(f"{source}: some qids are numbers, some are text; make them all one or the other")
    repeated = next((qid for qid, count in Counter(qids).items() if count > 1), None)
    if repeated is not None:
        raise InputError(f"{source}, qid {repeated}: occurs more than once; qids must differ")


def make_sample(row: dict[str, Any], video: np.ndarray, text: np.ndarray, clip_s: float) -> Sample:
    """Windows clamped to the video, swapped when reversed, widened to one clip; saliency spread over the clips.

    `row` is a checked annotation (`check_annotation`). Scored clips outside the features are left out.
    """
    clips = len(video)
    extent = clips * clip_s
    windows = np.sort(np.asarray(row["relevant_windows"], dtype=np.float64).reshape(-1, 2), axis=1)
    saliency = _saliency(row, windows, clips, clip_s)
    windows = windows.clip(0, min(extent, row["duration"]))
    centre, width = windows.mean(1), np.maximum(windows[:, 1] - windows[:, 0], clip_s)
    centre = centre.clip(width / 2, np.maximum(extent - width / 2, width / 2))
    windows = np.stack((centre - width / 2, centre + width / 2), axis=1).clip(0, extent) / extent
    return Sample(row, video, text, windows.astype(np.float32), saliency)


def _saliency(row: dict[str, Any], windows_s: np.ndarray, clips: int, clip_s: float) -> np.ndarray:
    """Mean annotator score of each clip; 1 inside the windows (W 2, start before end) where nobody scored."""
    saliency = np.zeros(clips, dtype=np.float32)
    if row.get("relevant_clip_ids"):
        ids = np.asarray(row["relevant_clip_ids"])
        inside = (ids >= 0) & (ids < clips)
        scores = np.asarray(row["saliency_scores"], dtype=np.float32).mean(-1)
        saliency[ids[inside]] = scores[inside]
    if not saliency.any():
        middle = (np.arange(clips) + 0.5) * clip_s
        for start, end in windows_s:
            saliency[(middle >= start) & (middle <= end)] = 1
        if not saliency.any():
            start, end = windows_s[0]
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
