"""Other processes, watched by tests: do they still run, and waiting for what they do."""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from pathlib import Path


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def hears_hangup() -> None:
    """For `preexec_fn`: SIGHUP, which is ignored where the tests run under nohup, ends the child."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def wait_until(done, limit_s: float = 120) -> None:
    """Come back when `done()` is true; the limit without it is a failure on any machine."""
    deadline_s = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
