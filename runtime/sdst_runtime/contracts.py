"""What flows between the rooms: the feature contract and the arrays that carry it.

Shape letters: T clips, n clips of a window, K tapped layers, L text tokens, V visual width, X text width, F width of
the head. Time is in seconds.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

from . import bounds
from .errors import ContractError, InputError
from .showing import SHOWN, Span, as_frame, as_html, draw, presence_text
from .strict_json import dump_json, load_json, parse_strict
from .tensor_files import read_arrays, write_arrays

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

    def __post_init__(self) -> None:
        """Raise InputError on a number that no features can have, naming the field."""
        bounds.require("clip_s", self.clip_s, bounds.CLIP_S, "seconds")
        for name in ("layers", "frames_per_clip", "max_tokens"):
            bounds.require(name, getattr(self, name), bounds.COUNT)
        for name in ("image_size", "video_width", "text_width"):
            bounds.require(name, getattr(self, name), bounds.WIDTH)
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or 0 in self.std:
            raise InputError(f"mean, std: expected finite numbers, std not 0, got {self.mean} and {self.std}")

    def to_json(self) -> str:
        """One line of JSON, field order as declared."""
        return dump_json(dataclasses.asdict(self))

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


# Those that hold arrays are compared by identity (eq=False): arrays have no one answer to ==.
@dataclass(frozen=True, eq=False)
class VideoFeatures:
    """Pooled features of one video."""

    features: np.ndarray  # T K V, float32 or float16, shallow to deep
    duration_s: float
    spec: FeatureSpec
    # A fact beside the contract, told and never compared: "libavcodec 62"; empty where the file does not say.
    decoder: str = field(default="", kw_only=True)
    source: str = field(default="", kw_only=True)  # another: which video file it was (`media.containers.source_digest`)

    def __post_init__(self) -> None:
        bounds.require("duration_s", self.duration_s, bounds.DURATION_S, "seconds")
        _check(self.features, ("T", self.spec.layers, self.spec.video_width), "video features")

    def __repr__(self) -> str:
        T, K, V = self.features.shape
        shape = f"{T} clips of {self.spec.clip_s:g} s, {K} layers of {V}, {self.features.dtype}"
        return f"{type(self).__name__}({self.duration_s:.2f} s: {shape}, by {self.spec.backbone})"


@dataclass(frozen=True)
class Window:
    """Consecutive clips that the head sees at once."""

    start: int  # first clip
    stop: int  # one after the last

    @property
    def clips(self) -> int:
        """n."""
        return self.stop - self.start


@dataclass(frozen=True, eq=False, repr=False)
class EncodedVideo(VideoFeatures):
    """A video ready for questions: its features and what a head's projection made of them, window by window."""

    windows: tuple[Window, ...]  # one for a video that the head takes whole
    projected: tuple[np.ndarray, ...]  # of each window: n K F, float32 or float16
    projection_sha256: str  # of the model that made them
    warnings: tuple[str, ...] = ()  # what was wrong with the file and what was done about it, a line each

    @property
    def size_bytes(self) -> int:
        """Of all its arrays."""
        return self.features.nbytes + sum(array.nbytes for array in self.projected)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all. Raises InputError when `path` cannot be written."""
        arrays = {"features": self.features} | {f"projected.{i}": array for i, array in enumerate(self.projected)}
        write_arrays(
            Path(path), arrays, spec=self.spec.to_json(), duration_s=json.dumps(self.duration_s), decoder=self.decoder,
            windows=json.dumps([(window.start, window.stop) for window in self.windows]),
            projection_sha256=self.projection_sha256, warnings=json.dumps(self.warnings),
        )  # fmt: skip

    @classmethod
    def load(cls, path: str | Path, needed: FeatureSpec | None = None, projection_sha256: str = "") -> EncodedVideo:
        """Read what `save` wrote; with `needed` and `projection_sha256` of a bundle, only what this bundle made.

        A Grounder compares both too, when it is asked about the video. Raises InputError (missing, damaged, not such a
        file) or ContractError naming the field that differs.
        """
        stated = ("spec", "duration_s", "decoder", "windows", "projection_sha256", "warnings")
        mend = "encode the video again"
        arrays, header = read_arrays(Path(path), stated, mend)
        spec = FeatureSpec.from_json(header["spec"], path)
        if needed is not None:
            spec.require(needed, have=path, need="the bundle", exact=True, mend=mend)
        if projection_sha256:
            require_projection(path, header["projection_sha256"], projection_sha256)
        try:
            ends = [(int(start), int(stop)) for start, stop in load_json(header["windows"], f"{path}: windows:")]
            video = cls(
                arrays["features"], float(header["duration_s"]), spec, tuple(Window(*pair) for pair in ends),
                tuple(arrays[f"projected.{i}"] for i in range(len(ends))), header["projection_sha256"],
                tuple(str(line) for line in load_json(header["warnings"], f"{path}: warnings:")),
                decoder=header["decoder"],
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: not an encoded video ({error!r}); {mend}") from error
        _check_windows(video, path)
        return video


@dataclass(frozen=True, eq=False)
class ProjectedVideo:
    """What a head needs of a video: an EncodedVideo without its features, as a corpus keeps it."""

    duration_s: float
    spec: FeatureSpec
    windows: tuple[Window, ...]
    projected: tuple[np.ndarray, ...]  # of each window: n K F, in the type that the head takes
    projection_sha256: str


def require_projection(have: str | Path, made_with: str, needed: str) -> None:
    """Raise ContractError unless both digests of a projection, hex SHA-256, are the same; `have` names the first."""
    if made_with != needed:
        raise ContractError(
            f"{have} was made with the projection {made_with[:12]}, the bundle's is {needed[:12]} (projection_sha256);"
            " encode the video with this bundle"
        )


@dataclass(frozen=True, eq=False)
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

    def __repr__(self) -> str:
        return f"Moment({self.start_s:.2f} to {self.end_s:.2f} s, score {self.score:.3f})"


@dataclass(frozen=True, eq=False)
class Grounding:
    """The answer to one query: moments by descending score, and a highlight value for each clip.

    Iterating gives the moments, best first; in a notebook it shows itself as a table.
    """

    query: str
    moments: tuple[Moment, ...]
    saliency: np.ndarray  # T, float32, cosine in -1..1
    clip_s: float
    unknown_words: tuple[str, ...] = ()  # of the query, that the text model does not know: the answer ignores them
    presence: float | None = None  # 0..1, that the event is in the video at all; None: the model does not say

    def __iter__(self) -> Iterator[Moment]:
        return iter(self.moments)

    def __repr__(self) -> str:
        best = f"best {self.moments[0]!r}" if self.moments else "none"
        clips = f"{len(self.saliency)} clips of {self.clip_s:g} s"
        there = "" if self.presence is None else f", presence {self.presence:.3f}"
        return f"Grounding({self.query!r}: {len(self.moments)} moments, {best}{there}; {clips})"

    def to_dict(self) -> dict[str, Any]:
        """One of the `results` of `sdst ground --json`: query, unknown words, presence, moments and saliency."""
        moments = [dataclasses.asdict(moment) for moment in self.moments]
        return {
            "query": self.query,
            "unknown_words": list(self.unknown_words),
            "presence": self.presence,
            "moments": moments,
            "saliency": [float(value) for value in self.saliency],
        }

    def to_pandas(self) -> Any:
        """A DataFrame of the moments: start_s, end_s, score. Raises DependencyError where pandas is missing."""
        return as_frame(self._spans())

    def plot(self, axes: Any = None, top: int = SHOWN) -> Any:
        """Draw saliency and the `top` best moments into matplotlib's `axes` (default: new ones), and return them.

        Raises DependencyError where matplotlib is missing.
        """
        title = self.query
        if self.presence is not None:
            title += f"\n{presence_text(self.presence, bool(self.moments))}"
        return draw(title, self._spans(), self.saliency, self.clip_s, axes, top)

    def _repr_html_(self) -> str:
        return as_html(self.query, self._spans(), self.presence)

    def _spans(self) -> list[Span]:
        return [(moment.start_s, moment.end_s, moment.score) for moment in self.moments]


def _check_windows(video: EncodedVideo, source: str | Path) -> None:
    """Raise InputError unless the windows cover the clips, in order, and each has its projection."""
    ends = [(window.start, window.stop) for window in video.windows]
    covering = bool(ends) and (ends[0][0], ends[-1][1]) == (0, len(video.features))
    covering &= all(start < stop for start, stop in ends)
    covering &= all(a[0] < b[0] <= a[1] < b[1] for a, b in pairwise(ends))
    fits = [len(array) for array in video.projected] == [window.clips for window in video.windows]
    fits &= all(array.ndim == 3 and array.shape[1:] == video.projected[0].shape[1:] for array in video.projected)
    if not covering or not fits or not 0 < video.duration_s < math.inf:
        raise InputError(f"{source}: its windows, projections and duration do not fit together; encode the video again")
    if not all(np.isfinite(array).all() for array in video.projected):
        raise InputError(f"{source}: a projection holds NaN or infinity; encode the video again")


def _check(array: np.ndarray, shape: tuple[int | str, ...], what: str) -> None:
    fits = array.ndim == len(shape) and all(
        size == want if isinstance(want, int) else size > 0 for size, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        raise InputError(f"{what}: expected shape {shape}, got {array.shape}")
    if not np.isfinite(array).all():
        raise InputError(f"{what}: contains NaN or infinity; extract the features again")
