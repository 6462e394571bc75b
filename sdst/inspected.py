"""What the verbs of `sdst inspect` share: the runs that they look at, with the data of each, a table a run, and for all
of them a picture with the numbers beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from rich.table import Table

from sdst_runtime.data.config import SplitName
from sdst_runtime.data.dataset import Sample, load_split
from sdst_runtime.errors import InputError
from sdst_runtime.files import write_bytes, write_json
from sdst_train.loop.checkpoint import Checkpoint, load_checkpoint

from .consoles import make_console
from .models import BEST
from .progress import counted

Record = TypeVar("Record")


@dataclass(frozen=True)
class Study(Generic[Record]):
    """What one of the verbs looks at."""

    name: str  # of the verb, and of the picture
    doing: str  # while the samples of a run are looked at
    unit: str  # of the numbers
    record: Callable[..., Record]  # of a checkpoint and samples, with on_done
    show: Callable[[Path, str, Record], tuple[Table, dict[str, Any]]]  # of a run and a split: the table, the numbers
    draw: Callable[[Mapping[str, Record]], bytes]


def inspect_runs(
    study: Study[Record], runs: Sequence[Path], split: SplitName, root: Path | None, out: Path | None
) -> None:
    """A table a run; the picture of all at `out`, by default in the first run's folder, and the numbers beside it.

    Raises InputError without a run, and unless the picture is to be a PNG.
    """
    if not runs:
        raise InputError(f"expected the folder of a run or more:  sdst inspect {study.name} RUN [RUN ...]")
    runs = tuple({run.resolve(): run for run in runs}.values())
    picture = out or runs[0] / f"{study.name}.png"
    if picture.suffix.lower() != ".png":
        raise InputError(f"--out: expected a name that ends in .png, got {picture}")
    recorded: dict[str, Record] = {}
    summary: list[dict[str, Any]] = []
    for run in runs:
        checkpoint, samples = open_run(run, split, root)
        with counted(f"{run}: {study.doing} {split}") as on_done:
            record = study.record(checkpoint, samples, on_done=on_done)
        recorded[label(run, runs)] = record
        table, numbers = study.show(run, split, record)
        make_console().print(table)
        summary.append(numbers)
    write_bytes(picture, study.draw(recorded))
    beside = picture.with_suffix(".json")
    write_json(beside, {"split": split, "unit": study.unit, "runs": summary})
    make_console().print(f"picture: {picture}, numbers: {beside}", soft_wrap=True)


def open_run(run: Path, split: SplitName, root: Path | None) -> tuple[Checkpoint, list[Sample]]:
    """The best checkpoint of a run and a split of its data, which lie in `root` where they were moved."""
    checkpoint = load_checkpoint(run / BEST)
    data = checkpoint.config.data if root is None else replace(checkpoint.config.data, root=str(root))
    with counted(f"{run}: checking features") as on_done:
        loaded = load_split(data, split, needed=checkpoint.spec, labelled=split != "test", on_done=on_done)
    return checkpoint, loaded.samples


def label(run: Path, runs: Sequence[Path]) -> str:
    """The end of the run's path that no other run has, as short as can be."""
    ends = [other.resolve().parts for other in runs]
    parts = run.resolve().parts
    length = next(n for n in range(1, len(parts) + 1) if sum(other[-n:] == parts[-n:] for other in ends) == 1)
    return "/".join(parts[-length:])
