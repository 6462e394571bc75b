"""The head on a CPU: torch eager as trained against ONNX Runtime, whole, and projection and head apart.

    python benchmarks/head.py                   # random weights, K 4, F 256, M 30: time depends on shapes only
    python benchmarks/head.py --checkpoint run/best.safetensors
    python benchmarks/head.py --beside OLDER    # and projection.onnx and head.onnx of the same sizes from this folder

All variants run in turn, in one process. "first query" is projection and head, "next query" the head alone, on a video
whose projection is at hand; "products" are the float32 head's, back to back (floor.py): the floor of a next query.
Shapes: B queries of one video, T clips, L tokens.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from floor import products_alone
from timing import interleave, report

from sdst_export.graph import save_model
from sdst_export.half import Precision
from sdst_export.models import export_head, export_projection, lower
from sdst_runtime.contracts import FeatureSpec
from sdst_runtime.data.dataset import pad_inputs
from sdst_runtime.sessions.base import GroundingModel
from sdst_runtime.sessions.open import open_session
from sdst_runtime.sessions.ort import import_onnxruntime
from sdst_train.config import ModelConfig, TrainConfig
from sdst_train.loop.checkpoint import Checkpoint, load_checkpoint
from sdst_train.model.sdst import SDST
from sdst_train.model.torch_session import TorchSession

PRODUCTS = "products"
Call = Callable[[], object]


def main(
    checkpoint: Path | None = None,
    batch: int = 1,
    clips: int = 75,
    tokens: int = 20,
    threads: int = 2,
    seconds: float = 30.0,
    fp16: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    beside: tuple[Path, ...] = (),
    output: Path | None = None,
) -> None:
    """Print p50, p90, p99 and the ratio to torch of each variant.

    Args:
        checkpoint: The model; default: the paper's sizes with random weights.
        batch: Queries of one call.
        clips: Clips of the video.
        tokens: Tokens of each query.
        threads: Of torch and of ONNX Runtime.
        seconds: Of timing, after a warm-up.
        fp16: Time the float16 bundle's head too; a CPU computes it in float32, with casts.
        beside: Folders with projection.onnx and head.onnx of the same sizes, timed too.
        output: JSON with every sample.
    """
    torch.set_num_threads(threads)
    trained = random_checkpoint() if checkpoint is None else load_checkpoint(checkpoint)
    inputs = random_inputs(trained.spec, batch, clips, tokens)
    eager = TorchSession(trained.model)
    variants = {"torch eager": lambda: eager.run(inputs)}
    with tempfile.TemporaryDirectory() as place:
        for precision in ("fp32", "fp16") if fp16 else ("fp32",):
            folder = Path(place) / precision
            write_head(trained, precision, folder)
            model = open_head(folder, threads)
            first, following = calls(model, inputs)
            variants |= {f"onnxrt {precision}, first query": first, f"onnxrt {precision}, next query": following}
            if precision == "fp32":
                variants[PRODUCTS] = products_alone(folder / "head.onnx", head_inputs(model, inputs), threads)
    for folder in beside:
        first, following = calls(open_head(folder, threads), inputs)
        variants |= {f"{folder.name}, first query": first, f"{folder.name}, next query": following}
    title = f"head, B {batch} T {clips} L {tokens}, {threads} threads"
    versions = {"torch": torch.__version__, "onnxruntime": import_onnxruntime().__version__}
    samples = interleave(variants, seconds=seconds, settled=True)
    floor_s = float(np.median(samples[PRODUCTS]))
    floors_s = {name: floor_s for name in samples if "next query" in name}
    report(title, samples, floors_s=floors_s, versions=versions, output=output)


def random_inputs(spec: FeatureSpec, batch: int, clips: int, tokens: int) -> dict[str, np.ndarray]:
    """`batch` queries of `tokens` tokens about one video."""
    rng = np.random.default_rng(0)
    video = rng.standard_normal((clips, spec.layers, spec.video_width)).astype(np.float32)
    texts = [rng.standard_normal((spec.layers, tokens, spec.text_width)).astype(np.float32) for _ in range(batch)]
    return pad_inputs([video] * batch, texts)


def write_head(trained: Checkpoint, precision: Precision, folder: Path) -> None:
    """projection.onnx and head.onnx."""
    folder.mkdir()
    lowered = lower(trained, precision)
    for name, export in (("projection", export_projection), ("head", export_head)):
        save_model(export(lowered), folder / f"{name}.onnx")


def open_head(folder: Path, threads: int) -> GroundingModel:
    """Both models of a folder."""
    return GroundingModel(*(open_session(folder / f"{name}.onnx", threads) for name in ("projection", "head")))


def calls(model: GroundingModel, inputs: dict[str, np.ndarray]) -> tuple[Call, Call]:
    """A run of all, and a run of the head on what the projection gave."""
    following = head_inputs(model, inputs)
    return lambda: model.run(inputs), lambda: model.head.run(following)


def head_inputs(model: GroundingModel, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the head reads for `inputs`: queries of one video."""
    projected = model.projection.run({name: inputs[name][:1] for name in ("video", "video_mask")})["projected"]
    given = {name: inputs[name] for name in ("video_mask", "text", "text_mask")}
    return given | {"projected": np.repeat(projected, len(inputs["text"]), axis=0)}


def random_checkpoint() -> Checkpoint:
    """An untrained model of the paper's sizes (K 4, F 256, M 30)."""
    torch.manual_seed(0)
    model = SDST(ModelConfig()).eval()
    spec = FeatureSpec(
        backbone="random", backbone_sha256="", layers=model.config.layers, pool="adaptive", frames_per_clip=4,
        clip_s=2.0, image_size=224, resize="bicubic", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2),
        video_width=model.config.video_width, text_model="random", max_tokens=40, text_width=model.config.text_width,
    )  # fmt: skip
    return Checkpoint(model, TrainConfig(model=model.config), spec, 0, {})


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    tyro.cli(main)
