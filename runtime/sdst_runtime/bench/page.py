"""The page of `sdst bench`: one self-contained HTML file, no script, no network. Times on it are in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import write_text
from ..pages.charts import percent, short
from ..pages.templates import render
from .measure import NOT_MEASURED, STAGES, Benchmark, Footprint, Shape, Throughput, Timing


def write_page(path: Path, benchmark: Benchmark) -> None:
    """Write the page atomically. Raises InputError when `path` cannot be written."""
    write_text(Path(path), render_page(benchmark))


def render_page(benchmark: Benchmark) -> str:
    """The page as text. Everything that comes from outside is escaped."""
    shapes = list(dict.fromkeys(timing.shape for timing in benchmark.timings))
    return render(
        "bench.html",
        benchmark=benchmark,
        cards=[_card(shape, benchmark.timings) for shape in sorted(shapes, key=lambda shape: shape is not None)],
        questions=[_question(shape, benchmark) for shape in shapes if shape is not None],
        throughput=_rates(benchmark.throughputs),
        footprints=[_footprint(foot) for foot in benchmark.footprints],
    )


def _card(shape: Shape | None, timings: Sequence[Timing]) -> dict[str, Any]:
    """The stages of one shape; the bars of a stage have one scale, from 0 to its slowest p99."""
    stages = []
    for stage in STAGES:
        rows = [timing for timing in timings if timing.stage == stage and timing.shape == shape]
        longest = max((timing.percentile_ms(99) or 0.0 for timing in rows), default=0.0)
        if rows:
            stages.append({"name": stage, "rows": [_row(timing, longest) for timing in rows]})
    return {"title": _title(shape), "stages": stages}


def _title(shape: Shape | None) -> str:
    if shape is None:
        return "Whatever the question"
    parts = ((shape.batch, "video"), (shape.clips, "clip"), (shape.queries, "sentence"), (shape.tokens, "token"))
    return ", ".join(f"{count} {word}{'s' if count != 1 else ''}" for count, word in parts)


def _row(timing: Timing, longest_ms: float) -> dict[str, Any]:
    row: dict[str, Any] = {"variant": timing.variant, "calls": len(timing.seconds), "reason": timing.reason}
    for p in (50, 90, 99):
        ms = timing.percentile_ms(p)
        row |= {f"p{p}": "" if ms is None else short(ms), f"p{p}_pct": percent(ms or 0.0, longest_ms)}
    return row


def _question(shape: Shape, benchmark: Benchmark) -> dict[str, Any]:
    """What the sentences of one shape cost on new videos, and again on the same ones: sums of medians."""

    def medians(variant: str, *stages: str) -> float | None:
        found = [
            timing.percentile_ms(50)
            for timing in benchmark.timings
            if timing.variant == variant and timing.shape == shape and timing.stage in stages
        ]
        return None if None in found or len(found) < len(stages) else sum(ms for ms in found if ms is not None)

    rows = []
    for variant in benchmark.variants:
        new, again = medians(variant, "projection", "text", "head"), medians(variant, "text", "head")
        head = medians(variant, "projection", "head")
        rows.append({"variant": variant, "new": _ms(new), "again": _ms(again), "head": _ms(head)})
    return {"title": _title(shape), "rows": rows}


def _ms(value: float | None) -> str:
    return NOT_MEASURED if value is None else short(value)


def _rates(throughputs: Sequence[Throughput]) -> dict[str, Any]:
    highest = max((t.queries_per_s or 0.0 for t in throughputs), default=0.0)
    rows = [
        {
            "variant": t.variant,
            "streams": t.streams,
            "rate": "" if t.queries_per_s is None else short(t.queries_per_s),
            "pct": percent(t.queries_per_s or 0.0, highest),
            "reason": t.reason,
        }
        for t in throughputs
    ]
    return {"shape": _title(throughputs[0].shape) if throughputs else "", "rows": rows}


def _footprint(foot: Footprint) -> dict[str, Any]:
    return {
        "variant": foot.variant,
        "files": ", ".join(f"{name} {_megabytes(size)}" for name, size in foot.files.items()),
        "total": _megabytes(sum(foot.files.values())) if foot.files else NOT_MEASURED,
        "memory": NOT_MEASURED if foot.memory_bytes is None else _megabytes(foot.memory_bytes),
        "gpu": NOT_MEASURED if foot.gpu_bytes is None else _megabytes(foot.gpu_bytes),
        "reason": foot.reason,
    }


def _megabytes(size: int) -> str:
    return short(size / 1e6)
