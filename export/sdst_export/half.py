"""Towers whose matrix products are float16, and nothing else.

Weights and inputs of every matrix product are float16, so are the queries, keys and values of attention. Float32 stay:
pixels until they meet the first weight, the residual stream, LayerScale, positions, RMSNorm and LayerNorm. The stream
is what 40 blocks add to and what the features are read from: its outlier channels can leave the range of float16, and
the steps that the blocks add to them fall below its resolution. Against the products its traffic is small.

It is done to the torch modules, so what is exported also runs, and can be compared, in torch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import Tensor, nn

from sdst_train.backbone.vision import PatchEmbed, PoolAttention

from .errors import ExportError

Tower = TypeVar("Tower", bound=nn.Module)


def half_products(tower: Tower) -> Tower:
    """A copy of `tower` that computes in float16 as the head of this file says; features stay float32.

    The float32 weights of the products are not copied on the way. Raises ExportError when a weight exceeds float16.
    """
    halves = {}
    for name, parameter in _product_weights(tower):
        half = parameter.half()
        if not half.isfinite().all():
            raise ExportError(f"{name} does not fit float16: largest {parameter.abs().max():.3g}; export it in fp32")
        halves[id(parameter)] = nn.Parameter(half, requires_grad=False)
    tower = copy.deepcopy(tower, halves)
    for module in tower.modules():
        if isinstance(module, nn.Embedding):
            module.register_forward_hook(_float_output)
        elif isinstance(module, _PRODUCTS):
            module.register_forward_pre_hook(_half_inputs)
    return tower


_PRODUCTS = (nn.Linear, PatchEmbed, PoolAttention)


def _product_weights(tower: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for prefix, module in tower.named_modules():
        if isinstance(module, (*_PRODUCTS, nn.Embedding)):
            yield from module.named_parameters(prefix)


def _half_inputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.half() for x in inputs)


def _float_output(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.float()
