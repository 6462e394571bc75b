"""RDSA, the reference-based deformable self-attention of the sparse stream, in its two equal forms.

`RDSA` is factored, as it trains: queries are built from the dense embeddings at a moment's left end, centre and right
end, and predict where to sample. `LoweredRDSA` is the same function with every linear map moved before the gather, so
that what remains after two projections of the dense embeddings is one light kernel, `rdsa`: the custom op sdst::RDSA.

Shapes: B batch, T clips, M moments, F width, H heads, P points a head, D = F / H.
A position x in 0..1 of a video of n valid clips is the clip index x * n - 0.5.
Source: method of the paper (arXiv 2507.07744) as far as its abstract states it; the rest is this project's choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from .layers import at_least_float32


def sample_linear(x_BTC: Tensor, index_BN: Tensor, length_B: Tensor, padding: Literal["border", "zeros"]) -> Tensor:
    """Read rows of x at fractional clip indices: two gathers and a blend, B N C in the type of x.

    `border` clamps the index to the valid clips; `zeros` fades to zero outside them, as grid_sample does with
    align_corners=False. Rows at or beyond `length_B` are never read.
    """
    low, high, weight_low, weight_high = _neighbours(index_BN, length_B, padding)
    return (
        _rows(x_BTC, low) * weight_low[..., None].to(x_BTC.dtype)
        + _rows(x_BTC, high) * weight_high[..., None].to(x_BTC.dtype)
    )  # fmt: skip


def linear_weights(index_BN: Tensor, length_B: Tensor, clips: int) -> Tensor:
    """`sample_linear` with padding "zeros" as a matrix B N T of T = `clips`, whose product with x B T C it is.

    Cheaper than the gathers where C is large and T is not; rows beyond `length_B` are read, with weight zero.
    """
    low, high, weight_low, weight_high = _neighbours(index_BN, length_B, "zeros")
    nothing = weight_low.new_zeros((*index_BN.shape, clips))
    # adding at low and high apart: at the ends both are the same clip
    return nothing.scatter(2, low[..., None], weight_low[..., None]).scatter_add(
        2, high[..., None], weight_high[..., None]
    )


def _neighbours(
    index_BN: Tensor, length_B: Tensor, padding: Literal["border", "zeros"]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The clips around an index, int64, and their weights."""
    last = (length_B.to(index_BN.dtype) - 1)[:, None]
    zero = torch.zeros_like(last)
    if padding == "border":
        index_BN = torch.minimum(torch.maximum(index_BN, zero), last)
    else:  # beyond these bounds both neighbours are outside: the blend is zero either way
        index_BN = torch.minimum(torch.maximum(index_BN, zero - 1), last + 1)
    low = index_BN.floor()
    high = low + 1
    fraction = index_BN - low
    weight_low, weight_high = 1 - fraction, fraction
    if padding == "zeros":
        weight_low = weight_low * ((low >= 0) & (low <= last))
        weight_high = weight_high * ((high >= 0) & (high <= last))
    return _clip_number(low, last), _clip_number(high, last), weight_low, weight_high


def _clip_number(index_BN: Tensor, last_B1: Tensor) -> Tensor:
    """NaN, of a model that diverged, must reach the loss and not fault here."""
    return torch.minimum(index_BN, last_B1).long().clamp(min=0)


def _rows(x_BTC: Tensor, row_BN: Tensor) -> Tensor:
    return x_BTC.gather(1, row_BN[..., None].expand(-1, -1, x_BTC.shape[-1]))


def clip_index(position: Tensor, length_B: Tensor) -> Tensor:
    """Fractional clip index of positions in 0..1 of the valid length; any shape that starts with B."""
    n = length_B.to(position.dtype).reshape(-1, *[1] * (position.dim() - 1))
    return position * n - 0.5


def endpoint_positions(reference_BM2: Tensor) -> Tensor:
    """Left end, centre and right end of each moment, clamped to the video: B M 3."""
    centre, width = reference_BM2.unbind(-1)
    return torch.stack((centre - width / 2, centre, centre + width / 2), dim=-1).clamp(0, 1)


