"""Features of a few videos and sentences that anybody can make again, and the files they are stored in."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sdst_runtime.contracts import FeatureSpec, TextFeatures, VideoFeatures
from sdst_runtime.data.features import text_feature_path, video_feature_path, write_text_features, write_video_features

K, V, X, CLIP_S = 3, 6, 5, 2.0  # layers, widths
SPEC = FeatureSpec(
    backbone="test", backbone_sha256="0" * 64, layers=K, pool="adaptive", frames_per_clip=4, clip_s=CLIP_S,
    image_size=56, resize="bicubic", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), video_width=V,
    text_model="test", max_tokens=8, text_width=X,
)  # fmt: skip


def video_of(vid: str, clips: int = 10) -> np.ndarray:
    """Features of a video, half precision for some."""
    values = np.random.default_rng(list(vid.encode())).standard_normal((clips, K, V))
    return values.astype(np.float16 if vid.startswith("half") else np.float32)


def text_of(query: str) -> np.ndarray:
    """Features of a sentence: as many tokens as words, and three."""
    tokens = 3 + len(query.split())
    return np.random.default_rng(list(query.encode())).standard_normal((K, tokens, X)).astype(np.float16)


def write_video(directory: Path, vid: str, clips: int = 10, spec: FeatureSpec = SPEC) -> Path:
    """The loose file of a video."""
    path = video_feature_path(directory, vid)
    write_video_features(path, VideoFeatures(video_of(vid, clips), 20.0, spec))
    return path


def write_text(directory: Path, query: str, spec: FeatureSpec = SPEC) -> Path:
    """The loose file of a sentence."""
    path = text_feature_path(directory, query)
    write_text_features(path, TextFeatures(text_of(query), query, spec))
    return path
