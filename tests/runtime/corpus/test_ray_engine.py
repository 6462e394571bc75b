"""Workers of Ray, on this machine: each video once, whoever dies; nothing stays, nothing listens to the network.

The work is a stand-in for the models (corpus_work.py); test_corpus_command.py has the real one.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from corpus_work import Opens, attempts, tasks
from places import TESTS
from processes import alive, wait_until

from sdst_runtime.corpus import ray_engine
from sdst_runtime.corpus.engines import run
from sdst_runtime.corpus.team import MOST_DEATHS, Died
from sdst_runtime.corpus.work import Done
from sdst_runtime.errors import InputError, SessionError

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install '.[corpus]'"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux: /proc"),
]

LIMIT_S = 300  # Ray takes 4 s to start on an idle machine of 2 cores, and 25 s on a busy one
DRIVER = """
import sys
from pathlib import Path
from corpus_work import Opens, tasks
from sdst_runtime.corpus.engines import run
if __name__ == "__main__":
    for done in run(tasks(*[f"waits{i}" for i in range(4)]), Opens(Path(sys.argv[1])), "ray", 2):
        print(done)
"""


@pytest.fixture(scope="module")
def ray() -> Iterator[object]:
    """A Ray of this process, started as a run starts it; those of the tests use it, and leave it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)  # for corpus_work in its workers
        team = ray_engine.RayTeam(Opens(Path()))
    import ray

    yield ray
    team.close()
    assert not ray.is_initialized()


def test_each_video_once_whoever_dies(ray, tmp_path):
    names = ["a", "once1", "dies", "b", "once2", "c"]
    done = dict(run(tasks(*names), Opens(tmp_path), "ray", 2))
    assert len(done) == len(names)
    assert {place: found for place, found in done.items() if place != 2} == {
        place: Done(name, 7) for place, name in enumerate(names) if place != 2
    }
    assert isinstance(done[2], Died)
    tried = attempts(tmp_path)
    assert {vid: len(pids) for vid, pids in tried.items()} == {
        "a": 1, "once1": 2, "dies": MOST_DEATHS, "b": 1, "once2": 2, "c": 1,
    }  # fmt: skip
    assert os.getpid() not in {pid for pids in tried.values() for pid in pids}
    wait_until(lambda: not any(alive(pid) for pids in tried.values() for pid in pids), LIMIT_S)
    assert ray.is_initialized()


def test_what_ends_the_run_is_raised_and_no_worker_stays(ray, tmp_path):
    with pytest.raises(InputError, match=r"^cannot write the store: No space left on device$"):
        list(run(tasks("full", "waits"), Opens(tmp_path), "ray", 2))
    wait_until(lambda: not any(alive(pid) for pids in attempts(tmp_path).values() for pid in pids), LIMIT_S)
    with pytest.raises(InputError, match=r"^no such bundle$"):
        next(run(tasks("a"), Opens(tmp_path, "no such bundle"), "ray", 1))
    with pytest.raises(SessionError, match=rf"^{MOST_DEATHS} workers died before they could work \("):
        next(run(tasks("a"), Opens(tmp_path, "dies"), "ray", 1))


def test_more_workers_than_the_cluster_has_room_for(ray, tmp_path):
    workers = 2 * int(ray.cluster_resources()["CPU"]) + 1
    names = [f"v{i}" for i in range(workers)]
    assert sorted(run(tasks(*names), Opens(tmp_path), "ray", workers)) == [
        (i, Done(name, 7)) for i, name in enumerate(names)
    ]


def test_all_of_it_listens_on_the_loopback_alone(ray):
    """Ray's ports take commands from whoever reaches them and has the token."""
    pids = [pid for pid in descendants(os.getpid()) if b"ray" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    listening = {address for pid in [os.getpid(), *pids] for address in listens(pid)}
    assert len(pids) > 2
    assert listening
    assert all(address in ("0100007F", "0" * 16 + "FFFF0000" + "0100007F") for address in listening), listening
    assert os.environ["RAY_AUTH_MODE"] == "token"


class SlowRay:
    """Its first starts take longer than Ray gives itself."""

    def __init__(self, failures: int) -> None:
        self.failures, self.starts, self.ends = failures, 0, 0

    def is_initialized(self) -> bool:
        return False

    def init(self, **settings: object) -> None:
        self.starts += 1
        if self.starts <= self.failures:
            raise Exception("The current node timed out during startup.")

    def shutdown(self) -> None:
        self.ends += 1


@pytest.mark.parametrize(("failures", "address", "starts"), [(0, "", 1), (2, "", 3), (3, "", 3), (1, "auto", 1)])
def test_a_start_that_takes_too_long_is_tried_again(monkeypatch, failures, address, starts):
    slow = SlowRay(failures)
    monkeypatch.setattr(ray_engine, "require_package", lambda *_: slow)
    monkeypatch.setattr(os, "environ", {**os.environ, "RAY_ADDRESS": address})
    if failures < starts:
        ray_engine.RayTeam(Opens(Path())).close()
    else:
        with pytest.raises(SessionError, match=r"^ray: expected .*, got The current node timed out during startup\.$"):
            ray_engine.RayTeam(Opens(Path()))
    assert (slow.starts, slow.ends) == (starts, starts)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_where_nobody_listens_is_told_at_once(monkeypatch, form):
    silent = SlowRay(0)
    monkeypatch.setattr(ray_engine, "require_package", lambda *_: silent)
    with socket.socket() as taken:  # its port is taken and takes no connections
        taken.bind(("127.0.0.1", 0))
        address = form.format(taken.getsockname()[1])
        monkeypatch.setattr(os, "environ", {**os.environ, "RAY_ADDRESS": address})
        with pytest.raises(SessionError, match=rf"^ray: expected the cluster of RAY_ADDRESS '{address}' to listen"):
            ray_engine.RayTeam(Opens(Path()))
    assert silent.starts == 0


def test_workers_end_with_a_driver_that_is_killed(tmp_path):
    script, folder = tmp_path / "driver.py", tmp_path / "log"
    script.write_text(DRIVER)
    folder.mkdir()
    driver = subprocess.Popen([sys.executable, str(script), str(folder)], env=os.environ | {"PYTHONPATH": str(TESTS)})
    wait_until(lambda: len(attempts(folder)) == 2 and all(attempts(folder).values()), LIMIT_S)
    pids = [pid for each in attempts(folder).values() for pid in each]
    started = [pid for pid in descendants(driver.pid) if pid not in pids]
    driver.send_signal(signal.SIGKILL)
    driver.wait(30)
    wait_until(lambda: not any(alive(pid) for pid in pids), LIMIT_S)
    for pid in started:  # Ray's two agents would need two minutes to notice
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*/task/[0-9]*/children"):
        if int(folder.parts[2]) == pid:
            found += [int(child) for child in folder.read_text().split()]
    return found + [below for child in found for below in descendants(child)]


def listens(pid: int) -> set[str]:
    """The addresses that a process accepts TCP connections at, as /proc writes them."""
    inodes = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        try:
            name = os.readlink(file)
        except FileNotFoundError:
            continue
        if name.startswith("socket:["):
            inodes.add(name[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(fields[1].split(":")[0])
    return found
