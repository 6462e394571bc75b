"""sdst::RDSA in float64, written from its definition (docs/method.md) alone: slow, for checking compiled ones.

Shapes: B batch, T clips, M moments, H heads, P points, D depth, F = H * D, E = 3 * 2 * H * P.
"""

from __future__ import annotations

import numpy as np


def rdsa_oracle(
    value: np.ndarray, endpoints: np.ndarray, reference: np.ndarray, length: np.ndarray, num_heads: int,
    num_points: int,
) -> np.ndarray:  # fmt: skip
    """value B T F, endpoints B T E, reference B M 2 (centre, width), length B -> B M F, float64."""
    rows = zip(value.astype(np.float64), endpoints.astype(np.float64), reference.astype(np.float64), length)
    return np.stack([_one_video(v[:n], e[:n], r, num_heads, num_points) for v, e, r, n in rows])


def check_inputs(seed: int = 0) -> dict[str, np.ndarray]:
    """Small inputs with ragged lengths and moments that reach over the border; H 4, P 4, D 16, offsets below a clip."""
    rng = np.random.default_rng(seed)
    B, T, M, H, P, D = 3, 17, 6, 4, 4, 16
    length = np.array([T, 1, 9], np.int32)
    value = rng.standard_normal((B, T, H * D), dtype=np.float32)
    endpoints = 0.5 * rng.standard_normal((B, T, 6 * H * P), dtype=np.float32)
    reference = rng.uniform((-0.1, 0.05), (1.1, 0.9), (B, M, 2)).astype(np.float32)
    beyond = np.arange(T) >= length[:, None]
    value[beyond] = endpoints[beyond] = np.nan  # must never be read
    return {"value": value, "endpoints": endpoints, "reference": reference, "length": length}


CHECK_HEADS, CHECK_POINTS = 4, 4  # of `check_inputs`


def _one_video(value_nF: np.ndarray, endpoints_nE: np.ndarray, reference_M2: np.ndarray, H: int, P: int) -> np.ndarray:
    n, M = len(value_nF), len(reference_M2)
    centre, width = reference_M2.T
    ends = endpoints_nE.reshape(n, 3, 2 * H * P)
    predicted = np.zeros((M, 2 * H * P))
    for end, side in enumerate((-0.5, 0.0, 0.5)):
        index = np.clip(np.clip(centre + side * width, 0, 1) * n - 0.5, 0, n - 1)
        predicted += _blend(index, n) @ ends[:, end]
    offset, logit = predicted.reshape(M, 2, H, P).transpose(1, 0, 2, 3)
    weight = np.exp(logit - logit.max(-1, keepdims=True))
    weight /= weight.sum(-1, keepdims=True)
    index = (centre[:, None, None] + offset * width[:, None, None] / 2) * n - 0.5
    sampled = np.einsum("mhpt,thd->mhpd", _blend(index, n), value_nF.reshape(n, H, -1))
    return np.einsum("mhp,mhpd->mhd", weight, sampled).reshape(M, -1)


def _blend(index: np.ndarray, n: int) -> np.ndarray:
    """Weight of each of n clips in the linear interpolation at each index, zero outside the video: [..., n]."""
    return np.maximum(0, 1 - np.abs(np.arange(n) - index[..., None]))
