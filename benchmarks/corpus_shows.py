"""A corpus with its workers and its command killed: `sdst corpus index` and `ask` by each engine, and R@k.

    python benchmarks/corpus_shows.py BUNDLE VIDEOS ANNOTATIONS.jsonl ... --out DIR [--workers 2] [--sentences 100]

Each command runs undisturbed, with a worker killed (-9), and killed itself (-9) and run again; files and rows are held
against those of local processes that nobody disturbed. Sentences are those of ANNOTATIONS about VIDEOS. By the head's
score a sentence is asked of every video, which is slow: `--sentences` of them, spread over all. Linux only. All is
printed as tables in Markdown and written to corpus_shows.json.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sdst.demo.search import recall
from sdst_calib.feeds import spread
from sdst_runtime.corpus.ask import Corpus
from sdst_runtime.files import read_jsonl, write_json
from sdst_runtime.machine import load_average, machine_facts

WORKER = (b"spawn_main", b"ray::CorpusWorker.")  # command lines of local workers, and of Ray's at work
LIMIT_S = 1800


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("videos", type=Path)
    parser.add_argument("annotations", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sentences", type=int, default=100)
    given = parser.parse_args()
    given.out.mkdir(parents=True)
    vids = {path.stem for path in given.videos.iterdir()}
    asked = [row for path in given.annotations for row in read_jsonl(path) if row["vid"] in vids]
    some = spread(asked, given.sentences)
    shows = Shows(
        given.bundle, given.videos, list(dict.fromkeys(row["query"] for row in some)), given.out, given.workers
    )
    table = shows.all()
    found = {"recall": find(shows.store("local", "undisturbed"), asked, some), "machine": dict(machine_facts())}
    write_json(given.out / "corpus_shows.json", {"videos": len(vids), "runs": table, **found})
    print_tables(len(vids), table, found["recall"])


class Shows:
    """The runs, each a row: command, engine, what was done to it, seconds, and whether its result is the right one."""

    def __init__(self, bundle: Path, videos: Path, queries: Sequence[str], out: Path, workers: int) -> None:
        self._bundle, self._videos, self._queries, self._out, self._workers = bundle, videos, queries, out, workers

    def store(self, engine: str, what: str) -> Path:
        """Of a run."""
        return self._out / f"store, {engine}, {what}"

    def all(self) -> list[dict[str, Any]]:
        """All runs."""
        rows = []
        for command, run in (("index", self._index), ("ask", self._ask)):
            for engine in ("local", "ray"):
                for what in ("undisturbed", "worker killed", "command killed, run again"):
                    load, (seconds, same) = load_average(), run(engine, what)
                    rows.append(
                        {
                            "command": command,
                            "engine": engine,
                            "what": what,
                            "seconds": seconds,
                            "same": same,
                            "load": load,
                        }
                    )
                    say(str(rows[-1]))
        return rows

    def _index(self, engine: str, what: str) -> tuple[list[float], bool]:
        store = self.store(engine, what)
        made = lambda: len(list(store.glob("videos/*.safetensors")))  # noqa: E731
        count = len(list(self._videos.iterdir()))
        command = ["index", str(self._videos), "--bundle", str(self._bundle), "--out", str(store)]
        seconds = self._run([*command, *self._by(engine)], what, lambda: made() >= count // 2)
        right = content(self.store("local", "undisturbed"))
        return seconds, content(store) == right and len(right) == count

    def _ask(self, engine: str, what: str) -> tuple[list[float], bool]:
        out = self._out / f"rows, {engine}, {what}.json"
        command = ["ask", str(self.store("local", "undisturbed")), *self._queries, "--out", str(out)]
        seconds = self._run([*command, *self._by(engine)], what, lambda: True)
        right = self._out / "rows, local, alone.json"
        if not right.exists():
            subprocess.run([*sdst(), *command[:-1], str(right)], check=True, capture_output=True)
        return seconds, out.read_bytes() == right.read_bytes()

    def _by(self, engine: str) -> list[str]:
        return ["--engine", engine, "--workers", str(self._workers)]

    def _run(self, command: Sequence[str], what: str, due: Callable[[], bool]) -> list[float]:
        """Seconds of each run of a command; what is done to it is done when it is `due` and its workers work."""
        began_s = time.monotonic()
        with subprocess.Popen([*sdst(), *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
            if what != "undisturbed":
                wait_until(lambda: due() and len(workers(run.pid)) == self._workers)
                os.kill(run.pid if what.startswith("command") else workers(run.pid)[0], signal.SIGKILL)
            said = run.communicate(timeout=LIMIT_S)[1]
        seconds = [round(time.monotonic() - began_s, 1)]
        if what.startswith("command"):
            assert run.returncode == -signal.SIGKILL, "expected a command that was killed while it worked"
            return seconds + self._run(command, "undisturbed", due)
        assert run.returncode == 0, said
        return seconds


def sdst() -> list[str]:
    """The command, of this checkout."""
    return [sys.executable, "-m", "sdst", "corpus"]


def content(store: Path) -> dict[str, bytes]:
    """The videos' files."""
    return {path.name: path.read_bytes() for path in (store / "videos").iterdir()}


