"""What a measurement says about its machine: GPU, driver, clocks; and the memory that a process took.

Everything here answers on a machine without a GPU too: nothing found is an empty answer, not an error.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ..machine import load_average

_STATUS = Path("/proc/self/status")
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Gpu:
    """One GPU, as nvidia-smi tells."""

    name: str
    driver: str
    capability: str  # "9.0"
    memory_mib: int | None  # None: not told, as on Jetson, where the memory is the host's
    used_mib: int | None
    sm_mhz: str
    memory_mhz: str
    celsius: str


_FIELDS = (
    "name,driver_version,compute_cap,memory.total,memory.used,clocks.current.sm,clocks.current.memory,temperature.gpu"
)


def gpus() -> list[Gpu]:
    """The GPUs that nvidia-smi lists; none where it is missing or finds none."""
    rows = [[cell.strip() for cell in line.split(",")] for line in ask_nvidia_smi(_FIELDS).splitlines()]
    return [
        Gpu(name, driver, capability, _number(total), _number(used), *rest)
        for name, driver, capability, total, used, *rest in rows
        if len(rest) == 3
    ]


def ask_nvidia_smi(fields: str) -> str:
    """What nvidia-smi prints for these fields, a line a GPU; empty where it is missing or fails."""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def clocks() -> str:
    """Clocks of all GPUs, or of the CPU's cores, at this moment, for a person; empty when they cannot be read."""
    found = [f"{g.name}: SM {g.sm_mhz} MHz, memory {g.memory_mhz} MHz, {g.celsius} °C" for g in gpus()]
    return "; ".join(found) or _cpu_clocks()


def load() -> str:
    """Processes that ran or waited for a core in the last minute, for a person: above the cores, times mean little."""
    average = load_average()
    return "" if average is None else f"load {average:.1f}"


def peak_memory_bytes() -> int | None:
    """The most memory that this process held at once; None where Linux does not tell."""
    return _status_bytes("VmHWM")


def memory_bytes() -> int | None:
    """The memory that this process holds; None where Linux does not tell."""
    return _status_bytes("VmRSS")


def _status_bytes(field: str) -> int | None:
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _cpu_clocks() -> str:
    try:
        found = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", _CPUINFO.read_text(), re.MULTILINE)
    except OSError:
        return ""
    return f"CPU {', '.join(f'{float(mhz):.0f}' for mhz in found)} MHz" if found else ""


def _number(cell: str) -> int | None:
    return int(cell) if cell.isdigit() else None  # "[N/A]"
