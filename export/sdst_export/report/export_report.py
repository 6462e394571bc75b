"""The export report: export.json in the bundle, and a short table of it for the command.

It accounts for the graphs as they are in the files; nothing reads it to run them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxscript import ir
from rich.console import Group
from rich.table import Table
from torch import nn

from sdst_runtime.files import write_json
from sdst_runtime.grounding.bundle import EXPORT_REPORT
from sdst_train.model.sdst import in_both_units

from ..half import Precision
from .summary import ModelSummary, summarise

SIZES = {"B": 1, "T": 75, "L": 20, "N": 1}  # of the costs: one query of 20 tokens about 75 clips, and one clip encoded


@dataclass(frozen=True)
class ExportReport:
    """export.json. Stages and types: see summary.py."""

    precision: Precision
    kept: dict[str, list[str]]  # model -> modules that were asked to stay float32 (keep.py)
    parameters: dict[str, int]  # as trained, of vision, text and the whole head
    moments: int  # M
    models: dict[str, ModelSummary]


def make_report(
    graphs: Mapping[str, ir.Model],
    trained: Mapping[str, nn.Module],
    moments: int,
    precision: Precision,
    keep: Mapping[str, Sequence[str]],
) -> ExportReport:
    """Sum up the graphs of a bundle. Raises ExportError when a shape in them is unknown."""
    parameters = {name: sum(p.numel() for p in module.parameters()) for name, module in trained.items()}
    kept = {model: list(modules) for model, modules in keep.items()}
    models = {name: summarise(graph, SIZES) for name, graph in graphs.items()}
    return ExportReport(precision, kept, parameters, moments, models)


def write_report(report: ExportReport, directory: Path) -> None:
    """Write export.json. Raises InputError when it cannot be written."""
    write_json(directory / EXPORT_REPORT, dataclasses.asdict(report))


def report_table(report: ExportReport) -> Group:
    """Two short tables, of models and of stages, for a console."""
    models = Table("model", "nodes", "casts", "RDSA", "half weights", "half activations")
    stages = Table("model", "stage", "nodes", "MFLOP", "tensors, MB", "weights, MB")
    for name, model in report.models.items():
        models.add_row(
            name,
            str(model.nodes),
            str(model.operators.get("Cast", 0)),
            str(model.operators.get("RDSA", 0)),
            f"{model.half_weights:.0%}",
            f"{model.half_activations:.0%}",
        )
        for stage, cost in model.stages.items():
            mega = (cost.flops, cost.activation_bytes, cost.weight_bytes)
            stages.add_row(name, stage, str(cost.nodes), *(f"{x / 1e6:.2f}" for x in mega))
    sizes = {axis: n for model in report.models.values() for axis, n in model.sizes.items()} | {"M": report.moments}
    models.caption = "parameters: " + "\n".join(f"{name} {in_both_units(n)}" for name, n in report.parameters.items())
    stages.caption = "at " + ", ".join(f"{axis} {n}" for axis, n in sizes.items()) + f"; {report.precision}"
    return Group(models, stages)
