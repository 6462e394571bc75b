"""`sdst export`: a checkpoint and its backbone to a bundle."""

from __future__ import annotations

from pathlib import Path

import tyro

from sdst_export.bundle import export_bundle
from sdst_export.half import Precision
from sdst_export.keep import NOTHING_KEPT, read_keep
from sdst_export.report.export_report import report_table
from sdst_runtime.errors import InputError
from sdst_runtime.files import sha256_file
from sdst_runtime.grounding.scores import SCORES, read_scores
from sdst_train.backbone.towers import load_backbone
from sdst_train.loop.checkpoint import load_checkpoint

from .consoles import make_console
from .models import say
from .next_step import advise


def export(
    checkpoint: tyro.conf.Positional[Path],
    *,
    backbone: Path,
    out: Path,
    precision: Precision = "fp32",
    keep_fp32: Path | None = None,
) -> None:
    """Write a bundle: ONNX files of its five models, tokenizer.json, export.json and bundle.json.

    Args:
        checkpoint: best.safetensors or last.safetensors of a run.
        backbone: The backbone file that the training features were made with.
        out: Directory of the bundle.
        precision: Of all models; fp16 is written into the graphs, coordinates and norms stay fp32.
        keep_fp32: Of an fp16 bundle, a file of modules that stay fp32, as  sdst calibrate audit  writes it.
    """
    if keep_fp32 is not None and precision != "fp16":
        raise InputError("--keep-fp32: expected with --precision fp16, in fp32 all modules are; leave one of them out")
    keep = NOTHING_KEPT if keep_fp32 is None else read_keep(keep_fp32)
    trained, towers = load_checkpoint(checkpoint), load_backbone(backbone)
    scores = scores_of(checkpoint)
    bundle, report = export_bundle(trained, towers, out, say, precision, keep, scores)
    make_console(stderr=True).print(report_table(report))
    print(bundle.directory)  # noqa: T201
    advise("sdst", "ground", "VIDEO", "a sentence", "--bundle", bundle.directory)


def scores_of(checkpoint: Path) -> Path | None:
    """The calibrated scores beside a checkpoint, if they are of it."""
    path = checkpoint.parent / SCORES
    if not path.is_file():
        return None
    if read_scores(path).checkpoint_sha256 != sha256_file(checkpoint):
        say(f"{path} is of another checkpoint than {checkpoint.name}, and is left out of the bundle")
        return None
    return path
