"""The demo's "find it among the videos": how often the video that a sentence was written about comes first.

Asked in a store of the held-out videos, in two orders: by alignment, as `sdst corpus ask` orders them, and by the best
score of the head, which is not made for it. Some sentences fit other videos too, so no order reaches 100.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdst_calib.feeds import spread
from sdst_runtime.corpus.ask import Corpus, Row
from sdst_runtime.corpus.index import index_corpus
from sdst_runtime.corpus.store import FACTS
from sdst_runtime.data.annotations import is_absent
from sdst_runtime.data.dataset import Sample
from sdst_runtime.grounding.bundle import Bundle
from sdst_runtime.machine import usable_cores

DEPTHS = (1, 5, 10)
QUERIES = 100  # asked at most: the head is run on all videos for each
FEW = 16  # videos that one process is done with before others have opened the models


def find_videos(bundle: Bundle, out: Path, samples: Sequence[Sample]) -> dict[str, Any]:
    """Index the samples' videos into `out`/store and ask their sentences, but for those that are absent; recall in
    percent by order and depth.
    """
    samples = [sample for sample in samples if not is_absent(sample.row)]
    videos = {vid: out / "videos" / f"{vid}.mp4" for vid in dict.fromkeys(sample.row["vid"] for sample in samples)}
    if (out / "store" / FACTS).is_file():  # of an older demo, whose bundle was another
        shutil.rmtree(out / "store")
    workers = usable_cores() if len(videos) > FEW else 1
    index_corpus(videos, bundle, out / "store", workers=workers)
    asked = spread(samples, QUERIES)
    with Corpus.open(out / "store", bundle.directory) as corpus:
        queries = list(dict.fromkeys(sample.row["query"] for sample in asked))
        rows = corpus.ask(queries, top=len(videos), workers=workers)
    answers: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        answers[row.query].append(row)
    wanted = [(sample.row["vid"], answers[sample.row["query"]]) for sample in asked]
    return {
        "videos": len(videos),
        "queries": len(asked),
        "by_alignment": recall([_rank(vid, found, "alignment") for vid, found in wanted]),
        "by_head_score": recall([_rank(vid, found, "score") for vid, found in wanted]),
    }


def facts(found: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Lines of the page."""
    return tuple(
        (
            f"right video among the first {depth}" if depth > 1 else "right video first",
            f"{found['by_alignment'][f'R@{depth}']:.0f} % by alignment, "
            f"{found['by_head_score'][f'R@{depth}']:.0f} % by the head's score; "
            f"{found['queries']} queries, {found['videos']} videos",
        )
        for depth in DEPTHS
    )


def recall(ranks: Sequence[int]) -> dict[str, float]:
    """Percent of ranks, from 1, within each of DEPTHS."""
    return {f"R@{depth}": round(100 * float(np.mean([rank <= depth for rank in ranks])), 2) for depth in DEPTHS}


def _rank(vid: str, rows: Sequence[Row], key: str) -> int:
    """From 1, of a video among the answers to one sentence."""
    order = sorted(rows, key=lambda row: -getattr(row, key))
    return 1 + [row.video for row in order].index(vid)
