"""Grounding data: annotations beside features, as samples that a head is trained and measured on.

Shapes: B batch, T clips, K layers, V and X widths, L tokens, W windows. Numpy only: training adds its own tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..contracts import FeatureSpec
from ..errors import ContractError, InputError, SdstError
from ..media.clips import clip_count
from .annotations import Row, check_annotation, clips_of, in_order, is_absent, read_rows, row_faults
from .config import DataConfig, SplitName
from .lazy_arrays import StoredArray
from .repairs import Count, Repairs, mend_windows, swapped
from .stores import FeatureStore, open_features

__all__ = [
    "Array", "Inspection", "Sample", "Split", "batches_by_length", "check_annotation", "inspect_split", "load_split",
    "make_sample", "pad_inputs",
]  # fmt: skip

Array = np.ndarray | StoredArray  # in memory, or read at every use
_MOST_MISSING = 4  # clips that features may end early, as in the lineage of the method


@dataclass(frozen=True)
class Sample:
    """One query on one video."""

    row: Row  # the annotation
    video: Array  # T K V, shared by all queries of the video
    text: Array  # K L X
    windows: np.ndarray  # W 2, fractions of the valid length, at least one clip wide; none where unlabelled
    saliency: np.ndarray  # T, mean score of the annotators, 0 outside relevant clips


@dataclass(frozen=True)
class Split:
    """All of one split that a head is trained or measured on."""

    samples: list[Sample]
    spec: FeatureSpec  # of the features
    repairs: Repairs


Spread = tuple[int, int, int]  # least, median, most


@dataclass(frozen=True)
class Inspection:
    """What a split holds; counts are of the queries that can be used."""

    problems: list[str]  # all of them, a line each; a split with any is not loaded
    repairs: Repairs = field(default_factory=Repairs)
    queries: int = 0
    absent: int = 0  # of these
    videos: int = 0
    clips: Spread = (0, 0, 0)
    tokens: Spread = (0, 0, 0)
    layers: int = 0
    video_width: int = 0
    text_width: int = 0
    windows: int = 0  # after repairs, as trained on
    most_windows: int = 0  # of one query


def load_split(
    data: DataConfig,
    split: SplitName,
    *,
    needed: FeatureSpec | None = None,
    labelled: bool = True,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> Split:
    """The samples of a split, features still in their files.

    Raises InputError with the first problems of the annotations and features, ContractError when the features were
    made under another contract than `needed` or with another clip length than the config's. Without `labelled` queries
    may have no window. `on_done` gets (queries, of all).
    """
    found = _gather(data, split, needed, labelled, on_done)
    if found.problems:
        count = "1 problem" if len(found.problems) == 1 else f"{len(found.problems)} problems"
        first = "; ".join(found.problems[:3])
        raise InputError(f"{data.annotations(split)}: {count}: {first}; see all with  sdst data check")
    return Split(found.samples, found.spec, found.repairs)


def inspect_split(
    data: DataConfig,
    split: SplitName,
    *,
    needed: FeatureSpec | None = None,
    labelled: bool = True,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> Inspection:
    """What `load_split` would load, and all that keeps it from doing so. Raises nothing of its own."""
    try:
        found = _gather(data, split, needed, labelled, on_done)
    except SdstError as error:
        return Inspection([str(error)])
    if not found.samples:
        return Inspection(found.problems, found.repairs)
    windows = [len(sample.windows) for sample in found.samples]
    return Inspection(
        found.problems,
        found.repairs,
        queries=len(found.samples),
        absent=sum(is_absent(sample.row) for sample in found.samples),
        videos=len({sample.row["vid"] for sample in found.samples}),
        clips=_spread([len(sample.video) for sample in found.samples]),
        tokens=_spread([sample.text.shape[1] for sample in found.samples]),
        layers=found.spec.layers,
        video_width=found.spec.video_width,
        text_width=found.spec.text_width,
        windows=sum(windows),
        most_windows=max(windows),
    )


def make_sample(row: Row, video: Array, text: Array, clip_s: float) -> Sample:
    """A sample of a checked annotation (`check_annotation`), its windows mended as `mend_windows` tells.

    Saliency is spread over the clips; scored clips that the features lack are left out.
    """
    return _mend_sample(row, video, text, clip_s)[0]


def pad_inputs(
    videos: Sequence[Array],
    texts: Sequence[Array],
    layers: int | None = None,
    *,
    multiples: tuple[int, int] = (1, 1),
    keep_half: bool = False,
) -> dict[str, np.ndarray]:
    """The head's inputs from one video (T K V) and one sentence (K L X) a row; of the layers the last `layers`.

    Returns video B T K V float32, video_mask B T bool, text B K L X float32, text_mask B L bool; padding is zero. T and
    L are rounded up to `multiples`. With `keep_half` features that are all float16 stay so.
    Raises InputError when fewer layers are there, and what reading a StoredArray raises.
    """
    stored = videos[0].shape[1]
    K = stored if layers is None else layers
    if not 1 <= K <= stored:
        raise InputError(f"layers: expected 1 to {stored}, as many as the features hold, got {layers}")
    video_parts, text_parts = [v[:, -K:] for v in videos], [t[-K:] for t in texts]
    dtype = np.result_type(*video_parts, *text_parts) if keep_half else np.float32
    B, T, L = len(videos), max(len(v) for v in videos), max(t.shape[1] for t in texts)
    T, L = (-(-n // multiple) * multiple for n, multiple in zip((T, L), multiples))
    video = np.zeros((B, T, K, videos[0].shape[2]), dtype)
    text = np.zeros((B, K, L, texts[0].shape[2]), dtype)
    video_mask, text_mask = np.zeros((B, T), bool), np.zeros((B, L), bool)
    for i, (v, t) in enumerate(zip(video_parts, text_parts, strict=True)):
        video[i, : len(v)], video_mask[i, : len(v)] = v, True
        text[i, :, : t.shape[1]], text_mask[i, : t.shape[1]] = t, True
    return {"video": video, "video_mask": video_mask, "text": text, "text_mask": text_mask}


def batches_by_length(samples: Sequence[Sample], batch_size: int) -> Iterator[list[Sample]]:
    """All samples in batches of similar length, nothing random."""
    order = sorted(range(len(samples)), key=lambda i: len(samples[i].video))
    for start in range(0, len(order), batch_size):
        yield [samples[i] for i in order[start : start + batch_size]]


# ---------------------------------------------------------------- a split


@dataclass(frozen=True)
class _Found:
    samples: list[Sample]
    spec: FeatureSpec
    repairs: Repairs
    problems: list[str]


def _gather(
    data: DataConfig,
    split: SplitName,
    needed: FeatureSpec | None,
    labelled: bool,
    on_done: Callable[[int, int], None],
) -> _Found:
    path = data.annotations(split)
    rows = read_rows(path, data.duration_files())
    store = open_features(data.feature_directory(), data.clip_s)
    _check_contract(store.spec, data, needed)
    faults = row_faults(rows, labelled)
    annotations = in_order([row for i, row in enumerate(rows) if i not in faults])
    repairs, samples = annotations.repairs, []
    problems = dict.fromkeys(f"{path}, {fault}" for fault in faults.values())  # many queries may share one
    videos: dict[tuple[str, float], StoredArray] = {}
    for done, row in enumerate(annotations.rows, 1):
        on_done(done, len(annotations.rows))
        key = row["vid"], row["duration"]
        try:
            if key not in videos:
                videos[key], more = _video(store, row, data.clip_s)
                repairs += more
        except SdstError as error:
            problems[str(error)] = None
        try:
            text = store.text(row)
        except SdstError as error:
            problems[str(error)] = None
            continue
        if key in videos:
            sample, more = _mend_sample(row, videos[key], text, data.clip_s)
            samples.append(sample)
            repairs += more
    return _Found(samples, store.spec, repairs, list(problems))


def _check_contract(spec: FeatureSpec, data: DataConfig, needed: FeatureSpec | None) -> None:
    directory = data.feature_directory()
    if spec.clip_s != data.clip_s:
        raise ContractError(
            f"data.clip_s is {data.clip_s}, the features in {directory} were made with {spec.clip_s} s a clip; "
            f"set data.clip_s to {spec.clip_s} or make them again"
        )
    if needed is not None:
        spec.require(needed, have=directory, need="the model")


def _video(store: FeatureStore, row: Row, clip_s: float) -> tuple[StoredArray, Repairs]:
    stored, expected = store.video(row), clips_of(row["duration"], clip_s)
    sampled = clip_count(row["duration"], clip_s, store.spec.frames_per_clip)  # a sliver at the end is no clip
    source = f"video {row['vid']}"
    if len(stored) < expected - _MOST_MISSING:
        raise InputError(
            f"{source}: its features have {len(stored)} clips, its annotated {row['duration']:g} s are {expected}; "
            "extract it again from the whole video or mend the duration"
        )
    if len(stored) < sampled:
        return stored, Repairs(shorter=Count(1, source))
    if len(stored) > expected:
        return stored.first(expected), Repairs(longer=Count(1, source))
    return stored, Repairs()


def _spread(values: Sequence[int]) -> Spread:
    return min(values), int(np.median(values)), max(values)


# ---------------------------------------------------------------- a sample


def _mend_sample(row: Row, video: Array, text: Array, clip_s: float) -> tuple[Sample, Repairs]:
    clips, source = len(video), f"qid {row['qid']}"
    annotated = row.get("relevant_windows", ())
    windows_s, repairs = mend_windows(
        annotated, duration_s=row["duration"], covered_s=clips * clip_s, clip_s=clip_s, source=source
    )
    windows = np.asarray(windows_s, dtype=np.float32).reshape(-1, 2) / np.float32(clips * clip_s)
    left_out = sum(not 0 <= clip < clips for clip in row.get("relevant_clip_ids", ()))
    if left_out:
        repairs += Repairs(clips_outside=Count(left_out, source))
    saliency = _saliency(row, swapped(annotated), clips, clip_s)
    return Sample(row, video, text, windows, saliency), repairs


def _saliency(
    row: Mapping[str, Any], windows_s: Sequence[tuple[float, float]], clips: int, clip_s: float
) -> np.ndarray:
    """Mean annotator score of each clip; 1 inside the windows (start before end) where nobody scored."""
    saliency = np.zeros(clips, dtype=np.float32)
    if row.get("relevant_clip_ids"):
        ids = np.asarray(row["relevant_clip_ids"])
        inside = (ids >= 0) & (ids < clips)
        scores = np.asarray(row["saliency_scores"], dtype=np.float32).mean(-1)
        saliency[ids[inside]] = scores[inside]
    if windows_s and not saliency.any():
        middle = (np.arange(clips) + 0.5) * clip_s
        for start, end in windows_s:
            saliency[(middle >= start) & (middle <= end)] = 1
        if not saliency.any():
            start, end = windows_s[0]
            saliency[int(np.clip((start + end) / 2 / clip_s, 0, clips - 1))] = 1
    return saliency
