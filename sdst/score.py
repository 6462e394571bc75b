"""`sdst score`: predictions against annotations, with the official QVHighlights metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from sdst_runtime import bounds
from sdst_runtime.data.annotations import is_absent
from sdst_runtime.files import read_jsonl, write_json
from sdst_runtime.metrics.evaluator import evaluate, moment_metrics
from sdst_runtime.metrics.score import absent_too, present, says_presence
from sdst_runtime.strict_json import dump_json

from .options import Flag


def score(
    predictions: tyro.conf.Positional[Path],
    ground_truth: tyro.conf.Positional[Path],
    *,
    out: Annotated[Path | None, tyro.conf.arg(aliases=("--output",))] = None,
    unrounded: Flag = False,
    moments: Flag = False,
    clip_s: float = 2.0,
) -> None:
    """Print the metrics of a prediction file as JSON, with the keys and values of the official evaluator.

    Annotations with "absent": true (the event is not in the video) are left out of these; where the predictions hold
    pred_presence they are measured with them under "presence".

    Args:
        predictions: JSONL with qid, pred_relevant_windows and pred_saliency_scores in each line.
        ground_truth: JSONL of annotations in the QVHighlights form.
        out: Write the JSON to this file too.
        unrounded: All digits instead of two.
        moments: Add R1 and R5 at 0.3, 0.5 and 0.7 and mIoU (as for Charades-STA and TACoS) under "moments".
        clip_s: Seconds a clip, for highlight metrics.
    """
    bounds.require("clip_s", clip_s, bounds.CLIP_S, "seconds")
    rows, truth = read_jsonl(predictions), read_jsonl(ground_truth)
    found, asked = present(rows, truth)
    result = evaluate(found, asked, rounded=not unrounded, clip_s=clip_s)
    if moments:
        result["moments"] = moment_metrics(found, asked, ranks=(1, 5), rounded=not unrounded)
    if any(map(is_absent, truth)) and says_presence(rows):
        result["presence"] = absent_too(rows, truth)
    if out is not None:
        write_json(out, result)
    print(dump_json(result, indent=4))  # noqa: T201
