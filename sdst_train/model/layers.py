"""Blocks of both streams: attention, feed-forward, stochastic depth, sine positions. Post-norm throughout.

Shapes: B batch, N queries, S keys, F width, H heads. Masks are true where valid.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as functional
from torch import Tensor, nn


class DropPath(nn.Module):
    """Drop the whole residual branch of a sample with probability p while training, and rescale the rest."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        keep = torch.rand((x.shape[0], *[1] * (x.dim() - 1)), device=x.device) >= self.p
        return x * (keep.to(x.dtype) / (1 - self.p))


class MultiHeadAttention(nn.Module):
    """Plain multi-head attention. forward(query B N F, key B S F, value B S F, key_mask B S) -> B N F.

    `keys_values` and `attend` are its two halves: what several calls attend to is projected once.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        for linear in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None) -> Tensor:
        return self.attend(query, self.keys_values(key, value), key_mask)

    def keys_values(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """What `attend` takes: ... S F each to ... H S D."""
        return self._split(self.key(key)), self._split(self.value(value))

    def attend(self, query: Tensor, keys_values: tuple[Tensor, Tensor], key_mask: Tensor | None = None) -> Tensor:
        """The attention itself, of keys and values B H S D."""
        mask = None if key_mask is None else key_mask[:, None, None, :]
        q, (k, v) = self._split(self.query(query)), keys_values
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(attended.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, x.shape[-1] // self.heads)).transpose(-3, -2)


class Residual(nn.Module):
    """x <- LayerNorm(x + DropPath(branch)). The branch is computed by the caller."""

    def __init__(self, width: int, drop_path: float) -> None:
        super().__init__()
        self.drop_path = DropPath(drop_path)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        return self.norm(x + self.drop_path(branch))


class FeedForward(nn.Sequential):
    """Linear, ReLU, Linear with a hidden layer of ratio * width."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__(nn.Linear(width, ratio * width), nn.ReLU(), nn.Linear(ratio * width, width))


def projection(in_width: int, width: int, dropout: float) -> nn.Sequential:
    """Backbone features to the model's width, a stream's own (lineage: R2-Tuning)."""
    return nn.Sequential(
        nn.LayerNorm(in_width),
        nn.Dropout(dropout),
        nn.Linear(in_width, width),
        nn.ReLU(),
        nn.LayerNorm(width),
        nn.Dropout(dropout),
        nn.Linear(width, width),
    )


def at_least_float32(x: Tensor) -> Tensor:
    """Half types become float32; float32 and float64 stay. For coordinates, softmax and norms."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def sine_position(position: Tensor, width: int) -> Tensor:
    """Sine and cosine features of positions in 0..1, as DETR's normalised ones: [..., width], float32."""
    frequency = 10000 ** (torch.arange(width // 2, device=position.device, dtype=torch.float32) * (-2.0 / width))
    angle = position.float()[..., None] * (2 * math.pi) * frequency
    return torch.cat((angle.sin(), angle.cos()), dim=-1)
