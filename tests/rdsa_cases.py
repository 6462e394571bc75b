"""One table of inputs for the op sdst::RDSA. No torch here: every rung of the ladder uses it, against `rdsa_oracle`.

Shapes: B batch, T clips, M moments, F width, H heads, P points, E = 3 * 2 * H * P.
Float32 cannot hold every input to 1e-5: the index of an end errs by T * 6e-8 clips, the offsets read there by that
times their change from clip to clip, and the sample by that times half a moment's width in clips. White noise over
2,048 clips makes this 0.3. So the offsets here change the less from clip to clip the longer the video is; the logits,
read at the same rows, stay white noise and show a wrong row at any length. `tolerance` is what float32 then holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class RdsaCase:
    """One set of inputs. Clips at and beyond a sample's length hold NaN in value and endpoints."""

    name: str
    B: int
    T: int
    M: int
    F: int
    H: int
    P: int
    lengths: tuple[int, ...] | Literal["full", "ragged"]  # ragged: 1, T and random ones between
    references: Literal["inside", "border", "beyond", "zero_width", "full_width"]
    offsets: Literal["unit", "wide", "huge", "initial", "on_clips"]
    large: bool = False  # for rungs that are fast enough

    @property
    def tolerance(self) -> float:
        """Absolute error allowed to float32 arithmetic on these inputs, whose values are of order 1."""
        return 1e-5 * max(1, self.T / 24)

    def __str__(self) -> str:
        return self.name


CASES = [
    RdsaCase("inside", 2, 12, 5, 32, 2, 4, "full", "inside", "unit"),
    RdsaCase("ragged", 4, 17, 5, 32, 2, 4, "ragged", "inside", "unit"),
    RdsaCase("length_1", 3, 6, 4, 32, 2, 2, (1, 1, 6), "inside", "unit"),
    RdsaCase("one_clip_at_all", 2, 1, 3, 16, 1, 1, "full", "inside", "unit"),
    RdsaCase("two_clips", 2, 2, 3, 32, 2, 3, (2, 1), "border", "unit"),
    RdsaCase("one_of_everything", 1, 5, 1, 16, 1, 1, "full", "inside", "unit"),
    RdsaCase("border", 3, 9, 16, 32, 2, 4, "ragged", "border", "unit"),
    RdsaCase("beyond", 3, 11, 12, 32, 2, 4, "ragged", "beyond", "unit"),
    RdsaCase("zero_width", 2, 10, 7, 32, 2, 4, "ragged", "zero_width", "wide"),
    RdsaCase("zero_width_huge", 2, 10, 7, 32, 2, 4, "ragged", "zero_width", "huge"),
    RdsaCase("full_width", 2, 13, 7, 32, 2, 4, "ragged", "full_width", "unit"),
    RdsaCase("wide_offsets", 3, 14, 6, 64, 4, 4, "ragged", "inside", "wide"),
    RdsaCase("huge_offsets", 3, 14, 6, 64, 4, 4, "ragged", "inside", "huge"),
    RdsaCase("initial_offsets", 2, 20, 10, 128, 8, 4, "ragged", "inside", "initial"),
    RdsaCase("on_clip_centres", 2, 8, 6, 32, 2, 4, "full", "inside", "on_clips"),
    RdsaCase("odd_points", 2, 9, 4, 48, 3, 5, "ragged", "inside", "unit"),
    RdsaCase("depth_64", 2, 10, 4, 128, 2, 4, "ragged", "inside", "unit"),
    RdsaCase("default_heads", 2, 24, 30, 256, 8, 4, "ragged", "inside", "unit"),
    RdsaCase("qvhighlights", 8, 75, 30, 256, 8, 4, "ragged", "inside", "unit", large=True),
    RdsaCase("qvhighlights_beyond", 8, 75, 30, 256, 8, 4, "ragged", "beyond", "unit", large=True),
    RdsaCase("tacos", 2, 701, 30, 256, 8, 4, "ragged", "inside", "unit", large=True),
    RdsaCase("long_few", 1, 2048, 10, 128, 8, 4, "full", "inside", "initial", large=True),
    RdsaCase("many_heads", 2, 300, 100, 512, 16, 8, "ragged", "inside", "unit", large=True),
    RdsaCase("largest", 32, 2048, 100, 256, 8, 4, "ragged", "inside", "unit", large=True),
]
SMALL_CASES = [case for case in CASES if not case.large]
LARGE_CASES = [case for case in CASES if case.large]


