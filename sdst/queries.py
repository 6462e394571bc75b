"""`sdst inspect queries`: which of its moment slots a trained model uses, as a table, a picture and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tyro
from rich.table import Table

from sdst_runtime.data.config import SplitName
from sdst_train.study.queries import Matches, Use, draw, record_matches, tabulate

from .inspected import Study, inspect_runs


def queries(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    *,
    split: SplitName = "val",
    root: Path | None = None,
    out: Path | None = None,
) -> None:
    """Count which of the decoder's queries (slots) win a window in the matching, and whose moment scores highest.

    Args:
        runs: Folders of runs.
        split: Which split of the data that each run was trained on.
        root: Folder of the data set, instead of the one in each run's config.
        out: The picture, a PNG; the numbers go beside it as JSON. Default: queries.png in the first run's folder.
    """
    unit = "windows matched; shares in percent"
    inspect_runs(Study("queries", "matching", unit, record_matches, _show, draw), runs, split, root, out)


def _show(run: Path, split: str, matches: Matches) -> tuple[Table, dict[str, Any]]:
    table = tabulate(matches)
    return _table(run, split, matches, table), _numbers(run, matches, table)


def _numbers(run: Path, matches: Matches, table: Sequence[Use]) -> dict[str, Any]:
    S, K, M = matches.matched_SKM.shape
    references = [{"centre": centre, "width": width} for centre, width in matches.reference_M2.tolist()]
    sizes = {"queries": S, "absent": matches.absent, "steps": K, "slots": M}
    return {"run": str(run), **sizes, "references": references, "use": [asdict(row) for row in table]}


def _table(run: Path, split: str, matches: Matches, rows: Sequence[Use]) -> Table:
    M = matches.matched_SKM.shape[2]
    left_out = f"; {matches.absent} absent queries have no window: left out" if matches.absent else ""
    table = Table(
        title=f"{run}, {split}",
        caption=f"used: of {M} slots, those that win a window in the matching of the step; score: those whose moment "
        f"has the highest score{left_out}",
    )
    table.add_column("windows")
    for name in ("queries", "step", "used", "bits", "of log2 M", "most used", "percent"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.windows, str(row.queries), str(row.step), str(row.used), f"{row.entropy_bits:.2f}",
            f"{row.entropy_share:.2f}", str(row.most_used), f"{row.most_share:.1f}", end_section=row.step == "score",
        )  # fmt: skip
    return table
