"""Training, read from top to bottom: samples and a config in, a run directory out.

A run directory holds best.safetensors and last.safetensors (checkpoints), config.json and metrics.jsonl (a line an
epoch).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sdst_runtime.contracts import FeatureSpec
from sdst_runtime.dataset import Sample
from sdst_runtime.decode import predict
from sdst_runtime.errors import InputError
from sdst_runtime.files import write_json, write_jsonl
from sdst_runtime.metrics import evaluate

from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from .config import TrainConfig
from .data import Batch, epoch_batches
from .losses import compute_losses
from .model import SDST
from .rdsa import RDSA, DeformableCrossAttention
from .session import TorchSession

SELECT_BY = "MR-full-mAP"  # the metric that picks the best epoch


@dataclass(frozen=True)
class Progress:
    """State of a run after a step, for whoever shows it."""

    epoch: int  # from 1
    epochs: int
    step: int  # over the whole run, from 1
    steps: int
    losses: dict[str, float]  # of the step; the epoch's means on its last step
    metrics: dict[str, float] | None  # validation, on the last step of an epoch


def train(
    config: TrainConfig,
    train_samples: Sequence[Sample],
    val_samples: Sequence[Sample],
    spec: FeatureSpec,
    run: Path,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> Checkpoint:
    """Train and return the best checkpoint by validation mAP.

    Raises InputError when the samples do not fit the config, or when the loss stops being finite.
    """
    _check_samples(config, train_samples, spec)
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    model = SDST(config.model)
    optimizer = make_optimizer(model, config)
    steps_per_epoch = -(-len(train_samples) // config.batch_size)
    steps = config.epochs * steps_per_epoch
    write_json(run / "config.json", dataclasses.asdict(config))

    log: list[dict] = []
    best, step = -1.0, 0
    for epoch in range(1, config.epochs + 1):
        started, running = time.perf_counter(), []
        model.train()
        for batch in epoch_batches(train_samples, config.batch_size, rng):
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * rate_factor(step, steps, config)
            losses = train_step(model, optimizer, batch, config)
            running.append(losses)
            if step % steps_per_epoch:
                on_step(Progress(epoch, config.epochs, step, steps, losses, None))
        metrics = validate(model, val_samples, spec)
        means = {name: float(np.mean([losses[name] for losses in running])) for name in running[0]}
        on_step(Progress(epoch, config.epochs, step, steps, means, metrics))
        log.append({"epoch": epoch, "seconds": time.perf_counter() - started, **means, **metrics})
        write_jsonl(run / "metrics.jsonl", log)
        checkpoint = Checkpoint(model, config, spec, epoch, metrics)
        save_checkpoint(run / "last.safetensors", checkpoint)
        if metrics[SELECT_BY] > best:
            best = metrics[SELECT_BY]
            save_checkpoint(run / "best.safetensors", checkpoint)
    return load_checkpoint(run / "best.safetensors")


def train_step(model: SDST, optimizer: torch.optim.Optimizer, batch: Batch, config: TrainConfig) -> dict[str, float]:
    """One update; each weighted loss and their sum under "loss"."""
    losses = compute_losses(model(**batch.inputs), batch.targets, config.loss)
    if not losses["loss"].isfinite():
        raise InputError(
            f"the loss is {losses['loss'].item()}: lower learning_rate, now {config.learning_rate}, or look for broken "
            "features"
        )
    optimizer.zero_grad(set_to_none=True)
    losses["loss"].backward()
    nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
    optimizer.step()
    return {name: value.item() for name, value in losses.items()}


def validate(model: SDST, samples: Sequence[Sample], spec: FeatureSpec) -> dict[str, float]:
    """The "brief" block of the QVHighlights evaluation, in percent."""
    session = TorchSession(model)
    rows = predict(session, samples, spec.clip_s)
    return evaluate(rows, [s.row for s in samples], clip_s=spec.clip_s)["brief"]


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
        ]
    )


def rate_factor(step: int, steps: int, config: TrainConfig) -> float:
    """Linear warm-up to 1, then the schedule: x0.1 at two thirds, or a cosine to zero."""
    warmup = min(config.warmup_steps, steps)
    if step <= warmup:
        return step / max(warmup, 1)
    if config.schedule == "step":
        return 0.1 if step > steps * 2 / 3 else 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def _check_samples(config: TrainConfig, samples: Sequence[Sample], spec: FeatureSpec) -> None:
    if not samples:
        raise InputError("no training samples: expected one annotated query at least")
    model = config.model
    for name, needs, have in (
        ("video_width", model.video_width, spec.video_width),
        ("text_width", model.text_width, spec.text_width),
    ):
        if needs != have:
            raise InputError(f"model.{name} is {needs}, the features have {have}: set model.{name} to {have}")
    if model.layers > spec.layers and model.feature_mode == "intermediate":
        raise InputError(f"model.layers is {model.layers}, the features hold {spec.layers}: set at most {spec.layers}")
    crowded = max(samples, key=lambda s: len(s.windows))
    if len(crowded.windows) > model.queries:
        raise InputError(
            f"qid {crowded.row['qid']} has {len(crowded.windows)} windows, the model predicts {model.queries} moments: "
            f"set model.queries to {len(crowded.windows)} or more"
        )
