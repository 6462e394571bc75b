"""What each part that an fp16 head keeps in float32 is worth: round it to half too, and compare on a data set.

    python benchmarks/kept_float32.py FP32_BUNDLE FP16_BUNDLE --data CONFIG [--root FOLDER] [--split val]

Rounding happens behind each node of the part, on ONNX Runtime's CPU; what the node computes inside stays float32, so
this is the least that half would cost. Errors are against the float32 bundle.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import tyro
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table

from sdst.models import data_of, load_samples, open_model
from sdst_calib.parity.measure import Candidate, measure_parity
from sdst_calib.parity.tolerances import Tolerances
from sdst_calib.taps import open_graph
from sdst_runtime.data.config import SplitName
from sdst_runtime.grounding.bundle import Bundle
from sdst_runtime.sessions.base import GroundingModel
from sdst_runtime.sessions.open import open_session

COORDINATES = r"sparse\.sample\.(endpoints|context) .*|sparse(\.span\.4)? .*"
PARTS = {  # part -> model, and what "module operator" of its tensors match; no module: an operator outside all
    "nothing more": ("head", r"(?!)"),
    "coordinates: endpoints, span steps, references": ("head", COORDINATES),
    "interpolation of the actionness: places, shares": ("head", r"actionness (Floor|Sub|Mul|Add|Min|Max|Div)"),
    "last products of the scores": ("head", r"(classify|actionness\.mlp\.4|presence\.mlp\.2) .*"),
    "cosine of the saliency": ("head", r" (MatMul|ReduceL2|Div)"),
    "sine positions": ("projection", r" (Div|Add|Concat)"),
}
CHECKED = ("MR-full-R1@0.7", "MR-full-mAP")


def main(
    fp32: tyro.conf.Positional[Path],
    fp16: tyro.conf.Positional[Path],
    *,
    data: str,
    root: Path | None = None,
    split: SplitName = "val",
) -> None:
    """A row a part."""
    reference = open_model(fp32)
    chosen = data_of(reference, data, root)
    samples = load_samples(reference, chosen, split)
    own = Candidate("fp32", reference.session, "fp32", Tolerances())
    table = Table("rounded to half too", "tensors", "spans, dB", "scores", "saliency", "rank", "top clip, %", *CHECKED)
    for part in PARTS:
        with rounded_head(Bundle.open(fp16), part) as (session, tensors):
            found = measure_parity(
                own, [Candidate(part, session, "fp16", Tolerances())], samples, chosen, reference.spec
            )
        (copy,) = found.candidates
        decided = copy.decisions
        assert decided is not None, "half broke the head"
        points = {metric.name: f"{metric.difference.value:+.2f}" for metric in copy.metrics}
        table.add_row(
            part,
            str(tensors),
            *(f"{copy.tensors[name].snr_db:.0f}" for name in ("spans", "scores", "saliency")),
            f"{decided.rank:.5f}",
            f"{100 * decided.top_clip:.2f}",
            *(points[name] for name in CHECKED),
        )
    Console(width=140).print(f"{len(samples)} queries; differences of metrics in points", table)


@contextmanager
def rounded_head(bundle: Bundle, part: str) -> Iterator[tuple[GroundingModel, int]]:
    """The head with the part's float32 tensors rounded to half, and how many they are."""
    model_name, pattern = PARTS[part]
    model, rounded = onnx.load(bundle.path(model_name)), 0
    floats = {
        tap.tensor for tap in open_graph(bundle.path(model_name)).taps
        if not tap.half and re.fullmatch(pattern, f"{tap.place} {tap.operator}")
    }  # fmt: skip
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        for number, name in enumerate(node.output):
            if name in floats:
                node.output[number] = f"{name}.exact"
                nodes += rounding(f"{name}.exact", name)
                rounded += 1
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    axis = onnx.numpy_helper.from_array(np.zeros(1, np.int64), "rounding.axis")
    model.graph.initializer.append(axis)
    with TemporaryDirectory() as folder:
        changed = Path(folder) / f"{model_name}.onnx"
        onnx.save(model, changed)
        paths = {name: bundle.path(name) for name in ("projection", "head")} | {model_name: changed}
        with GroundingModel(*(open_session(path) for path in paths.values())) as session:
            yield session, rounded


def rounding(source: str, target: str) -> list[onnx.NodeProto]:
    """To half and back, with two views between, behind which ONNX Runtime does not see that the casts are a pair."""
    steps = [source, *(f"{target}.{step}" for step in ("half", "wide", "narrow")), target]
    return [
        helper.make_node("Cast", steps[0:1], steps[1:2], to=TensorProto.FLOAT16),
        helper.make_node("Unsqueeze", [steps[1], "rounding.axis"], steps[2:3]),
        helper.make_node("Squeeze", [steps[2], "rounding.axis"], steps[3:4]),
        helper.make_node("Cast", steps[3:4], steps[4:5], to=TensorProto.FLOAT),
    ]


if __name__ == "__main__":
    tyro.cli(main)
