"""`sdst parity`: do copies of one model say the same? Numbers, decisions and the metric, against a reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

import tyro
from rich.table import Table

from sdst_calib.parity.layers import LayerReport, compare_layers
from sdst_calib.parity.measure import Candidate, CandidateParity, Parity, inputs_of, measure_parity
from sdst_calib.parity.page import as_json, write_page
from sdst_calib.parity.polygraphy_script import ScriptedBundle, require_script, write_polygraphy_script
from sdst_calib.parity.tolerances import DEFAULTS, Tolerances, precision_of
from sdst_calib.taps import require_onnx
from sdst_runtime.contracts import STEPS_KEY
from sdst_runtime.data.config import SplitName
from sdst_runtime.data.dataset import Sample
from sdst_runtime.errors import ContractError, InputError, PartialFailure
from sdst_runtime.files import make_directory, temporary_folder, write_json
from sdst_runtime.grounding.bundle import MANIFEST, Bundle
from sdst_runtime.machine import machine_facts
from sdst_runtime.sessions.base import GROUNDING_MODELS

from .consoles import make_console
from .models import BEST, OpenedModel, data_of, has_windows, load_samples, open_model
from .options import Flag
from .progress import counted

LOOKED_AT = 8  # queries whose tensors --layers compares, and that a script repeats
SCRIPT_MAX_ABS = {"fp32": 1e-4, "fp16": 2e-2, "int8": 0.5}  # where --max-abs says nothing


def parity(
    bundles: tyro.conf.Positional[tuple[Path, ...]],
    *,
    reference: Path | None = None,
    data: str | None = None,
    split: SplitName = "val",
    root: Path | None = None,
    out: Path | None = None,
    layers: Flag = False,
    polygraphy_script: Path | None = None,
    max_abs: float | None = None,
    cosine: float | None = None,
    snr_db: float | None = None,
    layer_snr_db: float | None = None,
    top_iou: float | None = None,
    rank: float | None = None,
    top_clip: float | None = None,
    points: float | None = None,
    threads: int | None = None,
) -> None:
    """Compare bundles with a reference on a split of a data set; exit code 1 when one is beyond its tolerances.

    Tolerances that are not given come from the bundle's coarsest precision (docs/precision.md).

    Args:
        bundles: Directories that `sdst export`, `sdst build` or `sdst calibrate int8` wrote.
        reference: A checkpoint, the folder of a run, or a bundle; default: the first of the bundles.
        data: A preset or a config.json; default: the data that a reference checkpoint was trained on.
        split: Which split of it.
        root: Folder of the data set, instead of the config's.
        out: Folder for parity.json and parity.html.
        layers: Compare every tensor of the graphs and name the first that diverges.
        polygraphy_script: Write a Python script (.py) that repeats the comparison with Polygraphy alone.
        max_abs: Most absolute error of any output.
        cosine: Least cosine of any output.
        snr_db: Least signal to noise of any output, dB.
        layer_snr_db: Least signal to noise of any tensor with --layers, dB.
        top_iou: Least mean IoU of the best moments.
        rank: Least mean rank agreement of the moments, Kendall's tau.
        top_clip: Least share of queries with the same highest clip.
        points: Most difference in R1@0.7 and mAP (mIoU), either way.
        threads: Threads for each model; default: all cores.
    """
    stated = Tolerances(max_abs, cosine, snr_db, layer_snr_db, top_iou, rank, top_clip, points)
    models = _open(bundles, reference, stated, threads)
    scripted = [] if polygraphy_script is None else _scripted(models)
    if polygraphy_script is not None:
        require_script(polygraphy_script, scripted)
    if layers:
        _require_graphs(models)
    chosen = data_of(models.opened, data, root)
    samples = load_samples(models.opened, chosen, split)
    if points is not None and not has_windows(samples):
        raise InputError(f"--points {points:g}: {chosen.annotations(split)} holds no windows to score; leave it out")
    for folder in (out, polygraphy_script and polygraphy_script.parent):
        if folder is not None:
            make_directory(folder)
    with counted("comparing") as on_done:
        measured = measure_parity(models.reference, models.candidates, samples, chosen, models.opened.spec, on_done)
    copies = {name: str(path) for name, path in models.paths.items()}
    facts = {"data": str(chosen.annotations(split)), **copies, **dict(machine_facts())}
    _write(out, measured, {}, facts)
    looked_at = [inputs_of([sample], models.opened.spec) for sample in _spread(samples)]
    reports = _layers(models, looked_at) if layers else {}
    _write(out, measured, reports, facts)
    if polygraphy_script is not None:
        write_polygraphy_script(polygraphy_script, models.reference.session, scripted, looked_at)
    _print(measured, reports)
    _require_within(measured, reports)


def _write(out: Path | None, measured: Parity, reports: dict[str, LayerReport], facts: dict[str, str]) -> None:
    if out is not None:
        write_json(out / "parity.json", as_json(measured, reports, facts))
        write_page(out / "parity.html", measured, reports, facts)


@dataclass(frozen=True)
class _Models:
    opened: OpenedModel  # the reference
    reference: Candidate
    candidates: list[Candidate]
    paths: dict[str, Path]  # by name, the reference's too


def _open(bundles: Sequence[Path], reference: Path | None, stated: Tolerances, threads: int | None) -> _Models:
    path = bundles[0] if reference is None and bundles else reference
    others = list(bundles) if reference is not None else list(bundles[1:])
    if path is None or not others:
        raise InputError("expected bundles and a --reference, or two bundles, of which the first is the reference")
    own = open_model(path, threads, as_written=True)
    steps = _steps_of(path, own)
    names = _names([path, *others])
    candidates = []
    for name, other in zip(names[1:], others, strict=True):
        opened = open_model(other, threads, as_written=True)
        if not _is_bundle(other):
            raise InputError(f"{other}: expected a bundle; a checkpoint can be the --reference only")
        opened.spec.require(own.spec, have=other, need=path, exact=True, mend="compare exports of one checkpoint")
        if _steps_of(other, opened) != steps:
            raise ContractError(
                f"{other}: has {_steps_of(other, opened)} steps, {path} has {steps}; compare exports of one checkpoint"
            )
        precision = precision_of(opened.session, other)
        tolerances = stated.or_else(DEFAULTS[precision])
        candidates.append(Candidate(name, opened.session, precision, tolerances))
    base = Candidate(names[0], own.session, precision_of(own.session, path), Tolerances())
    return _Models(own, base, candidates, dict(zip(names, [path, *others], strict=True)))


def _names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as few as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise InputError(f"expected different models, got {', '.join(map(str, paths))}; name each once")


def _require_graphs(models: _Models) -> None:
    for path in models.paths.values():
        if _is_bundle(path):
            require_onnx(*_graphs_of(path).values())


def _is_bundle(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def _steps_of(path: Path, opened: OpenedModel) -> int:
    """K of a bundle's head or of a checkpoint."""
    if not _is_bundle(path):
        return opened.spec.layers
    steps = opened.session.metadata.get(STEPS_KEY, "")
    if not steps.isdecimal():
        raise ContractError(
            f"{path}: its head lacks the checkpoint's step count ({STEPS_KEY} is {steps!r}); export the bundle again"
        )
    return int(steps)


