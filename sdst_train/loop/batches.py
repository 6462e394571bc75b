"""Which samples every step takes, and their padded tensors.

The plan is a function of (seed, epoch) alone: whoever resumes at a step, on however many processes, finds the same
batches and the same positive clips. Shapes: B batch, T clips, K layers, V and X widths, L tokens, W windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sdst_runtime.data.absent import AbsentQueries
from sdst_runtime.data.dataset import Sample, pad_inputs
from sdst_runtime.errors import InputError, SdstError

from ..config import ModelConfig, TrainConfig
from .distributed import Team
from .losses import Targets

POOL = 16  # batches that are sorted by length together, so that little is padding
NEGATIVES = 1  # names the random stream that negatives are drawn from, apart from that of an epoch's plan
COMPILED_MULTIPLES = (16, 8)  # of clips and tokens: a compiled model is compiled again for every new shape


@dataclass(frozen=True)
class Batch:
    """Padded tensors of some samples; rows keep the samples' order."""

    inputs: dict[str, Tensor]  # what the model's forward takes, by name
    targets: Targets

    def to(self, device: torch.device) -> Batch:
        """The same on another device, features in float32."""
        moved = self._each(lambda x: x.to(device, non_blocking=True))
        return replace(
            moved, inputs={name: x.float() if x.is_floating_point() else x for name, x in moved.inputs.items()}
        )

    def pin_memory(self) -> Batch:
        """The same in pinned memory; the data loader calls this."""
        return self._each(Tensor.pin_memory)

    def _each(self, change) -> Batch:
        moved = {field.name: change(getattr(self.targets, field.name)) for field in fields(self.targets)}
        return Batch({name: change(x) for name, x in self.inputs.items()}, replace(self.targets, **moved))


@dataclass(frozen=True)
class EpochPlan:
    """The batches of one epoch and, for every sample, the draw of its positive clip."""

    batches: list[np.ndarray]  # indices of samples
    draws: np.ndarray  # 0..1, one a sample


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Batches in an epoch."""
    return -(-samples // batch_size)


def plan_epoch(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> EpochPlan:
    """Shuffled batches of similar length. `lengths`: clips of every sample. Batches differ by one sample at most."""
    rng = np.random.default_rng((seed, epoch))
    order, count = rng.permutation(len(lengths)), steps_per_epoch(len(lengths), batch_size)
    ends = np.arange(1, count + 1) * len(lengths) // count
    batches: list[np.ndarray] = []
    for first in range(0, count, POOL):
        cuts = ends[first : first + POOL]
        start = ends[first - 1] if first else 0
        pool = order[start : cuts[-1]]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += np.split(pool, cuts[:-1] - start)
    shuffled = [batches[i] for i in rng.permutation(count)]
    return EpochPlan(shuffled, rng.random(len(lengths)))


def collate(
    samples: Sequence[Sample], draws: Sequence[float], layers: int | None = None, multiples: tuple[int, int] = (1, 1)
) -> Batch:
    """Pad samples to a batch, with their last `layers`, clips and tokens up to `multiples`.

    Features stay float16 where all are stored so: half the bytes on the way to a GPU. A draw in 0..1 picks the positive
    clip among the relevant ones.
    """
    B = len(samples)
    videos, texts = [s.video for s in samples], [s.text for s in samples]
    arrays = pad_inputs(videos, texts, layers, multiples=multiples, keep_half=True)
    W = max(1, *(len(s.windows) for s in samples))
    windows, window_mask = np.zeros((B, W, 2), np.float32), np.zeros((B, W), bool)
    saliency, positive = np.zeros(arrays["video_mask"].shape, np.float32), np.zeros(B, np.int64)
    for i, (s, draw) in enumerate(zip(samples, draws, strict=True)):
        windows[i, : len(s.windows)], window_mask[i, : len(s.windows)] = s.windows, True
        saliency[i, : len(s.saliency)] = s.saliency
        relevant = np.flatnonzero(s.saliency > 0)
        if len(relevant):
            positive[i] = relevant[int(draw * len(relevant))]
    inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    targets = Targets(
        torch.from_numpy(windows),
        torch.from_numpy(window_mask),
        torch.from_numpy(saliency),
        torch.from_numpy(positive),
        inputs["video_mask"],
    )
    return Batch(inputs, targets)


def needed_layers(model: ModelConfig) -> int:
    """Stored layers that a model reads, counted from the last."""
    return 1 if model.feature_mode == "last_repeat" else model.layers


class RunBatches(Dataset[Any]):
    """All batches of a run by step, from 0; in a team each process holds its part of them.

    With `data.negatives` every epoch has besides all samples its own draw of queries without a moment.
    """

    def __init__(self, samples: Sequence[Sample], config: TrainConfig, team: Team) -> None:
        self.samples, self.config, self.team = samples, config, team
        self.absent = AbsentQueries(samples) if config.data.negatives else None
        self.negatives = 0 if self.absent is None else self.absent.count(config.data.negatives)
        count = len(samples) + self.negatives
        self.per_epoch = steps_per_epoch(count, config.batch_size)
        self._epoch: tuple[int, Sequence[Sample], EpochPlan] | None = None
        least = count // self.per_epoch
        if least < team.world:
            raise InputError(f"{least} samples a batch are too few for {team.world} processes: raise batch_size")

    def __len__(self) -> int:
        return self.per_epoch * self.config.epochs

    def __getitem__(self, step: int) -> Batch | SdstError:
        epoch, position = divmod(step, self.per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, *self._planned(epoch))
        _, samples, plan = self._epoch
        mine = plan.batches[position][self.team.rank :: self.team.world]
        multiples = COMPILED_MULTIPLES if self.config.compile else (1, 1)
        layers = needed_layers(self.config.model)
        try:
            return collate([samples[i] for i in mine], plan.draws[mine].tolist(), layers, multiples)
        except SdstError as error:  # raised by `load_batches`: the loader would wrap it in a worker's traceback
            return error

    def _planned(self, epoch: int) -> tuple[Sequence[Sample], EpochPlan]:
        """The samples of an epoch, drawn ones last, and its plan."""
        samples, seed = self.samples, self.config.seed
        if self.absent is not None:
            drawn = self.absent.draw(self.negatives, np.random.default_rng((seed, epoch, NEGATIVES)))
            samples = [*samples, *drawn]
        lengths = np.array([len(s.video) for s in samples])
        return samples, plan_epoch(lengths, self.config.batch_size, seed, epoch)


def load_batches(batches: RunBatches, first_step: int) -> Iterator[Batch]:
    """Batches from `first_step` to the end of the run, two read ahead by each of the config's workers.

    Raises what reading features raises.
    """
    loader = DataLoader(
        batches,
        sampler=range(first_step, len(batches)),
        batch_size=None,
        num_workers=batches.config.workers,
        pin_memory=batches.team.device.type == "cuda",
    )
    for batch in loader:
        if isinstance(batch, SdstError):
            raise batch
        yield batch
