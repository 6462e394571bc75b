"""What the verbs of `sdst inspect` share: the runs that they look at, with the data of each, and the picture's name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sdst_runtime.data.config import SplitName
from sdst_runtime.data.dataset import Sample, load_split
from sdst_runtime.errors import InputError
from sdst_train.loop.checkpoint import Checkpoint, load_checkpoint

from .models import BEST
from .progress import counted


def require_runs(runs: Sequence[Path], verb: str) -> tuple[Path, ...]:
    """Each run once. Raises InputError without one."""
    if not runs:
        raise InputError(f"expected the folder of a run or more:  {verb} RUN [RUN ...]")
    return tuple(dict.fromkeys(runs))


def picture_path(out: Path | None, default: Path) -> Path:
    """Where the picture goes. Raises InputError unless it is to be a PNG."""
    picture = out or default
    if picture.suffix.lower() != ".png":
        raise InputError(f"--out: expected a name that ends in .png, got {picture}")
    return picture


def open_run(run: Path, split: SplitName, root: Path | None) -> tuple[Checkpoint, list[Sample]]:
    """The best checkpoint of a run and a split of its data, which lie in `root` where they were moved."""
    checkpoint = load_checkpoint(run / BEST)
    data = checkpoint.config.data if root is None else replace(checkpoint.config.data, root=str(root))
    with counted(f"{run}: checking features") as on_done:
        loaded = load_split(data, split, needed=checkpoint.spec, labelled=split != "test", on_done=on_done)
    return checkpoint, loaded.samples


def label(run: Path, runs: Sequence[Path]) -> str:
    """The run's name, with its parent's where another run has the same."""
    unique = sum(other.resolve().name == run.resolve().name for other in runs) == 1
    return run.resolve().name if unique else "/".join(run.resolve().parts[-2:])
