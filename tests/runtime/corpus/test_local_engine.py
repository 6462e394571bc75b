"""Workers of one machine: each video once, whoever dies; work is a stand-in for the models (corpus_work.py)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from corpus_work import Opens, attempts, tasks
from places import TESTS
from processes import alive, wait_until

from sdst_runtime.corpus.engines import run
from sdst_runtime.corpus.team import MOST_DEATHS, Died
from sdst_runtime.corpus.work import Done
from sdst_runtime.errors import InputError, SessionError


@pytest.mark.parametrize("workers", [1, 3])
def test_each_video_once_in_processes_of_their_own(tmp_path, workers):
    names = [f"v{i}" for i in range(9)]
    done = list(run(tasks(*names), Opens(tmp_path), "local", workers))
    assert sorted(done, key=lambda pair: pair[0]) == [(i, Done(name, 7)) for i, name in enumerate(names)]
    pids = {pid for each in attempts(tmp_path).values() for pid in each}
    assert os.getpid() not in pids
    assert 1 <= len(pids) <= workers
    assert not any(alive(pid) for pid in pids)


def test_the_video_of_a_killed_worker_is_done_by_another(tmp_path):
    names = ["a", "once1", "b", "once2", "c", "d"]
    done = list(run(tasks(*names), Opens(tmp_path), "local", 2))
    assert sorted(done, key=lambda pair: pair[0]) == [(i, Done(name, 7)) for i, name in enumerate(names)]
    tried = attempts(tmp_path)
    assert {vid: len(pids) for vid, pids in tried.items()} == {"a": 1, "once1": 2, "b": 1, "once2": 2, "c": 1, "d": 1}
    assert tried["once1"][0] != tried["once1"][1]


def test_a_video_that_kills_its_workers_fails_alone(tmp_path):
    done = dict(run(tasks("dies", "a", "b"), Opens(tmp_path), "local", 1))
    assert (done[1], done[2]) == (Done("a", 7), Done("b", 7))
    assert isinstance(done[0], Died)
    assert str(done[0]).startswith(f"{MOST_DEATHS} workers died at it (exit code -9;")
    assert len(attempts(tmp_path)["dies"]) == MOST_DEATHS


def test_what_ends_the_run_is_raised_and_no_worker_stays(tmp_path):
    found = run(tasks("waits", "full"), Opens(tmp_path), "local", 2)
    with pytest.raises(InputError, match=r"^cannot write the store: No space left on device$"):
        next(found)
    assert not any(alive(pid) for pids in attempts(tmp_path).values() for pid in pids)
    with pytest.raises(InputError, match=r"^no such bundle$"):
        next(run(tasks("a"), Opens(tmp_path / "none", "no such bundle"), "local", 1))


def test_workers_that_die_before_they_can_work_blame_no_video(tmp_path):
    with pytest.raises(SessionError, match=rf"^{MOST_DEATHS} workers died before they could work \(exit code -9"):
        next(run(tasks("a", "b", "c"), Opens(tmp_path, "dies"), "local", 2))
    assert not attempts(tmp_path)


def test_a_run_that_is_left_ends_its_workers(tmp_path):
    found = run(tasks("a", "waits"), Opens(tmp_path), "local", 2)
    assert next(found) == (0, Done("a", 7))
    wait_until(lambda: attempts(tmp_path).get("waits"))
    found.close()
    assert not any(alive(pid) for pids in attempts(tmp_path).values() for pid in pids)


DRIVER = """
import sys
from pathlib import Path
from corpus_work import Opens, tasks
from sdst_runtime.corpus.engines import run
if __name__ == "__main__":
    for done in run(tasks(*[f"waits{i}" for i in range(4)]), Opens(Path(sys.argv[1])), "local", 2):
        print(done)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux: only there a process asks for its end")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_a_driver_that_is_killed(tmp_path, how):
    script, folder = tmp_path / "driver.py", tmp_path / "log"
    script.write_text(DRIVER)
    folder.mkdir()
    driver = subprocess.Popen([sys.executable, str(script), str(folder)], env=os.environ | {"PYTHONPATH": str(TESTS)})
    wait_until(lambda: len(attempts(folder)) == 2 and all(attempts(folder).values()))
    pids = [pid for each in attempts(folder).values() for pid in each]
    assert all(alive(pid) for pid in pids)
    driver.send_signal(how)
    driver.wait(30)
    wait_until(lambda: not any(alive(pid) for pid in pids))
