"""The runs of an ablation and what came out of them: one factor at a time around a config, with several seeds.

A cell is the config itself (`base`) or the config with one factor changed (`attention=full_ca`). OUT/{cell}/seed-{seed}
is an ordinary run. Metrics are percent, under the evaluator's names, of a run's best weights on its val split.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sdst_runtime.data.dataset import Split
from sdst_runtime.errors import ContractError, InputError, InUseError
from sdst_runtime.files import only_process

from ..backbone.vision import POOLS, Pool
from ..config import LossConfig, ModelConfig, TrainConfig, parse_config
from ..loop.distributed import ALONE, Team
from ..loop.train import Progress, train

BASE = "base"
POOLING = "pooling"  # the one factor that is no field of a config: it needs other features


@dataclass(frozen=True)
class Run:
    """One run of a cell. `pool`: how its features must be pooled; None where pooling is no factor."""

    cell: str
    config: TrainConfig
    pool: Pool | None
    directory: Path

    def __str__(self) -> str:
        return f"{self.cell}, seed {self.config.seed}"


@dataclass(frozen=True)
class Result:
    """A finished run."""

    cell: str
    seed: int
    metrics: dict[str, float]
    best_epoch: int
    seconds: float
    machine: dict[str, str]
    versions: dict[str, str]


@dataclass(frozen=True)
class Statistic:
    """A metric over the seeds of a cell."""

    mean: float
    std: float | None  # of the sample, n - 1; None for a single seed
    values: tuple[float, ...]  # by seed


@dataclass(frozen=True)
class Row:
    """One cell of the comparison; without a finished run it has no statistics."""

    cell: str
    n: int  # finished runs
    statistics: dict[str, Statistic]  # by metric


def plan_runs(config: TrainConfig, over: Sequence[str], seeds: int, out: Path) -> list[Run]:
    """All runs, every cell with one seed before the next seed begins.

    Raises InputError for an unknown factor, naming the nearest one, and for fewer than one seed.
    """
    if seeds < 1:
        raise InputError(f"seeds: expected at least 1, got {seeds}")
    cells = _cells(config, over)
    return [
        Run(name, replace(cell, seed=seed), pool, Path(out) / name / f"seed-{seed}")
        for seed in range(config.seed, config.seed + seeds)
        for name, cell, pool in cells
    ]


def describe_base(config: TrainConfig, over: Sequence[str]) -> str:
    """The values of the factors that the base has: "attention=rdsa, pooling=adaptive"."""
    return ", ".join(f"{factor}={_value(config, factor)}" for factor in dict.fromkeys(over))


def read_result(run: Run) -> Result | None:
    """What a run gave, or None while it is unfinished.

    Raises ContractError naming the first field in which the run in the folder differs from the one that is asked for,
    InputError for a file that does not parse.
    """
    config, facts = run.directory / "config.json", run.directory / "run.json"
    if not config.is_file() or not facts.is_file():
        return None
    _require_same(parse_config(config.read_bytes(), config), run.config, config)
    told = _read_json(facts)
    if told["finished"] is None:
        return None
    brief = _read_json(run.directory / "val_metrics.json")["brief"]
    return Result(
        cell=run.cell,
        seed=run.config.seed,
        metrics={name: value for name, value in brief.items() if value is not None},
        best_epoch=told["finished"]["best_epoch"],
        seconds=told["finished"]["seconds"],
        machine=told["machine"],
        versions=told["versions"],
    )


def require_features(runs: Sequence[Run]) -> None:
    """Raise InputError naming the first feature folder that is missing, before anything is trained."""
    for run in runs:
        directory = run.config.data.feature_directory()
        if not directory.is_dir():
            pool = f" pooled by {run.pool!r}" if run.pool else ""
            mend = "put them there or leave pooling out of --over" if run.pool else "put them there"
            raise InputError(f"{directory}: expected features{pool} for {run.cell}, found no such folder; {mend}")


def finish_run(
    run: Run,
    train_split: Split,
    val_split: Split,
    *,
    team: Team = ALONE,
    on_step: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda line: None,
) -> Result:
    """Train a run from where it stands to its end; a finished one is read.

    Raises InUseError when another process is at work on it, ContractError when the features are not pooled as the run
    needs, and what `train` and `read_result` raise.
    """
    if run.pool and train_split.spec.pool != run.pool:
        raise ContractError(
            f"{run.config.data.feature_directory()}: expected features of pool {run.pool!r} for {run.cell}, these are "
            f"{train_split.spec.pool!r}; name another folder with --data.features"
        )
    repairs = [f"{name}: {line}" for name, split in (("train", train_split), ("val", val_split))
               for line in split.repairs.lines()]  # fmt: skip
    with only_process(run.directory / ".lock"):  # train takes it too, which the same process may
        result = read_result(run)
        if result is not None:
            return result
        resume = (run.directory / "config.json").is_file()
        try:
            train(
                run.config, train_split.samples, val_split.samples, train_split.spec, run.directory,
                team=team, resume=resume, repairs=repairs, on_step=on_step, say=say,
            )  # fmt: skip
        except InUseError:
            raise
        except InputError as error:
            raise InputError(f"{run}: {error}") from error
    result = read_result(run)
    assert result is not None
    return result


def compare(runs: Sequence[Run], results: Sequence[Result]) -> list[Row]:
    """A row a cell, in the order of the runs, from the results that are there."""
    rows = []
    for cell in dict.fromkeys(run.cell for run in runs):
        own = [result for result in results if result.cell == cell]
        names = [name for name in (own[0].metrics if own else ()) if all(name in r.metrics for r in own)]
        rows.append(Row(cell, len(own), {name: statistic([r.metrics[name] for r in own]) for name in names}))
    return rows


def statistic(values: Sequence[float]) -> Statistic:
    """Mean and sample standard deviation of one value or more."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Statistic(mean, None, tuple(values))
    return Statistic(mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)), tuple(values))


