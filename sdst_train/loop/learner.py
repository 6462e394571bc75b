"""The model while it learns: one update a batch, averaged weights beside the raw ones, and all of it as a state.

Random numbers of a step depend on (seed, step, rank) alone, so a run that resumes draws what it would have drawn.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from sdst_runtime.errors import InputError

from ..config import TrainConfig
from ..model.rdsa import RDSA, DeformableCrossAttention
from ..model.sdst import SDST
from .batches import Batch
from .checkpoint import load_weights
from .device import DTYPES, choose_precision
from .distributed import ALONE, Team
from .losses import compute_losses


class Learner:
    """SDST, its optimiser, gradient scaler and averaged weights.

    `model` is what the optimiser changes; `averaged` is what is evaluated, saved and exported (without averaging the
    same module). `steps` is the length of the whole run, for the schedule.
    """

    def __init__(self, config: TrainConfig, steps: int, team: Team = ALONE) -> None:
        """`config.precision` must be resolved, see `resolve_precision`."""
        torch.manual_seed(config.seed)
        self.config, self.steps, self.team = config, steps, team
        self.model = SDST(config.model).to(team.device)
        self._average = _averaged(self.model, config.ema_decay) if config.ema_decay else None
        self.optimizer = make_optimizer(self.model, config)
        self.scaler = torch.amp.GradScaler(team.device.type, enabled=config.precision == "fp16")
        if config.compile:
            self.model.compile(dynamic=False)  # batches come in few shapes then, see data.COMPILED_MULTIPLES
        self._forward: nn.Module = self.model
        if team.world > 1:
            # Looking for unused parameters keeps DDP from rebuilding its buckets after the first step, which would add
            # up gradients in another order in a run that was resumed.
            self._forward = DistributedDataParallel(self.model, find_unused_parameters=True)

    @property
    def averaged(self) -> SDST:
        """The weights to evaluate, save and export."""
        return self.model if self._average is None else cast(SDST, self._average.module)

    def update(self, batch: Batch, step: int) -> dict[str, float]:
        """One step, counted from 1: each weighted loss over the whole team's batch and their sum under "loss".

        Raises InputError when the loss is not finite; nothing has changed then.
        """
        torch.manual_seed(step_seed(self.config.seed, step, self.team.rank))
        self.model.train()
        dtype = DTYPES[self.config.precision]
        with torch.autocast(self.team.device.type, dtype, enabled=dtype != torch.float32):
            out = self._forward(**batch.inputs)
        losses = compute_losses(out, batch.targets, self.config.loss, self.team)
        values = dict(zip(losses, self._over_team(torch.stack(list(losses.values()))), strict=True))
        if not math.isfinite(values["loss"]):
            raise InputError(
                f"step {step}: the loss is {values['loss']}: lower learning_rate, now {self.config.learning_rate}, "
                "or look for broken features"
            )
        self._descend(losses["loss"], step)
        return values

    def _descend(self, loss: Tensor, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * rate_factor(step, self.steps, self.config)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self._average is not None:
            self._average.update_parameters(self.model)

    def _over_team(self, losses: Tensor) -> list[float]:
        return (self.team.total(losses.detach()) / self.team.world).tolist()

    def state(self) -> dict[str, dict[str, Any]]:
        """The state dicts of model, averaged weights, optimiser and scaler."""
        return {
            "model": self.model.state_dict(),
            "averaged": {} if self._average is None else self._average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load(self, state: dict[str, dict[str, Any]], source: str) -> None:
        """Continue from `state()`. Raises ContractError naming the weights that do not fit this model."""
        load_weights(self.model, state["model"], source)
        if self._average is not None:
            load_weights(self._average, state["averaged"], source)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])


def resolve_precision(config: TrainConfig, team: Team) -> TrainConfig:
    """`auto` becomes bf16 on a GPU that has it, else fp32."""
    return replace(config, precision=choose_precision(config.precision, team.device))


@contextmanager
def reproducible(wanted: bool) -> Iterator[None]:
    """Only kernels that give the same bits each time, within the block; torch raises where there is none."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product on a GPU
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def step_seed(seed: int, step: int, rank: int) -> int:
    """A seed of 63 bits for one step of one process."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; decay for the weights of linear maps and convolutions only, a lower rate where offsets are predicted."""
    offsets = {
        parameter
        for module in model.modules()
        if isinstance(module, RDSA | DeformableCrossAttention)
        for parameter in module.offset.parameters()
    }
    decayed = {module.weight for module in model.modules() if isinstance(module, nn.Linear | nn.Conv1d)}
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for parameter in model.parameters():
        rate = config.learning_rate * (config.offset_rate if parameter in offsets else 1)
        decay = config.weight_decay if parameter in decayed else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": params, "lr": rate, "base_lr": rate, "weight_decay": decay}
            for (rate, decay), params in groups.items()
        ],
        # One call for all parameters; on a GPU it would also take over what the gradient scaler does.
        fused=True if next(model.parameters()).device.type == "cpu" else None,
    )


def rate_factor(step: int, steps: int, config: TrainConfig) -> float:
    """Linear warm-up to 1, then the schedule: x0.1 at two thirds, or a cosine to zero."""
    warmup = min(config.warmup_steps, steps)
    if step <= warmup:
        return step / max(warmup, 1)
    if config.schedule == "step":
        return 0.1 if step > steps * 2 / 3 else 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def ema_decay(limit: float, updates: int) -> float:
    """Decay after so many updates: it grows towards `limit`, so that early weights are soon forgotten."""
    return min(limit, (1 + updates) / (10 + updates))


def _averaged(model: SDST, limit: float) -> AveragedModel:
    def average(averaged: Any, current: Any, updates: Any) -> None:
        torch._foreach_lerp_(averaged, current, 1 - ema_decay(limit, int(updates)))  # pyright: ignore[reportPrivateImportUsage]

    return AveragedModel(model, multi_avg_fn=torch.no_grad()(average))
