"""What this process runs on: cores, GPUs, clocks, the memory it took, and the facts that belong beside a measurement.

Everything here answers on a machine without a GPU too: nothing found is an empty answer, not an error.
"""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from .distribution import DISTRIBUTION

DeviceChoice = Literal["auto", "cpu", "cuda"]  # where a model is to run; auto: on a GPU where there is one

_STATUS = Path("/proc/self/status")
_CPUINFO = Path("/proc/cpuinfo")


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux; containers and taskset narrow it
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_average() -> float | None:
    """Processes that ran or waited for a core in the last minute, on the whole machine; None where it is not told."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def load_warning() -> str:
    """What a report whose times are measured from now on must say of the machine's load; empty when all is well.

    The load is that of the machine and so are the cores that it is held against, whatever this process may use.
    """
    load, cores = load_average(), os.cpu_count() or 1
    if load is None or load <= cores:
        return ""
    return f"{load:.1f} processes wanted {cores} {'core' if cores == 1 else 'cores'} when this began: times mean little"


@contextmanager
def interrupts_ignored() -> Iterator[None]:
    """Processes started in this block ignore Ctrl-C for good: their parent handles it and ends them in order."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def machine_facts() -> tuple[tuple[str, str], ...]:
    """(name, value) of processor, cores and the versions that matter for speed and numbers."""
    packages = ("onnxruntime", "av", DISTRIBUTION)
    return (
        ("processor", _processor()),
        ("instructions", " ".join(instructions()) or "unknown"),
        ("cores", str(usable_cores())),
        ("Python", platform.python_version()),
        *((name, _version(name)) for name in packages),
    )


def instructions() -> tuple[str, ...]:
    """Those of the processor's instruction sets that decide how fast products are, by Linux' names; empty elsewhere."""
    has = set(f"{_cpuinfo('flags')} {_cpuinfo('Features')}".split())  # x86, Arm
    return tuple(name for name in _INSTRUCTIONS if name in has)


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


_INSTRUCTIONS = (
    *("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx_vnni", "avx512_vnni", "avx512_bf16"),
    *("amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve"),
)


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(field: str) -> str:
    """What Linux says of the first processor under a name; empty where it says nothing."""
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return ""
    return next((value.strip() for name, _, value in (x.partition(":") for x in lines) if name.strip() == field), "")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # under another name, as onnxruntime-gpu is
        return "unknown"


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
