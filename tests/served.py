"""A server of `sdst serve` for tests, in a process of its own, and what is said to it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import alive, wait_until

QUERY = "a red circle moves"
OCTETS = "application/octet-stream"


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """error.code, after looking at the whole shape."""
        error = self.json["error"]
        assert set(self.json) == {"error"}
        assert set(error) == {"code", "message", "request_id"}
        assert error["request_id"] == self.headers["x-request-id"]
        assert "\n" not in error["message"]
        return error["code"]


@dataclass
class Served:
    """A running server; `log` grows as it writes."""

    process: subprocess.Popen[str]
    temporary: Path
    log: list[dict[str, Any]] = field(default_factory=list)

    def events(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.log if line.get("event") == event]

    @property
    def port(self) -> int:
        return self.events("listening")[0]["port"]

    @property
    def model_pid(self) -> int:
        """The model's process, once it is ready."""
        wait_until(lambda: alive(self.events("model_ready")[-1]["pid"]))  # a line of the log may come after an answer
        return self.events("model_ready")[-1]["pid"]

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        connection = self.connect()
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # it may answer before it has heard all
                connection.request(method, path, body, {key.replace("_", "-"): value for key, value in headers.items()})
            response = connection.getresponse()
            got = {key.lower(): value for key, value in response.getheaders()}
            return Answer(response.status, got, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.send("GET", path, **headers)

    def post(self, path: str, value: Any, **headers: str) -> Answer:
        """POST of JSON."""
        return self.send("POST", path, json.dumps(value), content_type="application/json", **headers)

    def upload(self, body: Any, **headers: str) -> Answer:
        return self.send("POST", "/v1/videos", body, **{"content_type": OCTETS, **headers})

    def ask(self, video: str, *sentences: str) -> Answer:
        return self.post("/v1/ground", {"video": video, "sentences": list(sentences or [QUERY])})

    def metric(self, name: str) -> float:
        """The value of a line of /metrics, by all that stands before it."""
        lines = self.get("/metrics").body.decode().splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == name), 0.0)

    def left_over(self) -> list[str]:
        """Files of uploads."""
        return [str(path) for path in self.temporary.rglob("*.upload")]


@contextmanager
def serving(
    bundle: Path, place: Path, *options: str, wait: bool = True, environment: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> Iterator[Served]:  # fmt: skip
    """A server on a free port, ready unless told otherwise; killed at the end if it still runs."""
    place.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "sdst", "serve", str(bundle), "--port", "0", "--threads", "1", *options],
        stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, preexec_fn=before,
        env={**os.environ, "TMPDIR": str(place), **(environment or {})},
    )  # fmt: skip
    server = Served(process, place)
    reader = threading.Thread(target=_read, args=(server,), daemon=True)
    reader.start()
    try:
        if wait:
            wait_until(lambda: server.events("model_ready") or process.poll() is not None)
            assert process.poll() is None, server.log
        yield server
    finally:
        if process.poll() is None:
            for event in server.events("model_ready"):
                with suppress(ProcessLookupError):  # a test may have stopped it
                    os.kill(event["pid"], signal.SIGCONT)
            process.kill()
        process.wait()
        reader.join(10)


def _read(server: Served) -> None:
    assert server.process.stderr is not None
    for line in server.process.stderr:
        server.log.append(json.loads(line) if line.startswith("{") else {"event": "text", "message": line})


@contextmanager
def paused(pid: int) -> Iterator[None]:
    """A process that does nothing within the block, which may end it."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def together(work: Callable[[int], Answer], count: int) -> tuple[list[threading.Thread], dict[int, Answer]]:
    """`count` threads that ask, started, and their answers by number as they come."""
    answers: dict[int, Answer] = {}
    threads = [
        threading.Thread(target=lambda number=number: answers.__setitem__(number, work(number)), daemon=True)
        for number in range(count)
    ]
    for thread in threads:
        thread.start()
    return threads, answers
