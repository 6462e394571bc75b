"""int8 on this processor: how far a session's outputs are from exact Q/DQ, and its time beside fp32.

    python benchmarks/int8_products.py FP32_BUNDLE INT8_BUNDLE --data CONFIG [--root FOLDER] [--queries N]

Exact is ONNX Runtime without any optimisation: Q/DQ and products of floats, as the file has them. Errors are norms of
differences over norms, over all queries, one at a time, so without padding. Times are of the whole head, one thread.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from timing import interleave, report

from sdst.models import data_of, load_samples, open_model
from sdst_calib.feeds import spread
from sdst_runtime.data.dataset import pad_inputs
from sdst_runtime.grounding.bundle import Bundle
from sdst_runtime.sessions.base import GROUNDING_MODELS
from sdst_runtime.sessions.int8_products import products_are_exact
from sdst_runtime.sessions.ort import import_onnxruntime


def main(
    fp32: tyro.conf.Positional[Path],
    int8: tyro.conf.Positional[Path],
    *,
    data: str,
    root: Path | None = None,
    queries: int = 64,
    seconds: float = 10.0,
) -> None:
    """A row an output, then the times."""
    reference = open_model(fp32)
    samples = spread(load_samples(reference, data_of(reference, data, root), "val"), queries)
    inputs = [pad_inputs([sample.video], [sample.text]) for sample in samples]
    files = Bundle.open(int8)
    exact = [_exact(files, one) for one in inputs]
    floats = "" if products_are_exact() else ", whose products would saturate: computed in float"
    with (
        Bundle.open(fp32).grounding_model(1) as single,
        files.grounding_model(1) as eight,
        files.grounding_model(1, as_written=True) as written,
    ):
        table = Table(
            "output", "of exact Q/DQ", "of fp32", title=f"relative error of int8{floats}, {len(inputs)} queries"
        )
        wide = [single.run(one) for one in inputs]
        for title, model in (("int8", eight), ("as written", written)):
            got = [model.run(one) for one in inputs]
            for name in exact[0]:
                table.add_row(f"{title}: {name}", *(f"{_error(got, other, name):.2e}" for other in (exact, wide)))
        Console(width=120).print(table)
        if seconds > 0:
            variants = {"fp32": lambda: single.run(inputs[0]), "int8": lambda: eight.run(inputs[0])}
            variants["int8, as written"] = lambda: written.run(inputs[0])
            report("the head, B 1, one thread", interleave(variants, seconds=seconds))


def _exact(bundle: Bundle, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    values = dict(inputs)
    for model in GROUNDING_MODELS:
        session = ort.InferenceSession(str(bundle.path(model)), options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_outputs()]
        found = session.run(names, {value.name: values[value.name] for value in session.get_inputs()})
        values |= dict(zip(names, found, strict=True))
    return {name: values[name] for name in names}


def _error(got: list[dict[str, np.ndarray]], expected: list[dict[str, np.ndarray]], name: str) -> float:
    ours, theirs = (np.concatenate([one[name].ravel() for one in answers]) for answers in (got, expected))
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


if __name__ == "__main__":
    tyro.cli(main)
