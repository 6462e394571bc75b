"""Processes that this one starts and that end when it does, however it ends: by TERM, HUP, KILL or of itself.

    ProcessPoolExecutor(..., initializer=end_with_parent, initargs=(os.getpid(),))
    with tied_process(["cmake", "--build", "."]) as process: ...                      the command and all that it starts
    worker = PipedProcess(work, 7)                                    work(pipe, 7) there, worker.pipe and .end() here

Run as a module this file is the keeper of `tied_process`: it holds a pipe to us, whose end is our end.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(parent: int) -> None:
    """Let Linux kill this process as soon as `parent`, which must be its parent, has ended; elsewhere nothing.

    It is the end of the parent's thread that counts, so start processes from a thread that stays.
    """
    if not sys.platform.startswith("linux"):
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before
        os._exit(1)


class PipedProcess:
    """A new process that runs `work(pipe, *arguments)`, which travel there by pickle, and our end of its pipe.

    When one of the two ends, the other sees the end of the pipe. Start it in `machine.interrupts_ignored`.
    """

    def __init__(self, work: Callable[..., None], *arguments: Any) -> None:
        context = get_context("spawn")  # a fork would take over locks of our threads, those of torch too
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()  # so that its end is seen as the end of the pipe

    def end(self) -> int | None:
        """Stop it where it is; its exit code."""
        self.process.terminate()
        self.process.join()
        self.pipe.close()
        return self.process.exitcode


@contextmanager
def tied_process(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A command that reads nothing; stdout and stderr together are the process's `stdout`, its code is the command's.

    It and all that it starts are killed when the block is left by an exception, and when this process ends.
    """
    keeper = [sys.executable, "-I", os.path.abspath(__file__), *command]
    with subprocess.Popen(
        keeper, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        env=dict(environment), start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield process
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise


def _keep(command: Sequence[str]) -> int:
    """Run the command in this process's group; kill the group when the other end of stdin is gone."""

    def watch() -> None:
        while sys.stdin.buffer.read(1):
            pass
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    code = subprocess.call(command, stdin=subprocess.DEVNULL)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    code = _keep(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # the thread that watches is at its read
