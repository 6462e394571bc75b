"""Scales, ticks, line charts and formats of the report's page.

Times are in seconds; `*_pct` is a position on a plot, 0..100 from the left or from the top.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError

_IMAGE_TYPES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png"}
_TIME_STEPS_S = (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)


def line_chart(title: str, points: Sequence[tuple[float, Mapping[str, float]]]) -> dict[str, Any]:
    """Paths and ticks of a chart of (x, {series name: value}); NaN or an absent value leaves a gap."""
    names = list(dict.fromkeys(name for _, values in points for name in values))
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    known = [value for _, values in points for value in values.values() if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    y_ticks = nice_ticks(0.0 if low >= 0 and (low < 0.6 * high or low == high) else low, high, 4)
    bottom, top = y_ticks[0], y_ticks[-1]

    def x_pct(x: float) -> float:
        return 100 * (x - first) / (last - first) if last > first else 50.0

    def y_pct(value: float) -> float:
        return 100 * (top - value) / (top - bottom)

    def series(name: str) -> dict[str, Any]:
        values = [point.get(name, math.nan) for _, point in points]
        there = [False, *map(math.isfinite, values), False]
        marks, dots = [], []
        for i, ((x, _), value) in enumerate(zip(points, values, strict=True), 1):
            if there[i]:
                marks.append(f"{'L' if there[i - 1] else 'M'}{x_pct(x):.2f},{y_pct(value):.2f}")
                if not (there[i - 1] or there[i + 1]):  # a line needs two points: one alone is drawn as a dot
                    dots.append({"x_pct": x_pct(x), "y_pct": y_pct(value)})
        final = next((value for value in reversed(values) if math.isfinite(value)), None)
        last = "none" if final is None else short(final)
        return {"name": name, "path": " ".join(marks), "dots": dots, "last": last}

    return {
        "title": title,
        "series": [series(name) for name in names],
        "y_ticks": [{"y_pct": y_pct(value), "label": f"{value:g}"} for value in y_ticks],
        "x_ticks": [{"x_pct": x_pct(x), "label": f"{x:g}"} for x in _x_ticks([x for x, _ in points])],
    }


def _x_ticks(xs: Sequence[float]) -> list[float]:
    """Round values within `xs`, none between two whole ones where all are whole (there is no epoch 1.5)."""
    first, last = min(xs), max(xs)
    if first == last:
        return [first]
    whole = all(x == int(x) for x in xs)
    return [x for x in nice_ticks(first, last, 5) if first <= x <= last and (x == int(x) or not whole)]


def percent(value: float, whole: float) -> float:
    """`value` as a percentage of `whole`, kept within 0..100."""
    return 100 * min(max(value / whole, 0.0), 1.0) if whole > 0 else 0.0


def nice_ticks(low: float, high: float, about: int) -> list[float]:
    """Round values that cover low..high in about `about` steps."""
    extent = high - low if high > low else max(abs(high), 1.0)
    power = 10 ** math.floor(math.log10(extent / about))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * about >= extent * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil((low + extent) / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def time_ticks(duration_s: float) -> list[dict[str, Any]]:
    """At most ten marks of a time axis of 0..duration_s."""
    step_s = next((step for step in _TIME_STEPS_S if duration_s / step <= 10), 3600 * math.ceil(duration_s / 36000))
    ticks, count = [], int(duration_s / step_s + 1e-6) + 1
    every = math.ceil(count / 5)  # of which a narrow page has room for the labels
    for index in range(count):
        at_pct = percent(index * step_s, duration_s)
        ticks.append(
            {
                "at_pct": at_pct,
                "fine": index % every > 0,
                "anchor": "start" if at_pct < 1 else "end" if at_pct > 98 else "middle",
                "label": f"{index * step_s:g} s" if duration_s < 180 else clock(index * step_s, 0),
            }
        )
    return ticks


def clock(time_s: float, digits: int) -> str:
    """m:ss or h:mm:ss, with `digits` decimals of a second."""
    minutes, seconds = divmod(round(time_s, digits), 60)
    hours, minutes = divmod(int(minutes), 60)
    tail = f"{seconds:0{3 + digits if digits else 2}.{digits}f}"
    return f"{hours}:{minutes:02d}:{tail}" if hours else f"{minutes}:{tail}"


def span(start_s: float, end_s: float, duration_s: float) -> str:
    """A window as text; in minutes where the video is three minutes or longer."""
    if duration_s < 180:
        return f"{fixed(start_s, 1)}\u2013{fixed(end_s, 1)} s"
    return f"{clock(start_s, 1)}\u2013{clock(end_s, 1)}"


def fixed(value: float, digits: int, *, plus: bool = False) -> str:
    """`value` with that many decimals, `plus` with its sign; what rounds to nothing is 0.00, never -0.00."""
    return f"{round(value, digits) + 0.0:{'+' if plus else ''}.{digits}f}"


def minus(text: str) -> str:
    """The same number with a typographic minus sign."""
    return text.replace("-", "\u2212")


def short(value: float) -> str:
    """Three significant digits or so, thousands parted; 0 for -0.0."""
    value += 0.0
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


def data_uri(data: bytes, what: str) -> str:
    """A picture inside the page. Raises InputError naming `what` when it is neither JPEG nor PNG."""
    for magic, media_type in _IMAGE_TYPES.items():
        if data.startswith(magic):
            return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
    raise InputError(f"report: {what}: expected the bytes of a JPEG or PNG file, got {data[:4]!r}; encode the frame")
