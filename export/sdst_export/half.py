"""Float16 written into the modules that are exported, so that what is exported also runs, and is compared, in torch.

Towers: weights and inputs of every matrix product are float16, so are the queries, keys and values of attention.
Float32 stay: pixels until they meet the first weight, the residual stream, LayerScale, positions, RMSNorm and
LayerNorm. The stream is what 40 blocks add to and what the features are read from: its outlier channels can leave the
range of float16, and the steps that the blocks add to them fall below its resolution.

Head: weights and activations are float16, also between the blocks, which are few and end in a LayerNorm each. Float32
stay: LayerNorm (so the raw features, which may be in the thousands, are normalised before they are rounded), softmax,
clip extents and sine positions until they meet the first product, references and what moves or reads them (the
context and the endpoint projection of RDSA, or the offsets of the other kinds; the last product of the span MLP), the
last products of the scores, whose halves would tie, and the cosine.

Modules that the caller names (`sdst export --keep-fp32`, the list of `sdst calibrate audit`) stay float32 as a whole,
and so does what they hand on, up to the next norm or product: a cast behind each would round, or overflow, what was
kept. An attention computes in one type: with one of its products all of it stays, and so does a patch embedding.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from sdst_train.backbone.vision import Attention, PatchEmbed, PoolAttention
from sdst_train.model.sdst import SDST

from .errors import ExportError

Precision = Literal["fp32", "fp16"]  # contracts.FP32, FP16
Tower = TypeVar("Tower", bound=nn.Module)


def half_products(tower: Tower, keep: Sequence[str] = ()) -> Tower:
    """A copy of `tower` that computes in float16 as the head of this file says; features stay float32.

    `keep` names modules that stay float32. The float32 weights of the products are not copied on the way. Raises
    ExportError when a weight exceeds float16 or a name of `keep` is no module.
    """
    kept = {id(p) for module in _named(tower, keep) for p in module.parameters()}
    tower = _with_halves(tower, ((name, p) for name, p in _product_weights(tower) if id(p) not in kept))
    floats = _and_below(_named(tower, keep))
    for module in floats:
        module.register_forward_pre_hook(_float_inputs)
    for module in tower.modules():
        if isinstance(module, nn.Embedding):
            module.register_forward_hook(_float_output)
        elif isinstance(module, _PRODUCTS) and module not in floats:
            module.register_forward_pre_hook(_half_inputs)
    return tower


def half_head(model: SDST, keep: Sequence[str] = ()) -> SDST:
    """A copy of a lowered `model` that computes in float16 as the head of this file says.

    `keep` names modules that stay float32. Takes float32 video and text; `project` gives float16, unless its last
    product is kept, the moments, scores and saliency are float32. Raises ExportError when a weight exceeds float16 or
    a name of `keep` is no module.
    """
    floats = [*_float_modules(model), *_named(model, keep)]
    kept = {id(p) for module in floats for p in module.parameters()}
    kept |= {id(model.sparse.reference_logit), id(model.dense.gate)}
    halved = _with_halves(model, ((name, p) for name, p in model.named_parameters() if id(p) not in kept))
    asked = _and_below(_named(halved, keep))
    for module in asked.union(_float_modules(halved)):
        module.register_forward_pre_hook(_float_inputs)
        if isinstance(module, nn.LayerNorm) and module not in asked:
            module.register_forward_hook(_half_output)
    if keep:
        for module in _half_products_of(halved):
            module.register_forward_pre_hook(_half_inputs)
    return halved


def kept_modules(model: nn.Module, keep: Sequence[str]) -> tuple[str, ...]:
    """The paths that stay float32 when `keep` is asked for: each once, an attention in place of one of its products.

    Raises ExportError when a name of `keep` is no module of `model`.
    """
    modules = dict(model.named_modules())
    unknown = sorted(name for name in keep if name not in modules or not name)
    if unknown:
        near = difflib.get_close_matches(unknown[0], modules, 1)
        hint = f"did you mean {near[0]}?" if near else "take the names from  sdst calibrate audit"
        raise ExportError(f"keep in fp32: {unknown[0]!r} is no module of the {type(model).__name__}; {hint}")
    parents = {name: name.rpartition(".")[0] for name in keep}
    return tuple(dict.fromkeys(parents[name] if _of_one_type(modules[parents[name]]) else name for name in keep))


_PRODUCTS = (nn.Linear, PatchEmbed, PoolAttention)
_SAMPLING = ("context", "endpoints", "offset", "logit")  # what says where RDSA and the deformable attention look


def _product_weights(tower: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for prefix, module in tower.named_modules():
        if isinstance(module, (*_PRODUCTS, nn.Embedding)):
            yield from module.named_parameters(prefix)


def _float_modules(model: SDST) -> list[nn.Module]:
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    sampling = [module for name, module in model.sparse.sample.named_children() if name in _SAMPLING]
    scores = [model.classify, model.actionness.mlp[-1], *([] if model.presence is None else [model.presence.mlp[-1]])]
    return [*norms, *sampling, model.sparse.span[-1], *scores]


def _named(model: nn.Module, keep: Sequence[str]) -> list[nn.Module]:
    return [model.get_submodule(name) for name in kept_modules(model, keep)]


def _of_one_type(module: nn.Module) -> bool:
    """Whether its parts compute together: an attention, ours or BERT's, or a patch embedding."""
    return isinstance(module, (Attention, PoolAttention, PatchEmbed)) or {"query", "key", "value"} <= {
        name for name, _ in module.named_children()
    }


def _and_below(modules: Iterable[nn.Module]) -> set[nn.Module]:
    return {below for module in modules for below in module.modules()}


def _half_products_of(model: SDST) -> list[nn.Module]:
    """Modules with a float16 weight that meets the stream, which what was kept may have left in float32."""
    products = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv1d))]
    return [module for module in products if module.weight.dtype == torch.float16]


def _with_halves(module: Tower, parameters: Iterable[tuple[str, nn.Parameter]]) -> Tower:
    """A copy with float16 in place of `parameters`. Raises ExportError naming one that does not fit."""
    halves = {}
    for name, parameter in parameters:
        half = parameter.detach().half()
        if not half.isfinite().all():
            raise ExportError(
                f"{name} does not fit float16: largest {parameter.abs().max():.3g}; "
                "keep its module in fp32 (--keep-fp32)"
            )
        halves[id(parameter)] = nn.Parameter(half, requires_grad=False)
    return copy.deepcopy(module, halves)


def _half_inputs(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.half() for x in inputs)


def _float_inputs(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)


def _float_output(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.float()


def _half_output(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.half()