def deform(
    value_BTF: Tensor, offset_BMHP: Tensor, logit_BMHP: Tensor, reference_BM2: Tensor, length_B: Tensor
) -> Tensor:
    """Sample value at centre + offset * width / 2 for each head and point, and sum by softmax(logit): B M F.

    Offsets are in half-widths of the moment. Coordinates stay in the type of `reference_BM2`; interpolation, softmax
    and sum are in float32 at least, the result in the type of value.
    """
    B, M, H, P = offset_BMHP.shape
    T, F = value_BTF.shape[1:]
    D = F // H
    centre, width = reference_BM2.unbind(-1)
    location = centre[..., None, None] + offset_BMHP.to(centre.dtype) * (width / 2)[..., None, None]
    index = clip_index(location, length_B).transpose(1, 2).reshape(B * H, M * P)
    value = at_least_float32(value_BTF).reshape(B, T, H, D).transpose(1, 2).reshape(B * H, T, D)
    length_BH = length_B[:, None].expand(B, H).reshape(B * H)
    sampled = sample_linear(value, index, length_BH, "zeros").reshape(B, H, M, P, D)
    weight = at_least_float32(logit_BMHP).softmax(-1).transpose(1, 2)[..., None].to(sampled.dtype)
    return (sampled * weight).sum(3).transpose(1, 2).reshape(B, M, F).to(value_BTF.dtype)


def rdsa(
    value_BTF: Tensor, endpoints_BTE: Tensor, reference_BM2: Tensor, length_B: Tensor, num_heads: int, num_points: int
) -> Tensor:
    """The custom op sdst::RDSA in gather form, for any device and type that torch has: B M F.

    value B T F; endpoints B T 3*2*H*P (for the left end, centre and right end: H*P offsets in half-widths, then H*P
    logits; the three interpolated rows add up); reference B M 2 (centre, width, fractions of the valid length);
    length B (valid clips, at least 1; clips beyond it are never read).
    """
    B, _, E = endpoints_BTE.shape
    M = reference_BM2.shape[1]
    index = clip_index(endpoint_positions(reference_BM2), length_B)
    third = E // 3
    rows = sum(
        sample_linear(endpoints_BTE[..., i * third : (i + 1) * third], index[..., i], length_B, "border")
        for i in range(3)
    )
    assert isinstance(rows, Tensor)
    offset, logit = rows.reshape(B, M, 2, num_heads, num_points).unbind(2)
    return deform(value_BTF, offset, logit, reference_BM2, length_B)


class RDSA(nn.Module):
    """Factored form. forward(dense B T F, mask B T, reference B M 2, length B, seen B T F) -> B M F.

    `seen` is what queries are built from: dense, or dense with the positions of its clips. The convolution is
    depth-wise, or over all channels with `full_context`.
    """

    def __init__(self, width: int, heads: int, points: int, full_context: bool = False) -> None:
        super().__init__()
        self.heads, self.points = heads, points
        self.context = nn.Conv1d(width, width, 3, padding=1, groups=1 if full_context else width)
        self.query = nn.Linear(3 * width, width)
        self.offset = nn.Linear(width, heads * points)
        self.logit = nn.Linear(width, heads * points)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        init_sampling(self.offset, self.logit, heads, points)

    def forward(
        self, dense_BTF: Tensor, mask_BT: Tensor, reference_BM2: Tensor, length_B: Tensor, seen_BTF: Tensor
    ) -> Tensor:
        context_BTF = masked_context(self.context, seen_BTF, mask_BT)
        index_BM3 = clip_index(endpoint_positions(reference_BM2), length_B)
        B, M, _ = index_BM3.shape
        ends_BM3F = sample_linear(context_BTF, index_BM3.reshape(B, M * 3), length_B, "border").reshape(B, M, -1)
        query_BMF = self.query(ends_BM3F)
        offset = self.offset(query_BMF).reshape(B, M, self.heads, self.points) / self.points
        logit = self.logit(query_BMF).reshape(B, M, self.heads, self.points)
        return self.out(deform(self.value(dense_BTF), offset, logit, reference_BM2, length_B))


