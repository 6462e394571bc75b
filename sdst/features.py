"""`sdst features video` and `sdst features text`: a frozen backbone over videos and sentences, resumable."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Literal

import tyro

from sdst_runtime import bounds
from sdst_runtime.data.annotations import read_queries
from sdst_runtime.errors import InputError, PartialFailure
from sdst_runtime.grounding.tokenizer import count_unknown
from sdst_runtime.machine import DeviceChoice
from sdst_train.backbone.feature_run import FAILURES, Progress, extract_sentences, extract_videos
from sdst_train.backbone.towers import load_backbone
from sdst_train.backbone.vision import Pool
from sdst_train.loop.device import DTYPES, Precision, choose_device, choose_precision

from .consoles import make_console
from .next_step import advise
from .progress import make_bar
from .videos import find_videos

DType = Literal["float16", "float32"]
_LOG_EVERY_S = 60.0  # where there is no terminal to draw a bar on


def video(
    videos: tyro.conf.Positional[Path],
    *,
    backbone: Path,
    out: Path,
    pool: Pool | None = None,
    batch: int = 16,
    workers: int | None = None,
    device: DeviceChoice = "auto",
    precision: Precision = "auto",
    dtype: DType = "float16",
) -> None:
    """Extract the features of videos into OUT/video. Whole files that are there are kept; run it again to go on.

    A video's id is its file's name without the suffix. Videos that cannot be used are listed in OUT/failures.jsonl and
    the command ends with exit code 1; all others are done.

    Args:
        videos: A folder of videos, or a .txt file with the path of one on each line.
        backbone: The backbone file (sdst convert-backbone makes it).
        out: Folder of the features.
        pool: How tokens become one feature a layer; default: the backbone's own way.
        batch: Clips that the model takes at once.
        workers: Processes that decode; default: one a core.
        device: Where the model runs; auto: a GPU if there is one.
        precision: Of matrix products; auto: bf16 on a GPU, fp32 on a CPU.
        dtype: Of the new files.
    """
    bounds.require("batch", batch, bounds.BATCH)
    if workers is not None:
        bounds.require("workers", workers, (1, bounds.WORKERS))
    files = find_videos(videos)
    place = choose_device(device)
    tower = load_backbone(backbone, pool).vision.to(place)
    with _Display("encoding videos", "clips") as display:
        result = extract_videos(
            files, tower, out, batch_size=batch, workers=workers, precision=DTYPES[choose_precision(precision, place)],
            dtype=dtype, on_progress=display.show, say=display.say,
        )  # fmt: skip
    failed, rate = len(result.failures), result.clips / display.elapsed_s()
    print(  # noqa: T201
        f"{out / 'video'}: videos: {result.made} made, {result.kept} kept, {failed} failed; "
        f"clips: {result.clips}, {rate:.1f} a second"
    )
    if failed:
        raise PartialFailure(
            f"{failed} of {len(files)} videos failed, see {out / FAILURES}; mend or leave them out and run again: "
            "the others are kept"
        )
    advise("sdst", "features", "text", "ANNOTATIONS", "--backbone", backbone, "--out", out)


def text(
    annotations: tyro.conf.Positional[tuple[Path, ...]],
    *,
    backbone: Path,
    out: Path,
    batch: int = 32,
    device: DeviceChoice = "auto",
    precision: Precision = "auto",
    dtype: DType = "float16",
) -> None:
    """Extract the features of each distinct sentence into OUT/text. Whole files that are there are kept.

    Args:
        annotations: .jsonl (QVHighlights), .txt (Charades-STA) or .json (TACoS) files.
        backbone: The backbone file (sdst convert-backbone makes it).
        out: Folder of the features.
        batch: Sentences that the model takes at once.
        device: Where the model runs; auto: a GPU if there is one.
        precision: Of matrix products; auto: bf16 on a GPU, fp32 on a CPU.
        dtype: Of the new files.
    """
    if not annotations:
        raise InputError("expected one annotation file or more: .jsonl, .txt or .json")
    queries = [query.query for path in annotations for query in read_queries(path)]
    place = choose_device(device)
    towers = load_backbone(backbone).to(place)
    with _Display("encoding sentences", "sentences") as display:
        result = extract_sentences(
            queries, towers, out, batch_size=batch, precision=DTYPES[choose_precision(precision, place)], dtype=dtype,
            on_progress=display.show,
        )  # fmt: skip
    for line in count_unknown(towers.tokenizer(), queries).lines():
        print(f"warning: {line}", file=sys.stderr)  # noqa: T201
    print(  # noqa: T201
        f"{out / 'text'}: distinct sentences of {len(queries)} queries: {result.made} made, {result.kept} kept"
    )
    advise("sdst", "features", "verify", out, "--annotations", *annotations)


class _Display:
    """A bar with the rate on a terminal, a line a minute elsewhere."""

    def __init__(self, title: str, unit: str) -> None:
        self._console = make_console(stderr=True)
        self._bar, self._title, self._unit = make_bar(self._console), title, unit

    def __enter__(self) -> _Display:
        self._bar.start()
        self._task = self._bar.add_task(self._title, total=None)
        self._began_s = self._said_s = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def elapsed_s(self) -> float:
        """Since the block began."""
        return time.monotonic() - self._began_s

    def say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)

    def show(self, progress: Progress) -> None:
        count = progress.clips if self._unit == "clips" else progress.done
        line = f"{self._title}, {count / self.elapsed_s():.1f} {self._unit}/s"
        self._bar.update(self._task, completed=progress.done, total=progress.total, description=line)
        now_s = time.monotonic()
        if not self._console.is_terminal and now_s - self._said_s > _LOG_EVERY_S:
            self._said_s, left_s = now_s, self.elapsed_s() * (progress.total / progress.done - 1)
            self.say(f"{line}, {progress.done}/{progress.total}, {left_s / 60:.0f} min left")
