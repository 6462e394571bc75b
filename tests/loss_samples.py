"""Targets and outputs of a model that the tests of the losses share, and the formulas in numpy."""

from __future__ import annotations

import numpy as np
import torch

from sdst_train.config import LossConfig
from sdst_train.loop.losses import Targets
from sdst_train.model.sdst import Outputs

torch.set_num_threads(1)
K, B, M, T, F = 3, 2, 4, 6, 5


def make_targets(seed: int = 0, counts: tuple[int, ...] = (2, 1), wide: int = 3, clips: int = T) -> Targets:
    """Windows of two videos, the first with two of them; `wide` - 2 columns are padding for all."""
    rng = np.random.default_rng(seed)
    batch = len(counts)
    windows, mask = np.zeros((batch, wide, 2), np.float32), np.zeros((batch, wide), bool)
    for b, count in enumerate(counts):
        start = rng.uniform(0, 0.6, count)
        windows[b, :count], mask[b, :count] = np.stack((start, start + rng.uniform(0.1, 0.4, count)), 1), True
    saliency = np.tile(np.resize([0.0, 1, 2, 3, 1, 0], clips).astype(np.float32), (batch, 1))
    video_mask = np.arange(clips) < np.where(np.arange(batch) % 2, clips - 2, clips)[:, None]
    saliency[~video_mask] = 0
    arrays = (windows, mask, saliency, np.full(batch, 2), video_mask)
    return Targets(*(torch.from_numpy(np.asarray(array)) for array in arrays))


def make_outputs(seed: int = 0, batch: int = B) -> Outputs:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    centre = torch.rand(K, batch, M, generator=generator)
    width = torch.rand(K, batch, M, generator=generator) * 0.5 + 0.02
    return Outputs(
        logit_KBM=draw(K, batch, M), span_KBM2=torch.stack((centre, width), dim=-1),
        actionness_BM=draw(batch, M).sigmoid(), saliency_BT=draw(batch, T).tanh(), video_KBTF=draw(K, batch, T, F),
        text_KBF=draw(K, batch, F),
    )  # fmt: skip


def tensors(out: Outputs) -> dict[str, torch.Tensor]:
    """What a model gives, without the presence of one that predicts none."""
    return {name: x for name, x in vars(out).items() if x is not None}


def iou(a, b, generalised: bool = False) -> float:
    """Of two (start, end)."""
    inter = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = a[1] - a[0] + b[1] - b[0] - inter
    hull = max(a[1], b[1]) - min(a[0], b[0])
    return inter / union - ((hull - union) / hull if generalised else 0)


def focal(logit: float, label: int, alpha: float = 0.25, gamma: float = 2.0) -> float:
    p = 1 / (1 + np.exp(-logit))
    if label:
        return -alpha * (1 - p) ** gamma * np.log(p)
    return -(1 - alpha) * p**gamma * np.log(1 - p)


def start_end(span) -> tuple[float, float]:
    return span[0] - span[1] / 2, span[0] + span[1] / 2


def cost(logit: float, span, window, config: LossConfig) -> float:
    distance = abs(span[0] - (window[0] + window[1]) / 2) + abs(span[1] - (window[1] - window[0]))
    overlap = iou(start_end(span), window, config.overlap == "giou")
    classed = focal(logit, 1) - focal(logit, 0)
    return config.match_focal * classed + config.l1 * distance - config.iou * overlap


def log_softmax_at(row: np.ndarray, index: int) -> float:
    return row[index] - row.max() - np.log(np.exp(row - row.max()).sum())
