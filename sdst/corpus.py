"""`sdst corpus`: many videos indexed once, and sentences asked about all of them."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from sdst_runtime.corpus.ask import AskListener, Corpus, Row
from sdst_runtime.corpus.engines import Engine
from sdst_runtime.corpus.index import IndexedCorpus, Listener, index_corpus
from sdst_runtime.corpus.results import require_suffix, write_rows
from sdst_runtime.corpus.work import Done
from sdst_runtime.errors import PartialFailure
from sdst_runtime.grounding.bundle import Bundle
from sdst_runtime.strict_json import dump_json

from .asked import without
from .consoles import make_console
from .next_step import advise
from .progress import Told, told
from .videos import find_videos


def index(
    videos: tyro.conf.Positional[Path],
    *,
    bundle: Path,
    out: Path,
    engine: Engine = "local",
    workers: int = 1,
) -> None:
    """Encode a folder of videos into a store that can be asked; what is there already and unchanged stays.

    A video that cannot be used is named on stderr, the others are done and the exit code is 1. Interrupted or killed,
    the same command goes on where it ended.

    Args:
        videos: A folder of videos, or a .txt file with the path of one on each line.
        bundle: The directory that `sdst export` or `sdst demo` wrote.
        out: Folder of the store.
        engine: local: processes of this machine. ray: a Ray cluster, that of RAY_ADDRESS or one on this machine; all
            of its machines must see videos, bundle and store under the same paths.
        workers: Processes, each with its own models; they share the cores.
    """
    found = find_videos(videos)
    with told("videos", "videos") as bar:
        listener = _Shown(bar)
        done = index_corpus(found, Bundle.open(bundle), out, engine=engine, workers=workers, listener=listener)
    print(_summary(done, listener), file=sys.stderr)  # noqa: T201
    if done.failed:
        raise PartialFailure(f"{len(done.failed)} of {len(found)} videos failed, as said above; the others are done")
    print(out)  # noqa: T201
    advise("sdst", "corpus", "ask", out, "a sentence")


def ask(
    store: tyro.conf.Positional[Path],
    sentences: tyro.conf.Positional[tuple[str, ...]],
    *,
    top: int = 20,
    out: Path | None = None,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    bundle: Path | None = None,
    engine: Engine = "local",
    workers: int = 1,
    threads: int | None = None,
) -> None:
    """Find the videos of a store that each sentence describes, and the best moment of each.

    Videos are ordered by alignment, of the sentence with the best clip; the moment, its score and, where the bundle
    says it, the presence are the head's.

    Args:
        store: The folder that `sdst corpus index` wrote.
        sentences: In quotes.
        top: Videos for each sentence.
        out: File for the rows: .parquet, .json or .csv.
        json: Print the rows as JSON, each on a line, instead of a table.
        bundle: The bundle that made the store, where it is no longer where it was.
        engine: Where moments are found, as in `sdst corpus index`; the rows are the same.
        workers: Processes that find moments, each with its own models: worth it for many sentences.
        threads: Threads for each model; default: all cores, which workers share.
    """
    if out is not None:
        require_suffix(out)
    with Corpus.open(store, bundle, threads) as corpus:
        queries = tuple(dict.fromkeys(sentences))
        with told("sentences", "sentences") as bar:
            rows = corpus.ask(queries, top, engine=engine, workers=workers, listener=_Asked(bar))
        unknown = {query: corpus.grounder.tokenizer.unknown_words(query) for query in queries}
    for query, words in unknown.items():
        if words:
            print(f"warning: {without(query, words)}", file=sys.stderr)  # noqa: T201
    if out is not None:
        write_rows(out, rows)
    if json:
        for row in rows:
            print(dump_json(dataclasses.asdict(row)))  # noqa: T201
    else:
        _print_table(rows)


class _Asked(AskListener):
    """Both parts of the work as a bar."""

    def __init__(self, bar: Told) -> None:
        self._bar = bar

    def ranked(self, done: int, total: int) -> None:
        self._bar.name("comparing sentences with all videos")
        self._bar.show(done, total)

    def found(self, done: int, total: int) -> None:
        self._bar.name("moments")
        self._bar.show(done, total)


class _Shown(Listener):
    """The work as a bar with its rate; failures above it."""

    def __init__(self, bar: Told) -> None:
        self._bar, self.clips, self._began_s, self.seconds = bar, 0, 0.0, 0.0

    def checked(self, done: int, total: int) -> None:
        self._bar.name("looking through the store")
        self._bar.show(done, total)
        self._began_s = time.monotonic()

    def indexed(self, done: Done, count: int, total: int) -> None:
        self.clips += done.clips
        self.seconds = time.monotonic() - self._began_s
        if done.reason:
            with self._bar.hidden():
                print(f"failed: {done.reason}", file=sys.stderr)  # noqa: T201
        self._bar.name(f"videos, {self.clips / self.seconds:.1f} clips/s")
        self._bar.show(count, total)


def _summary(done: IndexedCorpus, shown: _Shown) -> str:
    for line in done.damaged:
        print(f"damaged: {line}", file=sys.stderr)  # noqa: T201
    rate = f", {shown.clips} clips in {shown.seconds:.0f} s" if done.made else ""
    counts = f"{len(done.made)} videos indexed{rate}; {len(done.kept)} were there, {len(done.failed)} failed"
    return f"{counts}; the store has {done.videos} videos of {done.clips} clips"


def _print_table(rows: Sequence[Row]) -> None:
    from rich.table import Table

    console = make_console()
    for query in dict.fromkeys(row.query for row in rows):
        console.print(query, style="bold")
        table = Table()
        said = ("presence",) if any(row.presence is not None for row in rows) else ()
        for column in ("rank", "video", "alignment", *said, "start s", "end s", "score"):
            table.add_column(column, justify="left" if column == "video" else "right")
        for row in rows:
            if row.query == query:
                presence = () if row.presence is None else (f"{row.presence:.2f}",)
                moment = f"{row.start_s:.2f}", f"{row.end_s:.2f}", f"{row.score:.3f}"
                table.add_row(str(row.rank), row.video, f"{row.alignment:.3f}", *presence, *moment)
        console.print(table)
