"""A trained model as torch serves it where there is no TensorRT: RDSA by the compiled kernel, weights in half."""

from __future__ import annotations

import copy

import torch

import sdst_train.model.rdsa_op  # noqa: F401  defines torch.ops.sdst.rdsa
from sdst_runtime.contracts import FP16, FP32
from sdst_runtime.sessions.base import Session
from sdst_runtime.sessions.plugin_library import DEPTHS, MOST_HEADS, MOST_POINTS
from sdst_train.config import ModelConfig
from sdst_train.model.sdst import SDST
from sdst_train.model.torch_session import TorchSession

from .half import Precision, half_head


def serving_model(model: SDST, device: torch.device, precision: Precision = FP32, *, kernel: bool = True) -> SDST:
    """A copy of a trained `model` on `device`, RDSA lowered, in the types that an export in `precision` has.

    With `kernel` RDSA is torch.ops.sdst.rdsa: on a GPU the compiled kernel. Else, and for sizes that the kernel does
    not compute, it is the gather form. Raises ExportError when a weight exceeds float16.
    """
    served = copy.deepcopy(model).eval()
    served.lower(torch.ops.sdst.rdsa if kernel and _kernel_computes(model.config) else None)
    return (half_head(served) if precision == FP16 else served).to(device)


def _kernel_computes(config: ModelConfig) -> bool:
    fits = config.heads <= MOST_HEADS and config.points <= MOST_POINTS
    return fits and config.width // config.heads in DEPTHS


def torch_sessions(model: SDST, *, compiled: bool = False, graphs: int = 0) -> dict[str, Session]:
    """Both halves of a served model, "projection" and "head", as a bundle has them; `graphs` as in TorchSession.

    `compiled`: through torch.compile, anew for every shape, as dynamic shapes fail on a CPU (torch 2.13).
    """
    if compiled:
        model.project = torch.compile(model.project, dynamic=False)
        model.ground_projected = torch.compile(model.ground_projected, dynamic=False)
    return {
        "projection": TorchSession(model, "projection", graphs=graphs),
        "head": TorchSession(model, "head", graphs=graphs),
    }
