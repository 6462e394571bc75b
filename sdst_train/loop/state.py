"""The state of a run between two steps: what `--resume` needs to go on bit by bit.

RUN/state/step-00000120-<digest>.pt; the digest of the content is in the name, so a file that is broken or cut is
recognised, and the one before it is used. Random numbers need no place in it: a step's depend on (seed, step, rank).
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import torch

from sdst_runtime.errors import ContractError, foreign_errors
from sdst_runtime.files import remove, write_bytes

KEPT = 2  # newest states on disk
_NAME = re.compile(r"step-(\d{8})-([0-9a-f]{16})\.pt")


@dataclass(frozen=True)
class RunState:
    """Everything that a step changes, and what must be the same for the run to go on."""

    step: int  # done, over the whole run
    model: dict[str, Any]
    averaged: dict[str, Any]  # the EMA's state dict; empty without averaging
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    best: float  # of the selecting metric so far
    best_epoch: int
    seconds: float  # worked so far
    config: str  # JSON
    samples: str  # digest of the training samples' qids
    machine: str  # what bit-identical numbers need to stay the same


def save_state(run: Path, state: RunState) -> None:
    """Write atomically, then forget all but the newest ones."""
    buffer = io.BytesIO()
    torch.save(vars(state), buffer)
    data = buffer.getvalue()
    name = f"step-{state.step:08d}-{hashlib.sha256(data).hexdigest()[:16]}.pt"
    write_bytes(run / "state" / name, data)
    for path, _ in _states(run)[KEPT:]:
        remove(path)


def load_state(run: Path, say: Callable[[str], None]) -> RunState | None:
    """The newest state that is whole, or None when there is none; `say` hears of every one that is broken."""
    for path, digest in _states(run):
        try:
            data = path.read_bytes()
        except OSError as error:
            say(f"{path}: cannot be read ({error.strerror}); going back to the one before")
            continue
        if hashlib.sha256(data).hexdigest()[:16] == digest:
            return _parse(data, path)
        say(f"{path}: broken, its content does not match its name; going back to the one before")
    return None


def forget_states(run: Path) -> None:
    """Remove them all: the run has finished."""
    shutil.rmtree(run / "state", ignore_errors=True)


def _parse(data: bytes, path: Path) -> RunState:
    with foreign_errors(f"{path}: not a state of a run", "start a new run", ContractError):
        stored = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    kinds = get_type_hints(RunState)
    wrong = sorted(stored.keys() ^ kinds.keys()) if isinstance(stored, dict) else list(kinds)
    wrong = wrong or [name for name, kind in kinds.items() if not _is(stored[name], kind)]
    if wrong:
        raise ContractError(
            f"{path}: written by another version of this project ({wrong[0]} does not fit); start a new run"
        )
    return RunState(**stored)


def _is(value: Any, kind: Any) -> bool:
    kind = get_origin(kind) or kind
    return isinstance(value, (int, float) if kind is float else kind)


def _states(run: Path) -> list[tuple[Path, str]]:
    """(path, digest) of the states on disk, the newest first."""
    found = [(match, path) for path in (run / "state").glob("step-*.pt") if (match := _NAME.fullmatch(path.name))]
    found.sort(key=lambda pair: (int(pair[0][1]), pair[1].stat().st_mtime_ns), reverse=True)
    return [(path, match[2]) for match, path in found]
