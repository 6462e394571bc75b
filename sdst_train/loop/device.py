"""Where a model runs and in what type its matrix products are: one choice for training, evaluation and extraction."""

from __future__ import annotations

from typing import Literal

import torch

from sdst_runtime.errors import InputError
from sdst_runtime.machine import DeviceChoice

Precision = Literal["auto", "fp32", "bf16", "fp16"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(device: DeviceChoice) -> torch.device:
    """`auto` is the first GPU if torch sees one, else the CPU. Raises InputError for a GPU that is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device: expected a CUDA GPU, and torch sees none; use --device cpu or install a CUDA torch")
    return torch.device("cpu" if device == "cpu" or not torch.cuda.is_available() else "cuda")


def choose_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """`auto` is bf16 on a GPU that has it, not one that emulates it, else fp32."""
    if precision != "auto":
        return precision
    has_it = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_it else "fp32"
