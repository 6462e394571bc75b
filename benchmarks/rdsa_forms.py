"""What benchmarks/rdsa.py measures: sizes, inputs, torch's forms of sdst::RDSA and the bytes that must be moved.

Shapes: B batch, T clips, M moments, H heads, P points a head, D depth, F = H * D, E = 3 * 2 * H * P.
Contract: plugins/README.md. Needs torch and sdst_train.model.rdsa, nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from sdst_runtime.errors import InputError
from sdst_train.model.rdsa import clip_index, endpoint_positions, sample_linear

H, P, D = 8, 4, 32  # the model's defaults
SECTOR = 32  # bytes: the least that a GPU reads from memory


@dataclass(frozen=True)
class Size:
    B: int
    T: int
    M: int

    def __str__(self) -> str:
        return f"B {self.B} T {self.T} M {self.M}"


@dataclass(frozen=True)
class Inputs:
    """value B T F, endpoints B T E, reference B M 2, length B; heads and points."""

    value: Tensor
    endpoints: Tensor
    reference: Tensor
    length: Tensor
    num_heads: int = H
    num_points: int = P

    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int]:
        return self.value, self.endpoints, self.reference, self.length, self.num_heads, self.num_points


def make_inputs(size: Size, device: torch.device, seed: int = 0) -> Inputs:
    """Half values, all clips valid; offsets as a fresh model's and some more, so that points lie around their moment.

    Offsets hardly change from clip to clip: else rounding of float32 indices would show when forms are compared.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, generator=generator)

    def even(least: float, most: float) -> Tensor:
        return least + (most - least) * torch.rand(size.B, size.M, device=device, generator=generator)

    endpoints = normal(size.B, size.T, 3, 2, H, P)
    endpoints[:, :, :, 0] *= min(0.1, 20 / size.T**2)
    endpoints[:, :, :, 0] += 0.1 * normal(size.B, 1, 3, H, P)
    head, point = torch.arange(H, device=device), torch.arange(1, P + 1, device=device)
    endpoints[:, :, 1, 0] += (torch.pi * head).cos()[:, None] * point / P
    return Inputs(
        normal(size.B, size.T, H * D).half(),
        endpoints.reshape(size.B, size.T, 6 * H * P),
        torch.stack((even(0.05, 0.95), even(0.02, 0.6)), -1),
        torch.full((size.B,), size.T, device=device, dtype=torch.int32),
    )


def grid_form(
    value: Tensor, endpoints: Tensor, reference: Tensor, length: Tensor, num_heads: int, num_points: int
) -> Tensor:
    """sdst::RDSA by torch's grid_sample, as deformable attention is written without a kernel: B M F.

    Only for samples of full length: grid_sample knows no other border than the tensor's. In float32, since grid_sample
    has its coordinates in the type of its input.
    """
    B, T, F = value.shape
    M = reference.shape[1]
    ends = endpoint_positions(reference).transpose(1, 2).reshape(B * 3, 1, M)
    columns = endpoints.reshape(B, T, 3, -1).permute(0, 2, 3, 1).reshape(B * 3, -1, 1, T)
    rows = functional.grid_sample(columns, _grid(ends), padding_mode="border", align_corners=False)
    offset, logit = rows.reshape(B, 3, 2, num_heads, num_points, M).sum(1).unbind(1)
    centre, width = reference[:, None, None].unbind(-1)
    location = (centre + offset * width / 2).reshape(B * num_heads, num_points, M)
    heads = value.float().reshape(B, T, num_heads, -1).permute(0, 2, 3, 1).reshape(B * num_heads, -1, 1, T)
    sampled = functional.grid_sample(heads, _grid(location), padding_mode="zeros", align_corners=False)
    weighted = sampled.reshape(B, num_heads, -1, num_points, M) * logit.softmax(2)[:, :, None]
    return weighted.sum(3).permute(0, 3, 1, 2).reshape(B, M, F).to(value.dtype)


def _grid(position: Tensor) -> Tensor:
    """Positions in 0..1 of the tensor's width, as grid_sample reads them: x in -1..1 and the middle of its one row."""
    return torch.stack((2 * position - 1, torch.zeros_like(position)), -1)


def moved_bytes(inputs: Inputs) -> int:
    """Bytes that any kernel must move for these inputs, were everything read once: the floor of its traffic.

    Unique 32-byte sectors of value and endpoints that have a share in the result, references, lengths and the result.
    Raises InputError when heads or ends do not fill whole sectors (D times the bytes of a value, and 8 * H * P).
    """
    value, endpoints, reference, length, heads, points = inputs.arguments()
    (B, T, F), M, width = value.shape, reference.shape[1], value.element_size()
    head_bytes, end_bytes = F // heads * width, 2 * heads * points * 4
    if head_bytes % SECTOR or end_bytes % SECTOR:
        raise InputError(
            f"expected heads and ends of whole {SECTOR}-byte sectors, got {head_bytes} and {end_bytes} bytes"
        )
    reference = reference.double()
    last = (length - 1).double()[:, None, None]
    ends_BM3 = clip_index(endpoint_positions(reference), length).clamp(min=0).minimum(last)
    rows_BT3 = torch.zeros(B, T, 3, dtype=torch.bool, device=value.device)
    _mark(rows_BT3, ends_BM3, length)
    location_BMHP = _locations(endpoints, reference, ends_BM3, length, heads, points)
    heads_BTH = torch.zeros(B, T, heads, dtype=torch.bool, device=value.device)
    _mark(heads_BTH, clip_index(location_BMHP, length).transpose(2, 3).reshape(B, M * points, heads), length)
    read = int(heads_BTH.sum()) * head_bytes + int(rows_BT3.sum()) * end_bytes
    return read + B * M * (F * width + 2 * 4) + B * 4


def _locations(
    endpoints: Tensor, reference: Tensor, ends_BM3: Tensor, length: Tensor, heads: int, points: int
) -> Tensor:
    B, T, _ = endpoints.shape
    by_end = endpoints.reshape(B, T, 3, 2, heads * points)[:, :, :, 0].double()
    offset = sum(sample_linear(by_end[:, :, end], ends_BM3[..., end], length, "border") for end in range(3))
    assert isinstance(offset, Tensor)
    centre, width = reference[:, :, None, None].unbind(-1)
    return centre + offset.reshape(B, -1, heads, points) * width / 2


def _mark(touched_BTC: Tensor, index_BNC: Tensor, length_B: Tensor) -> None:
    """Set what a linear interpolation at these clip indices reads: valid neighbours with a share above zero."""
    B, _, C = touched_BTC.shape
    batch = torch.arange(B, device=index_BNC.device)[:, None, None].expand_as(index_BNC)
    column = torch.arange(C, device=index_BNC.device).expand_as(index_BNC)
    low = index_BNC.floor()
    for clip in (low, low + 1):
        read = (clip >= 0) & (clip < length_B[:, None, None]) & ((index_BNC - clip).abs() < 1)
        touched_BTC[batch[read], clip[read].long(), column[read]] = True
