"""One HTML page: what was found, where in the video, how good and how fast.

`write_report(path, Report(...))`. The page needs no network, and a script only to play a video (report.js, named by its
digest in the page's policy). The video stays the file that it is: the page refers to it. All else is in the page.
Times are in seconds in this API; inside, `*_pct` is a position on the plot, 0..100 from the left or from the top.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import write_text
from .charts import fixed, line_chart, minus, percent, short
from .panels import VideoPanel, draw_video
from .templates import policy_digest, render, source


@dataclass(frozen=True)
class StageLatency:
    """Time of one stage of inference. The stage named "total" is set off from the others."""

    stage: str
    median_ms: float | None  # None: not measured
    samples: int
    note: str = ""
    clips: int | None = None  # clips that one sample handled; None: time does not depend on clips


@dataclass(frozen=True)
class MetricRow:
    """One metric and the same under the shuffled-queries control, 0..100."""

    name: str
    value: float
    control: float | None = None  # None: not measured


@dataclass(frozen=True)
class Curve:
    """A small line chart over epochs."""

    title: str
    points: tuple[tuple[float, Mapping[str, float]], ...]  # (epoch, {series name: value}); NaN or absent leaves a gap


@dataclass(frozen=True)
class Table:
    """Text in rows and columns. A cell that reads as a number stands at the right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""  # one paragraph under the table
    folded: bool = False  # only its title shows until it is opened


@dataclass(frozen=True)
class Report:
    """All that a page shows. Empty parts leave no trace on it."""

    title: str
    subtitle: str = ""
    videos: tuple[VideoPanel, ...] = ()
    latency: tuple[StageLatency, ...] = ()
    machine: tuple[tuple[str, str], ...] = ()  # (name, value), shown with the latency: processor, threads, versions
    metrics: tuple[MetricRow, ...] = ()
    stages: tuple[tuple[str, float], ...] = ()  # (stage of the pipeline, seconds)
    curves: tuple[Curve, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()  # (name, value), shown under the title: parameter counts, files
    tables: tuple[Table, ...] = ()
    warnings: tuple[str, ...] = ()  # lines under the title that must not be missed
    notes: tuple[str, ...] = ()  # paragraphs


def write_report(path: Path, report: Report) -> None:
    """Write `report` as one HTML file, atomically.

    Raises InputError when `path` cannot be written, a duration is not positive, a saliency is not finite, a frame is
    neither JPEG nor PNG, or a row of a table has more or fewer cells than the table has columns.
    """
    # A file name that is not UTF-8 reaches Python with lone surrogates, which cannot be written.
    write_text(Path(path), render_report(report, Path(path).parent).encode("utf-8", "replace").decode())


def render_report(report: Report, folder: Path | None = None) -> str:
    """The page as text. Everything that comes from outside is escaped.

    `folder` is where the page will lie: videos in it are referred to by their path from there, others by their URL.
    """
    script = source("report.js")
    return render(
        "report.html",
        report=report,
        script=script,
        script_digest=policy_digest(script),
        videos=[draw_video(panel, folder) for panel in report.videos],
        latency=_latency(report.latency),
        metrics=[_metric(row) for row in report.metrics],
        stages=_stages(report.stages),
        curves=[line_chart(curve.title, curve.points) for curve in report.curves if curve.points],
        tables=[_table(table) for table in report.tables if table.rows],
    )


def _latency(rows: Sequence[StageLatency]) -> list[dict[str, Any]]:
    longest_ms = max((row.median_ms or 0.0 for row in rows), default=0.0)
    return [
        {
            "name": row.stage,
            "total": row.stage.lower() == "total",
            "width_pct": percent(row.median_ms or 0.0, longest_ms),
            "median": "not measured" if row.median_ms is None else short(row.median_ms),
            "per_clip": "" if row.median_ms is None or not row.clips else short(row.median_ms / row.clips),
            "samples": row.samples,
            "note": row.note,
        }
        for row in rows
    ]


def _stages(stages: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    """Each bar starts where the one before it ended, so that the rows together show the whole run."""
    total_s, before_s, rows = math.fsum(seconds for _, seconds in stages), 0.0, []
    for name, seconds in stages:
        start_pct = percent(before_s, total_s)
        before_s += seconds
        rows.append(
            {
                "name": name,
                "seconds": fixed(seconds, 1),
                "start_pct": start_pct,
                "width_pct": percent(before_s, total_s) - start_pct,
                "share": f"{100 * seconds / total_s:.0f}" if total_s > 0 else "0",
            }
        )
    return rows


def _table(table: Table) -> dict[str, Any]:
    """Cells of a column stand at the right when each reads as a number or is empty."""
    if wrong := next((row for row in table.rows if len(row) != len(table.columns)), None):
        raise InputError(
            f"report: table {table.title!r}: expected {len(table.columns)} cells a row, got {len(wrong)}: {wrong!r:.80}"
        )
    columns = zip(*table.rows, strict=True)
    right = [any(map(_is_number, cells)) and all(_is_number(c) or not c for c in cells) for cells in columns]
    return {
        "title": table.title,
        "note": table.note,
        "folded": table.folded,
        "head": list(zip(table.columns, right, strict=True)),
        "rows": [list(zip(row, right, strict=True)) for row in table.rows],
    }


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"[-+\u2212]?[\d,]+(\.\d+)?", cell) is not None


def _metric(row: MetricRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "value": fixed(row.value, 1),
        "value_pct": percent(row.value, 100),
        "control": None if row.control is None else fixed(row.control, 1),
        "control_pct": percent(row.control or 0.0, 100),
        "gap": None if row.control is None else minus(fixed(row.value - row.control, 1, plus=True)),
    }
