"""A checkpoint and its backbone to a bundle directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sdst_runtime.contracts import FP16, FP32
from sdst_runtime.distribution import own_version
from sdst_runtime.files import make_directory, remove, write_text
from sdst_runtime.grounding.bundle import MANIFEST, TOKENIZER, Bundle, copy_scores, write_manifest
from sdst_train.backbone.towers import Backbone
from sdst_train.loop.checkpoint import Checkpoint

from .errors import ExportError
from .graph import save_model
from .half import Precision, kept_modules
from .keep import NOTHING_KEPT
from .models import export_head, export_projection, export_sentence, export_text, export_vision, lower
from .report.export_report import ExportReport, make_report, write_report

OF_CHECKPOINT = ("projection", "head", "sentence")  # models of a bundle, all of them the trained one


def export_bundle(
    checkpoint: Checkpoint,
    backbone: Backbone,
    out: Path,
    say: Callable[[str], None] = lambda line: None,
    precision: Precision = FP32,
    keep: Mapping[str, Sequence[str]] = NOTHING_KEPT,
    scores: Path | None = None,
) -> tuple[Bundle, ExportReport]:
    """Write vision.onnx, text.onnx, projection.onnx, head.onnx, sentence.onnx, tokenizer.json, export.json (the export
    report, which is returned too) and, last, bundle.json into `out`.

    All models are in `precision` (half.py says what that means); of an fp16 bundle the modules that `keep` names, by
    model, stay float32 (keep.py). `scores` is the file of the checkpoint's calibrated scores. Weights too large for an
    ONNX file go into a .data file beside it. An older bundle there is replaced once all exports have succeeded; while
    files change the directory has no bundle.json and is no bundle. Raises ContractError when the checkpoint was trained
    on features of another backbone, ExportError when a weight exceeds float16 and, before anything is exported, when
    `keep` names what is no module or the bundle is fp32, InputError when `out` cannot be written.
    """
    backbone.spec.require(
        checkpoint.spec,
        have="the backbone",
        need="the checkpoint",
        exact=True,
        mend="give the backbone that made the features",
    )
    of_head = [module for name in OF_CHECKPOINT for module in keep.get(name, ())]  # parts of one model
    if keep and precision != FP16:
        raise ExportError(f"keep: expected modules of an fp16 bundle, got them with {precision}; leave them out")
    for model, names in ((backbone.vision, keep.get("vision", ())), (backbone.text, keep.get("text", ()))):
        kept_modules(model, names)
    lowered = lower(checkpoint, precision, of_head)
    out = Path(out)
    make_directory(out)
    exports = {
        "vision": lambda: export_vision(backbone, precision, keep.get("vision", ())),
        "text": lambda: export_text(backbone, precision, keep.get("text", ())),
        "projection": lambda: export_projection(lowered),
        "head": lambda: export_head(lowered),
        "sentence": lambda: export_sentence(lowered),
    }
    graphs = {}
    for name, export in exports.items():
        say(f"exporting {name}.onnx")
        graphs[name] = export()
    trained = {"vision": backbone.vision, "text": backbone.text, "head": checkpoint.model}
    report = make_report(graphs, trained, checkpoint.config.model.queries, precision, keep)
    remove(out / MANIFEST)
    for name, graph in graphs.items():
        save_model(graph, out / f"{name}.onnx")
    write_text(out / TOKENIZER, backbone.tokenizer_json)
    write_report(report, out)
    copy_scores(scores, out)
    models = {name: f"{name}.onnx" for name in graphs}
    return write_manifest(out, checkpoint.spec, models, own_version()), report
