"""`sdst eval`: a checkpoint or a bundle on a split of a data set. A bundle needs no torch."""

from __future__ import annotations

from pathlib import Path

import tyro

from sdst_runtime.data.config import SplitName
from sdst_runtime.errors import InputError
from sdst_runtime.files import write_json, write_jsonl
from sdst_runtime.metrics.postprocess import Postprocess
from sdst_runtime.metrics.score import score
from sdst_runtime.strict_json import dump_json

from .models import data_of, has_windows, load_samples, open_model, predict_samples, say
from .options import Flag


def evaluate_model(
    model: tyro.conf.Positional[Path],
    *,
    data: str | None = None,
    split: SplitName = "val",
    root: Path | None = None,
    nms: float | None = None,
    round_s: float | None = None,
    predictions: Path | None = None,
    output: Path | None = None,
    unrounded: Flag = False,
    threads: int | None = None,
) -> None:
    """Predict a split and print its metrics as JSON, in the form of `sdst score`.

    Args:
        model: A checkpoint (.safetensors), the folder of a run (its best one), or a bundle, which needs no torch.
        data: A preset or a config.json; default: the data that the checkpoint was trained on.
        split: Which split of it.
        root: Folder of the data set, instead of the config's.
        nms: Drop windows whose IoU with a better one is at least this.
        round_s: Round windows to multiples of this many seconds.
        predictions: Write the predictions to this JSONL file.
        output: Write the metrics to this JSON file too.
        unrounded: All digits instead of two.
        threads: Threads for the model; default: all cores.
    """
    postprocess = Postprocess(nms, round_s)
    opened = open_model(model, threads)
    chosen = data_of(opened, data, root)
    samples = load_samples(opened, chosen, split)
    labelled = has_windows(samples)
    if not labelled and predictions is None:
        raise InputError(f"{chosen.annotations(split)}: holds no windows, nothing to score; give --predictions FILE")
    rows = predict_samples(opened, samples, split, postprocess)
    if predictions is not None:
        write_jsonl(predictions, rows)
    if not labelled:
        say(f"{len(rows)} predictions written; {chosen.annotations(split)} holds no windows: nothing to score")
        return
    result = score(rows, samples, chosen, rounded=not unrounded)
    if output is not None:
        write_json(output, result)
    print(dump_json(result, indent=4))  # noqa: T201
