"""The report of a training run: RUN/report.html to look at, RUN/report.json with every number on it.

Reads RUN/config.json and run.json, and metrics.jsonl and val_metrics.json as far as they are there: a run that was
stopped has a report too. Metrics are percent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sdst_runtime.errors import InputError
from sdst_runtime.files import read_jsonl, write_json
from sdst_runtime.metrics.evaluator import LENGTH_RANGES_S
from sdst_runtime.metrics.score import PRESENCE_AUROC
from sdst_runtime.pages.charts import fixed
from sdst_runtime.pages.report import Curve, MetricRow, Report, Table, write_report
from sdst_runtime.strict_json import Misfit, dump_json, parse_value, read_json

from ..config import TrainConfig, flatten
from .published import BENCHMARKS

HIGHLIGHTS = {"HD mAP": "HL-min-VeryGood-mAP", "HIT@1": "HL-min-VeryGood-Hit1"}  # shown name: evaluator's
RETRIEVAL = {"R1@0.5": "MR-full-R1@0.5", "R1@0.7": "MR-full-R1@0.7", "mAP": "MR-full-mAP"}
PRESENCE = {"presence AUROC": PRESENCE_AUROC}
MOMENTS = {name: name for name in ("R1@0.3", "R1@0.5", "R1@0.7", "mIoU")}
NOT_LOSSES = ("epoch", "step", "seconds", "lr")
LINES_A_CHART = 4
_DRAWN = 1e100  # values beyond it, as of a loss that went to infinity, have no place on an axis


def write_run_report(run: Path) -> Path:
    """Write report.json and report.html into the folder of a run, and return the page's path.

    Raises InputError when config.json or run.json is missing or a file does not parse.
    """
    run = Path(run)
    summary = summarise(run)
    write_json(run / "report.json", summary)
    write_report(run / "report.html", _page(summary))
    return run / "report.html"


def summarise(run: Path) -> dict[str, Any]:
    """Every number of the report, as JSON. Raises InputError as `write_run_report` does."""
    config, facts = _read_as(_Settings, run / "config.json"), _read_as(_Facts, run / "run.json")
    log = _read_log(run / "metrics.jsonl") if (run / "metrics.jsonl").is_file() else []
    metrics = _read_metrics(run / "val_metrics.json") if (run / "val_metrics.json").is_file() else {}
    brief = metrics.get("brief") or (log[-1] if log else {})
    names = {**RETRIEVAL, **HIGHLIGHTS} if config["data"]["metrics"] == "qvhighlights" else MOMENTS
    names = {**names, **PRESENCE}
    headline = _renamed(brief, names)
    return {
        "run": run.resolve().name,
        **{key: config[key] for key in ("preset", "seed", "epochs", "select_by")},
        **{part.name: facts[part.name] for part in fields(_Facts)},
        "epochs_logged": len(log),
        "warnings": _warnings(config, facts, len(log)),
        "headline": headline,
        "curves": _curves(log, names),
        "published": _published(config["preset"], headline, facts["parameters"]),
        "by_length": _by_length(metrics),
        "by_windows": _by_windows(metrics),
        "presence": metrics.get("presence"),
        "config": _config(config),
    }


def _warnings(config: dict[str, Any], facts: dict[str, Any], epochs_logged: int) -> list[str]:
    warnings = []
    if facts["finished"] is None:
        warnings.append(
            f"This run is unfinished: {epochs_logged} of {config['epochs']} epochs are logged, and the numbers are of "
            "the last of them, not of the best."
        )
    if config["data"]["val"] == config["data"]["test"]:
        chosen_on = (
            "the split that is also the test split: the numbers are optimistic, and not comparable to those of models "
            "chosen without it"
        )
    else:
        chosen_on = "the val split, which these numbers are measured on: they are a little optimistic"
    return [*warnings, f"The best epoch is chosen by {config['select_by']} on {chosen_on}."]


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, float]:
    """The values under the names that are shown; those not measured, or beyond any axis, are left out."""
    found = {shown: values.get(name) for shown, name in names.items()}
    return {shown: value for shown, value in found.items() if value is not None and _is_drawn(value)}


def _is_drawn(value: float) -> bool:
    return math.isnan(value) or value == 0 or 1 / _DRAWN < abs(value) < _DRAWN


def _curves(log: list[dict[str, Any]], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """[{title, points: [[epoch, {series: value}], ...]}], without those that nothing was logged for."""
    measured = ("MR-", "HL-", "R1@", "mIoU", PRESENCE_AUROC)
    metrics = {name for row in log for name in row if name.startswith(measured)}
    losses = list(dict.fromkeys(n for row in log for n in row if n not in metrics and n not in NOT_LOSSES))
    parts = [name for name in losses if name != "loss"]
    chunks = [parts[start : start + LINES_A_CHART] for start in range(0, len(parts), LINES_A_CHART)]
    charts = {"Loss": {"loss": "loss"}}
    charts |= {f"Parts of the loss, {number}": {n: n for n in chunk} for number, chunk in enumerate(chunks, 1)}
    apart = {"Validation of highlights, percent": HIGHLIGHTS, "Validation of presence, percent": PRESENCE}
    charts["Validation, percent"] = {n: names[n] for n in names if not any(n in chart for chart in apart.values())}
    charts |= {title: {n: names[n] for n in names if n in chart} for title, chart in apart.items()}
    charts["Learning rate"] = {"rate": "lr"}
    curves = [
        {"title": title, "points": [[row["epoch"], _renamed(row, series)] for row in log]}
        for title, series in charts.items()
    ]
    return [curve for curve in curves if any(values for _, values in curve["points"])]


def _published(preset: str, headline: dict[str, float], parameters: int) -> dict[str, Any] | None:
    """What others report for the benchmark of this preset, after this run; None where nobody did."""
    benchmark = BENCHMARKS.get(preset)
    if benchmark is None:
        return None
    metrics = list(dict.fromkeys(name for result in benchmark.results for name in result.values))
    ours = {"method": "this run", "parameters_m": parameters / 1e6, **{name: headline.get(name) for name in metrics}}
    theirs = [
        {"method": result.method, "parameters_m": result.parameters_m, **{n: result.values.get(n) for n in metrics}}
        for result in benchmark.results
    ]
    return {"benchmark": benchmark.name, "split": benchmark.split, "metrics": metrics, "rows": [ours, *theirs]}


def _by_length(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """mAP and R1 of windows by their length, where the QVHighlights metrics were taken."""
    return [
        {
            "length": name,
            "longer_than_s": low,
            "up_to_s": high,
            "mAP": metrics[name]["MR-mAP"]["average"],
            "R1@0.5": metrics[name]["MR-R1"]["0.5"],
            "R1@0.7": metrics[name]["MR-R1"]["0.7"],
        }
        for name, (low, high) in LENGTH_RANGES_S.items()
        if name in metrics
    ]


def _by_windows(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """mAP and R1 of queries by their number of windows, where they differ in it."""
    shown = ("queries", "mAP", "R1@0.5", "R1@0.7")
    groups = metrics.get("by_windows", {})
    return [{"windows": name, **{field: values[field] for field in shown}} for name, values in groups.items()]


def _config(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Fields by dotted name: those that differ from the defaults, and the others."""
    defaults = flatten(json.loads(dump_json(asdict(TrainConfig()))))
    values = flatten(config)
    changed = {name: value for name, value in values.items() if name not in defaults or defaults[name] != value}
    return {"changed": changed, "default": {name: value for name, value in values.items() if name not in changed}}


