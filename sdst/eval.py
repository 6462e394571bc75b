"""`sdst eval`: a checkpoint or a bundle on a split of a data set. A bundle needs no torch."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table

from sdst_runtime.data.absent import with_absent
from sdst_runtime.data.annotations import is_absent
from sdst_runtime.data.config import SplitName
from sdst_runtime.errors import InputError
from sdst_runtime.files import write_json, write_jsonl
from sdst_runtime.metrics.postprocess import Postprocess
from sdst_runtime.metrics.score import PRESENCE_AUROC, score
from sdst_runtime.strict_json import dump_json

from .consoles import make_console
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
    out: Annotated[Path | None, tyro.conf.arg(aliases=("--output",))] = None,
    json: Flag = False,
    unrounded: Flag = False,
    threads: int | None = None,
) -> None:
    """Predict a split and print its metrics as tables.

    Val gets the absent queries that training measured with (the config's data.negatives), where it has none of its own.

    Args:
        model: A checkpoint (.safetensors), the folder of a run (its best one), or a bundle, which needs no torch.
        data: A preset or a config.json; default: the data that the checkpoint was trained on.
        split: Which split of it.
        root: Folder of the data set, instead of the config's.
        nms: Drop windows whose IoU with a better one is at least this.
        round_s: Round windows to multiples of this many seconds.
        predictions: Write the predictions to this JSONL file.
        out: Write the metrics to this JSON file too.
        json: Print the metrics as JSON, in the form of `sdst score`.
        unrounded: All digits.
        threads: Threads for the model; default: all cores.
    """
    postprocess = Postprocess(nms, round_s)
    opened = open_model(model, threads)
    chosen = data_of(opened, data, root)
    samples = load_samples(opened, chosen, split)
    if split == "val":
        samples = with_absent(samples, chosen.negatives)
    labelled = has_windows(samples)
    if not labelled and predictions is None:
        raise InputError(
            f"{chosen.annotations(split)}: holds no windows, nothing to score; give --predictions FILE, or --split val"
        )
    rows = predict_samples(opened, samples, split, postprocess)
    if predictions is not None:
        write_jsonl(predictions, rows)
    if not labelled:
        say(f"{len(rows)} predictions written; {chosen.annotations(split)} holds no windows: nothing to score")
        return
    result = score(rows, samples, chosen, rounded=not unrounded)
    absent = sum(is_absent(sample.row) for sample in samples)
    if absent and "presence" not in result:
        say(
            f"{absent} absent queries are not measured: the model does not say whether an event is there; one that was "
            "trained with --data.negatives does"
        )
    if out is not None:
        write_json(out, result)
    if json:
        print(dump_json(result, indent=4))  # noqa: T201
    else:
        console = make_console(width=100 if not sys.stdout.isatty() else None)
        console.print(metrics_table(result, split, len(rows) - absent, unrounded))
        if "by_windows" in result:
            console.print(windows_table(result["by_windows"], unrounded))
        if "presence" in result:
            console.print(presence_table(result["presence"], unrounded))


def metrics_table(result: dict[str, Any], split: str, queries: int, unrounded: bool) -> Table:
    """The "brief" metrics, a line each, and where the official evaluator tells them the same by length of moment."""
    groups = [name for name in ("full", "short", "middle", "long") if name in result]
    table = Table("metric", *(groups or ["all"]), title=f"{split}: {queries} queries, percent")
    for column in table.columns[1:]:
        column.justify = "right"
    brief = {name: value for name, value in result["brief"].items() if name != PRESENCE_AUROC}  # has its own table
    names = list(dict.fromkeys(re.sub(r"^MR-(full|short|middle|long)-", "MR-", name) for name in brief))
    for name in names:
        keys = [re.sub("^MR-", f"MR-{group}-", name) for group in groups] if name.startswith("MR-") else [name]
        cells = [brief.get(key) for key in keys]
        if any(value is not None for value in cells):
            table.add_row(name.removeprefix("MR-"), *(_number(value, unrounded) for value in cells))
    return table


def windows_table(groups: dict[str, Any], unrounded: bool) -> Table:
    """mAP and R1 of the queries with so many annotated windows."""
    names = ("mAP", "R1@0.5", "R1@0.7")
    table = Table("windows", "queries", *names, title="by number of annotated windows, percent")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, values in groups.items():
        table.add_row(name, str(values["queries"]), *(_number(values[metric], unrounded) for metric in names))
    return table


def presence_table(presence: dict[str, Any], unrounded: bool) -> Table:
    """How well present and absent queries are told apart; AUROC and ECE are 0 to 1, the others percent."""
    table = Table(
        "presence", "value", title=f"{presence['queries']} queries, {presence['absent']} of them absent",
        caption=f"answered: a presence of {presence['threshold']:g} or more; AUROC and ECE of 1, the others percent",
    )  # fmt: skip
    table.columns[1].justify = "right"
    for name, value in presence.items():
        if name not in ("queries", "absent", "threshold"):
            digits = 4 if name in ("AUROC", "ECE") else 2
            table.add_row(name, repr(value) if unrounded else f"{value:.{digits}f}")
    return table


def _number(value: float | None, unrounded: bool) -> str:
    return "" if value is None else repr(value) if unrounded else f"{value:.2f}"
