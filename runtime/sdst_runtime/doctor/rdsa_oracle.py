"""sdst::RDSA in float64, for checking compiled ones: the one oracle, of `sdst doctor` and of the tests.

Written from docs/method.md alone: linear interpolation as a sum over all valid clips of tent weights
max(0, 1 - |clip - index|), which needs no floor, no neighbour and no gather.
Shapes: B batch, T clips, M moments, H heads, P points, D depth, F = H * D, E = 3 * 2 * H * P.
"""

from __future__ import annotations

import numpy as np


def rdsa_oracle(
    value: np.ndarray, endpoints: np.ndarray, reference: np.ndarray, length: np.ndarray, num_heads: int,
    num_points: int,
) -> np.ndarray:  # fmt: skip
    """value B T F, endpoints B T E, reference B M 2 (centre, width), length B -> B M F, float64."""
    B, _, F = value.shape
    H, P = num_heads, num_points
    D = F // H
    out = np.zeros((B, reference.shape[1], F))
    for b in range(B):
        n = int(length[b])
        valid = value[b, :n].astype(np.float64)
        index, weight = sampling(endpoints[b, :n], reference[b], num_heads, num_points)  # M H P each
        for h in range(H):
            for p in range(P):
                sampled = _tents(index[:, h, p], n) @ valid[:, h * D : (h + 1) * D]
                out[b, :, h * D : (h + 1) * D] += weight[:, h, p, None] * sampled
    return out


def sampling(
    endpoints_nE: np.ndarray, reference_M2: np.ndarray, num_heads: int, num_points: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fractional clip indices and weights of the sampled points of one video of n clips: M H P each, float64."""
    n = len(endpoints_nE)
    rows = endpoints_nE.astype(np.float64).reshape(n, 3, 2, num_heads, num_points)
    centre, width = reference_M2.astype(np.float64).T
    predicted = 0
    for end, position in enumerate((centre - width / 2, centre, centre + width / 2)):
        index = np.clip(np.clip(position, 0, 1) * n - 0.5, 0, n - 1)
        predicted = predicted + np.einsum("mt,tshp->mshp", _tents(index, n), rows[:, end])
    offset, logit = np.moveaxis(np.asarray(predicted), 1, 0)
    weight = np.exp(logit - logit.max(-1, keepdims=True))
    location = centre[:, None, None] + offset * width[:, None, None] / 2
    return location * n - 0.5, weight / weight.sum(-1, keepdims=True)


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


def _tents(index_N: np.ndarray, n: int) -> np.ndarray:
    """Weight of each of n clips in a linear interpolation at the indices, zero outside the video: N n."""
    return np.maximum(0, 1 - np.abs(np.arange(n) - index_N[:, None]))
