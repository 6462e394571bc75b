"""A checkpoint and its backbone to a bundle directory."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

from sdst_runtime.bundle import MANIFEST, TOKENIZER, Bundle, write_manifest
from sdst_runtime.errors import InputError
from sdst_runtime.files import write_text
from sdst_train.backbone.towers import Backbone
from sdst_train.checkpoint import Checkpoint

from .graph import save_model
from .head import export_head
from .towers import export_text, export_vision


def export_bundle(
    checkpoint: Checkpoint, backbone: Backbone, out: Path, say: Callable[[str], None] = lambda line: None
) -> Bundle:
    """Write vision.onnx, text.onnx, head.onnx, tokenizer.json and, last, bundle.json into `out`.

    An older bundle there is replaced; until bundle.json is written the directory is not a bundle. Raises ContractError
    when the checkpoint was trained on features of another backbone, InputError when `out` cannot be written.
    """
    backbone.spec.require(checkpoint.spec, have="the backbone", need="the checkpoint")
    checkpoint.spec.require(backbone.spec, have="the checkpoint", need="the backbone")
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / MANIFEST).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}; choose another directory") from error
    for name, export in (
        ("vision", lambda: export_vision(backbone)),
        ("text", lambda: export_text(backbone)),
        ("head", lambda: export_head(checkpoint)),
    ):
        say(f"exporting {name}.onnx")
        save_model(export(), out / f"{name}.onnx")
    write_text(out / TOKENIZER, backbone.tokenizer_json)
    models = {name: f"{name}.onnx" for name in ("vision", "text", "head")}
    return write_manifest(out, checkpoint.spec, models, importlib.metadata.version("sdst"))
