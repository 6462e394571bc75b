"""More than the server can do, models that die, and its end: what was accepted is answered, the rest is told so."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from processes import alive, wait_until
from served import OCTETS, Served, paused, serving, together


@pytest.fixture
def clip(video) -> bytes:
    return video.read_bytes()


@pytest.fixture(scope="module")
def server(exported, tmp_path_factory):
    """A queue of three."""
    with serving(exported.directory, tmp_path_factory.mktemp("served"), "--queue", "3", "--uploads", "1") as served:
        yield served


def waiting(server: Served, lane: str = "ask") -> float:
    return server.metric(f'sdst_queue{{lane="{lane}"}}') + server.metric(f'sdst_running{{lane="{lane}"}}')


def test_a_full_queue(server, clip):
    name = server.upload(clip).json["video"]
    with paused(server.model_pid):
        threads, answers = together(lambda _: server.ask(name), 4)
        wait_until(lambda: waiting(server) == 4)
        refused = server.ask(name)
        health = server.get("/healthz")
    for thread in threads:
        thread.join()

    assert (refused.status, refused.code) == (429, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    assert health.status == 200
    assert [answer.status for answer in answers.values()] == [200] * 4
    assert waiting(server) == 0


def test_full_uploads(server, clip):
    with paused(server.model_pid):
        threads, answers = together(lambda _: server.upload(clip), 2)
        wait_until(lambda: waiting(server, "encode") == 2)
        refused = server.upload(clip)
    for thread in threads:
        thread.join()

    assert (refused.status, refused.code) == (429, "queue_full")
    assert [answer.status for answer in answers.values()] == [201] * 2
    assert server.left_over() == []


def test_slow_uploads_hold_no_place_of_those_that_are_here(exported, tmp_path, clip):
    """They have places of their own, which are free again when they are cut off."""
    options = ("--uploads", "1", "--receives", "3", "--receive-kib-s", "1e-6")
    with serving(exported.directory, tmp_path, *options) as served:
        with slow_uploads() as slow:
            slow += [slow_upload(served) for _ in range(2)]
            wait_until(lambda: served.metric("sdst_receiving") == 2)
            beside = served.upload(clip)
            still = served.metric("sdst_receiving")
            slow.append(slow_upload(served))
            wait_until(lambda: served.metric("sdst_receiving") == 3)
            refused = served.upload(clip)
        wait_until(lambda: served.metric("sdst_receiving") == 0)

        assert (beside.status, still) == (201, 2)
        assert (refused.status, refused.code) == (429, "queue_full")
        assert "(receive)" in refused.json["error"]["message"]
        assert served.upload(clip).status == 201
        wait_until(lambda: served.left_over() == [])


def test_a_model_that_dies_at_a_request(server, clip):
    """The request hears of it; the next one is answered, about a video that was encoded before."""
    name = server.upload(clip).json["video"]
    right = server.ask(name).body
    starts, pid = server.metric("sdst_model_starts_total"), server.model_pid
    with paused(pid):
        threads, answers = together(lambda _: server.ask(name), 2)
        wait_until(lambda: waiting(server) == 2)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not alive(pid))
    for thread in threads:
        thread.join()
    again = server.ask(name)

    assert sorted(answer.status for answer in answers.values()) == [200, 503]
    (lost,) = [answer for answer in answers.values() if answer.status == 503]
    assert (lost.code, lost.headers["retry-after"]) == ("model_died", "1")
    assert (again.status, again.body) == (200, right)
    assert server.metric("sdst_model_starts_total") == starts + 1
    assert server.get("/readyz").status == 200


def test_a_model_that_dies_while_it_encodes(server, clip):
    pid = server.model_pid
    with paused(pid):
        threads, answers = together(lambda _: server.upload(clip), 1)
        wait_until(lambda: server.metric('sdst_running{lane="encode"}') == 1)
        os.kill(pid, signal.SIGKILL)
    threads[0].join()

    assert answers[0].code == "model_died"
    assert server.upload(clip).status == 201
    assert server.left_over() == []


def test_not_ready_while_no_model_can_start(exported, tmp_path):
    """A bundle that is gone when the model dies, and comes back."""
    bundle = tmp_path / "bundle"
    shutil.copytree(exported.directory, bundle)
    with serving(bundle, tmp_path / "tmp") as served:
        pid = served.model_pid
        bundle.rename(tmp_path / "elsewhere")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: served.events("model_unusable"))
        ready, health = served.get("/readyz"), served.get("/healthz")
        (tmp_path / "elsewhere").rename(bundle)
        wait_until(lambda: served.get("/readyz").status == 200)

        assert (ready.code, health.status) == ("not_ready", 200)
        assert served.process.poll() is None


def test_time_outs(exported, tmp_path, clip):
    options = ("--ask-timeout-s", "6", "--encode-timeout-s", "6", "--receive-timeout-s", "6")
    with serving(exported.directory, tmp_path, *options) as served:
        name = served.upload(clip).json["video"]
        with paused(served.model_pid):
            threads, answers = together(lambda i: served.upload(clip) if i else served.ask(name), 2)
            slow = dribble(served)
            for thread in threads:
                thread.join()

        assert [(answer.status, answer.code) for answer in answers.values()] == [(504, "timeout")] * 2
        assert b" 408 " in slow
        assert b"receive_timeout" in slow
        wait_until(lambda: waiting(served) + waiting(served, "encode") == 0)
        wait_until(lambda: served.ask(name).status == 200)
        assert served.left_over() == []


def slow_upload(server: Served) -> socket.socket:
    """The beginning of an upload; the rest is the caller's to send."""
    client = socket.create_connection(("127.0.0.1", server.port))
    head = f"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Type: {OCTETS}\r\nContent-Length: 9999\r\n\r\n"
    client.sendall(head.encode() + b"x")
    return client


