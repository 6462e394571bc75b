"""`sdst doctor`: a table of what this machine has, and what to do about the rest."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from sdst_runtime.doctor.examine import Examination, examine
from sdst_runtime.doctor.gpu import RunOnCuda
from sdst_runtime.doctor.rdsa_oracle import CHECK_HEADS, CHECK_POINTS, check_inputs
from sdst_runtime.errors import PartialFailure
from sdst_runtime.sessions.plugin_library import RdsaLibrary
from sdst_runtime.strict_json import dump_json

from .consoles import make_console

_STYLES = {"fine": "green", "absent": "yellow", "fault": "red"}


def doctor(
    bundle: tyro.conf.Positional[Path | None] = None,
    *,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Check what this machine has for inference, and a bundle's files, contract and models when one is given.

    The exit code is 0 when inference on a CPU works, 1 when it does not; what only a GPU needs may be absent.

    Args:
        bundle: A directory that `sdst export` or `sdst build` wrote.
        json: Print JSON: checks with name, state (fine, absent, fault), found, mend and needed.
    """
    found = examine(bundle, torch_runner())
    if json:
        checks = [dataclasses.asdict(check) for check in found.checks]
        print(dump_json({"works": not found.faults, "checks": checks}, indent=2))  # noqa: T201
    else:
        print_table(found)
    if found.faults:
        raise PartialFailure(
            f"not ready for inference on a CPU: {'; '.join(f'{c.name}: {c.mend}' for c in found.faults)}"
        )


def torch_runner() -> RunOnCuda | None:
    """Runs a CUDA library on the checking inputs through torch; None where torch is missing or sees no GPU."""
    try:
        torch: Any = importlib.import_module("torch")
        op: Any = importlib.import_module("sdst_train.model.rdsa_op")
    except (ImportError, OSError):  # OSError: a library of CUDA is missing
        return None
    if not torch.cuda.is_available():
        return None

    def run(library: RdsaLibrary) -> np.ndarray:
        given = [torch.from_numpy(array).cuda() for array in check_inputs().values()]
        stream = torch.cuda.current_stream().cuda_stream
        return op.call_library(library, *given, CHECK_HEADS, CHECK_POINTS, stream=stream).cpu().numpy()

    return run


def print_table(found: Examination) -> None:
    """One line a check; what mends it stands below."""
    from rich.table import Table
    from rich.text import Text

    console = make_console()
    table = Table()
    for name in ("part", "state", "found, and what to do"):
        table.add_column(name, overflow="fold")
    for check in found.checks:
        told = Text(check.found)
        if check.mend:
            told.append(f"\n{check.mend}", "bold")
        table.add_row(check.name, Text(check.state, _STYLES[check.state]), told)
    console.print(table)