def _spread(samples: Sequence[Sample]) -> list[Sample]:
    """Some of them, evenly over the split."""
    return (
        [samples[i * len(samples) // LOOKED_AT] for i in range(LOOKED_AT)] if len(samples) > LOOKED_AT else [*samples]
    )


def _graphs_of(bundle: Path) -> dict[str, Path]:
    opened = Bundle.open(bundle)
    return {graph: opened.path(graph) for graph in GROUNDING_MODELS}


def _scripted(models: _Models) -> list[ScriptedBundle]:
    scripted = []
    for candidate in models.candidates:
        stated = candidate.tolerances.max_abs
        max_abs = SCRIPT_MAX_ABS[candidate.precision] if stated is None else stated
        scripted.append(ScriptedBundle(candidate.name, _graphs_of(models.paths[candidate.name]), max_abs))
    return scripted


def _layers(models: _Models, queries: Sequence[dict]) -> dict[str, LayerReport]:
    reports = {}
    with _reference_graphs(models.paths[models.reference.name]) as graphs:
        for candidate in models.candidates:
            with counted(f"layers of {candidate.name}") as on_done:
                reports[candidate.name] = compare_layers(
                    graphs,
                    _graphs_of(models.paths[candidate.name]),
                    queries,
                    candidate.tolerances.layer_snr_db or 0.0,
                    on_done,
                )
    return reports


@contextmanager
def _reference_graphs(path: Path) -> Iterator[dict[str, Path]]:
    """Graphs of the reference; those of a checkpoint are exported in fp32 for the while."""
    if _is_bundle(path):
        yield _graphs_of(path)
        return
    from sdst_export.graph import save_model
    from sdst_export.models import export_head, export_projection, lower
    from sdst_train.loop.checkpoint import load_checkpoint

    lowered = lower(load_checkpoint(path / BEST if path.is_dir() else path))
    with temporary_folder(Path(gettempdir())) as folder:
        graphs = {graph: folder / f"{graph}.onnx" for graph in GROUNDING_MODELS}
        save_model(export_projection(lowered), graphs["projection"])
        save_model(export_head(lowered), graphs["head"])
        yield graphs


def _print(measured: Parity, reports: dict[str, LayerReport]) -> None:
    console = make_console(soft_wrap=True)
    table = Table("against " + measured.reference, *(candidate.name for candidate in measured.candidates))
    columns = [_cells(measured, candidate) for candidate in measured.candidates]
    for name in dict.fromkeys(name for cells in columns for name in cells):
        table.add_row(name, *(cells.get(name, "") for cells in columns))  # no metrics where an output is not finite
    console.print(table)
    for name, report in reports.items():
        first = report.first
        where = "none" if first is None else f"{first.tensor}, made by {first.node} in the {first.graph}"
        below = f"first of {len(report.layers)} tensors below {report.least_snr_db:g} dB"
        apart = f"; {len(report.unmatched)} without a twin, not compared" if report.unmatched else ""
        console.print(f"{name}: {below}: {where}{apart}")


def _cells(measured: Parity, candidate: CandidateParity) -> dict[str, str]:
    verdict = "within tolerance" if candidate.passed else "beyond tolerance"
    cells = {"precision": candidate.precision, "verdict": verdict}
    for name, error in candidate.tensors.items():
        cells[name] = f"max abs {error.max_abs:.2g}, {error.snr_db:.0f} dB"
    decided = candidate.decisions
    cells["best moments, IoU"] = f"{decided.top_iou:.5f}" if decided else "not finite"
    cells["rank agreement"] = f"{decided.rank:.5f}" if decided else "not finite"
    cells["same highest clip"] = f"{100 * decided.top_clip:.2f} %" if decided else "not finite"
    cells["task"] = _task(measured, candidate)
    for metric in candidate.metrics:
        apart = metric.difference
        shown = [f"{round(value, 2) + 0.0:+.2f}" for value in (apart.value, apart.low, apart.high)]  # no -0.00
        cells[metric.name] = f"{metric.value.value:.2f} ({shown[0]}, {shown[1]} to {shown[2]})"
    return cells


def _task(measured: Parity, candidate: CandidateParity) -> str:
    if not measured.labelled:
        return "not measured, no windows"
    return f"{measured.labelled} of {measured.queries} queries" if candidate.metrics else "not measured, not finite"


def _require_within(measured: Parity, reports: dict[str, LayerReport]) -> None:
    faults = [
        f"{candidate.name}: {check.name} is {check.value:.3g}, the limit is {check.limit:.3g}"
        for candidate in measured.candidates
        for check in candidate.checks
        if not check.passed
    ]
    faults += [
        f"{name}: {first.tensor} of {first.node} has {'NaN' if first.snr_db is None else f'{first.snr_db:.3g}'} dB,"
        f" the limit is {report.least_snr_db:.3g}"
        for name, report in reports.items()
        if (first := report.first) is not None
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise PartialFailure(f"beyond tolerance: {'; '.join(faults[:3])}{more}")
