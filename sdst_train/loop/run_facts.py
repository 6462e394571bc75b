"""What run.json says about a run: versions, machine, sizes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

import torch

from sdst_runtime.data.dataset import Sample
from sdst_runtime.distribution import own_version
from sdst_runtime.machine import machine_facts

from ..model.sdst import SDST, parameter_count
from .distributed import Team


def start_facts(model: SDST, team: Team, train: Sequence[Sample], val: Sequence[Sample]) -> dict[str, Any]:
    """Known before the first step."""
    machine = dict(machine_facts())
    if team.device.type == "cuda":
        machine["GPU"] = torch.cuda.get_device_name(team.device)
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {"sdst": own_version(), "torch": torch.__version__, "numpy": version("numpy")},
        "machine": machine,
        "parameters": parameter_count(model),
        "train_queries": len(train),
        "val_queries": len(val),
        "world_size": team.world,
    }
