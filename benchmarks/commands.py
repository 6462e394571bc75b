"""What gpu_check and device_check share: a command whose time is limited and whose children end with it; output."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_command(
    command: Sequence[str], seconds: float, environment: Mapping[str, str], *, apart: bool = False
) -> tuple[int | None, str, str]:
    """Exit code, stdout and stderr of a command in the checkout; stderr is in stdout, unless they are to be `apart`.

    The code is None when it ran longer than `seconds` and was killed, 127 when it could not be started.
    """
    try:
        process = subprocess.Popen(
            command, cwd=ROOT, env=dict(environment), start_new_session=True, text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE if apart else subprocess.STDOUT,
        )  # fmt: skip
    except OSError as error:  # not executable, not there
        return 127, "" if apart else f"{error}\n", f"{error}\n" if apart else ""
    try:
        output, errors = process.communicate(timeout=max(seconds, 0.1))
        return process.returncode, output, errors or ""
    except subprocess.TimeoutExpired:
        _kill_all(process)
        output, errors = process.communicate()
        return None, output, errors or ""
    except BaseException:
        _kill_all(process)
        process.wait()
        raise


def say(line: str) -> None:
    """A line, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _kill_all(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
