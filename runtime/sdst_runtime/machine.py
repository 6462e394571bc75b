"""What this process runs on: cores it may use, and the facts that belong beside a measurement."""

from __future__ import annotations

import os
import platform
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .distribution import DISTRIBUTION


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


_INSTRUCTIONS = (
    *("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx_vnni", "avx512_vnni", "avx512_bf16"),
    *("amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve"),
)


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(field: str) -> str:
    """What Linux says of the first processor under a name; empty where it says nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((value.strip() for name, _, value in (x.partition(":") for x in lines) if name.strip() == field), "")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # under another name, as onnxruntime-gpu is
        return "unknown"
