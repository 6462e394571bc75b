"""Processes end with the one that started them, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from processes import alive, hears_hangup, wait_until

from sdst_runtime.children import tied_process

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")

_POOL = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from sdst_runtime.children import end_with_parent

def work(place):
    with open(f"{place}/{os.getpid()}", "w"):
        pass
    time.sleep(300)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context, end_with_parent, (os.getpid(),)) as pool:
        list(pool.map(work, [sys.argv[1]] * 2))
"""
_TIED = """
import os, sys
from sdst_runtime.children import tied_process
script = 'sleep 300 & echo $! > "$0/$!"; echo $$ > "$0/$$"; wait'
with tied_process(["sh", "-c", script, sys.argv[1]], os.environ) as process:
    process.stdout.read()
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("program", [_POOL, _TIED], ids=["pool", "command"])
def test_nothing_outlives_its_parent(tmp_path, program, how):
    (tmp_path / "program.py").write_text(program)
    pids = tmp_path / "pids"
    pids.mkdir()
    command = [sys.executable, str(tmp_path / "program.py"), str(pids)]
    with subprocess.Popen(command, preexec_fn=hears_hangup) as process:
        wait_until(lambda: len(list(pids.iterdir())) == 2)
        process.send_signal(how)
    assert process.returncode == -how
    for path in pids.iterdir():
        wait_until(lambda pid=int(path.name): not alive(pid))


def test_a_tied_process_gives_what_the_command_gives():
    with tied_process(["sh", "-c", "echo out; echo err >&2; cat; exit 7"], os.environ) as process:
        assert process.stdout is not None
        assert process.stdout.read() == "out\nerr\n"
        assert process.wait() == 7
