"""The vision and the text model of a bundle on a CPU beside their products alone: python benchmarks/towers.py BUNDLE.

Random pixels and tokens, ONNX Runtime; the floor is floor.py's: matrix products and convolutions at the same shapes,
back to back. Each model's variants run in turn.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tyro
from floor import products_alone
from timing import interleave, report

from sdst_runtime.grounding.bundle import Bundle
from sdst_runtime.media.clips import VISION_BATCH
from sdst_runtime.sessions.ort import import_onnxruntime


def main(
    bundle: tyro.conf.Positional[Path],
    clips: tuple[int, ...] = (1, VISION_BATCH),
    sentences: tuple[int, ...] = (1, 10),
    tokens: int = 20,
    threads: int = 2,
    seconds: float = 10.0,
) -> None:
    """Print p50, p90, p99 and the ratio to the floor.

    Args:
        bundle: Directory that `sdst export` wrote.
        clips: Clips of one call of the vision model.
        sentences: Sentences of one call of the text model.
        tokens: Of each sentence.
        threads: Of ONNX Runtime.
        seconds: Of timing of each model and size, after a warm-up.
    """
    opened, rng = Bundle.open(bundle), np.random.default_rng(0)
    spec = opened.manifest.spec
    shape = (spec.frames_per_clip, spec.image_size, spec.image_size, 3)
    measure(
        opened, "vision", {n: {"clips": rng.integers(0, 256, (n, *shape), np.uint8)} for n in clips}, threads, seconds
    )
    ids = {n: rng.integers(5, 100, (n, tokens)) for n in sentences}
    texts = {n: {"token_ids": ids[n], "token_mask": np.ones((n, tokens), bool)} for n in sentences}
    measure(opened, "text", texts, threads, seconds)


def measure(
    bundle: Bundle, model: str, inputs: dict[int, dict[str, np.ndarray]], threads: int, seconds: float
) -> None:  # fmt: skip
    """One table: inputs by the size of the batch."""
    with bundle.session(model, threads) as session:
        for size, given in inputs.items():
            variants = {
                "model": lambda given=given: session.run(given),
                "products": products_alone(bundle.path(model), given, threads),
            }
            samples = interleave(variants, seconds=seconds, settled=True)
            floor = {"model": float(np.median(samples["products"]))}
            versions = {"onnxruntime": import_onnxruntime().__version__}
            report(f"{model}, B {size}, {threads} threads", samples, items=size, floors_s=floor, versions=versions)


if __name__ == "__main__":
    tyro.cli(main)
