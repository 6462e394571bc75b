"""What an ablation leaves behind: OUT/ablation.json with every number, ablation.md with the table, ablation.png, and
curves.png (ablation_curves.py).

Metrics are percent. A partial ablation has a report too: cells without a finished run have n = 0.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdst_runtime.data.config import DataConfig
from sdst_runtime.files import write_bytes, write_json, write_text

from ..loop.run_report import HIGHLIGHTS, MOMENTS, RETRIEVAL
from .ablation import BASE, CellStatistics, Result, Run, Statistic, compare
from .ablation_curves import draw_curves

BLUE, ORANGE, GREY, PALE = (
    "#0072B2",
    "#E69F00",
    "#666666",
    "#dddddd",
)  # Okabe and Ito's colours, told apart by the colour-blind


@dataclass(frozen=True)
class Comparison:
    """An ablation as far as it is finished."""

    command: str
    base: str  # the values of the factors in the base
    select_by: str
    metrics: dict[str, str]  # those shown: shown name to the evaluator's
    rows: list[CellStatistics]
    results: list[Result]
    missing: list[str]  # runs that are not finished


def make_comparison(command: str, base: str, runs: Sequence[Run], results: Sequence[Result]) -> Comparison:
    """The comparison of all planned `runs`, of which `results` are finished."""
    config, rows = runs[0].config, compare(runs, results)
    done = {(result.cell, result.seed) for result in results}
    return Comparison(
        command=command,
        base=base,
        select_by=config.select_by,
        metrics={shown: name for shown, name in shown_metrics(config.data).items() if _is_known(name, rows)},
        rows=rows,
        results=list(results),
        missing=[str(run) for run in runs if (run.cell, run.config.seed) not in done],
    )


def shown_metrics(data: DataConfig) -> dict[str, str]:
    """The metrics of the table: shown name to the evaluator's."""
    return {**RETRIEVAL, "HIT@1": HIGHLIGHTS["HIT@1"]} if data.metrics == "qvhighlights" else dict(MOMENTS)


def write_tables(out: Path, comparison: Comparison) -> None:
    """Write ablation.json and ablation.md. Raises InputError where that cannot be."""
    write_json(Path(out) / "ablation.json", as_json(comparison))
    write_text(Path(out) / "ablation.md", as_markdown(comparison))


def write_pictures(out: Path, comparison: Comparison) -> None:
    """Write ablation.png and curves.png. Raises InputError where that cannot be."""
    write_bytes(Path(out) / "ablation.png", draw(comparison))
    write_bytes(Path(out) / "curves.png", draw_curves(comparison.results, comparison.select_by))


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Every number; a std is left out where there is a single seed."""
    return {
        "command": comparison.command,
        "base": comparison.base,
        "select_by": comparison.select_by,
        "cells": [
            {"cell": row.cell, "n": row.n, "metrics": {name: _numbers(s) for name, s in row.statistics.items()}}
            for row in comparison.rows
        ],
        "runs": [
            {
                "cell": r.cell,
                "seed": r.seed,
                "best_epoch": r.best_epoch,
                "seconds": r.seconds,
                "metrics": r.metrics,
                "curve": r.curve,
            }
            for r in comparison.results
        ],
        "missing": comparison.missing,
        "machines": _distinct([result.machine for result in comparison.results]),
        "versions": _distinct([result.versions for result in comparison.results]),
    }


def as_markdown(comparison: Comparison) -> str:
    """A table of mean and standard deviation, with what they are of."""
    header = ["cell", "n", *comparison.metrics]
    lines = [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *table_cells(comparison))]
    notes = [
        "Mean ± sample standard deviation over n seeds, percent, on the val split. "
        f"base: {comparison.base}; every other cell changes one factor of it.",
        f"The best epoch of each run was chosen by {comparison.select_by} on the same split: the numbers are a little "
        "optimistic.",
    ]
    if comparison.missing:
        notes.append(f"Not finished: {'; '.join(comparison.missing)}.")
    return "\n".join([*lines, "", *(note + "\n" for note in notes), f"    {comparison.command}", ""])


def table_cells(comparison: Comparison) -> list[list[str]]:
    """The text of the table: cell, n, and a metric a column."""
    return [
        [row.cell, str(row.n), *(_text(row.statistics.get(name)) for name in comparison.metrics.values())]
        for row in comparison.rows
    ]


def draw(comparison: Comparison) -> bytes:
    """A PNG: a panel a metric, a row a cell, its seeds as dots, mean and standard deviation; base as a line."""
    count = len(comparison.metrics)
    figure = Figure(figsize=(2.2 + 2.5 * count, 1.5 + 0.34 * len(comparison.rows)), layout="constrained")
    panels = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    for panel, (shown, name) in zip(panels, comparison.metrics.items(), strict=True):
        _draw_panel(panel, shown, {row.cell: row.statistics.get(name) for row in comparison.rows})
    panels[0].set_yticks(range(len(comparison.rows)), [f"{row.cell}  (n={row.n})" for row in comparison.rows])
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower right", ncols=len(labels), frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


# ---------------------------------------------------------------- private


def _draw_panel(panel: Axes, title: str, statistics: Mapping[str, Statistic | None]) -> None:
    base, factors = statistics[BASE], [cell.split("=")[0] for cell in statistics]
    for place in range(1, len(factors)):
        if factors[place] != factors[place - 1]:
            panel.axhline(place - 0.45, color=PALE, linewidth=0.8, zorder=0)
    if base is not None:
        panel.axvline(base.mean, color=GREY, linewidth=1, linestyle="--", zorder=1, label="mean of base")
    there = [(place, s) for place, s in enumerate(statistics.values()) if s is not None]
    has_std = any(s.std is not None for _, s in there)
    panel.errorbar(
        [s.mean for _, s in there],
        [place for place, _ in there],
        xerr=[math.nan if s.std is None else s.std for _, s in there] if has_std else None,
        fmt="o", color=BLUE, elinewidth=1.8, zorder=3, label="mean ± std" if has_std else "mean",
    )  # fmt: skip
    panel.scatter(
        [value for _, s in there for value in s.values],
        [place + 0.24 for place, s in there for _ in s.values],
        s=14, color=ORANGE, linewidths=0, zorder=2, label="single seed",
    )  # fmt: skip
    panel.set_title(title, fontsize=11)
    panel.set_xlabel("percent", fontsize=9)
    panel.margins(x=0.12)
    panel.set_ylim(-0.6, len(statistics) - 0.4)
    panel.locator_params(axis="x", nbins=4)
    panel.tick_params(axis="y", length=0)
    panel.tick_params(axis="x", labelsize=9)
    panel.grid(axis="x", color=PALE, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right", "left"]].set_visible(False)


def _is_known(name: str, rows: Sequence[CellStatistics]) -> bool:
    """A metric that no finished run has, as HIT@1 without saliency, is not shown; before the first run all are."""
    return not any(row.n for row in rows) or any(name in row.statistics for row in rows)


def _numbers(statistic: Statistic) -> dict[str, float]:
    return {"mean": statistic.mean} | ({} if statistic.std is None else {"std": statistic.std})


def _text(statistic: Statistic | None) -> str:
    if statistic is None:
        return ""
    return f"{statistic.mean:.2f}" + ("" if statistic.std is None else f" ± {statistic.std:.2f}")


def _distinct(facts: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    return [fact for i, fact in enumerate(facts) if fact not in facts[:i]]
