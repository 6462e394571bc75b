"""Samples a second of one training step, ours beside R2-Tuning's, at equal sizes.

    python benchmarks/peers_train.py --r2-tuning DIR [--batch 8] [--output FILE]

DIR: a clone of yeliudev/R2-Tuning. A step is forward, losses, backward, clipped gradients and the optimiser in fp32, on
a batch that is at hand; ours also averages the weights. R2-Tuning: its own model, losses and settings for QVHighlights,
stepped as nncore's Engine does it. Both read frozen features of K 4 layers: R2-Tuning 50 tokens a clip and layer, which
its model pools by the query, SDST one vector. B samples, T 75 clips, L tokens of one length, 1 to 3 windows a sample.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import tyro
from clones import CLONES, importing, require_clone
from peer_models import R2_LAYERS, R2_TOKENS, R2_WIDTH, TEXT_WIDTH, build_r2_tuning
from timing import interleave, report, with_cpu_time
from torch import Tensor, nn
from train_step import Size, random_batch, windows

from sdst_runtime.errors import SdstError
from sdst_train.config import ModelConfig, TrainConfig
from sdst_train.loop.learner import Learner

FPS, CLIP_S = 0.5, 2.0


def main(
    r2_tuning: Path,
    batch: int = 8,
    tokens: int = 32,
    threads: int = 2,
    seconds: float = 60.0,
    output: Path | None = None,
) -> None:
    """Print p50, p90, p99 and samples a second, by wall time and by CPU time of all threads.

    Args:
        r2_tuning: A clone of yeliudev/R2-Tuning.
        batch: Samples of a step.
        tokens: Of each sentence.
        threads: Of torch.
        seconds: Of timing, after a warm-up.
        output: JSON with every sample.
    """
    torch.set_num_threads(threads)
    clone = CLONES["r2-tuning"]
    require_clone(clone, r2_tuning)
    learner = Learner(TrainConfig(precision="fp32", model=ModelConfig()), 10_000)
    size = Size(B=batch, L=tokens)
    ours = random_batch(size)
    with importing(clone, r2_tuning):
        variants: dict[str, Callable[[], object]] = {
            "SDST": lambda: learner.update(ours, 600),
            "R2-Tuning": r2_step(r2_tuning, size),
        }
        cpu: dict[str, list[float]] = {name: [] for name in variants}
        timed = {name: with_cpu_time(run, cpu[name]) for name, run in variants.items()}
        samples = interleave(timed, seconds=seconds)
    title = f"one training step, B {size.B} T {size.T} L {size.L}, fp32"
    versions = {"torch": torch.__version__, "threads": str(threads)}
    cpu_s = {f"{name}, CPU time": cpu[name][-len(samples[name]) :] for name in samples}  # less those of the warm-up
    report(title, samples | cpu_s, items=batch, versions=versions, output=output)


def r2_step(folder: Path, size: Size) -> Callable[[], dict[str, Tensor]]:
    """One step of R2-Tuning's training: what nncore's `Engine.train_iter` and `OptimizerHook` do, in fp32.

    The returned call gives the losses. Inside `importing`.
    """
    torch.manual_seed(0)
    model, config = build_r2_tuning(folder)
    model.train()
    stage = config.stages  # pyright: ignore[reportAttributeAccessIssue]
    settings = dict(stage.optimizer)
    optimizer = getattr(torch.optim, settings.pop("type"))(model.parameters(), **settings)
    data = r2_batch(size)

    def step() -> dict[str, Tensor]:
        found = model(dict(data), mode="train")
        losses = {name: value for name, value in found.items() if "loss" in name}
        sum(losses.values(), torch.zeros(())).backward()
        nn.utils.clip_grad_norm_(model.parameters(), **dict(stage.grad_clip))
        optimizer.step()
        optimizer.zero_grad()
        return losses

    return step


def r2_batch(size: Size) -> dict[str, object]:
    """Random features and the windows of `random_batch`, in R2-Tuning's form; missing windows are infinite."""
    generator = torch.Generator().manual_seed(0)
    found = [torch.tensor(one) for one in windows(size)]
    middles_s = CLIP_S * (torch.arange(size.T) + 0.5)
    inside = torch.stack([((one[:, :1] <= middles_s) & (middles_s < one[:, 1:])).any(0) for one in found])
    return {
        "video": torch.randn(size.B, size.T, R2_LAYERS * R2_TOKENS * R2_WIDTH, generator=generator),
        "query": torch.randn(size.B, size.L, R2_LAYERS * TEXT_WIDTH, generator=generator),
        "boundary": nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=float("inf")),
        "saliency": inside.float(),
        "pos_clip": inside.int().argmax(1, keepdim=True),
        "fps": [FPS] * size.B,
    }


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    try:
        tyro.cli(main)
    except SdstError as error:
        sys.stderr.write(f"benchmarks/peers_train.py: {error}\n")
        sys.exit(2)