@dataclass(frozen=True)
class _Finished:
    reason: str
    best_epoch: int
    seconds: float


@dataclass(frozen=True)
class _Facts:
    """What a report needs of run.json."""

    started: str
    finished: _Finished | None
    parameters: int
    train_queries: int
    val_queries: int
    world_size: int
    versions: dict[str, Any]
    machine: dict[str, Any]
    repairs: list[str]


@dataclass(frozen=True)
class _Data:
    metrics: str
    val: str
    test: str


@dataclass(frozen=True)
class _Settings:
    """What a report needs of config.json, which may be of another version of this project."""

    preset: str
    seed: int
    epochs: int
    select_by: str
    data: _Data


_MEND = "give the folder of a run that  sdst train  wrote"


def _read_as(kind: type[Any], path: Path) -> dict[str, Any]:
    """An object in a file, with all its fields, of which those of `kind` are what they must be."""
    values = read_json(path, _MEND)
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected an object, got {type(values).__name__}; {_MEND}")
    missing = [part.name for part in fields(kind) if part.name not in values]
    if missing:
        raise InputError(f"{path}: expected it to hold {', '.join(missing)}; {_MEND}")
    try:
        parse_value(kind, values, "ignore")
    except Misfit as fault:
        raise InputError(f"{path}: {fault}; {_MEND}") from fault
    if large := next((name for name, value in flatten(values).items() if _is_too_large(value)), None):
        raise InputError(f"{path}: {large} is no number that a run has; {_MEND}")
    return values


