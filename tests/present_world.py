"""A bundle whose head also says how likely a video shows what it is asked: that of random weights with one more MLP."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import torch

from sdst_export.graph import save_model
from sdst_export.models import export_head, lower
from sdst_runtime.files import write_json
from sdst_runtime.grounding.bundle import Bundle, write_manifest
from sdst_runtime.grounding.scores import SCORES, MomentLine, PresenceLine, Scores
from sdst_train.config import TrainConfig
from sdst_train.loop.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sdst_train.model.sdst import SDST


def make_present(bundle: Path, checkpoint: Path, out: Path) -> None:
    """`out`/best.safetensors and `out`/bundle, from those of a model that has no presence."""
    old = load_checkpoint(checkpoint)
    torch.manual_seed(1)
    model = SDST(dataclasses.replace(old.config.model, presence=True)).eval()
    missing, unknown = model.load_state_dict(old.model.state_dict(), strict=False)
    assert not unknown
    assert {name.split(".")[0] for name in missing} == {"presence"}
    assert model.presence is not None
    for parameter in model.presence.parameters():  # as the others
        torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    present = Checkpoint(model, TrainConfig(model=model.config), old.spec, 3, {"MR-full-mAP": 1.0})
    save_checkpoint(out / "best.safetensors", present)
    shutil.copytree(bundle, out / "bundle")
    save_model(export_head(lower(present)), out / "bundle" / "head.onnx")
    manifest = Bundle.open(bundle).manifest
    write_manifest(out / "bundle", manifest.spec, manifest.models, manifest.sdst_version)


def calibrated(bundle: Path, out: Path, presence: PresenceLine, moment: MomentLine) -> Bundle:
    """A copy of a bundle with scores.json."""
    shutil.copytree(bundle, out)
    write_json(out / SCORES, dataclasses.asdict(Scores(1, presence, moment, 8, 4)))
    manifest = Bundle.open(bundle).manifest
    return write_manifest(out, manifest.spec, manifest.models, manifest.sdst_version)
