"""`sdst calibrate int8`: a bundle of ONNX files to one with int8 products."""

from __future__ import annotations

from pathlib import Path

import tyro
from rich.table import Table

from sdst_calib.feeds import spread
from sdst_calib.int8.calibrate import Int8Options, Int8Report, Queries, calibrate_int8, open_source
from sdst_calib.int8.scales import Method
from sdst_export.keep import NOTHING_KEPT, read_keep
from sdst_runtime.data.config import SplitName
from sdst_runtime.errors import InputError
from sdst_runtime.sessions.base import GROUNDING_MODELS

from .consoles import make_console
from .models import OpenedModel, data_of, has_windows, load_samples
from .next_step import advise
from .progress import counted
from .videos import find_videos


def int8(
    bundle: tyro.conf.Positional[Path],
    *,
    data: str,
    out: Path,
    root: Path | None = None,
    videos: Path | None = None,
    calibrate_on: SplitName = "train",
    split: SplitName = "val",
    queries: int = 256,
    method: Method = "mse",
    models: str = ",".join(GROUNDING_MODELS),
    budget: float | None = None,
    exclude: Path | None = None,
    threads: int | None = None,
) -> None:
    """Write a bundle whose products compute in int8 (Q/DQ, no calibrator needed), and say what that costs.

    Args:
        bundle: Directory that  sdst export  wrote, fp32 or fp16.
        data: A preset or a config.json: features and annotations.
        out: Directory of the int8 bundle.
        root: Folder of the data set, instead of the config's.
        videos: Folder of the videos to calibrate the vision model on, or a .txt file with the path of one on each line.
        calibrate_on: The split that scales come from.
        split: The split that metrics are measured on.
        queries: How many queries to calibrate on, evenly spaced.
        method: How the range of an activation is chosen.
        models: Which of vision (needs --videos), text, projection and head, separated by commas.
        budget: Points that R1@0.7 and mAP may lose; layers are measured one at a time, the worst stay as they are.
        exclude: File of modules that stay as they are, in the form that  sdst calibrate audit  writes.
        threads: Threads for the models; default: all cores.
    """
    named = tuple(name.strip() for name in models.split(","))
    options = Int8Options(method, named, budget, NOTHING_KEPT if exclude is None else read_keep(exclude))
    source = open_source(bundle, out)
    opened = OpenedModel(source.grounding_model(threads), source.manifest.spec, None)
    chosen = data_of(opened, data, root)
    calibration = spread(load_samples(opened, chosen, calibrate_on), queries)
    measured = load_samples(opened, chosen, split)
    if not has_windows(measured):
        raise InputError(f"{chosen.annotations(split)}: holds no windows, nothing to measure on; give another --split")
    inputs = Queries(calibration, measured, chosen, {} if videos is None else find_videos(videos))
    report = calibrate_int8(source, out, inputs, options, counted, threads)
    console = make_console(stderr=True)
    console.print(_table(report))
    console.print(_layers(report), soft_wrap=True)
    print(out)  # noqa: T201
    advise("sdst", "parity", bundle, out, "--data", data)


def _table(report: Int8Report) -> Table:
    table = Table("", *report.reference, title=f"int8 by {report.method}, {report.measured_queries} queries")
    table.add_row("before", *(f"{value:.2f}" for value in report.reference.values()))
    table.add_row("int8", *(f"{value:.2f}" for value in report.int8.values()))
    return table


def _layers(report: Int8Report) -> str:
    layers = sum(len(model.layers) for model in report.models.values())
    exempt = sum(len(model.kept) for model in report.models.values())
    worst = ", ".join(f"{one.layer} {one.drop:+.2f}" for one in report.sensitivity[:3])
    lines = [f"{layers} layers in int8, {exempt} kept"]
    if worst:
        lines.append(f"most sensitive, in points: {worst}")
    if report.vision_snr_db is not None:
        lines.append(
            f"vision features {report.vision_snr_db:.1f} dB (the metrics are of the features that the data has)"
        )
    return "; ".join(lines)
