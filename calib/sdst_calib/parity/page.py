"""The report of `sdst parity`: JSON, and one self-contained HTML file without script or network."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdst_runtime.files import write_text
from sdst_runtime.pages.charts import fixed, percent
from sdst_runtime.pages.templates import render

from ..audit.compare import EXACT_DB
from .layers import LayerError, LayerReport
from .measure import CandidateParity, Parity
from .task import Metric

MOST_DB = 140.0  # right end of the strip: what float32 keeps
Layers = Mapping[str, LayerReport]  # by candidate


def as_json(parity: Parity, layers: Layers, facts: Mapping[str, str]) -> dict[str, Any]:
    """Everything measured, for write_json; numbers that JSON lacks (NaN, infinities) are strings."""
    document = dataclasses.asdict(parity)
    for candidate, one in zip(document["candidates"], parity.candidates, strict=True):
        candidate["passed"] = one.passed
    document |= {"facts": dict(facts), "layers": {name: dataclasses.asdict(report) for name, report in layers.items()}}
    return _plain(document)


def write_page(path: Path, parity: Parity, layers: Layers, facts: Mapping[str, str]) -> None:
    """Write the page atomically. Raises InputError when `path` cannot be written."""
    write_text(path, render_page(parity, layers, facts))


def render_page(parity: Parity, layers: Layers, facts: Mapping[str, str]) -> str:
    """The page as text. Everything that comes from outside is escaped."""
    return render(
        "parity.html",
        parity=parity,
        facts=facts,
        candidates=[_candidate(candidate) for candidate in parity.candidates],
        metrics=_metrics(parity),
        layers=[_layers(name, report) for name, report in layers.items()],
    )


def _candidate(candidate: CandidateParity) -> dict[str, Any]:
    tensors = [
        {
            "name": name,
            "cells": [
                *(_short(value) for value in (error.max_abs, error.mean_abs, error.max_rel, error.mean_rel)),
                fixed(error.cosine, 8),
                fixed(error.snr_db, 1),
            ],
        }
        for name, error in candidate.tensors.items()
    ]
    failed = [check for check in candidate.checks if not check.passed]
    return {
        "name": candidate.name,
        "precision": candidate.precision,
        "passed": candidate.passed,
        "tensors": tensors,
        "decided": candidate.decisions,
        "failed": [
            {"text": f"{check.level}: {check.name} is {_short(check.value)}, the limit is {_short(check.limit)}"}
            for check in failed
        ],
        "checked": len(candidate.checks),
    }


def _metrics(parity: Parity) -> list[dict[str, Any]]:
    """A block a metric: rows of copies, their differences on one scale that is symmetric around no difference."""
    blocks = []
    for name, value in parity.reference_metrics.items():
        rows = [
            (candidate.name, metric)
            for candidate in parity.candidates
            for metric in candidate.metrics
            if metric.name == name
        ]
        widest = max([1.0, *(abs(end) for _, m in rows for end in (m.difference.low, m.difference.high))])
        blocks.append(
            {
                "name": name,
                "reference": f"{value:.2f}",
                "scale": f"{widest:.1f}",
                "rows": [_metric(copy, metric, widest) for copy, metric in rows],
            }
        )
    return blocks


def _metric(copy: str, metric: Metric, widest: float) -> dict[str, Any]:
    value, apart = metric.value, metric.difference
    places = {key: percent(getattr(apart, key) + widest, 2 * widest) for key in ("value", "low", "high")}
    return {
        "name": copy,
        "value": fixed(value.value, 2),
        "interval": f"{fixed(value.low, 2)} to {fixed(value.high, 2)}",
        "difference": fixed(apart.value, 2, plus=True),
        "difference_interval": f"{fixed(apart.low, 2, plus=True)} to {fixed(apart.high, 2, plus=True)}",
        "at": places,
    }


def _layers(name: str, report: LayerReport) -> dict[str, Any]:
    """Bars along the graph, as high as the signal is above the noise."""
    width = 100 / len(report.layers)
    bars = [
        {
            "x": layer.number * width,
            "width": width,
            "height": percent(0.0 if layer.snr_db is None else min(max(layer.snr_db, 1.0), MOST_DB), MOST_DB),
            "bad": report.beyond(layer),
            "title": f"{layer.node}: {_snr(layer)}",
        }
        for layer in report.layers
    ]
    apart = [layer for layer in report.layers if layer.snr_db is None or layer.snr_db < EXACT_DB]
    worst = sorted(apart, key=lambda layer: -math.inf if layer.snr_db is None else layer.snr_db)[:8]
    return {
        "name": name,
        "limit": report.least_snr_db,
        "limit_pct": 100 - percent(report.least_snr_db, MOST_DB),
        "first": report.first,
        "first_snr": _snr(report.first) if report.first else "",
        "count": len(report.layers),
        "unmatched": len(report.unmatched),
        "bars": bars,
        "all": [{"node": layer.node, "tensor": layer.tensor, "snr": _snr(layer)} for layer in report.layers],
        "worst": [
            {"node": layer.node, "tensor": layer.tensor, "snr": _snr(layer), "max_error": _short(layer.max_error)}
            for layer in worst
        ],
    }


def _snr(layer: LayerError) -> str:
    return "not finite" if layer.snr_db is None else f"{fixed(layer.snr_db, 1)} dB"


def _short(value: float) -> str:
    """Not drawing.short: that makes 1.00 of a limit of 0.999, and has no exponent for what is very large."""
    return f"{value + 0.0:.3g}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
