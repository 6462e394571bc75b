"""`sdst ground` as a whole process: python benchmarks/ground_process.py VIDEO SENTENCE --bundle BUNDLE.

Processes that each do more than the one before, in turns; what a line adds is what its part costs. The floor is the
last that has nothing of ours in it: the interpreter, the packages, and the bundle's models opened by ONNX Runtime.
Modules are listed by `python -X importtime`, in one more process: of which package, how many, how long by themselves.
"""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from timing import interleave, say_machine

from sdst_runtime.grounding.bundle import Bundle
from sdst_runtime.sessions.ort import NO_TELEMETRY

PACKAGES = "import numpy, av, pydantic, rich.table, tokenizers, tyro, onnxruntime"
MODELS = "[onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider']) for path in {paths!r}]"
GROUND = "sdst ground"
FLOOR = "its models, opened by ONNX Runtime alone"


def main(
    video: tyro.conf.Positional[Path], sentence: tyro.conf.Positional[str], *, bundle: Path, seconds: float = 60.0
) -> None:
    """Print p50, p90 and p99 of each process, what it adds, the ratio to the floor, and the modules by package."""
    opened = Bundle.open(bundle)
    paths = [str(opened.path(model)) for model in ("vision", "text", "projection", "head")]
    verb = ["-m", "sdst", "ground", str(video), sentence, "--bundle", str(bundle)]
    programs = {
        "an interpreter": ["-c", "pass"],
        "packages that are not ours": ["-c", PACKAGES],
        FLOOR: ["-c", f"{PACKAGES}; {MODELS.format(paths=paths)}"],
        "our modules, the bundle, a refused sentence": [*verb[:4], "", "--bundle", str(bundle)],
        GROUND: verb,
    }
    samples = interleave({name: lambda words=words: _run(words) for name, words in programs.items()}, seconds=seconds)
    table = Table("process", "p50 ms", "p90", "p99", "adds", f"of {FLOOR!r}", title="elapsed, from start to exit")
    p50 = {name: float(np.median(times)) for name, times in samples.items()}
    before = 0.0
    for name, times in samples.items():
        tails = (f"{1e3 * x:.0f}" for x in np.percentile(times, (90, 99)))
        table.add_row(name, f"{1e3 * p50[name]:.0f}", *tails, f"{1e3 * (p50[name] - before):.0f}",
                      f"{p50[name] / p50[FLOOR]:.2f}")  # fmt: skip
        before = p50[name]
    console = Console(width=140)
    console.print(table)
    console.print(_modules(verb))
    say_machine({})


def _run(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env={NO_TELEMETRY: "1"}, check=False
    )
    if done.returncode not in (0, 2):
        raise SystemExit(f"{' '.join(words)}: {done.stderr}")


def _modules(verb: list[str]) -> Table:
    """Of each package with 5 ms or more."""
    done = subprocess.run([sys.executable, "-X", "importtime", *verb], capture_output=True, text=True, check=True)
    counts, micros = defaultdict(int), defaultdict(int)
    for line in done.stderr.splitlines():
        if line.startswith("import time:") and "imported package" not in line:
            own, _, name = line.removeprefix("import time:").split("|")
            package = name.strip().split(".")[0]
            counts[package] += 1
            micros[package] += int(own)
    table = Table(
        "package", "modules", "ms", title=f"{sum(counts.values())} modules, {sum(micros.values()) // 1000} ms"
    )
    for package in sorted(micros, key=micros.__getitem__, reverse=True):
        if micros[package] >= 5000:
            table.add_row(package, str(counts[package]), f"{micros[package] / 1e3:.0f}")
    return table


if __name__ == "__main__":
    tyro.cli(main)
