"""The floor of a training step: its products alone, forward and backward, back to back with the same threads.

In it are the products of all linear maps and of batches (with their two backward products; a bias is added by the same
call), the attentions and the convolution over time. Not in it: gathers, norms, dropout, activations, losses, gradients
added up, the optimiser. The products are recorded while a step runs; each distinct one is repeated, with the tensors of
its first call, as often as the step has it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")
_ATTENTION = "_scaled_dot_product"  # begins the names of its kernels, forward and backward


def products_alone(step: Callable[[], object]) -> tuple[Callable[[], None], int]:
    """A call that runs the products of `step`, which is run once, and how many they are."""
    with _Recorder() as recorder:
        step()
    calls = list(recorder.calls.values())

    def run() -> None:
        for function, args, kwargs, count in calls:
            for _ in range(count):
                function(*args, **kwargs)

    return torch.no_grad()(run), sum(count for *_, count in calls)


class _Recorder(TorchDispatchMode):
    """Products by kernel, shapes and strides: the kernel, the arguments of the first call, and how many there were."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any], int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        name = function.overloadpacket.__name__
        if name in _PRODUCTS or name.startswith(_ATTENTION):
            kind = repr(tree_map_only(torch.Tensor, lambda x: (*x.shape, *x.stride(), x.dtype), (name, args, kwargs)))
            *call, count = self.calls.get(kind, (function, *_kept((args, kwargs)), 0))
            self.calls[kind] = (call[0], call[1], call[2], count + 1)
        return out


def _kept(arguments: Any) -> Any:
    return tree_map_only(torch.Tensor, torch.Tensor.detach, arguments)
