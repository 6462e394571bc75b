"""`sdst ablate`: a config and its variants, one factor changed at a time, over several seeds, compared in a table.

The command may be killed and started again, and started several times side by side: each takes runs that are free.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.box import SIMPLE_HEAD
from rich.table import Table

from sdst_runtime.data.config import DataConfig
from sdst_runtime.data.dataset import Split
from sdst_runtime.errors import InputError, InUseError
from sdst_train.config import TrainConfig
from sdst_train.loop.distributed import join_team
from sdst_train.loop.train import Progress
from sdst_train.presets import DEMO_WORLDS
from sdst_train.study.ablation import Result, Run, describe_base, finish_run, plan_runs, read_result, require_features
from sdst_train.study.ablation_report import (
    Comparison,
    make_comparison,
    shown_metrics,
    table_cells,
    write_pictures,
    write_tables,
)

from .consoles import make_console
from .options import parse_options, take_config_name
from .progress import make_bar
from .training import load_with_progress, prepare_data

PROG = "sdst ablate"


@dataclass(frozen=True)
class Ablation:
    """Train a config and its variants, one factor changed at a time, over several seeds, and compare them."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    over: str
    """Factors, with commas between: fields with choices (attention, feature_mode, query_init, ...), pooling, and
    numbers with their values (layers=1:2:4)."""
    seeds: int = 3
    """Runs of each variant; the first has the config's seed, the others those that follow it."""
    out: Path | None = None
    """Folder of all runs and of the comparison; default: runs/ablate- and the preset's name."""


def ablate(arguments: list[str]) -> None:
    """`sdst ablate CONFIG --over FACTOR[,FACTOR] [--seeds N] [--out DIR] [--field value ...]`."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("each run of an ablation is one process: start  sdst ablate  once a GPU, without torchrun")
    name, rest = take_config_name(arguments, PROG)
    options = parse_options(Ablation, name, rest, PROG, over=tyro.MISSING)
    config, over = options.config, [factor.strip() for factor in options.over.split(",")]
    out = options.out or Path(f"runs/ablate-{config.preset or 'custom'}")
    runs = plan_runs(config, over, options.seeds, out)
    work = _Work(out, runs, shlex.join(["sdst", "ablate", *arguments]), describe_base(config, over))
    try:
        work.go()
    except KeyboardInterrupt:
        work.show()
        raise
    work.show()
    if work.failed:
        raise InputError(f"{len(work.failed)} runs failed: {'; '.join(work.failed)}; see above for the reasons")


class _Work:
    """The runs that are free, one after the other."""

    def __init__(self, out: Path, runs: Sequence[Run], command: str, base: str) -> None:
        self.out, self.runs, self.command, self.base = out, runs, command, base
        self.console = make_console(stderr=True)
        self.splits: dict[DataConfig, tuple[Split, Split]] = {}
        self.failed: list[str] = []

    def go(self) -> None:
        """Train all runs that are neither finished nor in another process's hands."""
        open_runs = [run for run in self.runs if read_result(run) is None]
        self._say(f"{len(self.runs)} runs in {self.out}, {len(self.runs) - len(open_runs)} of them finished")
        require_features([run for run in open_runs if run.config.preset not in DEMO_WORLDS])
        for number, run in enumerate(open_runs, 1):
            title = f"{run}, run {number} of {len(open_runs)}"
            try:
                result = self._finish(run, title)
            except InUseError:
                self._say(f"{run}: left to another process that is at work on it")
                continue
            except InputError as error:  # one that diverges must not keep the others from being measured
                self._say(f"{run}: failed: {error}")
                self.failed.append(str(run))
                continue
            self._say(_line(run, result))
            write_tables(self.out, self._comparison())

    def show(self) -> None:
        """Write the comparison and print its table."""
        comparison = self._comparison()
        if not comparison.results:
            self._say("no run is finished yet")
            return
        write_tables(self.out, comparison)
        write_pictures(self.out, comparison)
        _print_whole(_table(comparison))
        if comparison.missing:
            self._say(f"not finished: {'; '.join(comparison.missing)}; start the command again for the whole table")
        self._say(f"numbers, table and pictures: {self.out}/ablation.json, .md and .png, curves.png")

    def _comparison(self) -> Comparison:
        results = [result for run in self.runs if (result := read_result(run)) is not None]
        return make_comparison(self.command, self.base, self.runs, results)

    def _finish(self, run: Run, title: str) -> Result:
        train_split, val_split = self._load(run)
        with join_team(run.config.device) as team, make_bar(self.console) as bar:
            task = bar.add_task(title, total=None)

            def show(progress: Progress) -> None:
                bar.update(task, completed=progress.step, total=progress.steps)

            return finish_run(run, train_split, val_split, team=team, on_step=show, say=self._say)

    def _load(self, run: Run) -> tuple[Split, Split]:
        data = run.config.data
        if data not in self.splits:
            prepare_data(run.config, run.pool or "adaptive")
            train_split, val_split = (load_with_progress(run.config, split, self.console) for split in ("train", "val"))
            self.splits[data] = train_split, val_split
        return self.splits[data]

    def _say(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)


def _print_whole(table: Table) -> None:
    """Print it at its full width, for names that are cut say nothing."""
    console = make_console()
    console.width = max(console.width, console.measure(table, options=console.options.update(width=500)).maximum)
    console.print(table)


def _line(run: Run, result: Result) -> str:
    metrics = shown_metrics(run.config.data)
    values = "  ".join(f"{name} {result.metrics[key]:.2f}" for name, key in metrics.items() if key in result.metrics)
    return f"{run}: {values}"


def _table(comparison: Comparison) -> Table:
    caption = f"mean ± std over n seeds, percent, val split; base: {comparison.base}"
    table = Table("cell", box=SIMPLE_HEAD, caption=caption)
    for name in ("n", *comparison.metrics):
        table.add_column(name, justify="right", no_wrap=True)
    for cells in table_cells(comparison):
        table.add_row(*cells)
    return table
