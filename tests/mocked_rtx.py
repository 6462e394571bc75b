"""The double of TensorRT for RTX (tests/rtx_double) in a fresh process, and engine files for it.

rtx = mocked_rtx()                    # skips the test, saying what it needs
rtx.call(function, "argument")        # there, `import tensorrt_rtx` is the double
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine_files import plan_bytes, sidecar
from mocked_tensorrt import BINDINGS, MockedTensorRT, mocked_tensorrt
from places import TESTS

from sdst_runtime.sessions.tensorrt.sidecar import MachineRecord, Sidecar, write_sidecar

PATH = TESTS / "rtx_double" / "tensorrt_rtx.py"
VERSION = "1.7.1.116"
BUILT = MachineRecord(VERSION, "", "", "", "")


@dataclass(frozen=True)
class MockedRtx(MockedTensorRT):
    """The double over the mocked TensorRT whose API it shares."""

    def paths(self) -> list[Path]:
        return [PATH.parent, *super().paths()]


def mocked_rtx() -> MockedRtx:
    """TensorRT for RTX has the API of TensorRT 11."""
    mocked = mocked_tensorrt(BINDINGS[-1])
    return MockedRtx(**{field.name: getattr(mocked, field.name) for field in dataclasses.fields(mocked)})


def rtx_sidecar(**changes: Any) -> Sidecar:
    """Of the plan of engine_files.py, for HostDevice's compute capability among others."""
    usual = dataclasses.replace(sidecar(plan_bytes()), plugin=None, machine=BUILT, target="rtx", compute=("8.6", "8.7"))
    return dataclasses.replace(usual, **changes)


def write_rtx_engine(directory: str | Path, **changes: Any) -> Path:
    """head.plan and its sidecar; `changes` are fields of the sidecar that say something else."""
    plan = Path(directory) / "head.plan"
    plan.write_bytes(plan_bytes())
    write_sidecar(plan, rtx_sidecar(**changes))
    return plan
