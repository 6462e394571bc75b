"""A checkpoint and its backbone to a bundle directory."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

from sdst_runtime.bundle import MANIFEST, TOKENIZER, Bundle, write_manifest
from sdst_runtime.files import make_directory, remove, write_text
from sdst_train.backbone.towers import Backbone
from sdst_train.checkpoint import Checkpoint

from .graph import save_model
from .head import export_head
from .towers import Precision, export_text, export_vision


def export_bundle(
    checkpoint: Checkpoint,
    backbone: Backbone,
    out: Path,
    say: Callable[[str], None] = lambda line: None,
    precision: Precision = "fp32",
) -> Bundle:
    """Write vision.onnx, text.onnx, head.onnx, tokenizer.json and, last, bundle.json into `out`.

    `precision` is the towers'; the head is float32. Weights too large for an ONNX file go into a .data file beside it.
    An older bundle there is replaced once all exports have succeeded; while files change the directory has no
    bundle.json and is no bundle. Raises ContractError when the checkpoint was trained on features of
    another backbone, ExportError when a weight exceeds float16, InputError when `out` cannot be written.
    """
    backbone.spec.require(
        checkpoint.spec,
        have="the backbone",
        need="the checkpoint",
        exact=True,
        mend="give the backbone that made the features",
    )
    out = Path(out)
    make_directory(out)
    exports = {
        "vision": lambda: export_vision(backbone, precision),
        "text": lambda: export_text(backbone, precision),
        "head": lambda: export_head(checkpoint),
    }
    graphs = {}
    for name, export in exports.items():
        say(f"exporting {name}.onnx")
        graphs[name] = export()
    remove(out / MANIFEST)
    for name, graph in graphs.items():
        save_model(graph, out / f"{name}.onnx")
    write_text(out / TOKENIZER, backbone.tokenizer_json)
    models = {name: f"{name}.onnx" for name in graphs}
    return write_manifest(out, checkpoint.spec, models, importlib.metadata.version("sdst"))
