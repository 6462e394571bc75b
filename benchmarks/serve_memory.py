"""Memory of `sdst serve` over time, while clients upload ever new videos and ask about them; with a picture of it.

    python benchmarks/serve_memory.py BUNDLE VIDEO [VIDEO ...] --out DIR [--minutes 30] [--skip 10]

Each of `--clients` threads uploads the next of the videos (over and over: to the server each is a new one), asks
`--questions` about it, a request each, and goes on. The budget for encoded videos is 1 MiB, so that they come and go.
Every 5 s the resident and the proportional memory (RSS, PSS) of both processes are read. The slopes are least squares
of what comes after `--skip` minutes. It writes serve_memory.json and serve_memory.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from serve_http import Server

PERIOD_S = 5.0
WORDS = ("a red circle moves", "a blue square blinks", "the green ring grows", "when a yellow cross moves to the left")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("videos", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--skip", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--questions", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    server = Server(options.bundle, options.threads)
    try:
        report = watch(server, options)
    finally:
        server.process.kill()
    (options.out / "serve_memory.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(report, options.out / "serve_memory.png")
    print(json.dumps({key: value for key, value in report.items() if key != "samples"}, indent=1))  # noqa: T201


def watch(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """Samples of memory while the clients are at work, and what they were answered."""
    start_s, ended, statuses = time.monotonic(), threading.Event(), Counter[str]()
    numbers = itertools.count()
    threads = [
        threading.Thread(target=client, args=(server, options, numbers, ended, statuses))
        for _ in range(options.clients)
    ]
    for thread in threads:
        thread.start()
    samples: list[dict[str, float]] = []
    while (at_s := time.monotonic() - start_s) < 60 * options.minutes:
        samples.append({"minute": round(at_s / 60, 3), **memory(server)})
        ended.wait(PERIOD_S)
    ended.set()
    for thread in threads:
        thread.join()
    late = [sample for sample in samples if sample["minute"] >= options.skip]
    return {
        "cores": os.cpu_count(), "load_at_end": round(os.getloadavg()[0], 1), "minutes": options.minutes,
        "answers": dict(statuses), "skipped_minutes": options.skip,
        "mib": {name: [late[0][name], late[-1][name]] for name in list(samples[0])[1:]} if late else {},
        "mib_an_hour": {name: round(slope(late, name), 2) for name in list(samples[0])[1:]} if late else {},
        "samples": samples,
    }  # fmt: skip


def client(
    server: Server, options: argparse.Namespace, numbers: Any, ended: threading.Event, statuses: Counter[str]
) -> None:
    """Upload and ask until the end."""
    connection = server.connect()

    def post(path: str, body: bytes, kind: str) -> Any:
        connection.request("POST", path, body, {"Content-Type": kind})
        answer = connection.getresponse()
        statuses[f"{path} {answer.status}"] += 1
        return json.loads(answer.read())

    while not ended.is_set():
        video = options.videos[next(numbers) % len(options.videos)]
        name = post("/v1/videos", video.read_bytes(), "video/mp4").get("video")
        for i in range(options.questions if name else 0):
            body = {"video": name, "sentences": [WORDS[(i + j) % len(WORDS)] for j in range(1 + i % 3)]}
            post("/v1/ground", json.dumps(body).encode(), "application/json")


def memory(server: Server) -> dict[str, float]:
    """MiB of both processes."""
    found = {}
    for name, pid in (("server", server.process.pid), ("model", server.wait("model_ready")["pid"])):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        for kind in ("Rss", "Pss"):
            (kib,) = re.findall(rf"^{kind}:\s+(\d+) kB", text, re.MULTILINE)
            found[f"{name} {kind.upper()}"] = round(int(kib) / 1024, 2)
    return found


def slope(samples: list[dict[str, float]], name: str) -> float:
    """MiB an hour, by least squares."""
    return float(np.polyfit([s["minute"] / 60 for s in samples], [s[name] for s in samples], 1)[0])


def draw(report: dict[str, Any], path: Path) -> None:
    """Memory against time, both processes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    samples, figure = report["samples"], pyplot.figure(figsize=(9, 4.5))
    axes = figure.add_subplot()
    for name, style in (("model RSS", "-"), ("model PSS", "--"), ("server RSS", "-"), ("server PSS", "--")):
        rate = report["mib_an_hour"].get(name)
        label = name if rate is None else f"{name}: {rate:+.1f} MiB an hour"
        axes.plot([s["minute"] for s in samples], [s[name] for s in samples], style, label=label)
    axes.axvline(report["skipped_minutes"], color="grey", linewidth=0.8)
    axes.set(xlabel="minutes", ylabel="MiB", ylim=(0, None), title=f"sdst serve: {report['answers']}")
    axes.title.set_fontsize(8)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