@contextmanager
def slow_uploads() -> Iterator[list[socket.socket]]:
    """Uploads that get a byte now and then; closed at the end."""
    clients: list[socket.socket] = []
    ended = threading.Event()

    def feed() -> None:
        while not ended.wait(0.2):
            for client in clients:
                with suppress(OSError):
                    client.sendall(b"x")

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        yield clients
    finally:
        ended.set()
        feeder.join()
        for client in clients:
            client.close()


def dribble(server: Served) -> bytes:
    """What an upload hears that comes a byte at a time."""
    heard: list[bytes] = []
    with slow_upload(server) as client:
        client.settimeout(0.1)

        def hear() -> bool:  # head and body come apart on a busy machine
            try:
                heard.append(client.recv(65536))
            except TimeoutError:
                with suppress(BrokenPipeError, ConnectionResetError):
                    client.sendall(b"x")
            return b"".join(heard).endswith(b"}")

        wait_until(hear)
    return b"".join(heard)


def test_a_model_that_is_stuck_is_replaced(exported, tmp_path, clip):
    with serving(exported.directory, tmp_path, "--ask-timeout-s", "3") as served:
        name, pid = served.upload(clip).json["video"], served.model_pid
        os.kill(pid, signal.SIGSTOP)  # for good
        assert served.ask(name).code == "timeout"
        wait_until(lambda: served.model_pid != pid)

        assert served.events("model_stuck")
        wait_until(lambda: served.ask(name).status == 200)


def test_videos_expire(exported, tmp_path, clip):
    with serving(exported.directory, tmp_path, "--age-s", "1") as served:
        name = served.upload(clip).json["video"]
        wait_until(lambda: served.metric("sdst_encoded_videos") == 0)
        expired = served.ask(name)

        assert (expired.status, expired.code) == (404, "video_unknown")
        assert list(tmp_path.rglob("*.safetensors")) == []


def test_slow_connections(server, clip):
    """A thousand that send the beginning of a request and nothing more hold nobody up, and are closed."""
    name = server.upload(clip).json["video"]
    import resource

    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 < most[1] < 1200:
        pytest.skip(f"needs 1200 open files, this machine allows {most[1]}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most[1], most[1]))
    slow: list[socket.socket] = []
    try:
        for _ in range(1000):
            slow.append(socket.create_connection(("127.0.0.1", server.port)))
            slow[-1].sendall(b"POST /v1/ground HTTP/1.1\r\nHost: localhost\r\nX-Half: ")
        assert server.ask(name).status == 200
        assert server.get("/healthz").status == 200
        slow[-1].setblocking(False)
        with pytest.raises(BlockingIOError):  # still open: nobody waited for its end
            slow[-1].recv(100)
        slow[0].settimeout(120)
        assert slow[0].recv(100) == b""
    finally:
        for client in slow:
            client.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, most)


# ---------------------------------------------------------------- its end


def test_sigterm_finishes_what_is_there(exported, tmp_path, clip):
    with serving(exported.directory, tmp_path) as served:
        name, pid = served.upload(clip).json["video"], served.model_pid
        with paused(pid):
            threads, answers = together(lambda _: served.ask(name), 6)
            wait_until(lambda: waiting(served) == 6)
            served.process.send_signal(signal.SIGTERM)
            wait_until(lambda: served.events("stopping"))
            wait_until(lambda: is_closed(served))
            os.kill(pid, signal.SIGTERM)  # as a service manager does that signals a whole group
        for thread in threads:
            thread.join()

        assert [answer.status for answer in answers.values()] == [200] * 6
        assert served.process.wait(120) == 0
        assert not alive(pid)
        assert list(tmp_path.iterdir()) == []


def is_closed(server: Served) -> bool:
    """Whether nobody takes a new connection."""
    try:
        socket.create_connection(("127.0.0.1", server.port)).close()
    except ConnectionRefusedError:
        return True
    return False


def test_the_grace_time_ends(exported, tmp_path, clip):
    with serving(exported.directory, tmp_path, "--grace-s", "1") as served:
        name, pid = served.upload(clip).json["video"], served.model_pid
        os.kill(pid, signal.SIGSTOP)
        together(lambda _: served.ask(name), 1)
        wait_until(lambda: waiting(served) == 1)
        served.process.send_signal(signal.SIGTERM)

        served.process.wait(120)
        assert not alive(pid)


def test_the_model_ends_with_a_server_that_is_killed(exported, tmp_path):
    with serving(exported.directory, tmp_path) as served:
        pid = served.model_pid
        served.process.kill()

        wait_until(lambda: not alive(pid))


def serve_once(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "sdst", "serve", *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL,
        timeout=300,
    )  # fmt: skip
    return done.returncode, done.stderr


def test_a_port_in_use(exported):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = serve_once(str(exported.directory), "--port", str(port))

    assert code == 2
    assert said.startswith(f"error: --port: {port} of 127.0.0.1 is in use")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("BUNDLE", "--root", "no/such/folder"), "--root: no/such/folder"),
        (("BUNDLE", "--queue", "0"), "queue: expected a number above 0"),
        (("BUNDLE", "--port", "99999"), "--port: expected 0 to 65535, got 99999"),
        (("BUNDLE", "--host", "no.such.host.invalid"), "cannot listen on no.such.host.invalid"),
        (("no/bundle", "--port", "0"), "no/bundle: not a bundle"),
    ],
)
def test_starts_that_are_refused(exported, arguments, said):
    words = [str(exported.directory) if word == "BUNDLE" else word for word in arguments]
    code, told = serve_once(*words)

    assert code == 2, told
    assert f"error: {said}" in told.splitlines()[-1]
