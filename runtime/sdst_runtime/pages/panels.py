"""The videos of the report's page: key frames, and for each sentence its moments, the truth and the saliency.

Positions are percentages of one common time axis, so that frames, bars and curves line up at every width. Times are in
seconds; `*_pct` is a position on the plot, 0..100 from the left or from the top.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from ..contracts import Grounding, Moment
from ..errors import InputError
from .charts import clock, data_uri, fixed, minus, percent, span, time_ticks

MAX_FRAMES = 14  # more would be too small to recognise
CLEAR_MOMENTS = 5  # moments with a row, a picture and a label of their own; the rest share one faint row

# Below it a best score says that nothing stands out. Of the demo's 273 held-out queries (one seed) the best moment was
# right, IoU 0.5 or more, for 254, and the lowest score of those was 0.21.
WEAK_SCORE = 0.2
PRESENT = 0.5  # presence below which the event is more likely absent than there


@dataclass(frozen=True)
class QueryPanel:
    """One sentence and its answer."""

    grounding: Grounding
    truth: tuple[tuple[float, float], ...] | None = None  # (start_s, end_s) windows; None: not known, (): none exists
    pictures: tuple[bytes, ...] = ()  # JPEG or PNG file bytes, one for each of `shown_moments`; (): no pictures


@dataclass(frozen=True)
class VideoPanel:
    """One video, its key frames and its queries."""

    title: str
    duration_s: float
    frames: tuple[tuple[float, bytes], ...]  # (time_s, JPEG or PNG file bytes); at most MAX_FRAMES are shown
    queries: tuple[QueryPanel, ...]
    note: str = ""  # one line under the title
    file: Path | None = None  # what the page plays; it stays where it is. None: the page plays nothing


def shown_moments(grounding: Grounding) -> list[Moment]:
    """Those with a row of their own on the page, best first."""
    return sorted(grounding.moments, key=lambda moment: -moment.score)[:CLEAR_MOMENTS]


def video_url(file: Path, folder: Path | None) -> str:
    """How a page in `folder` refers to `file`: the path from there when it lies in it or below, else a file URL."""
    path = Path(os.path.abspath(file))
    if folder is not None and path.is_relative_to(here := os.path.abspath(folder)):
        return quote(os.fsencode(path.relative_to(here).as_posix()))
    return path.as_uri()


def draw_video(panel: VideoPanel, folder: Path | None) -> dict[str, Any]:
    """What the template needs of a panel, on a page that lies in `folder`.

    Raises InputError when the duration is not positive, a saliency is not finite, a picture is neither JPEG nor PNG, or
    a query has pictures but not one for each of its shown moments.
    """
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
        "url": None if panel.file is None else video_url(panel.file, folder),
        "file": "" if panel.file is None else panel.file.name,
        "duration_s": duration_s,
        "duration": f"{duration_s:.1f} s" if duration_s < 180 else f"{clock(duration_s, 0)} min",
        "frames": _frames(panel),
        "ticks": time_ticks(duration_s),
        "queries": [_query(query, duration_s, scale) for query in panel.queries],
    }


def best_iou(moment: Moment, truth: Iterable[tuple[float, float]]) -> float:
    """Highest temporal intersection over union of `moment` with a truth window (start_s, end_s); 0 without windows."""
    return max((_iou(moment.start_s, moment.end_s, start_s, end_s) for start_s, end_s in truth), default=0.0)


def _iou(start_s: float, end_s: float, other_start_s: float, other_end_s: float) -> float:
    overlap_s = max(0.0, min(end_s, other_end_s) - max(start_s, other_start_s))
    union_s = (end_s - start_s) + (other_end_s - other_start_s) - overlap_s
    return overlap_s / union_s if union_s > 0 else 0.0


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
            "time_s": fixed(time_s, 2),
            "at_pct": percent(time_s, panel.duration_s),
            "width_pct": percent(edges_s[i + 1], panel.duration_s) - percent(edges_s[i], panel.duration_s),
            "uri": data_uri(data, f"{panel.title!r}, frame at {time_s:.2f} s"),
        }
        for i, (time_s, data) in enumerate(frames)
    ]


def _query(panel: QueryPanel, duration_s: float, scale: tuple[float, float]) -> dict[str, Any]:
    sentence = panel.grounding.query
    moments = sorted(panel.grounding.moments, key=lambda moment: -moment.score)
    best = moments[0] if moments else None
    shown = moments[:CLEAR_MOMENTS]
    if panel.pictures and len(panel.pictures) != len(shown):
        raise InputError(
            f"report: query {sentence!r}: expected a picture for each of its {len(shown)} shown moments, "
            f"got {len(panel.pictures)}; take the moments from shown_moments"
        )
    bars = [_bar(moment.start_s, moment.end_s, duration_s, moment.score) for moment in moments]
    for bar, moment in zip(bars, moments):
        bar["weak"] = moment.score < max(0.5 * moments[0].score, WEAK_SCORE)
    for bar, picture in zip(bars, panel.pictures):
        bar["picture"] = data_uri(picture, f"query {sentence!r}, a moment's picture")
    iou = best_iou(best, panel.truth) if best and panel.truth else None
    return {
        "sentence": sentence,
        "presence": None if panel.grounding.presence is None else fixed(panel.grounding.presence, 2),
        "quiet": _quiet(panel.grounding.presence, best),
        "bars": bars[:CLEAR_MOMENTS],
        "rest": bars[CLEAR_MOMENTS:],
        "truth": None if panel.truth is None else [_bar(start_s, end_s, duration_s) for start_s, end_s in panel.truth],
        "iou": None if iou is None else fixed(iou, 2),
        "grade": "" if iou is None else "good" if iou >= 0.7 else "fair" if iou >= 0.5 else "poor",
        "saliency": _saliency(panel.grounding, duration_s, scale),
    }


def _quiet(presence: float | None, best: Moment | None) -> str:
    """What is said under a sentence that the video probably does not show. A presence, where there is one, decides."""
    if presence is not None and best is None:
        return "Nothing found: the video does not seem to show this."
    if presence is not None and presence < PRESENT:
        return f"The video probably does not show this: its presence is below {PRESENT:g}. Take the moments as guesses."
    if presence is None and best is not None and best.score < WEAK_SCORE:
        score = fixed(best.score, 2)
        return (
            f"Nothing stands out: the best score is {score} of 1, below {WEAK_SCORE:g}. The video may not show this; "
            "take the moments as guesses."
        )
    return ""


def _bar(start_s: float, end_s: float, duration_s: float, score: float = 1.0) -> dict[str, Any]:
    start_pct, end_pct = percent(start_s, duration_s), percent(end_s, duration_s)
    return {
        "start_pct": start_pct,
        "width_pct": max(0.0, end_pct - start_pct),
        "start_s": fixed(max(0.0, start_s), 2),
        "end_s": fixed(max(0.0, end_s), 2),
        "span": span(start_s, end_s, duration_s),
        "score": fixed(score, 2),
        "weak": False,
        "picture": None,
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
        "scale": [{"y_pct": y_pct(value), "label": minus(f"{value:g}")} for value in sorted({high, 0.0, low})],
        "peak_pct": peak_pct,
        "peak_y_pct": y_pct(values[peak]),
        "peak_label": minus(fixed(values[peak], 2)),
        "peak_anchor": "start" if peak_pct < 2 else "end" if peak_pct > 98 else "middle",
        "peak_span": span(peak * clip_s, min((peak + 1) * clip_s, duration_s), duration_s),
        "clip_values": " ".join(fixed(value, 3) for value in values),
        "clip_s": clip_s,
        "range": f"{low:g} to {high:g}",
    }