def _read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl: numbers by name, an epoch in each."""
    rows = read_jsonl(path)
    for number, row in enumerate(rows, 1):
        wrong = [name for name, value in row.items() if not _is_number(value) and value is not None]
        if wrong or not isinstance(row.get("epoch"), int):
            raise InputError(f"{path}, line {number}: {(wrong or ['epoch'])[0][:60]}: expected a number; {_MEND}")
    return rows


def _read_metrics(path: Path) -> dict[str, Any]:
    """val_metrics.json, in which what is shown are numbers."""
    values = read_json(path, _MEND)
    brief = values.get("brief", {}) if isinstance(values, dict) else None
    if not isinstance(brief, dict) or not all(_is_number(value) or value is None for value in brief.values()):
        raise InputError(f"{path}: expected metrics by name under brief; {_MEND}")
    try:
        shown = [value for row in _by_length(values) for name, value in row.items() if name != "length"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: expected MR-mAP and MR-R1 of each length of windows; {_MEND}") from error
    if not all(_is_number(value) or value is None for value in shown):
        raise InputError(f"{path}: expected numbers under MR-mAP and MR-R1; {_MEND}")
    try:
        counted = [value for row in _by_windows(values) for name, value in row.items() if name != "windows"]
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected queries, mAP and R1 of each number of windows; {_MEND}") from error
    presence = values.get("presence", {})
    if not isinstance(presence, dict) or not all(map(_is_number, (*counted, *presence.values()))):
        raise InputError(f"{path}: expected numbers under by_windows and presence; {_MEND}")
    return values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not _is_too_large(value)


def _is_too_large(value: Any) -> bool:
    return isinstance(value, int) and abs(value) >= 1 << 63


# The page


def _page(summary: dict[str, Any]) -> Report:
    finished, preset = summary["finished"], summary["preset"] or "no preset"
    facts = [
        ("queries", f"{summary['train_queries']:,} training, {summary['val_queries']:,} validation"),
        ("trained parameters", f"{summary['parameters']:,}"),
        ("seed", f"{summary['seed']}, one run"),
        ("processes", str(summary["world_size"])),
        ("started", summary["started"]),
    ]
    if finished is not None:
        facts += [
            ("ended by", finished["reason"]),
            ("best epoch", f"{finished['best_epoch']} of {summary['epochs_logged']}"),
            ("duration", f"{finished['seconds'] / 60:,.1f} min"),
        ]
    return Report(
        title=f"Training run {summary['run']}",
        subtitle=f"{preset}, {summary['epochs_logged']} of {summary['epochs']} epochs",
        facts=tuple(facts),
        warnings=tuple(summary["warnings"]),
        metrics=tuple(MetricRow(name, value) for name, value in summary["headline"].items()),
        curves=tuple(
            Curve(curve["title"], tuple((epoch, values) for epoch, values in curve["points"]))
            for curve in summary["curves"]
        ),
        tables=(
            *([_published_table(summary["published"])] if summary["published"] else []),
            _length_table(summary["by_length"]),
            _windows_table(summary["by_windows"]),
            *([_presence_table(summary["presence"])] if summary["presence"] else []),
            _field_table("Settings that differ from the defaults", summary["config"]["changed"]),
            _field_table("Settings left at their defaults", summary["config"]["default"], folded=True),
            _field_table("Machine and versions", {**summary["machine"], **summary["versions"]}),
            Table("Repairs of the data", ("what was repaired",), tuple((line,) for line in summary["repairs"])),
        ),
    )


def _published_table(published: dict[str, Any]) -> Table:
    metrics = published["metrics"]
    return Table(
        f"Beside published numbers, {published['benchmark']}",
        ("method", *metrics, "trained parameters, M"),
        tuple(
            (row["method"], *(_number(row[name]) for name in metrics), _number(row["parameters_m"], 1))
            for row in published["rows"]
        ),
        "Only the first row was measured here, on the val split of this run, with one seed. The others are the "
        f"authors' numbers on {published['benchmark']} {published['split']}, not reproduced here.",
    )


def _length_table(rows: list[dict[str, Any]]) -> Table:
    return Table(
        "By length of the window",
        ("length", "seconds", "mAP", "R1@0.5", "R1@0.7"),
        tuple(
            (
                row["length"],
                f"above {row['longer_than_s']}, up to {row['up_to_s']}",
                *(_number(row[name]) for name in ("mAP", "R1@0.5", "R1@0.7")),
            )
            for row in rows
        ),
        "Annotated windows of that length, and the queries that have some. Empty: there are none.",
    )


def _windows_table(rows: list[dict[str, Any]]) -> Table:
    return Table(
        "By number of windows",
        ("windows", "queries", "mAP", "R1@0.5", "R1@0.7"),
        tuple(
            (row["windows"], str(row["queries"]), *(_number(row[name]) for name in ("mAP", "R1@0.5", "R1@0.7")))
            for row in rows
        ),
        "Queries with so many annotated windows.",
    )


def _presence_table(presence: dict[str, Any]) -> Table:
    counts = ("queries", "absent")
    return Table(
        "Whether the event is there",
        ("presence", "value"),
        tuple((name, str(value) if name in counts else _number(value, 3)) for name, value in presence.items()),
        "Of present and absent queries; a query is answered when its presence is the threshold or more. AUROC, ECE and "
        "threshold are 0 to 1, the others percent.",
    )


def _field_table(title: str, fields: Mapping[str, Any], *, folded: bool = False) -> Table:
    rows = tuple((name, value if isinstance(value, str) else dump_json(value)) for name, value in fields.items())
    return Table(title, ("field", "value"), rows, folded=folded)


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else fixed(value, digits)
