"""One self-contained HTML page: what was found, where in the video, how good and how fast.

`write_report(path, Report(...))`. The page needs no network and no script; charts are inline SVG and HTML whose
horizontal positions are percentages of one common time axis, so frames, bars and curves line up at every width.
Times are in seconds in this API; inside, `*_pct` is a position on the plot, 0..100 from the left or from the top.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .contracts import Grounding, Moment
from .errors import InputError, require_package
from .files import write_text

MAX_FRAMES = 14  # more would be too small to recognise
CLEAR_MOMENTS = 5  # moments with a row and a label of their own; the rest share one faint row
_IMAGE_TYPES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png"}
_TIME_STEPS_S = (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)


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
    notes: tuple[str, ...] = ()  # paragraphs


def write_report(path: Path, report: Report) -> None:
    """Write `report` as one HTML file, atomically.

    Raises InputError when `path` cannot be written, a duration is not positive, a saliency is not finite, or a
    frame is neither JPEG nor PNG.
    """
    # A file name that is not UTF-8 reaches Python with lone surrogates, which cannot be written.
    write_text(Path(path), render_report(report).encode("utf-8", "replace").decode())


def render_report(report: Report) -> str:
    """The page as text. Everything that comes from outside is escaped."""
    jinja2 = require_package("jinja2", "")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        report=report,
        videos=[_video(panel) for panel in report.videos],
        latency=_latency(report.latency),
        metrics=[_metric(row) for row in report.metrics],
        stages=_stages(report.stages),
        curves=[_curve(curve) for curve in report.curves if curve.points],
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
        "duration": f"{duration_s:.1f} s" if duration_s < 180 else f"{_clock(duration_s, 0)} min",
        "frames": _frames(panel),
        "ticks": _time_ticks(duration_s),
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
            "time": _clock(time_s, 1),
            "at_pct": _percent(time_s, panel.duration_s),
            "width_pct": _percent(edges_s[i + 1], panel.duration_s) - _percent(edges_s[i], panel.duration_s),
            "uri": _data_uri(data, f"{panel.title!r}, frame at {time_s:.2f} s"),
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
    start_pct, end_pct = _percent(start_s, duration_s), _percent(end_s, duration_s)
    # The label stands where there is room: behind the bar, before it, or on it.
    side = "after" if end_pct <= 78 else "before" if start_pct >= 22 else "on"
    return {
        "start_pct": start_pct,
        "width_pct": max(0.0, end_pct - start_pct),
        "side": side,
        "label_pct": {"after": end_pct, "before": start_pct, "on": (start_pct + end_pct) / 2}[side],
        "span": _span(start_s, end_s, duration_s),
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

    edges_pct = [_percent(i * clip_s, duration_s) for i in range(values.size + 1)]
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
        "peak_span": _span(peak * clip_s, min((peak + 1) * clip_s, duration_s), duration_s),
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
            "width_pct": _percent(row.median_ms or 0.0, longest_ms),
            "median": "not measured" if row.median_ms is None else _short(row.median_ms),
            "per_clip": "" if row.median_ms is None or not row.clips else _short(row.median_ms / row.clips),
            "samples": row.samples,
            "note": row.note,
        }
        for row in rows
    ]


def _stages(stages: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    """Each bar starts where the one before it ended, so that the rows together show the whole run."""
    total_s, before_s, rows = math.fsum(seconds for _, seconds in stages), 0.0, []
    for name, seconds in stages:
        start_pct = _percent(before_s, total_s)
        before_s += seconds
        rows.append(
            {
                "name": name,
                "seconds": f"{seconds:.1f}",
                "start_pct": start_pct,
                "width_pct": _percent(before_s, total_s) - start_pct,
                "share": f"{100 * seconds / total_s:.0f}" if total_s > 0 else "0",
            }
        )
    return rows


def _metric(row: MetricRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "value": f"{row.value:.1f}",
        "value_pct": _percent(row.value, 100),
        "control": None if row.control is None else f"{row.control:.1f}",
        "control_pct": _percent(row.control or 0.0, 100),
        "gap": None if row.control is None else f"{row.value - row.control:+.1f}".replace("-", "\u2212"),
    }


def _curve(curve: Curve) -> dict[str, Any]:
    names = list(dict.fromkeys(name for _, values in curve.points for name in values))
    epochs = [epoch for epoch, _ in curve.points]
    first, last = min(epochs), max(epochs)
    known = [value for _, values in curve.points for value in values.values() if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    y_ticks = _nice_ticks(0.0 if 0 <= low < 0.6 * high else low, high, 4)
    bottom, top = y_ticks[0], y_ticks[-1]

    def x_pct(epoch: float) -> float:
        return 100 * (epoch - first) / (last - first) if last > first else 50.0

    series = []
    for name in names:
        path, pen_down, final = [], False, math.nan
        for epoch, values in curve.points:
            value = values.get(name, math.nan)
            if math.isfinite(value):
                path.append(f"{'L' if pen_down else 'M'}{x_pct(epoch):.2f},{100 * (top - value) / (top - bottom):.2f}")
                final = value
            pen_down = math.isfinite(value)
        series.append({"name": name, "path": " ".join(path), "last": _short(final) if path else "none"})
    return {
        "title": curve.title,
        "series": series,
        "y_ticks": [{"y_pct": 100 * (top - value) / (top - bottom), "label": f"{value:g}"} for value in y_ticks],
        "x_ticks": [
            {"x_pct": x_pct(epoch), "label": f"{epoch:g}"}
            for epoch in _nice_ticks(first, last, 5)
            if first <= epoch <= last
        ],
    }


# Scales and formats


def _percent(value: float, whole: float) -> float:
    """`value` as a percentage of `whole`, kept within 0..100."""
    return 100 * min(max(value / whole, 0.0), 1.0) if whole > 0 else 0.0


def _nice_ticks(low: float, high: float, about: int) -> list[float]:
    """Round values that cover low..high in about `about` steps."""
    span = high - low if high > low else max(abs(high), 1.0)
    power = 10 ** math.floor(math.log10(span / about))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * about >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil((low + span) / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _time_ticks(duration_s: float) -> list[dict[str, Any]]:
    step_s = next((step for step in _TIME_STEPS_S if duration_s / step <= 10), 3600 * math.ceil(duration_s / 36000))
    ticks = []
    for index in range(int(duration_s / step_s + 1e-6) + 1):
        at_pct = _percent(index * step_s, duration_s)
        ticks.append(
            {
                "at_pct": at_pct,
                "anchor": "start" if at_pct < 1 else "end" if at_pct > 98 else "middle",
                "label": f"{index * step_s:g} s" if duration_s < 180 else _clock(index * step_s, 0),
            }
        )
    return ticks


def _clock(time_s: float, digits: int) -> str:
    """m:ss or h:mm:ss, with `digits` decimals of a second."""
    minutes, seconds = divmod(round(time_s, digits), 60)
    hours, minutes = divmod(int(minutes), 60)
    tail = f"{seconds:0{3 + digits if digits else 2}.{digits}f}"
    return f"{hours}:{minutes:02d}:{tail}" if hours else f"{minutes}:{tail}"


def _span(start_s: float, end_s: float, duration_s: float) -> str:
    if duration_s < 180:
        return f"{start_s:.1f}\u2013{end_s:.1f} s"
    return f"{_clock(start_s, 1)}\u2013{_clock(end_s, 1)}"


def _short(value: float) -> str:
    """Three significant digits or so, thousands parted."""
    size = abs(value)
    return (
        f"{value:,.0f}"
        if size >= 100
        else f"{value:.1f}"
        if size >= 10
        else f"{value:.2f}"
        if size >= 0.1
        else f"{value:.2g}"
    )


def _data_uri(data: bytes, what: str) -> str:
    for magic, media_type in _IMAGE_TYPES.items():
        if data.startswith(magic):
            return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
    raise InputError(f"report: {what}: expected the bytes of a JPEG or PNG file, got {data[:4]!r}; encode the frame")
