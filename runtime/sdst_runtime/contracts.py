"""What flows between the rooms: the feature contract and the arrays that carry it.

Shape letters: T clips, n clips of a window, K tapped layers, L text tokens, V visual width, X text width, F width of
the head. Time is in seconds.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from .errors import ContractError, InputError
from .strict_json import parse_strict

# Keys of the metadata that an ONNX file carries, and that a session gives of any model file.
SPEC_KEY, KIND_KEY, PRECISION_KEY, STEPS_KEY = "sdst.spec", "sdst.kind", "sdst.precision", "sdst.steps"
FP32: Final = "fp32"  # values of PRECISION_KEY
FP16: Final = "fp16"
INT8: Final = "int8"


@dataclass(frozen=True)
class FeatureSpec:
    """How features are made. Written into feature files, checkpoints, ONNX metadata and bundles.

    Features are usable together only if every field agrees; `layers` may be larger in stored features than a model
    needs, since a model takes the last ones.
    """

    backbone: str  # name of the vision-language backbone, e.g. "internvideo2-1b-stage2"
    backbone_sha256: str  # of the weights file
    layers: int  # K, the last K blocks, shallow to deep
    pool: str  # "adaptive", "cls" or "mean"
    frames_per_clip: int
    clip_s: float  # seconds a clip
    image_size: int  # pixels, square; frames are squashed to it
    resize: str  # resampling filter, e.g. "bicubic"
    mean: tuple[float, float, float]  # RGB, of values in 0..1
    std: tuple[float, float, float]
    video_width: int  # V
    text_model: str
    max_tokens: int  # special tokens included
    text_width: int  # X

    def to_json(self) -> str:
        """One line of JSON, field order as declared."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str, source: str | Path) -> FeatureSpec:
        """Parse strictly. Raises ContractError naming `source` and the first field that does not fit."""
        return parse_strict(cls, text, f"{source}: feature contract")

    def require(
        self,
        needed: FeatureSpec,
        *,
        have: str | Path,
        need: str | Path,
        exact: bool = False,
        mend: str = "make the features again with the model's contract",
    ) -> None:
        """Raise ContractError unless features under `self` serve a model for `needed`; `have` and `need` name both.

        With `exact` a surplus of layers does not fit either; `mend` ends the message.
        """
        for part in dataclasses.fields(self):
            ours, theirs = getattr(self, part.name), getattr(needed, part.name)
            fits = ours >= theirs if part.name == "layers" and not exact else ours == theirs
            if not fits:
                raise ContractError(
                    f"feature contracts disagree on {part.name}: {have} has {ours!r:.100}, "
                    f"{need} needs {theirs!r:.100}; {mend}"
                )


@dataclass(frozen=True)
class VideoFeatures:
    """Pooled features of one video."""

    features: np.ndarray  # T K V, float32 or float16, shallow to deep
    duration_s: float
    spec: FeatureSpec
    # A fact beside the contract, told and never compared: "libavcodec 62"; empty where the file does not say.
    decoder: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        _check(self.features, ("T", self.spec.layers, self.spec.video_width), "video features")


@dataclass(frozen=True)
class Window:
    """Consecutive clips that the head sees at once."""

    start: int  # first clip
    stop: int  # one after the last

    @property
    def clips(self) -> int:
        """n."""
        return self.stop - self.start


@dataclass(frozen=True)
class EncodedVideo(VideoFeatures):
    """A video ready for questions: its features and what a head's projection made of them, window by window."""

    windows: tuple[Window, ...]  # one for a video that the head takes whole
    projected: tuple[np.ndarray, ...]  # of each window: n K F, float32 or float16
    projection_sha256: str  # of the model that made them
    warnings: tuple[str, ...] = ()  # what was wrong with the file and what was done about it, a line each


@dataclass(frozen=True)
class TextFeatures:
    """Token features of one sentence, special tokens included."""

    features: np.ndarray  # K L X, float32 or float16, shallow to deep
    query: str
    spec: FeatureSpec

    def __post_init__(self) -> None:
        _check(self.features, (self.spec.layers, "L", self.spec.text_width), "text features")


@dataclass(frozen=True)
class Moment:
    """One span of the video that answers the query."""

    start_s: float
    end_s: float
    score: float  # 0..1


@dataclass(frozen=True)
class Grounding:
    """The answer to one query: moments by descending score, and a highlight value for each clip."""

    query: str
    moments: tuple[Moment, ...]
    saliency: np.ndarray  # T, float32, cosine in -1..1
    clip_s: float


def _check(array: np.ndarray, shape: tuple[int | str, ...], what: str) -> None:
    fits = array.ndim == len(shape) and all(
        size == want if isinstance(want, int) else size > 0 for size, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        raise InputError(f"{what}: expected shape {shape}, got {array.shape}")
    if not np.isfinite(array).all():
        raise InputError(f"{what}: contains NaN or infinity; extract the features again")
