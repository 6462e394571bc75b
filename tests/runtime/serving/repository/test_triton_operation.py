"""What an operator does with the real tritonserver, as docs/triton.md has it: drain, end, start again, revive."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import write_noise
from processes import alive, wait_until
from triton_server import TritonServer, asked, make_repository, path, served, triton_python

from sdst_runtime import Grounder

CLIENT = Path(__file__).with_name("triton_client.py")
SENTENCES = ["a blue square"]
# What is left of a killed model never unloads: the server ends at its time-out.
EXPLICIT = ("--model-control-mode=explicit", "--load-model=*", "--exit-timeout-secs=2")
VIDEOS = 24  # each is encoded, so that requests wait for a while


@pytest.fixture(scope="module")
def repository(exported, video, tmp_path_factory) -> Path:
    made = make_repository(exported.directory, video, tmp_path_factory.mktemp("triton") / "operated")
    for number in range(VIDEOS):
        os.link(made.parent / "root" / "noise.mp4", made.parent / "root" / f"{number}.mp4")
    return made


@pytest.fixture(scope="module")
def expected(exported, video) -> list[dict[str, Any]]:
    with Grounder(exported.directory) as grounder:
        return [answer.to_dict() for answer in grounder.ground(video, SENTENCES)]


def state(server: TritonServer) -> str:
    """Of sdst_ground, as the index of the repository has it."""
    return next(model["state"] for model in server.post("repository/index")[1] if model["name"] == "sdst_ground")


def test_a_drain_loses_nothing_and_a_killed_model_revives(repository, expected):
    with served(repository, *EXPLICIT) as server, ThreadPoolExecutor(VIDEOS) as pool:
        asking = [pool.submit(server.infer, **asked(SENTENCES, **path(f"{number}.mp4"))) for number in range(VIDEOS)]
        wait_until(lambda: any(one.done() for one in asking))
        assert server.post("repository/models/sdst_ground/unload")[0] == 200
        assert server.get("models/sdst_ground/ready")[0] == 400
        answers = [one.result() for one in asking]
        accepted = [answer["answers"] for status, answer in answers if status == 200]
        refused = [(status, error) for status, error in answers if status != 200]
        assert accepted
        for answer in accepted:
            assert_near(answer, expected)
        unknown = "Request for unknown model: 'sdst_ground' has no available versions"
        assert refused == [(404, unknown)] * len(refused)
        wait_until(lambda: state(server) == "UNAVAILABLE")

        assert server.post("repository/models/sdst_ground/load")[0] == 200
        revive_the_head(server)


def revive_the_head(server: TritonServer) -> None:
    """Health is to be asked by a real question: only that shows a killed model."""
    given = asked(SENTENCES, **path("noise.mp4"))
    assert server.infer(**given)[0] == 200
    killed = server.stub("head")
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: not alive(killed))
    assert server.get("health/ready")[0] == 200
    assert server.get("models/head/ready")[0] == 200
    status, error = server.infer(**given)
    assert status == 503
    assert error.startswith("head: ")
    assert server.post("repository/models/head/unload")[0] == 200
    assert server.post("repository/models/head/load")[0] == 200
    wait_until(lambda: server.infer(**given)[0] == 200)


def test_sigterm_under_load_and_a_new_server_lose_nothing_for_the_client_of_the_docs(repository, expected):
    two = [("http", 60), ("grpc", 60)]
    with served(repository) as server:
        clients = [start_client(protocol, getattr(server, protocol), times) for protocol, times in two]
        try:
            wait_until(lambda: server.statistics()[0] > 20)
            stubs = server.stubs()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(60) == 0
            assert stubs
            assert not any(map(alive, stubs))
            with served(repository, ports=server.ports):
                told = [client.communicate(timeout=240) for client in clients]
        finally:
            for client in clients:
                client.kill()
                client.wait()
    for (_, times), client, (out, err) in zip(two, clients, told, strict=True):
        assert client.returncode == 0, err
        _, *answers = json.loads(out)
        assert len(answers) == times
        for answer in answers:
            assert_near(answer, expected)


def start_client(protocol: str, url: str, times: int) -> subprocess.Popen[str]:
    command = [triton_python(), CLIENT, "documented", protocol, url, times]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def assert_near(got: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """The same but for the order of additions in another batch."""
    assert [answer["query"] for answer in got] == [answer["query"] for answer in expected]
    for one, other in zip(got, expected):
        assert one["saliency"] == pytest.approx(other["saliency"], abs=1e-4)
        assert one["moments"][0]["score"] == pytest.approx(other["moments"][0]["score"], abs=1e-4)


def test_two_instances_see_that_a_file_was_replaced(exported, video, tmp_path):
    repository = make_repository(exported.directory, video, tmp_path / "two")
    config = repository / "sdst_ground" / "config.pbtxt"
    text = config.read_text()
    assert text.count("count: 1") == 1
    config.write_text(text.replace("count: 1", "count: 2"))
    file = repository.parent / "root" / "noise.mp4"
    with served(repository) as server, Grounder(exported.directory) as grounder, ThreadPoolExecutor(8) as pool:
        assert len([words for words in server.stubs().values() if "/sdst_ground/1/model.py" in words]) == 2
        for seed in (1, 2):
            write_noise(tmp_path / "new.mp4", seed=seed).rename(file)
            right = [answer.to_dict() for answer in grounder.ground(file, SENTENCES)]
            given = asked(SENTENCES, **path(file.name))
            for status, answer in pool.map(lambda _: server.infer(**given), range(32)):  # noqa: B023
                assert status == 200, answer
                assert_near(answer["answers"], right)
