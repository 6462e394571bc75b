"""How scaled_dot_product_attention is written into ONNX: softmax in float32, whatever the type of the products.

That is what torch computes: its kernels keep the sums of the softmax in float32 for half queries too. torch.onnx's own
translation would take the softmax in half, and reshapes the keys back and forth besides.

Shape letters: B batch, H heads, M queries, N keys, D channels a head.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from onnxscript import ir, opset20

from .errors import ExportError

op: Any = opset20  # its stubs type every operator by what the ONNX schema lists, which no program satisfies
Tensor = Any  # an ir.Value while onnxscript traces
_FLOAT = int(ir.DataType.FLOAT)
_LEAST = float(np.finfo(np.float32).min)


def attention(
    query_BHMD: Tensor,
    key_BHND: Tensor,
    value_BHND: Tensor,
    attn_mask: Tensor = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(query key^T / sqrt(D)) value; `attn_mask` (bool, B 1 M N) says which keys count."""
    if dropout_p or is_causal or enable_gqa:
        raise ExportError(f"attention: not exported with {dropout_p=}, {is_causal=}, {enable_gqa=}")
    factor = float(query_BHMD.shape[-1]) ** -0.5 if scale is None else scale
    scaled = op.Mul(query_BHMD, op.Constant(value=ir.tensor(factor, dtype=query_BHMD.dtype)))
    scores = op.Cast(op.MatMul(scaled, op.Transpose(key_BHND, perm=[0, 1, 3, 2])), to=_FLOAT)
    if attn_mask is not None:
        scores = op.Where(attn_mask, scores, op.Constant(value_float=_LEAST))
    weights = op.Cast(op.Softmax(scores, axis=-1), to=int(value_BHND.dtype))
    return op.MatMul(weights, value_BHND)


TRANSLATIONS = {torch.ops.aten.scaled_dot_product_attention.default: attention}
