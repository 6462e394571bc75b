"""One training step at QVHighlights sizes: python benchmarks/train_step.py [--compile] [--output FILE].

B 64 samples, T 75 clips, L 32 tokens, K 4 layers, the published widths; `--demo` takes the demo's batch and widths. The
floor is the step's products alone, forward and backward, at the same shapes (train_floor.py says what is in it), in
turns with the step.
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
from train_floor import products_alone

from sdst_runtime.data.dataset import make_sample
from sdst_train.config import ModelConfig, TrainConfig
from sdst_train.loop.batches import Batch, collate
from sdst_train.loop.distributed import join_team
from sdst_train.loop.learner import Learner
from sdst_train.presets import PRESETS

K = 4
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclasses.dataclass(frozen=True)
class Size:
    """Of a batch: samples, clips, tokens, widths of video and text."""

    B: int = 64
    T: int = 75
    L: int = 32
    V: int = 768
    X: int = 1024


DEMO = Size(B=16, T=32, L=16, V=64, X=64)


def main(
    seconds: float = 60.0, compile: Flag = False, bf16: Flag = False, demo: Flag = False, output: Path | None = None
) -> None:
    """Time one update of each attention, interleaved.

    Args:
        seconds: How long to measure.
        compile: Add a variant with torch.compile.
        bf16: Add a variant in bfloat16.
        demo: The sizes of the demo, whose steps are small.
        output: JSON file for the numbers.
    """
    size = DEMO if demo else Size()
    batch = random_batch(size)
    base = PRESETS["demo"] if demo else TrainConfig(model=ModelConfig(layers=K))
    widths = dataclasses.replace(base.model, video_width=size.V, text_width=size.X)
    base = dataclasses.replace(base, precision="fp32", model=widths)
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
        products, count = products_alone(lambda: learners["rdsa"].update(moved, 600))
        variants = {name: variant(learner) for name, learner in learners.items()}
        variants["products alone"] = lambda: (products(), done())
        samples = interleave(variants, seconds=seconds)
    title = (
        f"train step, B {size.B} T {size.T} L {size.L} K {K}, {count} products of {flops / 1e9:.1f} GFLOP, "
        f"a large matrix product here: {rate / 1e9:.0f} GFLOP/s"
    )
    versions = {"torch": torch.__version__, "threads": str(torch.get_num_threads()), "device": str(team.device)}
    floor = float(np.median(samples["products alone"]))
    report(title, samples, items=size.B, floors_s={"rdsa": floor}, versions=versions, output=output)


def with_attention(config: TrainConfig, attention) -> TrainConfig:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, attention=attention))


def random_batch(size: Size) -> Batch:
    """Random features, one to three windows a sample."""
    rng = np.random.default_rng(0)
    samples = []
    for qid, found in enumerate(windows(size)):
        row = {"qid": qid, "query": "", "vid": "", "duration": 2.0 * size.T, "relevant_windows": found}
        video = rng.standard_normal((size.T, K, size.V), np.float32)
        samples.append(make_sample(row, video, rng.standard_normal((K, size.L, size.X), np.float32), 2.0))
    return collate(samples, [0.5] * size.B)


def windows(size: Size) -> list[list[list[float]]]:
    """One to three windows (start, end; seconds) for each sample."""
    rng, found = np.random.default_rng(0), []
    for _ in range(size.B):
        starts = 2.0 * rng.choice(size.T * 4 // 5, int(rng.integers(1, 4)), replace=False)
        found.append([[float(start), float(start) + 2.0 * int(rng.integers(1, 12))] for start in sorted(starts)])
    return found


def step_flops(learner: Learner, batch: Batch) -> int:
    """Multiplications and additions of one update, counted on the operators that ran."""
    with FlopCounterMode(display=False) as counter:
        learner.update(batch, 1)
    return counter.get_total_flops()


if __name__ == "__main__":
    tyro.cli(main)
