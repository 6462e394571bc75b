"""A training run as a user sees it: its data made or loaded, a bar, a line an epoch, a report at the end."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from sdst_runtime.data.absent import with_absent
from sdst_runtime.data.config import SplitName
from sdst_runtime.data.dataset import Split, load_split
from sdst_train.backbone.vision import Pool
from sdst_train.config import TrainConfig
from sdst_train.loop.checkpoint import Checkpoint, load_checkpoint
from sdst_train.loop.distributed import Team, join_team
from sdst_train.loop.run_report import write_run_report
from sdst_train.loop.state import forget_states
from sdst_train.loop.train import Progress, finished, train
from sdst_train.model.sdst import in_both_units, parameter_count
from sdst_train.presets import DEMO_WORLDS

from .consoles import make_console
from .models import BEST
from .progress import counted, make_bar


def train_with_progress(config: TrainConfig, run: Path, *, resume: bool = False) -> Checkpoint:
    """Load the data and train, with a bar, a line an epoch and a report at the end. Only the leader speaks.

    A run that has finished already is not gone on with: the leader decides, as the file may change between two looks.
    """
    with join_team(config.device) as team:
        if team.tell(team.leads and resume and finished(run) is not None):
            if team.leads:
                forget_states(run)
                print(f"{run} has finished already; report: {write_run_report(run)}")  # noqa: T201
            return load_checkpoint(run / BEST)
        console = make_console(stderr=True, quiet=not team.leads)
        if team.leads:
            prepare_data(config)
        run = team.tell(run)  # one name for all processes
        train_split, val_split = (load_with_progress(config, split, console) for split in ("train", "val"))
        val_samples = with_absent(val_split.samples, config.data.negatives)
        repairs = [f"{name}: {line}" for name, split in (("train", train_split), ("val", val_split))
                   for line in split.repairs.lines()]  # fmt: skip
        for line in repairs:
            console.print(f"repaired, {line}")
        console.print(f"run: {run}", soft_wrap=True)
        try:
            with _Display(console) as display:
                best = train(
                    config, train_split.samples, val_samples, train_split.spec, run,
                    team=team, resume=resume, repairs=repairs, on_step=display.show, say=display.say,
                )  # fmt: skip
        except KeyboardInterrupt:
            console.print(f"stopped; go on with  sdst train --resume {run}", soft_wrap=True)
            raise
        if team.leads:
            _show_end(best, run, team)
        return best


def prepare_data(config: TrainConfig, pool: Pool = "adaptive") -> None:
    """The demo's data, of either world, are made when they are missing; all others must be there."""
    if config.preset in DEMO_WORLDS:
        from .demo.prepare import prepare_features

        prepare_features(config.data, pool, DEMO_WORLDS[config.preset])


def load_with_progress(config: TrainConfig, split: SplitName, console: Console) -> Split:
    """A split's samples, with a bar while feature files are looked at."""
    with counted(f"looking at the {split} features", console) as on_done:
        return load_split(config.data, split, on_done=on_done)


class _Display:
    """The bar, and a line an epoch."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = make_bar(console)

    def __enter__(self) -> _Display:
        self.bar.start()
        self.task = self.bar.add_task("training", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def say(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)

    def show(self, progress: Progress) -> None:
        loss = progress.losses["loss"]
        self.bar.update(
            self.task, completed=progress.step, total=progress.steps, description=f"training, loss {loss:.2f}"
        )
        if progress.metrics is not None:
            shown = list(progress.metrics.items())[:4]
            metrics = "  ".join(f"{name.removeprefix('MR-full-')} {value:.2f}" for name, value in shown)
            self.say(f"epoch {progress.epoch}/{progress.epochs}  loss {loss:.2f}  {metrics}")


def _show_end(best: Checkpoint, run: Path, team: Team) -> None:
    report = write_run_report(run)
    value = best.metrics[best.config.select_by]
    print(f"trained parameters: {in_both_units(parameter_count(best.model))}")  # noqa: T201
    print(f"{run / 'best.safetensors'}: epoch {best.epoch}, {best.config.select_by} {value:.2f}")  # noqa: T201
    print(f"report: {report}", file=sys.stdout)  # noqa: T201