def workers(pid: int) -> list[int]:
    """Processes below one that hold models and have been at work for a second."""
    return [one for one in below(pid) if any(name in line_of(one) for name in WORKER) and cpu_s(one) > 1]


def below(pid: int) -> list[int]:
    """All processes below one."""
    try:
        tasks = [int(one) for file in Path(f"/proc/{pid}/task").glob("*/children") for one in file.read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return tasks + [one for task in tasks for one in below(task)]


def line_of(pid: int) -> bytes:
    """Command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def cpu_s(pid: int) -> float:
    """Seconds of a core that it used in itself."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[11]) / os.sysconf("SC_CLK_TCK")


def wait_until(done: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not done():
        assert time.monotonic() < deadline_s, "expected a run that works, none did in time"
        time.sleep(0.02)


def find(store: Path, asked: Sequence[dict[str, Any]], some: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """R@k in percent: of all sentences by alignment, of some by alignment and by the head's score."""
    with Corpus.open(store) as corpus:
        first = ranks(corpus, asked, 10, "alignment")
        return {
            f"alignment, {len(asked)} sentences": recall(first),
            f"alignment, {len(some)} sentences": recall(ranks(corpus, some, 10, "alignment")),
            f"the head's best score, {len(some)} sentences": recall(ranks(corpus, some, 10**9, "score")),
        }


def ranks(corpus: Corpus, asked: Sequence[dict[str, Any]], top: int, key: str) -> list[int]:
    """From 1, of each sentence's own video among the `top` best; one more than these where it is not among them."""
    answers: dict[str, list[str]] = {}
    rows = corpus.ask(list(dict.fromkeys(row["query"] for row in asked)), top)
    for row in sorted(rows, key=lambda row: -getattr(row, key)):
        answers.setdefault(row.query, []).append(row.video)
    return [([*answers[row["query"]], row["vid"]]).index(row["vid"]) + 1 for row in asked]


def print_tables(videos: int, runs: Sequence[dict[str, Any]], recalls: dict[str, dict[str, float]]) -> None:
    """In Markdown."""
    say("; ".join(f"{name} {value}" for name, value in machine_facts()))
    say(f"\n| {videos} videos | undisturbed | worker killed | command killed, run again | results |")
    say("|---|---|---|---|---|")
    for command in ("index", "ask"):
        for engine in ("local", "ray"):
            these = [run for run in runs if (run["command"], run["engine"]) == (command, engine)]
            cells = [" + ".join(f"{s:.0f} s" for s in run["seconds"]) for run in these]
            same = "equal" if all(run["same"] for run in these) else "NOT EQUAL"
            say(f"| {command}, {engine} | {' | '.join(cells)} | {same} |")
    say("\n| videos in order of | R@1 | R@5 | R@10 |\n|---|---|---|---|")
    for name, found in recalls.items():
        say(f"| {name} | {' | '.join(f'{value:.1f}' for value in found.values())} |")


def say(line: str) -> None:
    """Print it, at once."""
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
