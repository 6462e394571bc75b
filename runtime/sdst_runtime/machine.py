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
        ("cores", str(usable_cores())),
        ("Python", platform.python_version()),
        *((name, _version(name)) for name in packages),
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # under another name, as onnxruntime-gpu is
        return "unknown"
