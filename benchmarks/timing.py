"""What the benchmarks share: rates of this machine and tables of interleaved timings (sdst_runtime.bench.measure)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from sdst_runtime.bench.measure import interleave
from sdst_runtime.files import write_json
from sdst_runtime.machine import load, load_warning, machine_facts

if TYPE_CHECKING:
    import torch

__all__ = ["interleave", "matmul_rate", "report", "say_machine", "with_cpu_time"]

BEGAN, BUSY = load(), load_warning()  # before a benchmark adds its own


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Flops a second of a large square product, the best of ten."""
    import torch

    n = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for a GPU
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def say_machine(versions: Mapping[str, str]) -> dict[str, str]:
    """Print, and return, the facts of the machine, `versions` and the load; a machine busy at the start is said."""
    machine = dict(machine_facts()) | dict(versions) | {"at the start": BEGAN, "at the end": load()}
    console = Console(width=160)
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()), highlight=False)
    if BUSY:
        console.print(BUSY, highlight=False)
    return machine


def with_cpu_time(run: Callable[[], object], seconds: list[float]) -> Callable[[], None]:
    """`run` that adds its CPU time, of all threads: of all times the one that other programs disturb least."""

    def timed() -> None:
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)

    return timed


def report(
    title: str,
    samples: Mapping[str, list[float]],
    *,
    items: int = 0,
    floors_s: Mapping[str, float] | None = None,
    versions: Mapping[str, str] | None = None,
    output: Path | None = None,
) -> None:
    """Print medians, tails and ratios to the first variant; `items` of one call give a rate. JSON goes to `output`.

    `floors_s`: seconds that nothing on this machine can beat, by variant.
    """
    first = float(np.median(next(iter(samples.values()))))
    rows: dict[str, dict[str, Any]] = {}
    for name, seconds in samples.items():
        p50, p90, p99 = (float(x) for x in np.percentile(seconds, (50, 90, 99)))
        rows[name] = {"p50_ms": 1e3 * p50, "p90_ms": 1e3 * p90, "p99_ms": 1e3 * p99, "calls": len(seconds)}
        rows[name] |= {"ratio": p50 / first} | ({"items_per_s": items / p50} if items else {})
        if floors_s and name in floors_s:
            rows[name] |= {"floor_ms": 1e3 * floors_s[name], "times_floor": p50 / floors_s[name]}
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    table = Table("variant", *columns, title=title)
    for name, row in rows.items():
        table.add_row(name, *(f"{row[key]:.4g}" if key in row else "" for key in columns))
    Console(width=160).print(table)
    machine = say_machine(versions or {})
    if output is not None:
        write_json(output, {"title": title, "machine": machine, "variants": rows, "seconds": dict(samples)})
