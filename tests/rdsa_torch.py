"""What the torch tests of sdst::RDSA share, on the host and on a GPU. Needs torch, numpy and the table of cases only.

Shapes: B batch, T clips, M moments, F width, H heads, P points, E = 3 * 2 * H * P.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from rdsa_cases import CASES, RdsaCase, make_inputs
from torch import Tensor

from sdst_runtime.doctor.rdsa_oracle import rdsa_oracle

KINDS = {"float": torch.float32, "half": torch.float16, "bfloat16": torch.bfloat16}
MEDIUM_CASES = [case for case in CASES if case.T * case.M * case.B < 1e5]
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, int, int]


@cache
def expected(case: RdsaCase) -> np.ndarray:
    """The oracle's result in float64, B M F."""
    return rdsa_oracle(**make_inputs(case), num_heads=case.H, num_points=case.P)


def torch_inputs(case: RdsaCase, kind: torch.dtype = torch.float32, device: str = "cpu") -> Inputs:
    """The six arguments of the op."""
    value, *rest = (torch.from_numpy(array).to(device) for array in make_inputs(case).values())
    return value.to(kind), rest[0], rest[1], rest[2], case.H, case.P


def random_inputs(
    B: int, T: int, M: int, H: int, P: int, D: int, kind: torch.dtype = torch.float32, device: str = "cpu"
) -> Inputs:
    """Sound inputs of any size: full length, moments well inside the video, no NaN."""
    generator = torch.Generator().manual_seed(B + T + M)
    value = torch.randn(B, T, H * D, generator=generator).to(kind)
    endpoints = torch.randn(B, T, 6 * H * P, generator=generator) * 0.3
    reference = torch.rand(B, M, 2, generator=generator) * 0.4 + 0.3
    length = torch.full((B,), T, dtype=torch.int32)
    return (*(x.to(device) for x in (value, endpoints, reference)), length.to(device), H, P)  # type: ignore[return-value]


def require_close(out: Tensor, case: RdsaCase, kind: torch.dtype) -> None:
    """Float32: within the case's tolerance. Half types: no more than twice what rounding value and result costs."""
    assert out.dtype == kind
    assert out.is_contiguous()
    error = np.abs(out.double().cpu().numpy() - expected(case))
    if kind == torch.float32:
        assert error.max() <= case.tolerance
        return
    inputs = make_inputs(case)
    inputs["value"] = torch.from_numpy(inputs["value"]).to(kind).double().numpy()
    rounded = torch.from_numpy(rdsa_oracle(**inputs, num_heads=case.H, num_points=case.P)).to(kind).double().numpy()
    unavoidable = np.abs(rounded - expected(case))
    assert error.max() <= 2 * unavoidable.max()
    assert error.mean() <= 1.1 * unavoidable.mean() + case.tolerance


def strided_inputs(inputs: Inputs) -> Inputs:
    """The same values where value and endpoints are columns of one wider tensor, as one projection would make them."""
    value, endpoints, *rest = inputs
    wide = torch.full((*value.shape[:2], value.shape[2] + 32), torch.nan, dtype=value.dtype, device=value.device)
    wide[..., 16:-16] = value
    other = torch.full((endpoints.shape[0], endpoints.shape[1] + 3, endpoints.shape[2] + 5), torch.nan).to(endpoints)
    other[:, 2:-1, 3:-2] = endpoints
    return wide[..., 16:-16], other[:, 2:-1, 3:-2], *rest  # type: ignore[return-value]


def odd_inputs(name: str, inputs: Inputs) -> Inputs:
    """A copy of sound inputs with one thing spoilt."""
    value, endpoints, reference, length, H, P = inputs
    value, endpoints, reference, length = (x.clone() for x in (value, endpoints, reference, length))
    HP = H * P
    if name == "nan_centre":
        reference[0, 0, 0] = torch.nan
    elif name == "nan_width":
        reference[0, 0, 1] = torch.nan
    elif name == "infinite_centre":
        reference[0, 0, 0], reference[0, 1, 0] = torch.inf, -torch.inf
    elif name == "nan_offset":
        endpoints[:, :, 2 * HP] = torch.nan  # of the centre's row, head 0
    elif name == "nan_logit":
        endpoints[:, :, 3 * HP] = torch.nan
    elif name == "infinite_offset":
        endpoints[:, :, 2 * HP : 2 * HP + P] = torch.inf
        endpoints[:, :, 2 * HP + P : 2 * HP + 2 * P] = -torch.inf
    elif name == "nan_value":
        value[0, :, 0] = torch.nan
    elif name == "short_length":
        length[0], length[1] = 0, -3
    elif name == "long_length":
        length[0], length[1] = value.shape[1] + 5, 2**31 - 1
    return value, endpoints, reference, length, H, P


ODD = {  # what the outputs of moment m, head h of video b become; None: sound numbers all over
    "nan_centre": ("nan", (0, 0, slice(None))),
    "nan_width": ("nan", (0, 0, slice(None))),
    "infinite_centre": ("zero", (0, slice(0, 2), slice(None))),
    "nan_offset": ("nan", (slice(None), slice(None), 0)),
    "nan_logit": ("nan", (slice(None), slice(None), 0)),
    "infinite_offset": ("zero", (slice(None), slice(None), slice(0, 2))),
    "nan_value": ("nan", (0, slice(None), (0, 0))),
    "short_length": None,
    "long_length": None,
}


def require_odd(name: str, out_BMF: Tensor, sound_BMF: Tensor, H: int) -> None:
    """What was spoilt makes NaN or zero of the outputs that depend on it; all others are as without it."""
    out = out_BMF.float().cpu().reshape(*out_BMF.shape[:2], H, -1)
    sound = sound_BMF.float().cpu().reshape(out.shape)
    if ODD[name] is None:
        assert torch.isfinite(out).all()
        return
    becomes, (b, m, h) = ODD[name]  # type: ignore[misc]
    touched = torch.zeros_like(out, dtype=torch.bool)
    if isinstance(h, tuple):
        touched[b, m, h[0], h[1]] = True
    else:
        touched[b, m, h] = True
    assert touched.any()
    assert out[touched].isnan().all() if becomes == "nan" else not out[touched].any()
    assert torch.equal(out[~touched], sound[~touched])
