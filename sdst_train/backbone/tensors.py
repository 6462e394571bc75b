"""What is wrong with the tensors of a file, said in one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def tensor_faults(wanted: Mapping[str, Tensor], found: Mapping[str, Any], dtypes: tuple[torch.dtype, ...]) -> list[str]:
    """A phrase for each tensor that is missing, unexpected, or of another shape or type; empty when all fit."""
    faults = [f"missing {name}" for name in wanted if name not in found]
    faults += [f"unexpected {name}" for name in found if name not in wanted]
    for name in wanted:
        if name not in found:
            continue
        tensor = found[name]
        if not isinstance(tensor, Tensor):
            faults.append(f"{name} expected a tensor, got {type(tensor).__name__}")
        elif wanted[name].shape != tensor.shape:
            faults.append(f"{name} expected shape {tuple(wanted[name].shape)}, got {tuple(tensor.shape)}")
        elif tensor.dtype not in dtypes:
            names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            faults.append(f"{name} expected {names}, got {tensor.dtype}")
    return faults


_HOLDERS = ("state_dict", "model_state_dict", "module", "model")  # what trainers keep a state dict under
_PREFIXES = ("module.", "_orig_mod.", "model.", "state_dict.")  # of DistributedDataParallel, torch.compile, Lightning


def unwrapped(stored: Mapping[Any, Any]) -> dict[str, Any]:
    """The state dict in what was stored, its names without the prefixes that wrappers of a model give to all."""
    for _ in _HOLDERS:  # nested in each other at most
        stored = next((stored[key] for key in _HOLDERS if isinstance(stored.get(key), dict)), stored)
    names = {str(name): value for name, value in stored.items()}
    while prefix := next((prefix for prefix in _PREFIXES if names and all(map(_begins(prefix), names))), None):
        names = {name.removeprefix(prefix): value for name, value in names.items()}
    return names


def _begins(prefix: str) -> Callable[[str], bool]:
    return lambda name: name.startswith(prefix)


def first_ten(items: list[str], what: str) -> str:
    """The first ten items, and how many there are when there are more."""
    listed = "; ".join(items[:10])
    return listed if len(items) <= 10 else f"{listed}; ... ({len(items)} {what} in all)"
