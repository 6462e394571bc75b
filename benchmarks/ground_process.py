"""`sdst ground` as a whole process: python benchmarks/ground_process.py VIDEO SENTENCE --bundle BUNDLE.

Processes that each do more than the one before, in turns: what two lines differ by is what a part costs. The floor is
the last that has nothing of ours in it: the interpreter, the packages, and the bundle's models opened by ONNX Runtime.
Modules are listed by `python -X importtime`, in one more process: of which package, how many, how long by themselves.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from timing import interleave, report

from sdst_runtime.grounding.bundle import Bundle
from sdst_runtime.sessions.ort import NO_TELEMETRY

PACKAGES = "import numpy, av, pydantic, rich.table, tokenizers, tyro, onnxruntime"
MODELS = "[onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider']) for path in {paths!r}]"
FLOOR = "its models, by ONNX Runtime alone"
REFUSED = "our modules, a refused sentence"  # after the bundle was opened and checked
GROUND = "sdst ground"


def main(
    video: tyro.conf.Positional[Path],
    sentence: tyro.conf.Positional[str],
    *,
    bundle: Path,
    seconds: float = 60.0,
    output: Path | None = None,
) -> None:
    """Print p50, p90 and p99 of each process, the ratio to the floor, and the modules by package; JSON to `output`."""
    opened = Bundle.open(bundle)
    paths = [str(opened.path(model)) for model in ("vision", "text", "projection", "head")]
    verb = ["-m", "sdst", "ground", str(video), sentence, "--bundle", str(bundle)]
    programs = {
        "an interpreter": ["-c", "pass"],
        "packages that are not ours": ["-c", PACKAGES],
        FLOOR: ["-c", f"{PACKAGES}; {MODELS.format(paths=paths)}"],
        REFUSED: [*verb[:4], "", *verb[5:]],
        GROUND: verb,
    }
    codes = {name: 2 if name == REFUSED else 0 for name in programs}
    variants = {name: lambda name=name: _run(programs[name], codes[name]) for name in programs}
    samples = interleave(variants, seconds=seconds)
    floor_s = float(np.median(samples[FLOOR]))
    Console(width=140).print(_modules(verb))
    report("elapsed, from start to exit", samples, floors_s={REFUSED: floor_s, GROUND: floor_s}, output=output)


def _run(words: list[str], code: int = 0, *options: str) -> str:
    """What a Python of its own says on stderr. Raises SystemExit when it does not end with `code`."""
    command, environment = [sys.executable, *options, *words], {**os.environ, NO_TELEMETRY: "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != code:
        raise SystemExit(f"{' '.join(words)}: expected exit code {code}, got {done.returncode}: {done.stderr}")
    return done.stderr


def _modules(verb: list[str]) -> Table:
    """Of each package with 5 ms or more."""
    counts, micros = defaultdict(int), defaultdict(int)
    for line in _run(verb, 0, "-X", "importtime").splitlines():
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
