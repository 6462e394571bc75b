"""The picture of a calibration: what was said against what was true, and what a threshold costs."""

from __future__ import annotations

import io
from collections.abc import Mapping

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from .measure import Quality, ScoreReport

COLOURS = {"as it is": "#9a9a9a", "line": "#1f6fb4", "isotonic": "#d9822b"}
NAMES = {"as it is": "model's own", "line": "calibrated", "isotonic": "isotonic, to compare"}
RATES = {  # of a row of ScoreReport.thresholds
    "precision": ("precision of what is answered", "#1f6fb4"),
    "recall": ("present queries answered", "#2f9e5b"),
    "refused": ("absent queries refused", "#d9822b"),
    "R1@0.5 with absent": ("R1@0.5, false alarms count", "#7a3fa0"),
}
LEAST_DOT, MOST_DOT = 12.0, 190.0  # area, by the share of the queries in a bin


def draw_scores(report: ScoreReport) -> bytes:
    """A PNG of three panels: presence, moments, thresholds."""
    figure, panels = plt.subplots(1, 3, figsize=(13.2, 4.6), layout="constrained")
    counts = f"{report.queries} queries, {report.absent} of them absent"
    _draw_reliability(panels[0], f"Presence: {counts}", report.presence)
    _draw_reliability(panels[1], "Moments: IoU of 0.5 or more", report.moments)
    _draw_thresholds(panels[2], report)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    return buffer.getvalue()


def _draw_reliability(panel: Axes, title: str, qualities: Mapping[str, Quality]) -> None:
    panel.plot((0, 1), (0, 1), color="#cccccc", linewidth=1, zorder=1)
    for name, quality in qualities.items():
        shares, said, true = zip(*quality.bins, strict=True)
        sizes = [LEAST_DOT + (MOST_DOT - LEAST_DOT) * share for share in shares]
        label = f"{NAMES[name]}: ECE {quality.ece:.3f}"
        panel.plot(said, true, color=COLOURS[name], linewidth=1.2, zorder=2)
        panel.scatter(said, true, s=sizes, color=COLOURS[name], label=label, zorder=3)
    panel.set(title=title, xlabel="probability that was said", ylabel="share that was true", xlim=(0, 1), ylim=(0, 1))
    panel.legend(frameon=False, fontsize=8, loc="upper left")
    _plain(panel)


def _draw_thresholds(panel: Axes, report: ScoreReport) -> None:
    at = [row["threshold"] for row in report.thresholds]
    for key, (name, colour) in RATES.items():
        panel.plot(at, [row[key] for row in report.thresholds], color=colour, linewidth=1.5, label=name)
    panel.set(title=f"Answering above a threshold: AUROC {report.auroc:.3f}", xlabel="threshold of the presence",
              ylabel="percent", xlim=(0, 1), ylim=(0, 101))  # fmt: skip
    panel.legend(frameon=False, fontsize=8, loc="lower center")
    _plain(panel)


def _plain(panel: Axes) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.title.set_fontsize(10)
    panel.tick_params(labelsize=8)