# ---------------------------------------------------------------- private


def _cells(config: TrainConfig, over: Sequence[str]) -> list[tuple[str, TrainConfig, Pool | None]]:
    """(name, config, pool) of the base, then of every other value of each factor."""
    factors = _factors()
    for name in over:
        if name not in factors:
            near = difflib.get_close_matches(name, factors, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(f"--over: expected some of {', '.join(factors)}, got {name!r}{hint}")
    base_pool = POOLS[0] if POOLING in over else None
    cells: list[tuple[str, TrainConfig, Pool | None]] = [(BASE, config, base_pool)]
    for name in dict.fromkeys(over):
        for value in factors[name][1]:
            if value != _value(config, name):
                pool = value if name == POOLING else base_pool
                cells.append((f"{name}={value}", _changed(config, name, value), pool))
    return cells


def _factors() -> dict[str, tuple[str, tuple[Any, ...]]]:
    """Every factor: the part of the config that holds it ("" for the config itself) and its values."""
    found: dict[str, tuple[str, tuple[Any, ...]]] = {}
    for part, owner in (("model", ModelConfig), ("loss", LossConfig), ("", TrainConfig)):
        hints = get_type_hints(owner)
        found |= {
            field.name: (part, get_args(hints[field.name]))
            for field in fields(owner)
            if get_origin(hints[field.name]) is Literal
        }
    return {**found, POOLING: ("data", POOLS)}


def _value(config: TrainConfig, factor: str) -> Any:
    if factor == POOLING:
        return POOLS[0]
    part, _ = _factors()[factor]
    return getattr(getattr(config, part) if part else config, factor)


def _changed(config: TrainConfig, factor: str, value: Any) -> TrainConfig:
    if factor == POOLING:
        return replace(config, data=replace(config.data, features=f"{config.data.features}-{value}"))
    part, _ = _factors()[factor]
    change: dict[str, Any] = {factor: value}
    return replace(config, **({part: replace(getattr(config, part), **change)} if part else change))


def _require_same(stored: TrainConfig, asked: TrainConfig, path: Path) -> None:
    """Raise ContractError unless they agree in all that a run does not fill in by itself."""
    widths = {"video_width": stored.model.video_width, "text_width": stored.model.text_width}
    precision = stored.precision if asked.precision == "auto" else asked.precision
    difference = _difference(stored, replace(asked, model=replace(asked.model, **widths), precision=precision))
    if difference is not None:
        name, have, want = difference
        raise ContractError(
            f"{path}: {name} is {have!r} in this run, {want!r} was asked for; ask for the same or choose another --out"
        )


def _difference(one: Any, other: Any, prefix: str = "") -> tuple[str, Any, Any] | None:
    """The first field that differs, by dotted name, and its two values."""
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if is_dataclass(a):
            inner = _difference(a, b, f"{prefix}{field.name}.")
            if inner is not None:
                return inner
        elif a != b:
            return prefix + field.name, a, b
    return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}; remove the folder of this run to train it again") from error
