"""The custom op `torch.ops.sdst.rdsa`: sdst::RDSA for eager and compiled torch models and CUDA graphs.

On a GPU it is the compiled kernel, called through its C API on torch's current stream; on a CPU, and where no library
was built, the gather form of `sdst_train.model.rdsa`. Importing this module defines the op. Contract:
plugins/README.md. Shapes: B batch, T clips, M moments, H heads, P points, D depth, F = H * D, E = 3 * 2 * H * P.

On a GPU nothing is copied when value is float32, float16 or bfloat16 with 16-byte aligned rows, endpoints and reference
are float32 and length is int32. Other types of endpoints, reference and length are converted and rows that the kernel
cannot read are made contiguous, each by one more kernel. What it does not compute (other types of value, depths other
than 16, 32 and 64, more than 16 points) is an InputError: `sdst_train.model.rdsa.rdsa` computes those.
"""

from __future__ import annotations

import logging
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from sdst_runtime.errors import DependencyError, InputError
from sdst_runtime.sessions.plugin_library import TYPES, RdsaLibrary, RdsaProblem, open_plugin_library, rdsa_sizes

from .layers import at_least_float32
from .rdsa import RdsaOp, rdsa

_TYPES = {torch.float32: TYPES["float32"], torch.float16: TYPES["float16"], torch.bfloat16: TYPES["bfloat16"]}
_logger = logging.getLogger(__name__)


def gather_form(
    value: Tensor, endpoints: Tensor, reference: Tensor, length: Tensor, num_heads: int, num_points: int
) -> Tensor:
    """The op by torch's own kernels, for any device and type: B M F in the type of value.

    Unlike `rdsa` it treats odd inputs as the compiled kernel does: a length outside 1..T is read as the nearer of
    the two, and half endpoints and references are used in float32.
    """
    out = rdsa(
        value, at_least_float32(endpoints), at_least_float32(reference), length.clamp(1, value.shape[1]), num_heads,
        num_points,
    )  # fmt: skip
    return out.contiguous()


def call_library(
    library: RdsaLibrary,
    value: Tensor,
    endpoints: Tensor,
    reference: Tensor,
    length: Tensor,
    num_heads: int,
    num_points: int,
    stream: int = 0,
) -> Tensor:
    """The op by a compiled library, B M F: CUDA tensors for the CUDA library, CPU tensors for the host library.

    `stream` is a cudaStream_t as an integer. Allocates the result and does not synchronise; raises InputError for what
    the library does not compute, DeviceError when the launch fails.
    """
    kind = _TYPES.get(value.dtype)
    if kind is None:
        raise InputError(
            f"sdst::RDSA: value: expected float32, float16 or bfloat16, got {value.dtype}; use the gather form"
        )
    if not value.device == endpoints.device == reference.device == length.device:
        devices = ", ".join(str(x.device) for x in (value, endpoints, reference, length))
        raise InputError(f"sdst::RDSA: expected all inputs on one device, got {devices}")
    B, T, M, D = rdsa_sizes(value.shape, endpoints.shape, reference.shape, length.shape, num_heads, num_points)
    out = value.new_empty((B, M, num_heads * D))
    value = _readable(value, 16)
    endpoints = _readable(_of_type(endpoints, torch.float32), 4)
    reference = _aligned(_of_type(reference, torch.float32).contiguous(), 8)
    length = _of_type(length, torch.int32).contiguous()
    problem = RdsaProblem(
        value.data_ptr(), endpoints.data_ptr(), reference.data_ptr(), length.data_ptr(), out.data_ptr(),
        B, T, M, num_heads, num_points, D, kind, *_row_strides(value), *_row_strides(endpoints),
    )  # fmt: skip
    library.rdsa(problem, stream)
    return out


def _readable(x: Tensor, alignment: int) -> Tensor:
    """`x`, or a copy when its rows are not whole, overlap or do not begin at multiples of `alignment` bytes."""
    if x.is_contiguous():  # nearly always
        return _aligned(x, alignment)
    strides, row, size = _row_strides(x), x.shape[-1], x.element_size()
    whole = x.stride(-1) == 1 and all(stride == 0 or stride >= row for stride in strides)
    if whole and all(stride * size % alignment == 0 for stride in strides):
        return _aligned(x, alignment)
    return x.clone(memory_format=torch.contiguous_format)


def _aligned(x: Tensor, alignment: int) -> Tensor:
    return x if x.data_ptr() % alignment == 0 else x.clone(memory_format=torch.contiguous_format)


def _of_type(x: Tensor, kind: torch.dtype) -> Tensor:
    return x if x.dtype == kind else x.to(kind)


def _row_strides(x: Tensor) -> tuple[int, int]:
    """Elements from row to row over B and T; 0 where there is one row, whose stride means nothing."""
    (batch, clip, _), (B, T, _) = x.stride(), x.shape
    return (batch if B > 1 else 0), (clip if T > 1 else 0)


def _on_cpu(
    value: Tensor, endpoints: Tensor, reference: Tensor, length: Tensor, num_heads: int, num_points: int
) -> Tensor:
    rdsa_sizes(value.shape, endpoints.shape, reference.shape, length.shape, num_heads, num_points)
    return gather_form(value, endpoints, reference, length, num_heads, num_points)


def _on_cuda(
    value: Tensor, endpoints: Tensor, reference: Tensor, length: Tensor, num_heads: int, num_points: int
) -> Tensor:
    return _cuda_form()(value, endpoints, reference, length, num_heads, num_points)


@cache
def _cuda_form() -> RdsaOp:
    """Chosen at the first call. A missing library is a warning; one that is there and cannot be used is an error."""
    try:
        library = open_plugin_library("cuda")
    except DependencyError as error:
        _logger.warning("sdst::RDSA runs in its slow gather form: %s", error)
        return _on_cpu
    return partial(_launch, library)


def _launch(library: RdsaLibrary, value: Tensor, *inputs: Any) -> Tensor:
    with torch.cuda.device(value.device):
        return call_library(library, value, *inputs, stream=torch.cuda.current_stream().cuda_stream)


def _fake(
    value: Tensor, endpoints: Tensor, reference: Tensor, length: Tensor, num_heads: int, num_points: int
) -> Tensor:
    return value.new_empty((value.shape[0], reference.shape[1], value.shape[2]))


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.num_heads, ctx.num_points = inputs[4:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of value, endpoints and reference, by the gather form computed again."""
    *inputs, length = ctx.saved_tensors
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = [x.view_as(x) for x in inputs]  # nodes of their own, also where one input was computed from another
        out = gather_form(*inputs, length, ctx.num_heads, ctx.num_points)
    wanted = [x for x, needed in zip(inputs, ctx.needs_input_grad) if needed]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=differentiable))
    return *(next(found) if needed else None for needed in ctx.needs_input_grad[:3]), None, None, None


_library = torch.library.Library("sdst", "FRAGMENT")  # the op lives as long as this
_library.define(
    "rdsa(Tensor value, Tensor endpoints, Tensor reference, Tensor length, int num_heads, int num_points) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.impl("rdsa", _on_cpu, "CPU")
_library.impl("rdsa", _on_cuda, "CUDA")
torch.library.register_fake("sdst::rdsa", _fake, lib=_library)
torch.library.register_autograd("sdst::rdsa", _backward, setup_context=_save_for_backward, lib=_library)
