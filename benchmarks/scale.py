"""What docs/scale.md calculates, from the code's own sizes, and what it measures of a store that large.

    python benchmarks/scale.py                       # the tables by number of videos
    python benchmarks/scale.py --scan 133333 --out DIR      # a ranking of so many videos made in DIR, opened, asked

The model is InternVideo2-1B at 4 frames and the paper's head. Operations are those of the encoder's products
(`encoder.clip_flops`), of BERT's layers and of the exported graphs. The ranking that is scanned has random vectors:
time depends on its size alone. Videos of 150 s are T = 75 clips of 2 s.
"""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from encoder import clip_flops
from head import random_checkpoint

from sdst_export.models import export_head, export_projection, export_sentence, lower
from sdst_export.report.summary import summarise
from sdst_runtime.corpus.ranking import FORMAT, LIST, Ranked, Ranking, RankingList
from sdst_runtime.corpus.store import Store, StoreFacts
from sdst_runtime.files import write_json
from sdst_runtime.machine import machine_facts
from sdst_train.backbone.text import BERT_LARGE_STAGE2
from sdst_train.backbone.vision import INTERNVIDEO2_1B
from sdst_train.config import ModelConfig

T, L, TOP = 75, 20, 20  # clips of a video, tokens of a sentence, videos that the head looks at
SUSTAINED = 200e12  # operations a second of the GPU that hours are stated for
MODEL = ModelConfig()
K, F, V, X = MODEL.layers, MODEL.width, MODEL.video_width, MODEL.text_width
CHUNK = 50_000  # clips that are written at once


def main(scan: int = 0, clips: int = T, out: Path | None = None) -> None:
    """Print the tables, or time a ranking.

    Args:
        scan: Videos of a ranking that is made and asked; 0: none.
        clips: Of each of them.
        out: Where it is made; default: a temporary folder.
    """
    if not scan:
        say_costs()
        return
    with tempfile.TemporaryDirectory(dir=out) as folder:
        time_scan(make_store(Path(folder), scan, clips))


def say_costs() -> None:
    """Operations of one of each, then storage, hours and operations of a question by number of videos."""
    once = operations()
    for name, flops in once.items():
        say(f"{name}: {flops:.4g} operations")
    say("| videos | clips | features | projected | vectors, twice | store | GPU hours | scan, bytes | head on all |")
    for videos in (1, 100, 10_000, 1_000_000):
        clips = videos * T
        sizes = [clips * n for n in (2 * K * V, 2 * K * F, 2 * K * F, 4 * K * F)]
        hours, read = clips * once["vision, a clip"] / SUSTAINED / 3600, clips * K * F
        cells = [videos, clips, *map(in_bytes, sizes), f"{hours:.3g}", in_bytes(read), f"{videos * once['head']:.3g}"]
        say("| " + " | ".join(map(str, cells)) + " |")
    say(f"a question: text + sentence + head on {TOP} = {once['text'] + once['sentence'] + TOP * once['head']:.3g}")


def operations() -> dict[str, float]:
    """Multiplications and additions: of a clip, of a sentence of L tokens, of one video with one sentence."""
    C, H = BERT_LARGE_STAGE2.width, BERT_LARGE_STAGE2.mlp_width
    block = 2 * L * C * (4 * C + 2 * H) + 4 * L**2 * C
    lowered, sizes = lower(random_checkpoint()), {"B": 1, "T": T, "L": L}
    graphs = {"projection": export_projection, "sentence": export_sentence, "head": export_head}
    counted = {name: summarise(export(lowered), sizes).stages.values() for name, export in graphs.items()}
    return {
        "vision, a clip": clip_flops(INTERNVIDEO2_1B, INTERNVIDEO2_1B.frames, K),
        "text": BERT_LARGE_STAGE2.depth * block,
        **{name: sum(stage.flops for stage in stages) for name, stages in counted.items()},
    }


def make_store(folder: Path, videos: int, clips: int) -> Store:
    """A store without files of videos, but with a ranking of them."""
    spec = dataclasses.replace(random_checkpoint().spec, layers=K)
    store = Store(folder, StoreFacts(1, "", spec, "", "", {}))
    vectors = np.lib.format.open_memmap(folder / "ranking-0.npy", "w+", np.int8, (videos * clips, K, F))
    chunk = np.random.default_rng(0).integers(-20, 20, (CHUNK, K, F), np.int8)
    for start in range(0, len(vectors), CHUNK):
        vectors[start : start + CHUNK] = chunk[: len(vectors) - start]
    vectors.flush()
    ranked = tuple(Ranked(f"video{number:09}", clips, "0" * 64) for number in range(videos))
    listed = RankingList(FORMAT, "ranking-0.npy", (len(vectors), K, F), ranked)
    write_json(folder / LIST, dataclasses.asdict(listed))
    return store


def time_scan(store: Store) -> None:
    """How long it takes to open the ranking, and to answer 1 and 32 sentences."""
    say(", ".join(f"{name} {value}" for name, value in machine_facts()))
    ranking, opening = timed(lambda: Ranking.open(store))
    size = (store.directory / LIST).stat().st_size
    say(f"{len(ranking.videos)} videos, {len(ranking.vectors)} clips, {in_bytes(ranking.vectors.nbytes)}")
    say(f"opened in {opening}; {LIST} has {in_bytes(size)}")
    for asked in (1, 32):
        sentences = np.random.default_rng(1).standard_normal((asked, K, F)).astype(np.float32)
        sentences /= np.linalg.norm(sentences, axis=-1, keepdims=True)
        found, scanning = timed(lambda sentences=sentences: ranking.alignment(sentences))
        _, ordering = timed(lambda found=found: np.argsort(-found, axis=1, kind="stable")[:, :TOP])
        say(f"{asked} sentences: scanned in {scanning}, put in order in {ordering}")


def timed(work: Callable[[], Any]) -> tuple[Any, str]:
    """What it gives; seconds by the clock, and of the processor."""
    start, cpu = time.perf_counter(), time.process_time()
    found = work()
    return found, f"{time.perf_counter() - start:.2f} s ({time.process_time() - cpu:.2f} s of the processor)"


def in_bytes(size: float) -> str:
    """With three digits, in powers of 1,000."""
    power = max(0, int(math.log10(max(size, 1)) // 3))
    return f"{size / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    tyro.cli(main)
