"""One run on several processes, started by torchrun. Alone, everything here does nothing.

Losses are means over the whole batch whatever the number of processes: each process divides its own sum by its share
of the global count, so that DDP's mean over processes is the mean over the batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sdst_runtime.errors import InputError
from sdst_runtime.machine import DeviceChoice

from .device import choose_device


@dataclass(frozen=True)
class Team:
    """The processes of a run, and this one's place and device among them."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """True in the one process that writes files and shows progress."""
        return self.rank == 0

    def total(self, x: Tensor) -> Tensor:
        """Sum over processes, without gradient."""
        if self.world == 1:
            return x
        x = x.detach().clone()
        dist.all_reduce(x)
        return x

    def mean_over_batch(self, x_B: Tensor) -> Tensor:
        """This process's part of the mean over all samples of the batch; of none it is zero."""
        if self.world == 1:
            return x_B.mean() if len(x_B) else x_B.sum()
        count = self.total(torch.tensor(float(len(x_B)), device=x_B.device)).clamp(min=1)
        return x_B.sum() * (self.world / count)

    def gather(self, x: Tensor) -> Tensor:
        """Rows of all processes, in the order of ranks; gradients flow to this process's own rows."""
        return x if self.world == 1 else _Gather.apply(x, self)

    def tell(self, value: Any) -> Any:
        """The leader's value in every process."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]


ALONE = Team()


@contextmanager
def join_team(device: DeviceChoice) -> Iterator[Team]:
    """The team that torchrun's environment describes, or one process alone; on a GPU each takes its own.

    Raises InputError for a device that this machine lacks.
    """
    on_gpu = choose_device(device).type == "cuda"
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if on_gpu and local >= torch.cuda.device_count():
        raise InputError(f"process {local} finds no GPU: {torch.cuda.device_count()} here; start as many processes")
    place = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(place)
    if world == 1:
        yield Team(device=place)
        return
    # The others wait while the leader validates. After an error nothing is taken down, which could hang: torchrun ends
    # the others when this process is gone.
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(hours=2))
    yield Team(dist.get_rank(), world, place)
    dist.destroy_process_group()


class _Gather(torch.autograd.Function):
    """all_gather of tensors whose first axis may differ. Every process computes the same loss from the result, so the
    gradient of its own rows, times the number of processes, is what DDP's mean needs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, team: Team) -> Tensor:
        counts = team.total(torch.eye(team.world, device=x.device, dtype=torch.int64)[team.rank] * len(x)).tolist()
        padded = x.new_zeros(max(counts), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        ctx.start, ctx.count, ctx.world = sum(counts[: team.rank]), len(x), team.world
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.start : ctx.start + ctx.count] * ctx.world, None
