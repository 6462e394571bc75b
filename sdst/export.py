"""`sdst export`: a checkpoint and its backbone to a bundle."""

from __future__ import annotations

import sys
from pathlib import Path

import tyro

from sdst_export.bundle import export_bundle
from sdst_export.towers import Precision
from sdst_train.backbone.towers import load_backbone
from sdst_train.checkpoint import load_checkpoint


def export(checkpoint: tyro.conf.Positional[Path], *, backbone: Path, out: Path, precision: Precision = "fp32") -> None:
    """Write a bundle: vision.onnx, text.onnx, head.onnx, tokenizer.json and bundle.json.

    Args:
        checkpoint: best.safetensors or last.safetensors of a run.
        backbone: The backbone file that the training features were made with.
        out: Directory of the bundle.
        precision: Of the vision and the text model; the head is fp32 in both.
    """
    trained, towers = load_checkpoint(checkpoint), load_backbone(backbone)
    bundle = export_bundle(trained, towers, out, lambda line: print(line, file=sys.stderr), precision)  # noqa: T201
    print(bundle.directory)  # noqa: T201
