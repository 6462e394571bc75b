"""Load on `sdst serve` over loopback: capacity, latencies at half of it, answers at twice it, a killed model, SIGTERM.

    python benchmarks/serve_http.py BUNDLE VIDEO [VIDEO ...] --out DIR [--seconds 20]

Clients are bounded: as many threads as `--clients`, a kept connection each, one sentence a request. At a given rate a
latency counts from when its request was due. The budget for encoded videos is 1 MiB. All is printed and written to
serve_http.json. Memory over a longer time: serve_memory.py.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Sample:
    """One request: its status (0: the connection failed) and seconds from when it was due to its answer."""

    status: int
    seconds: float
    at_s: float  # from the start of the load


class Server:
    """`sdst serve` on a free port; `events` are the lines of its log but for requests, which `statuses` counts."""

    def __init__(self, bundle: Path, threads: int) -> None:
        command = [sys.executable, "-m", "sdst", "serve", str(bundle), "--port", "0", "--threads", str(threads)]
        self.process = subprocess.Popen([*command, "--memory-mib", "1"], stderr=subprocess.PIPE, text=True)
        self.events: list[dict[str, Any]] = []
        self.statuses: Counter[int] = Counter()  # of questions; 0: accepted and never answered
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.wait("model_ready")

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            event = json.loads(line)
            if event.get("event") != "request":
                self.events.append(event)
            elif event["path"] == "/v1/ground":
                self.statuses[event["status"]] += 1

    def wait(self, event: str, count: int = 1) -> dict[str, Any]:
        """The last event of a name, when there are so many."""
        while len(found := [line for line in self.events if line.get("event") == event]) < count:
            if self.process.poll() is not None:
                raise SystemExit(f"the server ended: {self.events[-3:]}")
            time.sleep(0.02)
        return found[-1]

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.wait("listening")["port"], timeout=120)


def load(
    server: Server, bodies: Sequence[bytes], clients: int, seconds: float, rate: float = 0.0,
    meanwhile: Callable[[], None] = lambda: None,
) -> list[Sample]:  # fmt: skip
    """Requests for a while: at `rate` a second, by chance as people come; 0: each client asks again at once."""
    samples: list[Sample] = []
    numbers, chance, lock, due = itertools.count(), random.Random(0), threading.Lock(), [0.0]
    start_s = time.monotonic()

    def next_due() -> float:
        with lock:
            if rate:
                due[0] += chance.expovariate(rate)
                return due[0]
            return time.monotonic() - start_s

    def client() -> None:
        connection = server.connect()
        while (at_s := next_due()) < seconds and time.monotonic() < start_s + seconds:  # a slow machine gets less
            time.sleep(max(0.0, start_s + at_s - time.monotonic()))
            status = 0
            try:
                body = bodies[next(numbers) % len(bodies)]
                connection.request("POST", "/v1/ground", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                answer.read()
                status = answer.status
            except (OSError, http.client.HTTPException):
                connection.close()
                if server.process.poll() is not None or any(e.get("event") == "stopping" for e in server.events):
                    samples.append(Sample(0, 0, at_s))
                    return
            samples.append(Sample(status, time.monotonic() - start_s - at_s, at_s))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    meanwhile()
    for thread in threads:
        thread.join()
    return samples


def summary(samples: Sequence[Sample], seconds: float) -> dict[str, Any]:
    """Counts by status, answers a second, and milliseconds of the answered and of the refused."""
    found: dict[str, Any] = {"statuses": dict(sorted(Counter(s.status for s in samples).items()))}
    found["answered_per_s"] = round(sum(s.status == 200 for s in samples) / seconds, 1)
    for name, wanted in (("200", 200), ("429", 429)):
        times = [1000 * s.seconds for s in samples if s.status == wanted]
        if times:
            p50, p99 = np.percentile(times, [50, 99])
            found[f"ms_of_{name}"] = {"p50": round(p50), "p99": round(p99), "max": round(max(times))}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("videos", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sentence", default="a red circle moves")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "clients": options.clients}

    def tell(name: str, value: Any) -> None:
        report[name] = value
        print(f"{name}: {json.dumps(value)}", flush=True)  # noqa: T201
        (options.out / "serve_http.json").write_text(json.dumps(report, indent=2) + "\n")

    server = Server(options.bundle, options.threads)
    try:
        measure(server, options, tell)
    finally:
        server.process.kill()


def measure(server: Server, options: argparse.Namespace, tell: Callable[[str, Any], None]) -> None:
    """Every part, one after the other."""
    names, seconds = [upload(server, video) for video in options.videos], options.seconds
    bodies = [json.dumps({"video": name, "sentences": [options.sentence]}).encode() for name in names]
    load(server, bodies, 4, 3)
    capacity = summary(load(server, bodies, 8, seconds), seconds)
    tell("capacity, 8 clients", capacity)
    rate = capacity["answered_per_s"]
    half = load(server, bodies, options.clients, seconds, rate / 2)
    tell(f"0.5x, {rate / 2:.1f}/s", summary(half, seconds))
    twice = load(server, bodies, options.clients, seconds, 2 * rate)
    tell(f"2x, {2 * rate:.1f}/s", summary(twice, seconds))

    killed_at: list[float] = []
    start_s = time.monotonic()

    def kill_model() -> None:
        time.sleep(seconds / 3)
        os.kill(server.wait("model_ready")["pid"], signal.SIGKILL)
        killed_at.append(time.monotonic() - start_s)

    samples = load(server, bodies, options.clients, seconds, rate / 2, kill_model)
    after = [s.at_s + s.seconds for s in samples if s.status == 200 and s.at_s > killed_at[0]]
    tell("model killed at 0.5x", {
        **summary(samples, seconds), "asked_after_and_answered": len(after),
        "seconds_to_first_answer": round(min(after) - killed_at[0], 2) if after else None,
    })  # fmt: skip

    ended: dict[str, Any] = {}

    def terminate() -> None:
        time.sleep(seconds / 3)
        server.process.send_signal(signal.SIGTERM)
        asked_s = time.monotonic()
        ended["exit_code"] = server.process.wait()
        ended["seconds_to_end"] = round(time.monotonic() - asked_s, 2)

    before = Counter(server.statuses)
    samples = load(server, bodies, options.clients, seconds, 2 * rate, terminate)
    server.reader.join()
    statuses = dict(sorted(Counter(s.status for s in samples).items()))
    log = dict(sorted((server.statuses - before).items()))
    tell("SIGTERM at 2x", {"statuses": statuses, "in the server's log": log, **ended})


def upload(server: Server, video: Path) -> str:
    """What the server calls a video."""
    connection = server.connect()
    connection.request("POST", "/v1/videos", video.read_bytes(), {"Content-Type": "video/mp4"})
    name = json.loads(connection.getresponse().read())["video"]
    connection.close()
    return name


if __name__ == "__main__":
    main()
