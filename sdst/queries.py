"""`sdst inspect queries`: which of its moment slots a trained model uses, as a table, a picture and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tyro
from rich.table import Table

from sdst_runtime.data.config import SplitName
from sdst_runtime.files import write_bytes, write_json
from sdst_train.study.queries import Matches, Use, draw, record_matches, tabulate

from .consoles import make_console
from .inspected import label, open_run, picture_path, require_runs
from .progress import counted


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
    runs = require_runs(runs, "sdst inspect queries")
    picture = picture_path(out, runs[0] / "queries.png")
    recorded: dict[str, Matches] = {}
    summary: list[dict[str, Any]] = []
    for run in runs:
        checkpoint, samples = open_run(run, split, root)
        with counted(f"{run}: matching {split}") as on_done:
            matches = record_matches(checkpoint, samples, on_done=on_done)
        recorded[label(run, runs)] = matches
        table = tabulate(matches)
        make_console().print(_table(run, split, matches, table))
        summary.append(_numbers(run, matches, table))
    write_bytes(picture, draw(recorded))
    numbers = picture.with_suffix(".json")
    write_json(numbers, {"split": split, "unit": "windows matched; shares in percent", "runs": summary})
    make_console().print(f"picture: {picture}, numbers: {numbers}", soft_wrap=True)


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
