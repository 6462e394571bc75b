"""`sdst submit`: predictions of val and test as the QVHighlights server takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tyro

from sdst_runtime.data.annotations import Row, is_absent
from sdst_runtime.data.config import DataConfig, SplitName
from sdst_runtime.errors import InputError
from sdst_runtime.metrics.postprocess import Postprocess
from sdst_runtime.metrics.score import score
from sdst_runtime.metrics.submission import check_predictions, complete_saliency, write_submission
from sdst_runtime.strict_json import dump_json

from .models import OpenedModel, data_of, has_windows, load_samples, open_model, predict_samples


def submit(
    model: tyro.conf.Positional[Path],
    *,
    out: Path,
    data: str | None = None,
    root: Path | None = None,
    windows: int = 10,
    nms: float | None = None,
    round_s: float | None = None,
    threads: int | None = None,
) -> None:
    """Predict val and test, check both, and write the two files and submission.zip.

    Args:
        model: A checkpoint (.safetensors), the folder of a run (its best one), or a bundle, which needs no torch.
        out: Folder of the submission.
        data: A preset or a config.json; default: the data that the checkpoint was trained on.
        root: Folder of the data set, instead of the config's.
        windows: Most windows a query; the server reads ten.
        nms: Drop windows whose IoU with a better one is at least this.
        round_s: Round windows to multiples of this many seconds.
        threads: Threads for the model; default: all cores.
    """
    postprocess = Postprocess(nms, round_s, max_windows=windows)
    opened = open_model(model, threads)
    chosen = data_of(opened, data, root)
    if chosen.metrics != "qvhighlights":
        raise InputError(f"a submission is for QVHighlights, the data's metrics are {chosen.metrics!r}; use  sdst eval")
    val_rows, val_metrics = _checked(opened, chosen, "val", postprocess, windows)
    test_rows, test_metrics = _checked(opened, chosen, "test", postprocess, windows)
    archive = write_submission(out, val_rows, test_rows)
    summary: dict[str, Any] = {"zip": str(archive), "bytes": archive.stat().st_size, "val": val_metrics}
    print(dump_json(summary | ({"test": test_metrics} if test_metrics else {}), indent=4))  # noqa: T201


def _checked(
    opened: OpenedModel, data: DataConfig, split: SplitName, postprocess: Postprocess, windows: int
) -> tuple[list[Row], dict[str, float] | None]:
    """Valid rows of a split, and the metrics' "brief" block where it has windows."""
    samples = load_samples(opened, data, split)
    annotations = [sample.row for sample in samples]
    absent = [row["qid"] for row in annotations if is_absent(row)]
    if absent:
        raise InputError(
            f"{data.annotations(split)}: {len(absent)} absent queries, first qid {absent[0]}; a submission has "
            'none: leave the rows with "absent": true out of the annotations'
        )
    rows = complete_saliency(predict_samples(opened, samples, split, postprocess), annotations, data.clip_s)
    check_predictions(rows, annotations, data.clip_s, windows)
    return rows, score(rows, samples, data)["brief"] if has_windows(samples) else None
