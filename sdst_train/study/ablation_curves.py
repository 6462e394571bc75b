"""The validation curves of an ablation: one panel a factor, its cells beside the base, every seed a thin line."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .ablation import BASE, Result

# Okabe and Ito's colours, told apart by the colour-blind; the base is black
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


def draw_curves(results: Sequence[Result], title: str) -> bytes:
    """A PNG. A thick line is the mean over seeds, up to the epoch that all of them reached; `title` of the value."""
    cells = list(dict.fromkeys(result.cell for result in results))
    factors = list(dict.fromkeys(cell.split("=")[0] for cell in cells if cell != BASE)) or [BASE]
    columns = min(len(factors), 3)
    rows = math.ceil(len(factors) / columns)
    figure = Figure(figsize=(1 + 3.6 * columns, 0.4 + 2.9 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for panel, factor in zip(panels, factors, strict=False):
        draw_panel(panel, results, [cell for cell in cells if cell == BASE or cell.split("=")[0] == factor])
    for panel in panels[len(factors) :]:
        panel.set_visible(False)
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel(f"{title}, percent", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def draw_panel(panel: Axes, results: Sequence[Result], cells: Sequence[str]) -> None:
    """The curves of some cells."""
    colours = iter(COLOURS * len(cells))
    for cell in cells:
        colour = "black" if cell == BASE else next(colours)
        curves = [result.curve for result in results if result.cell == cell]
        for curve in curves:
            panel.plot(range(1, len(curve) + 1), curve, color=colour, linewidth=0.7, alpha=0.4)
        common = min(map(len, curves))
        mean = np.mean([curve[:common] for curve in curves], axis=0)
        panel.plot(range(1, common + 1), mean, color=colour, linewidth=2, label=f"{cell} (n={len(curves)})")
    panel.legend(fontsize=8, frameon=False, loc="lower right")
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)
