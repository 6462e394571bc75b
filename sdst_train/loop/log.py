"""What a run writes while it works: steps.jsonl, metrics.jsonl and TensorBoard events."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from sdst_runtime.errors import InputError
from sdst_runtime.files import make_directory, write_jsonl
from sdst_runtime.strict_json import dump_json, load_json


class RunLog:
    """Logs of one run. Opened at a step, it forgets what was logged after that step by a run that was killed."""

    def __init__(self, run: Path, step: int) -> None:
        make_directory(run)
        self.steps = _continue(run / "steps.jsonl", step)
        _continue(run / "metrics.jsonl", step)
        self._step_file, self._epoch_file = _append(run / "steps.jsonl"), _append(run / "metrics.jsonl")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def step(self, row: dict[str, Any]) -> None:
        """One line a step; `row` holds step, epoch, rate and the losses."""
        self.steps.append(row)
        self._write(self._step_file, row)
        self._draw("step", row, row["step"])

    def epoch(self, row: dict[str, Any]) -> None:
        """One line an epoch; `row` holds epoch, step, the losses' means and the validation metrics."""
        self.steps.clear()
        self._write(self._epoch_file, row)
        self._draw("epoch", row, row["step"])
        self._board.flush()

    def mean_losses(self, epoch: int) -> dict[str, float]:
        """Mean over the steps of an epoch of everything that a step's line holds, in its order."""
        rows = [row for row in self.steps if row["epoch"] == epoch]
        names = [name for name in rows[0] if name not in ("step", "epoch")]
        broken = [name for name in names for row in rows if not isinstance(row.get(name), int | float)]
        if broken:
            raise InputError(
                f"steps.jsonl: {broken[0][:60]!r} is no number in a step of epoch {epoch}; start a new run"
            )
        return {name: float(np.mean([row[name] for row in rows])) for name in names}

    def close(self) -> None:
        """Flush and close the files."""
        self._step_file.close()
        self._epoch_file.close()
        self._board.close()

    @staticmethod
    def _write(file: TextIO, row: Mapping[str, Any]) -> None:
        file.write(dump_json(row) + "\n")
        file.flush()

    def _draw(self, kind: str, row: Mapping[str, Any], step: int) -> None:
        for name, value in row.items():
            if isinstance(value, float) and name not in ("step", "epoch"):
                self._board.add_scalar(f"{kind}/{name}", value, step)


def _continue(path: Path, step: int) -> list[dict[str, Any]]:
    """Rows up to `step`, which are all that the file holds afterwards. A line that was cut by a kill is dropped."""
    rows = []
    for line in _lines(path):
        try:
            row = load_json(line, f"{path}:")
        except InputError:
            break
        if not isinstance(row, dict) or not all(_is_whole(row.get(name)) for name in ("step", "epoch")):
            break
        if row["step"] <= step:
            rows.append(row)
    write_jsonl(path, rows)
    return rows


def _lines(path: Path) -> list[bytes]:
    """The lines of a log, which need not be there."""
    try:
        return path.read_bytes().split(b"\n") if path.exists() else []
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; move it away to go on without it") from error


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _append(path: Path) -> TextIO:
    try:
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
