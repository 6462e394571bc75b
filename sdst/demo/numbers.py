"""What the demo measures on its held-out videos, beside its control, and the tables it shows.

Retrieval is measured on the queries that are in their videos; the presence, where some are absent, on all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sdst_runtime.data.annotations import Row, is_absent
from sdst_runtime.metrics.evaluator import LENGTH_RANGES_S, evaluate, top_clip_in_window
from sdst_runtime.metrics.presence import auroc, presences
from sdst_runtime.metrics.score import absent_too, by_windows, present
from sdst_runtime.metrics.tables import pair
from sdst_runtime.pages.report import Table

from .dataset import CLIP_S
from .grammar import SEQUEL

METRICS = {  # our name -> the official evaluator's
    "R1@0.5": "MR-full-R1@0.5",
    "R1@0.7": "MR-full-R1@0.7",
    "mAP": "MR-full-mAP",
    "HIT@1": "HL-min-VeryGood-Hit1",
}
_SHOWN = ("mAP", "R1@0.5", "R1@0.7")


def measured(rows: Sequence[Row], truth: Sequence[Row]) -> dict[str, float]:
    """The demo's metrics of predictions, in percent."""
    rows, truth = present(rows, truth)
    brief = evaluate(rows, truth, clip_s=CLIP_S)["brief"]
    values = {name: brief[official] for name, official in METRICS.items()}
    return {**values, "top_clip_in_window": round(top_clip_in_window(rows, truth, clip_s=CLIP_S), 2)}


def in_parts(rows: Sequence[Row], truth: Sequence[Row]) -> dict[str, Any]:
    """The metrics of parts of the queries: whose combination of attributes was, and was not, in training; about single
    events and about sequences; "by_length" of window and "by_windows", their number.
    """
    rows, truth = present(rows, truth)
    parts: dict[str, Callable[[Row], bool]] = {
        "val_seen_combinations": lambda row: not row["held_out_combination"],
        "val_held_out_combinations": lambda row: row["held_out_combination"],
    }
    if any(SEQUEL in row["event"] for row in truth):
        parts["val_single_events"] = lambda row: SEQUEL not in row["event"]
        parts["val_sequences"] = lambda row: SEQUEL in row["event"]
    found = {name: measured(*part) for name, chosen in parts.items() if (part := _part(rows, truth, chosen))[1]}
    counts = {name: _rounded(group) for name, group in by_windows(rows, truth).items()}
    return {**found, "by_length": _by_length(rows, truth), "by_windows": counts}


def presence(rows: Sequence[Row], control: Sequence[Row], truth: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """{"presence": how well present queries are told from absent ones}, empty where none is absent: `presence_metrics`,
    and AUROC against the near misses, against the others, and of the control's predictions.
    """
    if not any(map(is_absent, truth)):
        return {}
    near = _part(rows, truth, lambda row: not is_absent(row) or row["near_miss"])
    others = _part(rows, truth, lambda row: not row.get("near_miss"))
    parts = {"near misses": near, "others": others, "shuffled queries": (control, truth)}
    kinds = {f"AUROC {name}": _auroc(*part) for name, part in parts.items()}
    return {"presence": {name: _rounded(value) for name, value in (absent_too(rows, truth) | kinds).items()}}


def tables(summary: dict[str, Any]) -> tuple[Table, ...]:
    """By length, by number of windows, and the presence; those that have something to say."""
    lengths = [
        (f"{name}, {LENGTH_RANGES_S[name][0]} to {LENGTH_RANGES_S[name][1]} s", *_cells(group, "windows"))
        for name, group in summary["by_length"].items()
    ]
    counts = [(name, *_cells(group, "queries")) for name, group in summary["by_windows"].items()]
    told = [(name, str(value)) for name, value in summary.get("presence", {}).items()]
    found = (
        Table("By length of window", ("length", "windows", *_SHOWN), tuple(lengths)),
        Table("By number of windows", ("windows", "queries", *_SHOWN), tuple(counts)),
        Table("Presence", ("presence", "value"), tuple(told), "Metrics are percent, AUROC and ECE 0 to 1."),
    )
    return tuple(table for table in found if table.rows)


def _part(rows: Sequence[Row], truth: Sequence[Row], chosen: Callable[[Row], bool]) -> tuple[list[Row], list[Row]]:
    kept = [row for row in truth if chosen(row)]
    qids = {row["qid"] for row in kept}
    return [row for row in rows if row["qid"] in qids], kept


def _by_length(rows: Sequence[Row], truth: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """The windows of each length and the queries that have some, as the official evaluator takes them."""
    result = evaluate(rows, truth, clip_s=CLIP_S)
    lengths_s = [end_s - start_s for row in truth for start_s, end_s in row["relevant_windows"]]
    groups = {}
    for name, (least_s, most_s) in LENGTH_RANGES_S.items():
        windows = sum(least_s < length_s <= most_s for length_s in lengths_s)
        if windows:
            found = {f"R1@{iou}": result[name]["MR-R1"][iou] for iou in ("0.5", "0.7")}
            groups[name] = {"windows": windows, "mAP": result[name]["MR-mAP"]["average"], **found}
    return groups


def _auroc(rows: Sequence[Row], truth: Sequence[Row]) -> float:
    there_N = np.array([not is_absent(row) for row in pair(rows, truth)])
    return auroc(presences(rows), there_N)


def _rounded(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _rounded(value) for name, value in values.items()}
    return round(values, 4) if isinstance(values, float) else values


def _cells(group: dict[str, Any], counted: str) -> tuple[str, ...]:
    return (str(group[counted]), *(f"{group[name]:.2f}" for name in _SHOWN))
