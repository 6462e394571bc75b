"""`sdst inspect offsets`: where the sampling offsets of trained models point, as a table, a picture and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tyro
from rich.table import Table

from sdst_runtime.data.config import SplitName
from sdst_train.study.offsets import Offsets, Spread, StepSpread, draw, record_offsets, tabulate

from .inspected import Study, inspect_runs


def offsets(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    *,
    split: SplitName = "val",
    root: Path | None = None,
    out: Path | None = None,
) -> None:
    """Draw where the sampling offsets of runs point, in half-widths of the moment: beyond 1 is outside it.

    Args:
        runs: Folders of runs with attention rdsa or deformable_ca.
        split: Which split of the data that each run was trained on.
        root: Folder of the data set, instead of the one in each run's config.
        out: The picture, a PNG; the numbers go beside it as JSON. Default: offsets.png in the first run's folder.
    """
    unit = "half-widths of the moment; outside in percent"
    inspect_runs(Study("offsets", "predicting", unit, record_offsets, _show, draw), runs, split, root, out)


def _show(run: Path, split: str, offset_run: Offsets) -> tuple[Table, dict[str, Any]]:
    table = tabulate(offset_run)
    return _table(run, split, table), _numbers(run, offset_run, table)


def _numbers(run: Path, offset_run: Offsets, table: Sequence[StepSpread]) -> dict[str, Any]:
    S, _, M, H, P = offset_run.offset_SKMHP.shape
    sizes = {"queries": S, "moments": M, "heads": H, "points": P}
    return {"run": str(run), **sizes, "steps": [asdict(row) for row in table]}


def _table(run: Path, split: str, rows: Sequence[StepSpread]) -> Table:
    table = Table(
        title=f"{run}, {split}",
        caption="half-widths of the moment; weighted: by attention weight; top: the moment with the highest score",
    )
    for name in ("step", "moments"):
        table.add_column(name)
    for name in ("outside %", "weighted %", "median", "weighted", "95th", "weighted"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(str(row.step), row.moments, *_cells(row.counted, row.weighted), end_section=row.moments == "top")
    return table


def _cells(counted: Spread, weighted: Spread) -> tuple[str, ...]:
    pairs = (
        (counted.outside, weighted.outside, 1),
        (counted.median, weighted.median, 2),
        (counted.p95, weighted.p95, 2),
    )
    return tuple(f"{value:.{digits}f}" for one, other, digits in pairs for value in (one, other))