RdsaOp = Callable[[Tensor, Tensor, Tensor, Tensor, int, int], Tensor]


class LoweredRDSA(nn.Module):
    """Lowered form of a trained `RDSA`, equal to it in exact arithmetic; `op` computes sdst::RDSA.

    endpoints = context [W_l | W_c | W_r], where W_e is the factored query map of one end followed by the offset (over
    P) and logit maps. Interpolation with border clamp has weights that sum to one, so the bias may join any one end: c.
    """

    def __init__(self, factored: RDSA, op: RdsaOp = rdsa) -> None:
        super().__init__()
        self.heads, self.points, self.op = factored.heads, factored.points, op
        self.context, self.value, self.out = factored.context, factored.value, factored.out
        width = factored.value.in_features
        predict = torch.cat((factored.offset.weight / self.points, factored.logit.weight))  # 2HP F
        bias = torch.cat((factored.offset.bias / self.points, factored.logit.bias))
        ends = [predict @ factored.query.weight[:, i * width : (i + 1) * width] for i in range(3)]
        end_bias = predict @ factored.query.bias + bias
        self.endpoints = nn.Linear(width, 3 * len(bias), device=bias.device, dtype=bias.dtype)
        self.endpoints.weight = nn.Parameter(torch.cat(ends).detach())
        self.endpoints.bias = nn.Parameter(
            torch.cat((torch.zeros_like(end_bias), end_bias, torch.zeros_like(end_bias))).detach()
        )

    def forward(
        self, dense_BTF: Tensor, mask_BT: Tensor, reference_BM2: Tensor, length_B: Tensor, seen_BTF: Tensor
    ) -> Tensor:
        endpoints = self.endpoints(masked_context(self.context, seen_BTF, mask_BT))
        return self.out(
            self.op(self.value(dense_BTF), endpoints, reference_BM2, length_B, self.heads, self.points)
        )  # fmt: skip


class DeformableCrossAttention(nn.Module):
    """The ablation: offsets and weights predicted from the moment embeddings, as in Deformable DETR."""

    def __init__(self, width: int, heads: int, points: int) -> None:
        super().__init__()
        self.heads, self.points = heads, points
        self.offset = nn.Linear(width, heads * points)
        self.logit = nn.Linear(width, heads * points)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        init_sampling(self.offset, self.logit, heads, points)

    def forward(self, query_BMF: Tensor, dense_BTF: Tensor, reference_BM2: Tensor, length_B: Tensor) -> Tensor:
        """query (position added) B M F, dense B T F, reference B M 2, length B -> B M F."""
        B, M, _ = query_BMF.shape
        offset = self.offset(query_BMF).reshape(B, M, self.heads, self.points) / self.points
        logit = self.logit(query_BMF).reshape(B, M, self.heads, self.points)
        return self.out(deform(self.value(dense_BTF), offset, logit, reference_BM2, length_B))


def masked_context(conv: nn.Conv1d, dense_BTF: Tensor, mask_BT: Tensor) -> Tensor:
    """A convolution over time that sees zeros where the video ends, as at its start: B T F."""
    masked = dense_BTF.masked_fill(~mask_BT[..., None], 0)
    return conv(masked.transpose(1, 2)).transpose(1, 2)


def init_sampling(offset: nn.Linear, logit: nn.Linear, heads: int, points: int) -> None:
    """Heads start looking left and right by turns, points farther and farther out; weights start uniform."""
    angle = 4 * math.pi * torch.arange(heads) / heads
    nn.init.zeros_(offset.weight)
    nn.init.zeros_(logit.weight)
    nn.init.zeros_(logit.bias)
    with torch.no_grad():
        offset.bias.copy_((angle.cos()[:, None] * torch.arange(1, points + 1)).flatten())
