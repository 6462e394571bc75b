"""Heads: MLP, actionness of a window, pooled text, saliency. Shapes: B batch, T clips, L tokens, M moments, F width."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from .layers import at_least_float32
from .rdsa import clip_index, linear_weights


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers of the given widths with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Actionness(nn.Module):
    """How well a window covers one event: features aligned to the window widened by half, then an MLP (TadTR).

    forward(dense B T F, span B M 2 (centre, width), length B) -> B M in 0..1.
    """

    bins = 16
    widening = 1.5
    place: Tensor  # bins, positions within the widened window in widths from the centre

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = mlp(self.bins * width, width, width, 1)
        place = ((torch.arange(self.bins) + 0.5) / self.bins - 0.5) * self.widening
        self.register_buffer("place", place, persistent=False)

    def forward(self, dense: Tensor, span: Tensor, length: Tensor) -> Tensor:
        B, M, _ = span.shape
        centre, width = span.unbind(-1)
        position = centre[..., None] + width[..., None] * self.place.to(span.dtype)  # B M bins
        index = clip_index(position, length).reshape(B, M * self.bins)
        rows = torch.matmul(linear_weights(index, length, dense.shape[1]).to(dense.dtype), dense).reshape(B, M, -1)
        return at_least_float32(self.mlp(rows).squeeze(-1)).sigmoid()


class Presence(nn.Module):
    """Whether the event of the sentence is in the video at all: an MLP of the largest value of each channel over the
    moments. It is the project's own, not the paper's (docs/scores.md).

    forward(hidden B M F) -> logit B, float32 at least.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = mlp(width, width, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        return at_least_float32(self.mlp(hidden.amax(-2)).squeeze(-1))


class TextPool(nn.Module):
    """Attention-weighted mean of the valid tokens. forward(text ... B L F, mask B L) -> ... B F."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Linear(width, 1, bias=False)

    def forward(self, text: Tensor, mask: Tensor) -> Tensor:
        weight = at_least_float32(self.weight(text).squeeze(-1)).masked_fill(~mask, float("-inf")).softmax(-1)
        return torch.matmul(weight.to(text.dtype)[..., None, :], text).squeeze(-2)


def saliency(dense: Tensor, text: Tensor) -> Tensor:
    """Cosine between each clip and the pooled text: dense B T F, text B F -> B T, float32 at least."""
    clip = functional.normalize(at_least_float32(dense), dim=-1)
    sentence = functional.normalize(at_least_float32(text), dim=-1)
    return torch.matmul(clip, sentence[..., None]).squeeze(-1)
