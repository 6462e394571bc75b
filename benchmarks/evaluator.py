"""The QVHighlights evaluator: python benchmarks/evaluator.py PREDICTIONS.jsonl GROUND_TRUTH.jsonl.

Times `evaluate` in memory and `sdst score` as a whole process. The official evaluator takes about 8.4 s on 1,550
queries on a 2-core machine; it is not part of this project and not timed here.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import tyro
from timing import interleave, report

from sdst_runtime.files import read_jsonl
from sdst_runtime.metrics.evaluator import evaluate


def main(
    predictions: tyro.conf.Positional[Path],
    ground_truth: tyro.conf.Positional[Path],
    seconds: float = 20.0,
    output: Path | None = None,
) -> None:
    """Time the evaluator on a pair of files.

    Args:
        predictions: JSONL of predictions.
        ground_truth: JSONL of annotations.
        seconds: How long to measure.
        output: JSON file for the numbers.
    """
    rows, truth = read_jsonl(predictions), read_jsonl(ground_truth)
    command = [sys.executable, "-m", "sdst", "score", str(predictions), str(ground_truth)]
    variants = {
        "evaluate, in memory": lambda: evaluate(rows, truth),
        "read both files": lambda: (read_jsonl(predictions), read_jsonl(ground_truth)),
        "sdst score, whole process": lambda: subprocess.run(command, check=True, capture_output=True),
    }
    samples = interleave(variants, seconds=seconds)
    report(f"evaluator, {len(rows)} queries", samples, items=len(rows), output=output)


if __name__ == "__main__":
    tyro.cli(main)
