"""Which sizes an engine takes: optimisation profiles, one or more a bucket of video lengths.

A profile is a range of shapes and the usual shapes, for which TensorRT chooses its kernels. Each bucket has two: one
row, for a single question, and many. TensorRT for RTX compiles kernels for the shapes that come when it runs, and each
profile costs it a compilation of its own: there a bucket has one. Letters: N clips of a vision batch, B rows, T clips,
L tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sdst_runtime.contracts import FeatureSpec
from sdst_runtime.errors import InputError
from sdst_runtime.grounding.grounder import CLIP_PAIRS, MOST_ROWS
from sdst_runtime.media.clips import VISION_BATCH
from sdst_runtime.sessions.base import ModelKind
from sdst_runtime.sessions.tensorrt.sidecar import Profile, ShapeRange, TensorRecord

CLIPS = (75, 150, 300, 600, 1200)
USUAL_TOKENS = 16

Sizes = dict[str, tuple[int, int, int]]  # free axis -> least, usual, most


@dataclass(frozen=True)
class Bucket:
    """Videos of up to `clips` clips, up to `rows` at once."""

    clips: int
    rows: int


def default_buckets(clips: Sequence[int] = CLIPS) -> tuple[Bucket, ...]:
    """A bucket for each length, with as many rows as the Grounder ever gives it."""
    shorter = (0, *clips[:-1])
    return tuple(Bucket(most, rows_wanted(least + 1)) for least, most in zip(shorter, clips, strict=True))


def rows_wanted(clips: int) -> int:
    """Rows of a batch that the Grounder makes of videos of `clips` clips, at most."""
    return max(1, min(MOST_ROWS, CLIP_PAIRS // clips**2))


def parse_buckets(texts: Sequence[str]) -> tuple[Bucket, ...]:
    """Buckets from "75x32" (clips x rows) or "75", which takes the usual rows; in order of length.

    Raises InputError for anything else, and for two of one length.
    """
    pairs = []
    for text in texts:
        found = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
        if found is None:
            raise InputError(f"profiles: expected CLIPS or CLIPSxROWS, such as 75 or 150x8, got {text!r}")
        pairs.append((int(found[1]), int(found[2]) if found[2] else None))
    lengths = sorted(clips for clips, _ in pairs)
    if len(set(lengths)) != len(lengths) or not lengths:
        raise InputError(f"profiles: expected lengths that differ, got {' '.join(texts) or 'none'}")
    rows = dict(pairs)
    return tuple(Bucket(usual.clips, rows[usual.clips] or usual.rows) for usual in default_buckets(lengths))


def limits(buckets: Sequence[Bucket]) -> dict[str, int]:
    """What callers of the head keep to: the longest video, and the rows that every bucket takes as far as wanted."""
    shorter = (0, *(bucket.clips for bucket in buckets[:-1]))
    fitting = [
        rows
        for rows in range(1, MOST_ROWS + 1)
        if all(bucket.rows >= min(rows, rows_wanted(least + 1)) for least, bucket in zip(shorter, buckets, strict=True))
    ]
    return {"max_clips": buckets[-1].clips, "max_batch": max(fitting)}


def profiles_for(
    kind: ModelKind,
    inputs: Mapping[str, TensorRecord],
    spec: FeatureSpec,
    buckets: Sequence[Bucket],
    one_row_apart: bool = True,
) -> tuple[Profile, ...]:
    """The profiles of one model, in order of size; `one_row_apart`: one row has a profile of its own.

    Raises InputError when an input has an axis of another name.
    """
    tokens = (1, min(USUAL_TOKENS, spec.max_tokens), spec.max_tokens)
    many = limits(buckets)["max_batch"]
    of_text: list[Sizes] = [{"B": rows, "L": tokens} for rows in _rows(many, one_row_apart)]
    choices: dict[ModelKind, list[Sizes]] = {
        "vision": [{"N": (1, VISION_BATCH, VISION_BATCH)}],
        "text": of_text,
        "sentence": of_text,
    }
    by_clips = [
        {"B": rows, "T": (1, bucket.clips, bucket.clips), "L": tokens}
        for bucket in buckets
        for rows in _rows(bucket.rows, one_row_apart)
    ]
    return tuple(_profile(inputs, sizes) for sizes in choices.get(kind, by_clips))


def _rows(most: int, one_row_apart: bool) -> list[tuple[int, int, int]]:
    many = (1, most, most)
    return [(1, 1, 1), many] if most > 1 and one_row_apart else [many]


def _profile(inputs: Mapping[str, TensorRecord], sizes: Sizes) -> Profile:
    return {
        name: ShapeRange(*(_shape(record.shape, sizes, which) for which in range(3))) for name, record in inputs.items()
    }


def _shape(shape: tuple[int | str, ...], sizes: Sizes, which: int) -> tuple[int, ...]:
    unknown = {axis for axis in shape if isinstance(axis, str)} - sizes.keys()
    if unknown:
        raise InputError(
            f"expected free axes named {', '.join(sizes)}, got {', '.join(unknown)}; export the model again"
        )
    return tuple(sizes[axis][which] if isinstance(axis, str) else axis for axis in shape)
