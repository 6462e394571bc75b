"""An answer as a person looks at it: a pandas table, a drawing, HTML for a notebook.

pandas and matplotlib belong to no installation of this project's runtime; they are asked for when they are used. Spans
are (start_s, end_s, score), best first. Time is in seconds.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import require_library

Span = tuple[float, float, float]
COLUMNS = ("start_s", "end_s", "score")
SHOWN = 5  # moments in a notebook and in a drawing


def as_frame(spans: Sequence[Span]) -> Any:
    """A pandas DataFrame with a row a moment. Raises DependencyError without pandas."""
    return require_library("pandas").DataFrame(list(spans), columns=list(COLUMNS))


def draw(title: str, spans: Sequence[Span], saliency: np.ndarray, clip_s: float, axes: Any, top: int) -> Any:
    """Saliency over time and the `top` best moments behind it, the better the darker; returns matplotlib's axes.

    Raises DependencyError without matplotlib.
    """
    if axes is None:
        axes = require_library("matplotlib.pyplot").subplots(figsize=(9, 2.6), layout="constrained")[1]
    times_s = (np.arange(len(saliency)) + 0.5) * clip_s
    axes.plot(times_s, saliency, color="0.2", marker="." if len(saliency) < 3 else None, label="saliency")
    for start_s, end_s, score in spans[:top]:
        axes.axvspan(start_s, end_s, alpha=0.1 + 0.4 * score, color="tab:blue", linewidth=0)
    axes.set(title=title, xlabel="seconds", ylabel="saliency", xlim=(0, len(saliency) * clip_s))
    return axes


def presence_text(presence: float, found: bool) -> str:
    """What is said of an answer's presence; `found`: it has moments."""
    return f"presence {presence:.2f}" if found else f"nothing found (presence {presence:.2f})"


def as_html(query: str, spans: Sequence[Span], presence: float | None = None) -> str:
    """The best moments as an HTML table, and the presence where it is known."""
    head = "".join(f"<th>{name}</th>" for name in ("start s", "end s", "score"))
    rows = "".join(
        f"<tr><td>{start:.2f}</td><td>{end:.2f}</td><td>{score:.3f}</td></tr>" for start, end, score in spans[:SHOWN]
    )
    more = f"<p>and {len(spans) - SHOWN} more</p>" if len(spans) > SHOWN else ""
    caption = html.escape(query.encode("utf-8", "backslashreplace").decode())
    said = "" if presence is None else f"<p>{presence_text(presence, bool(spans))}</p>"
    body = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>" if spans or presence is None else ""
    return f"<table><caption>{caption}</caption>{body}</table>{said}{more}"