def make_inputs(case: RdsaCase, seed: int = 0) -> dict[str, np.ndarray]:
    """value B T F, endpoints B T E, reference B M 2 (float32) and length B (int32), the same for the same seed."""
    rng = np.random.default_rng(seed)
    B, T, M, H, P = case.B, case.T, case.M, case.H, case.P
    length = _lengths(case, rng)
    reference = _references(case, rng, length)
    value = rng.standard_normal((B, T, case.F), dtype=np.float32)
    logits = rng.standard_normal((B, T, 3, H * P), dtype=np.float32)
    offsets = _offsets(case, rng)
    endpoints = np.stack((offsets, logits), axis=3).reshape(B, T, 3 * 2 * H * P)
    beyond = np.arange(T) >= length[:, None]
    value[beyond] = endpoints[beyond] = np.nan
    assert reference.shape == (B, M, 2)
    return {
        "value": value,
        "endpoints": endpoints.astype(np.float32),
        "reference": reference.astype(np.float32),
        "length": length.astype(np.int32),
    }


def _lengths(case: RdsaCase, rng: np.random.Generator) -> np.ndarray:
    if case.lengths == "full":
        return np.full(case.B, case.T)
    if case.lengths == "ragged":
        length = rng.integers(1, case.T + 1, case.B)
        length[0] = case.T
        length[-1] = min(length[-1], max(case.T // 2, 1))
        if case.B > 2:
            length[1] = 1
        return length
    return np.asarray(case.lengths)


def _references(case: RdsaCase, rng: np.random.Generator, length: np.ndarray) -> np.ndarray:
    shape = (case.B, case.M)
    centre, width = rng.uniform(0.05, 0.95, shape), rng.uniform(0.02, 0.6, shape)
    if case.offsets == "on_clips":  # a half-width is one clip and centres are middles of clips
        n = length[:, None]
        return np.stack(((rng.integers(0, n, shape) + 0.5) / n, np.broadcast_to(2 / n, shape)), axis=-1)
    if case.references == "border":  # ends exactly on, just inside and just outside the borders
        centre = rng.choice([0, 1, 0.5 / case.T, 1 - 0.5 / case.T, 0.5, 1e-6, 1 - 1e-6], shape)
        width = rng.choice([0, 1, 1 / case.T, 2e-6, 0.5], shape)
    elif case.references == "beyond":
        centre, width = rng.uniform(-0.5, 1.5, shape), rng.uniform(0, 2, shape)
    elif case.references == "zero_width":
        width = np.zeros(shape)
    elif case.references == "full_width":
        centre[:, ::2], width = 0.5, np.ones(shape)
    return np.stack((centre, width), axis=-1)


def _offsets(case: RdsaCase, rng: np.random.Generator) -> np.ndarray:
    """Offsets of each end, B T 3 HP; the three ends add up."""
    B, T, HP = case.B, case.T, case.H * case.P
    shape = (B, T, 3, HP)
    if case.offsets == "on_clips":  # whole clips; only one end speaks, or interpolation would leave the centres
        offset = np.zeros(shape)
        offset[:, :, 1] = rng.integers(-3, 4, HP)
        return offset
    if case.offsets == "initial":  # cos(4 pi h / H) * (p + 1) / P half-widths, as a fresh model
        offset = np.zeros(shape)
        angle = np.cos(4 * np.pi * np.arange(case.H) / case.H)
        offset[:, :, 1] = (angle[:, None] * np.arange(1, case.P + 1) / case.P).reshape(-1)
        return offset
    level = rng.standard_normal((B, 1, 3, HP)) * (6 if case.offsets == "wide" else 0.6)
    offset = level + rng.standard_normal(shape) * min(0.6, 20 / T**2)
    if case.offsets == "huge":  # some points, each with one sign: cancellation must not bring them back into the video
        offset = offset + rng.uniform(1e6, 1e7, shape) * rng.choice([-1, 0, 1], HP)
    return offset
