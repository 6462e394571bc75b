"""`sdst convert-backbone`: a released checkpoint and its tokenizer to one backbone file."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Literal

import torch
import tyro

from sdst_runtime.errors import InputError
from sdst_runtime.strict_json import dump_json
from sdst_train.backbone.release import VARIANTS, load_internvideo2
from sdst_train.backbone.tokenizer import read_bert_tokenizer
from sdst_train.backbone.towers import save_backbone

from .next_step import advise

DTYPES = {"float16": torch.float16, "float32": torch.float32}


def convert_backbone(
    checkpoint: tyro.conf.Positional[Path],
    *,
    tokenizer: Path,
    out: Path,
    variant: str = "stage2-1b",
    frames: int = 4,
    clip_s: float = 2.0,
    layers: int = 4,
    pool_checkpoint: Path | None = None,
    dtype: Literal["float16", "float32"] = "float16",
) -> None:
    """Write a backbone file; print its path, SHA-256 and feature contract as JSON.

    Args:
        checkpoint: The released file (.pt, .pth or .safetensors).
        tokenizer: tokenizer.json or vocab.txt of the text encoder (bert-large-uncased).
        out: The safetensors file to write.
        variant: The released checkpoint; stage2-1b is the only one.
        frames: Frames a clip that features will be made with; the position table is interpolated.
        clip_s: Seconds a clip.
        layers: How many of the last layers features will hold.
        pool_checkpoint: The CLIP variant's file, whose pool replaces the checkpoint's.
        dtype: Type of the weights in the file.
    """
    if variant not in VARIANTS:
        raise InputError(f"--variant: expected one of {', '.join(VARIANTS)}, got {variant!r}")
    chosen = VARIANTS[variant]
    tokenizer_json = read_bert_tokenizer(tokenizer, chosen.text.vocab_size)
    _tell(f"reading {checkpoint}")
    release = load_internvideo2(
        checkpoint, chosen, frames=frames, clip_s=clip_s, layers=layers, pool_checkpoint=pool_checkpoint
    )
    stored = release.vision.config.frames
    _tell(f"its position table has {stored} frames" + (f", interpolated to {frames}" if stored != frames > 1 else ""))
    _tell(f"writing {out} in {dtype}")
    spec = save_backbone(out, release.vision, release.text, release.spec, tokenizer_json, DTYPES[dtype])
    summary = {"path": str(out), "sha256": spec.backbone_sha256, "spec": dataclasses.asdict(spec)}
    print(dump_json(summary, indent=4))  # noqa: T201
    advise("sdst", "features", "video", "VIDEOS", "--backbone", out, "--out", "FEATURES")


def _tell(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201
