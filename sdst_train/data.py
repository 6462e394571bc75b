"""Training batches: padded tensors and targets of samples in memory.

Shapes: B batch, T clips, K layers, V and X widths, L tokens, W windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sdst_runtime.dataset import Sample, pad_inputs

from .losses import Targets


@dataclass(frozen=True)
class Batch:
    """Padded tensors of some samples; rows keep the samples' order."""

    inputs: dict[str, Tensor]  # what the model's forward takes, by name
    targets: Targets


def collate(samples: Sequence[Sample], rng: np.random.Generator) -> Batch:
    """Pad samples to a batch. The positive clip of each is drawn by `rng` among its relevant clips."""
    B = len(samples)
    arrays = pad_inputs([s.video for s in samples], [s.text for s in samples])
    W = max(len(s.windows) for s in samples)
    windows, window_mask = np.zeros((B, W, 2), np.float32), np.zeros((B, W), bool)
    saliency, positive = np.zeros(arrays["video_mask"].shape, np.float32), np.zeros(B, np.int64)
    for i, s in enumerate(samples):
        windows[i, : len(s.windows)], window_mask[i, : len(s.windows)] = s.windows, True
        saliency[i, : len(s.video)] = s.saliency
        positive[i] = rng.choice(np.flatnonzero(s.saliency > 0))
    inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    targets = Targets(
        torch.from_numpy(windows),
        torch.from_numpy(window_mask),
        torch.from_numpy(saliency),
        torch.from_numpy(positive),
        inputs["video_mask"],
    )
    return Batch(inputs, targets)


def epoch_batches(samples: Sequence[Sample], batch_size: int, rng: np.random.Generator) -> Iterator[Batch]:
    """Shuffled batches of similar length: sorted within pools of 16 batches, so that little is padding."""
    order = rng.permutation(len(samples))
    batches = []
    for start in range(0, len(order), 16 * batch_size):
        pool = sorted(order[start : start + 16 * batch_size], key=lambda i: len(samples[i].video))
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    for index in rng.permutation(len(batches)):
        yield collate([samples[i] for i in batches[index]], rng)
