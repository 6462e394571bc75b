"""`sdst train`: a new run from a preset or config.json, or an old one from where it stopped."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated

import tyro

from sdst_runtime.errors import InputError
from sdst_train.config import TrainConfig, parse_config

from .models import BEST
from .next_step import advise
from .options import parse_options, take_config_name
from .training import train_with_progress

PROG = "sdst train"


@dataclass(frozen=True)
class NewRun:
    """Train SDST; every field of the config is an option."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    out: Path | None = None
    """Folder of the run; default: runs/ and a name with the time."""


@dataclass(frozen=True)
class OldRun:
    """Go on with a run that was stopped, from its last whole state."""

    resume: Path
    """Folder of the run."""


def train(arguments: list[str]) -> None:
    """Train SDST on a data set, or go on with a run that was stopped.

    sdst train CONFIG [--out RUN] [--field value ...]
    sdst train --resume RUN

    CONFIG is qvhighlights, charades, tacos, demo, demo-hard, or a JSON file with the fields to change. Every field is
    an option: sdst train CONFIG --help lists them. On several GPUs:
    torchrun --nproc-per-node 4 -m sdst train CONFIG ...
    """
    if arguments and arguments[0].split("=")[0] == "--resume":
        run = tyro.cli(OldRun, args=arguments, prog=PROG).resume
        path = run / "config.json"
        if not path.is_file():
            raise InputError(
                f"{run} holds no run: it has no config.json; start one with  sdst train CONFIG --out {run}"
            )
        train_with_progress(parse_config(path.read_bytes(), path), run, resume=True)
        _advise(run)
        return
    name, rest = take_config_name(arguments, PROG)
    options = parse_options(NewRun, name, rest, PROG)
    config, label = options.config, options.config.preset or "custom"
    root = Path(config.data.root).resolve()  # so that it is resumed and evaluated from anywhere
    config = replace(config, data=replace(config.data, root=str(root)))
    run = options.out or Path(f"runs/{label}-{datetime.now():%Y%m%d-%H%M%S}")
    train_with_progress(config, run)
    _advise(run)


def _advise(run: Path) -> None:
    if os.environ.get("RANK", "0") == "0":  # of several processes only the leader speaks
        advise("sdst", "export", run / BEST, "--backbone", "BACKBONE", "--out", "BUNDLE")
