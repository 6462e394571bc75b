"""Workers of one machine: each video once, whoever dies; work is a stand-in for the models (corpus_work.py)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from corpus_work import Opens
from places import TESTS
from processes import alive, wait_until

from sdst_runtime.corpus.local_engine import MOST_DEATHS, run_local
from sdst_runtime.corpus.work import Done, Task
from sdst_runtime.errors import InputError


def tasks(*vids: str) -> list[Task]:
    return [Task(vid, f"/videos/{vid}.mp4") for vid in vids]


def attempts(folder: Path) -> dict[str, list[int]]:
    """Process ids that worked at each video."""
    return {path.name: [int(line) for line in path.read_text().split()] for path in folder.iterdir()}


@pytest.mark.parametrize("workers", [1, 3])
def test_each_video_once_in_processes_of_their_own(tmp_path, workers):
    names = [f"v{i}" for i in range(9)]
    done = list(run_local(tasks(*names), Opens(tmp_path), workers))
    assert sorted(one.vid for one in done) == names
    assert {(one.clips, one.reason) for one in done} == {(7, "")}
    pids = {pid for each in attempts(tmp_path).values() for pid in each}
    assert os.getpid() not in pids
    assert 1 <= len(pids) <= workers
    assert not any(alive(pid) for pid in pids)


def test_the_video_of_a_killed_worker_is_done_by_another(tmp_path):
    done = list(run_local(tasks("a", "once1", "b", "once2", "c", "d"), Opens(tmp_path), 2))
    assert Counter(one.vid for one in done) == Counter(["a", "once1", "b", "once2", "c", "d"])
    assert all(not one.reason for one in done)
    tried = attempts(tmp_path)
    assert {vid: len(pids) for vid, pids in tried.items()} == {"a": 1, "once1": 2, "b": 1, "once2": 2, "c": 1, "d": 1}
    assert tried["once1"][0] != tried["once1"][1]


def test_a_video_that_kills_its_workers_fails_alone(tmp_path):
    done = {one.vid: one for one in run_local(tasks("dies", "a", "b"), Opens(tmp_path), 1)}
    assert done["a"] == Done("a", 7)
    assert done["b"] == Done("b", 7)
    assert done["dies"].clips == 0
    assert f"{MOST_DEATHS} workers died at it (exit code -9" in done["dies"].reason
    assert "/videos/dies.mp4" in done["dies"].reason
    assert len(attempts(tmp_path)["dies"]) == MOST_DEATHS


def test_what_ends_the_run_is_raised_and_no_worker_stays(tmp_path):
    run = run_local(tasks("waits", "full"), Opens(tmp_path), 2)
    with pytest.raises(InputError, match=r"^cannot write the store: No space left on device$"):
        next(run)
    assert not any(alive(pid) for pids in attempts(tmp_path).values() for pid in pids)
    with pytest.raises(InputError, match=r"^no such bundle$"):
        next(run_local(tasks("a"), Opens(tmp_path / "none", "no such bundle"), 1))


def test_a_run_that_is_left_ends_its_workers(tmp_path):
    run = run_local(tasks("a", "waits"), Opens(tmp_path), 2)
    assert next(run).vid == "a"
    wait_until(lambda: "waits" in attempts(tmp_path))
    run.close()
    assert not any(alive(pid) for pids in attempts(tmp_path).values() for pid in pids)


DRIVER = """
import sys
from pathlib import Path
from corpus_work import Opens
from sdst_runtime.corpus.local_engine import run_local
from sdst_runtime.corpus.work import Task
if __name__ == "__main__":
    for done in run_local([Task(f"waits{i}", "x") for i in range(4)], Opens(Path(sys.argv[1])), 2):
        print(done)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux: only there a process asks for its end")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_a_driver_that_is_killed(tmp_path, how):
    script, folder = tmp_path / "driver.py", tmp_path / "log"
    script.write_text(DRIVER)
    folder.mkdir()
    driver = subprocess.Popen([sys.executable, str(script), str(folder)], env=os.environ | {"PYTHONPATH": str(TESTS)})
    wait_until(lambda: len(list(folder.iterdir())) == 2)
    wait_until(lambda: all(attempts(folder).values()))
    pids = [pid for each in attempts(folder).values() for pid in each]
    assert all(alive(pid) for pid in pids)
    driver.send_signal(how)
    driver.wait(30)
    wait_until(lambda: not any(alive(pid) for pid in pids))
