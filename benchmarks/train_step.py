"""One training step at QVHighlights sizes: python benchmarks/train_step.py [--compile] [--output FILE].

B 64 samples, T 75 clips, L 32 tokens, K 4 layers, the published widths. The floor is the time that this machine's own
matrix product needs for the step's multiplications (forward, and twice that backward).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from timing import interleave, matmul_rate, report
from torch.utils.flop_counter import FlopCounterMode

from sdst_runtime.data.dataset import make_sample
from sdst_train.config import ModelConfig, TrainConfig
from sdst_train.loop.batches import Batch, collate
from sdst_train.loop.distributed import join_team
from sdst_train.loop.learner import Learner

B, T, L, K = 64, 75, 32, 4
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


def main(seconds: float = 60.0, compile: Flag = False, bf16: Flag = False, output: Path | None = None) -> None:
    """Time one update of each attention, interleaved.

    Args:
        seconds: How long to measure.
        compile: Add a variant with torch.compile.
        bf16: Add a variant in bfloat16.
        output: JSON file for the numbers.
    """
    batch = qvhighlights_batch()
    base = TrainConfig(precision="fp32", model=ModelConfig(layers=K))
    configs = {name: with_attention(base, name) for name in ("rdsa", "deformable_ca", "full_ca")}
    if bf16:
        configs["rdsa, bf16"] = dataclasses.replace(base, precision="bf16")
    if compile:
        configs["rdsa, compiled"] = dataclasses.replace(base, compile=True)
    with join_team("auto") as team:
        moved, done = batch.to(team.device), torch.cuda.synchronize if team.device.type == "cuda" else lambda: None
        learners = {name: Learner(config, 10_000, team) for name, config in configs.items()}

        def variant(learner: Learner):
            return lambda: (learner.update(moved, 600), done())

        flops = step_flops(Learner(base, 10_000, team), moved)
        rate = matmul_rate(team.device, torch.float32)
        samples = interleave({name: variant(learner) for name, learner in learners.items()}, seconds=seconds)
    title = (
        f"train step, B {B} T {T} L {L} K {K}, {flops / 1e9:.0f} GFLOP, matrix product here {rate / 1e9:.0f} GFLOP/s"
    )
    versions = {"torch": torch.__version__, "threads": str(torch.get_num_threads()), "device": str(team.device)}
    report(title, samples, items=B, floors_s={"rdsa": flops / rate}, versions=versions, output=output)


def with_attention(config: TrainConfig, attention) -> TrainConfig:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, attention=attention))


def qvhighlights_batch(count: int = B, tokens: int = L) -> Batch:
    """Random features, one to three windows a sample."""
    rng = np.random.default_rng(0)
    samples = []
    for qid, found in enumerate(windows(count)):
        row = {"qid": qid, "query": "", "vid": "", "duration": 2.0 * T, "relevant_windows": found}
        video = rng.standard_normal((T, K, 768), np.float32)
        samples.append(make_sample(row, video, rng.standard_normal((K, tokens, 1024), np.float32), 2.0))
    return collate(samples, [0.5] * count)


def windows(count: int) -> list[list[list[float]]]:
    """One to three windows (start, end; seconds) for each of `count` samples."""
    rng, found = np.random.default_rng(0), []
    for _ in range(count):
        starts = 2.0 * rng.choice(60, int(rng.integers(1, 4)), replace=False)
        found.append([[float(start), float(start) + 2.0 * int(rng.integers(1, 12))] for start in sorted(starts)])
    return found


def step_flops(learner: Learner, batch: Batch) -> int:
    """Multiplications and additions of one update, counted on the operators that ran."""
    with FlopCounterMode(display=False) as counter:
        learner.update(batch, 1)
    return counter.get_total_flops()


if __name__ == "__main__":
    tyro.cli(main)
