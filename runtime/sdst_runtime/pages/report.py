"""One self-contained HTML page: what was found, where in the video, how good and how fast.

`write_report(path, Report(...))`. The page needs no network and no script; charts are inline SVG and HTML whose
horizontal positions are percentages of one common time axis, so frames, bars and curves line up at every width.
Times are in seconds in this API; inside, `*_pct` is a position on the plot, 0..100 from the left or from the top.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..contracts import Grounding, Moment
from ..errors import InputError
from ..files import write_text
from .charts import clock, data_uri, line_chart, percent, short, span, time_ticks
from .templates import render

MAX_FRAMES = 14  # more would be too small to recognise
CLEAR_MOMENTS = 5  # moments with a row and a label of their own; the rest share one faint row


@dataclass(frozen=True)
class QueryPanel:
    """One sentence and its answer."""

    grounding: Grounding
    truth: tuple[tuple[float, float], ...] | None = None  # (start_s, end_s) windows; None: not known, (): none exists


@dataclass(frozen=True)
class VideoPanel:
    """One video, its key frames and its queries."""

    title: str
    duration_s: float
    frames: tuple[tuple[float, bytes], ...]  # (time_s, JPEG or PNG file bytes); at most MAX_FRAMES are shown
    queries: tuple[QueryPanel, ...]
    note: str = ""  # one line under the title


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
    write_text(Path(path), render_report(report).encode("utf-8", "replace").decode())


def render_report(report: Report) -> str:
    """The page as text. Everything that comes from outside is escaped."""
    return render(
        "report.html",
        report=report,
        videos=[_video(panel) for panel in report.videos],
        latency=_latency(report.latency),
        metrics=[_metric(row) for row in report.metrics],
        stages=_stages(report.stages),
        curves=[line_chart(curve.title, curve.points) for curve in report.curves if curve.points],
        tables=[_table(table) for table in report.tables if table.rows],
    )


def best_iou(moment: Moment, truth: Iterable[tuple[float, float]]) -> float:
    """Highest temporal intersection over union of `moment` with a truth window (start_s, end_s); 0 without windows."""
    return max((_iou(moment.start_s, moment.end_s, start_s, end_s) for start_s, end_s in truth), default=0.0)


def _iou(start_s: float, end_s: float, other_start_s: float, other_end_s: float) -> float:
    overlap_s = max(0.0, min(end_s, other_end_s) - max(start_s, other_start_s))
    union_s = (end_s - start_s) + (other_end_s - other_start_s) - overlap_s
    return overlap_s / union_s if union_s > 0 else 0.0


# Videos


def _video(panel: VideoPanel) -> dict[str, Any]:
    duration_s = panel.duration_s
    if not (math.isfinite(duration_s) and duration_s > 0):
        raise InputError(f"report: video {panel.title!r}: expected a duration above 0 s, got {duration_s} s")
    for query in panel.queries:
        if not np.isfinite(query.grounding.saliency).all():
            raise InputError(f"report: query {query.grounding.query!r}: saliency has NaN or infinity; ground it again")
    scale = _saliency_scale(panel.queries)
    return {
        "title": panel.title,
        "note": panel.note,
        "duration_s": duration_s,
        "duration": f"{duration_s:.1f} s" if duration_s < 180 else f"{clock(duration_s, 0)} min",
        "frames": _frames(panel),
        "ticks": time_ticks(duration_s),
        "queries": [_query(query, duration_s, scale) for query in panel.queries],
    }


def _saliency_scale(queries: Sequence[QueryPanel]) -> tuple[float, float]:
    """Round (low, high) around the saliency of all queries of a video, 0 included: their curves can be compared."""
    curves = [np.asarray(query.grounding.saliency, dtype=np.float64) for query in queries]
    least = min((float(curve.min(initial=0.0)) for curve in curves), default=0.0)
    most = max((float(curve.max(initial=0.0)) for curve in curves), default=0.0)

    def round_up(value: float) -> float:
        return next((bound for bound in (0.25, 0.5, 1.0) if bound >= value), value)

    return (-round_up(-least) if least < 0 else 0.0), round_up(most)


def _frames(panel: VideoPanel) -> list[dict[str, Any]]:
    """Cells that tile the axis: each frame covers the time that is nearer to it than to another frame."""
    frames = sorted(panel.frames, key=lambda frame: frame[0])
    if len(frames) > MAX_FRAMES:
        frames = [frames[int((i + 0.5) * len(frames) / MAX_FRAMES)] for i in range(MAX_FRAMES)]
    times_s = [time_s for time_s, _ in frames]
    edges_s = [0.0, *((a + b) / 2 for a, b in pairwise(times_s)), panel.duration_s]
    return [
        {
            "time": clock(time_s, 1),
            "at_pct": percent(time_s, panel.duration_s),
            "width_pct": percent(edges_s[i + 1], panel.duration_s) - percent(edges_s[i], panel.duration_s),
            "uri": data_uri(data, f"{panel.title!r}, frame at {time_s:.2f} s"),
        }
        for i, (time_s, data) in enumerate(frames)
    ]


def _query(panel: QueryPanel, duration_s: float, scale: tuple[float, float]) -> dict[str, Any]:
    moments = sorted(panel.grounding.moments, key=lambda moment: -moment.score)
    bars = [_bar(moment.start_s, moment.end_s, duration_s, moment.score) for moment in moments]
    for bar, moment in zip(bars, moments):
        bar["weak"] = moment.score < 0.5 * moments[0].score
    iou = best_iou(moments[0], panel.truth) if moments and panel.truth else None
    return {
        "sentence": panel.grounding.query,
        "bars": bars[:CLEAR_MOMENTS],
        "rest": bars[CLEAR_MOMENTS:],
        "truth": None if panel.truth is None else [_bar(start_s, end_s, duration_s) for start_s, end_s in panel.truth],
        "iou": None if iou is None else f"{iou:.2f}",
        "grade": "" if iou is None else "good" if iou >= 0.7 else "fair" if iou >= 0.5 else "poor",
        "saliency": _saliency(panel.grounding, duration_s, scale),
    }


def _bar(start_s: float, end_s: float, duration_s: float, score: float = 1.0) -> dict[str, Any]:
    start_pct, end_pct = percent(start_s, duration_s), percent(end_s, duration_s)
    # The label stands where there is room: behind the bar, before it, or on it.
    side = "after" if end_pct <= 78 else "before" if start_pct >= 22 else "on"
    return {
        "start_pct": start_pct,
        "width_pct": max(0.0, end_pct - start_pct),
        "side": side,
        "label_pct": {"after": end_pct, "before": start_pct, "on": (start_pct + end_pct) / 2}[side],
        "span": span(start_s, end_s, duration_s),
        "score": f"{score:.2f}",
        "weak": False,
        "opacity": round(0.15 + 0.85 * min(max(score, 0.0), 1.0), 3),
    }


def _saliency(grounding: Grounding, duration_s: float, scale: tuple[float, float]) -> dict[str, Any] | None:
    """A curve of one step a clip: clip i covers i * clip_s to (i + 1) * clip_s, the last ends with the video."""
    values = np.asarray(grounding.saliency, dtype=np.float64)
    clip_s = grounding.clip_s
    values = values[: math.ceil(duration_s / clip_s - 1e-6)]
    if values.size == 0:
        return None
    low, high = scale

    def y_pct(value: float) -> float:
        return 100 * (high - value) / (high - low)

    edges_pct = [percent(i * clip_s, duration_s) for i in range(values.size + 1)]
    steps = " ".join(
        f"{left:.3f},{y_pct(value):.2f} {right:.3f},{y_pct(value):.2f}"
        for left, right, value in zip(edges_pct, edges_pct[1:], values)
    )
    peak = int(values.argmax())
    peak_pct = (edges_pct[peak] + edges_pct[peak + 1]) / 2
    return {
        "line": f"M{steps}",
        "area": f"M{edges_pct[0]:.3f},{y_pct(0):.2f} {steps} {edges_pct[-1]:.3f},{y_pct(0):.2f}Z",
        "scale": [
            {"y_pct": y_pct(value), "label": f"{value:g}".replace("-", "\u2212")} for value in sorted({high, 0.0, low})
        ],
        "peak_pct": peak_pct,
        "peak_y_pct": y_pct(values[peak]),
        "peak_label": f"{values[peak]:.2f}".replace("-", "\u2212"),
        "peak_anchor": "start" if peak_pct < 2 else "end" if peak_pct > 98 else "middle",
        "peak_span": span(peak * clip_s, min((peak + 1) * clip_s, duration_s), duration_s),
        "clip_values": " ".join(f"{value:.3f}" for value in values),
        "clip_s": clip_s,
        "range": f"{low:g} to {high:g}",
    }


# Numbers


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
                "seconds": f"{seconds:.1f}",
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
        "value": f"{row.value:.1f}",
        "value_pct": percent(row.value, 100),
        "control": None if row.control is None else f"{row.control:.1f}",
        "control_pct": percent(row.control or 0.0, 100),
        "gap": None if row.control is None else f"{row.value - row.control:+.1f}".replace("-", "\u2212"),
    }
