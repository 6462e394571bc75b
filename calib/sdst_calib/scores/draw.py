"""The picture of a calibration: what was said against what was true, and what a threshold costs."""

from __future__ import annotations

import io
from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .measure import Quality, ScoreReport

COLOURS = {"as it is": "#9a9a9a", "line": "#1f6fb4", "isotonic": "#d9822b"}
NAMES = {"as it is": "model's own", "line": "calibrated", "isotonic": "isotonic, to compare"}
RATES = {  # of a row of ScoreReport.thresholds
    "precision": ("precision of what is answered", "#1f6fb4"),
    "recall": ("present queries answered", "#2f9e5b"),
    "refused": ("absent queries refused", "#d9822b"),
    "R1@0.5 with absent": ("R1@0.5, false alarms count", "#7a3fa0"),
}
LEAST_DOT, MOST_DOT = 8.0, 320.0  # area, by the share of all in a bin
SOLID = 0.01  # share of all from which on a bin is joined to others: of fewer the height is chance


def draw_scores(report: ScoreReport) -> bytes:
    """A PNG of three panels: presence, moments, thresholds."""
    figure = Figure(figsize=(13.2, 5.0), layout="constrained")
    panels = figure.subplots(1, 3)
    counts = f"{report.queries} queries, {report.absent} of them absent"
    _draw_reliability(panels[0], f"Presence: {counts}", report.presence)
    _draw_reliability(panels[1], "Moments: IoU of 0.5 or more", report.moments)
    _draw_thresholds(panels[2], report)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _draw_reliability(panel: Axes, title: str, qualities: Mapping[str, Quality]) -> None:
    panel.plot((0, 1), (0, 1), color="#cccccc", linewidth=1, zorder=1)
    for name, quality in qualities.items():
        solid = [(said, true) for share, said, true in quality.bins if share >= SOLID]
        panel.plot(*zip(*solid, strict=True), color=COLOURS[name], linewidth=1.2, zorder=2,
                   label=f"{NAMES[name]}: ECE {quality.ece:.3f}")  # fmt: skip
        for share, said, true in quality.bins:
            size = LEAST_DOT + (MOST_DOT - LEAST_DOT) * share
            panel.scatter(said, true, s=size, color=COLOURS[name], alpha=0.75, linewidths=0, zorder=3)
    panel.set(title=title, xlabel="probability that was said; a dot's area is its share of all",
              ylabel="share that was true", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))  # fmt: skip
    _plain(panel)


def _draw_thresholds(panel: Axes, report: ScoreReport) -> None:
    at, lowest = [row["threshold"] for row in report.thresholds], 100.0
    for key, (name, colour) in RATES.items():
        values = [row[key] for row in report.thresholds]
        lowest = min(lowest, *values)
        panel.plot(at, values, color=colour, linewidth=1.5, label=name)
    panel.set(title=f"Answering above a threshold: AUROC {report.auroc:.3f}", xlabel="threshold of the presence",
              ylabel="percent", xlim=(0, 1), ylim=(max(0.0, lowest - 3), 101))  # fmt: skip
    _plain(panel)


def _plain(panel: Axes) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    panel.title.set_fontsize(10)
    panel.tick_params(labelsize=8)
