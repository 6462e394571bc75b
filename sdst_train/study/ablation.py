"""The runs of an ablation and what came out of them: one factor at a time around a config, with several seeds.

A cell is the config itself (`base`) or the config with one factor changed (`attention=full_ca`). OUT/{cell}/seed-{seed}
is an ordinary run. Metrics are percent, under the evaluator's names, of a run's best weights on its val split.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sdst_runtime.data.dataset import Split
from sdst_runtime.errors import ContractError, InputError, InUseError
from sdst_runtime.files import only_process, read_jsonl
from sdst_runtime.strict_json import read_json

from ..backbone.vision import POOLS, Pool
from ..config import LossConfig, ModelConfig, TrainConfig, difference, parse_config
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
    curve: tuple[float, ...]  # what the best epoch was chosen by, after each epoch
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
class CellStatistics:
    """One cell of the comparison: its finished runs; without a finished run it has no statistics."""

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
    names = dict.fromkeys(factor.partition("=")[0] for factor in over)
    return ", ".join(f"{name}={_value(config, name)}" for name in names)


def read_result(run: Run) -> Result | None:
    """What a run gave, or None while it is unfinished.

    Raises ContractError naming the first field in which the run in the folder differs from the one that is asked for,
    InputError for a file that does not parse.
    """
    config, path = run.directory / "config.json", run.directory / "run.json"
    if not config.is_file() or not path.is_file():
        return None
    _require_same(parse_config(config.read_bytes(), config), run.config, config)
    mend = "remove the folder of this run to train it again"
    facts = read_json(path, mend)
    if facts["finished"] is None:
        return None
    brief = read_json(run.directory / "val_metrics.json", mend)["brief"]
    return Result(
        cell=run.cell,
        seed=run.config.seed,
        metrics={name: value for name, value in brief.items() if value is not None},
        curve=tuple(row[run.config.select_by] for row in read_jsonl(run.directory / "metrics.jsonl")),
        best_epoch=facts["finished"]["best_epoch"],
        seconds=facts["finished"]["seconds"],
        machine=facts["machine"],
        versions=facts["versions"],
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


def compare(runs: Sequence[Run], results: Sequence[Result]) -> list[CellStatistics]:
    """A row a cell, in the order of the runs, from the results that are there."""
    rows = []
    for cell in dict.fromkeys(run.cell for run in runs):
        own = [result for result in results if result.cell == cell]
        names = [name for name in (own[0].metrics if own else ()) if all(name in r.metrics for r in own)]
        rows.append(CellStatistics(cell, len(own), {name: statistic([r.metrics[name] for r in own]) for name in names}))
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
    base_pool = POOLS[0] if POOLING in over else None
    cells: list[tuple[str, TrainConfig, Pool | None]] = [(BASE, config, base_pool)]
    for name, values in dict(map(_asked, over)).items():
        for value in values:
            if value != _value(config, name):
                pool = value if name == POOLING else base_pool
                cells.append((f"{name}={value}", _changed(config, name, value), pool))
    return cells


def _asked(factor: str) -> tuple[str, tuple[Any, ...]]:
    """The name and the values of a factor as it was written: `attention`, or `layers=1:2:4` of a field without choices.

    Raises InputError naming the nearest factor, or the value that the field cannot have.
    """
    name, _, written = factor.partition("=")
    factors = _factors()
    _, kind, choices = factors.get(name, ("", str, ()))
    if name not in factors or not (written or choices):
        known = [known for known, (_, _, values) in factors.items() if values]
        near = difflib.get_close_matches(name, factors, 1)
        hint = f"; did you mean {near[0]}?" if near and near[0] != name else ""
        raise InputError(
            f"--over: expected some of {', '.join(known)}, or NAME=VALUE:VALUE of a field that is a number, got "
            f"{factor!r}{hint}"
        )
    if not written:
        return name, choices
    try:
        return name, tuple(_read(kind, value) for value in written.split(":"))
    except ValueError as error:
        raise InputError(f"--over {factor}: {error}") from error


def _read(kind: Any, text: str) -> Any:
    if kind is bool:
        if text not in ("True", "False"):
            raise ValueError(f"expected True or False, got {text!r}")
        return text == "True"
    return kind(text)


def _factors() -> dict[str, tuple[str, Any, tuple[Any, ...]]]:
    """Every factor: the part of the config that holds it ("" for the config itself), its type, and its choices; none
    for a number, whose values have to be said.
    """
    factors: dict[str, tuple[str, Any, tuple[Any, ...]]] = {}
    for part, owner in (("model", ModelConfig), ("loss", LossConfig), ("", TrainConfig)):
        hints = get_type_hints(owner)
        for field in fields(owner):
            hint = hints[field.name]
            if get_origin(hint) is Literal:
                factors[field.name] = (part, str, get_args(hint))
            elif hint in (int, float, bool):
                factors[field.name] = (part, hint, ())
    return {**factors, POOLING: ("data", str, POOLS)}


def _value(config: TrainConfig, factor: str) -> Any:
    if factor == POOLING:
        return POOLS[0]
    part = _factors()[factor][0]
    return getattr(getattr(config, part) if part else config, factor)


def _changed(config: TrainConfig, factor: str, value: Any) -> TrainConfig:
    if factor == POOLING:
        return replace(config, data=replace(config.data, features=f"{config.data.features}-{value}"))
    part = _factors()[factor][0]
    change: dict[str, Any] = {factor: value}
    return replace(config, **({part: replace(getattr(config, part), **change)} if part else change))


def _require_same(stored: TrainConfig, asked: TrainConfig, path: Path) -> None:
    """Raise ContractError unless they agree in all that a run does not fill in by itself."""
    filled = {name: getattr(stored.model, name) for name in ("video_width", "text_width", "presence")}
    precision = stored.precision if asked.precision == "auto" else asked.precision
    wanted = replace(asked, model=replace(asked.model, **filled), precision=precision)
    changed = difference(asdict(stored), asdict(wanted))
    if changed is not None:
        name, have, want = changed
        raise ContractError(
            f"{path}: {name} is {have!r} in this run, {want!r} was asked for; ask for the same or choose another --out"
        )
