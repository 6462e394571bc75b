"""Feature files of many videos and sentences: processes decode while one model computes, and nothing is made twice.

    OUT/video/{vid}.safetensors, OUT/text/{digest}.safetensors    each written whole or not at all
    OUT/failures.jsonl                                            videos that could not be used; absent when all could

A whole file that is there already is kept: an interrupted extraction goes on where it was. One whose video was
replaced since is made again, and one that was made under another contract is an error.

Shape letters: n clips of a part, T clips of a video, K layers, V width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from sdst_runtime.contracts import FeatureSpec, TextFeatures, VideoFeatures
from sdst_runtime.data.features import (
    claim,
    is_made,
    stored_source,
    text_feature_path,
    video_feature_path,
    write_text_features,
    write_video_features,
)
from sdst_runtime.errors import InputError
from sdst_runtime.files import remove, write_jsonl
from sdst_runtime.media.clips import decoder_name
from sdst_runtime.media.containers import source_digest
from sdst_runtime.media.workers import Ending, Piece, Unusable, decoding
from sdst_runtime.text import normalise

from .extract import encode_each, encode_pieces
from .towers import Backbone, VisionTower

FAILURES = "failures.jsonl"


@dataclass(frozen=True)
class Progress:
    """How far an extraction is; what was there already does not count."""

    done: int  # videos or sentences, failed ones included
    total: int
    clips: int  # of the finished videos


@dataclass(frozen=True)
class Failure:
    """A video that could not be used."""

    vid: str
    path: str
    reason: str


@dataclass(frozen=True)
class Extraction:
    """What came of an extraction."""

    made: int
    kept: int
    clips: int = 0  # of the videos made
    failures: tuple[Failure, ...] = ()


def extract_videos(
    videos: Mapping[str, Path],
    tower: VisionTower,
    out: Path,
    *,
    batch_size: int = 16,
    workers: int | None = None,
    precision: torch.dtype = torch.float32,
    dtype: str = "float16",
    on_progress: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda line: None,
) -> Extraction:
    """Write the features of every video (vid to file) that `out` lacks, with the tower on the device where it lies.

    `workers` processes decode (default: one a core), `precision` is that of matrix products, `dtype` that of the new
    files. `say` gets a line for each failure, each video that was not whole and each that was replaced since its
    features were made; these are made again. Raises InputError when `out` cannot be
    written (a full disk), a process dies or a batch is too large for the device, InUseError when another process
    extracts videos into `out`, ContractError when features of another contract are there.
    """
    spec = tower.spec
    with claim(out, "video"):
        todo = _to_make(videos, spec, Path(out), say)
        remove(Path(out) / FAILURES)
        run = _Run(todo, spec, Path(out), dtype, on_progress, say)
        with decoding(list(todo.values()), spec, workers) as messages:
            for video, features in encode_pieces(tower, run.pieces(messages), batch_size, precision):
                run.take(video, features)
    return Extraction(run.made, len(videos) - len(todo), run.clips, tuple(run.failures))


def extract_sentences(
    sentences: Iterable[str],
    backbone: Backbone,
    out: Path,
    *,
    batch_size: int = 32,
    precision: torch.dtype = torch.float32,
    dtype: str = "float16",
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Extraction:
    """Write the features of each distinct sentence that `out` lacks.

    Raises InputError before anything is written when a sentence cannot be used, and otherwise as `extract_videos`.
    """
    distinct, spec = list(dict.fromkeys(map(normalise, sentences))), backbone.spec
    with claim(out, "text"):
        todo = [sentence for sentence in distinct if not is_made(text_feature_path(out, sentence), spec)]
        encoded = encode_each(backbone.text, backbone.tokenizer(), todo, batch_size, precision)
        for done, (sentence, features) in enumerate(encoded, 1):
            stored = TextFeatures(_stored(features, dtype), sentence, spec)
            write_text_features(text_feature_path(out, sentence), stored)
            on_progress(Progress(done, len(todo), 0))
    return Extraction(len(todo), len(distinct) - len(todo))


def _to_make(videos: Mapping[str, Path], spec: FeatureSpec, out: Path, say: Callable[[str], None]) -> dict[str, Path]:
    """The videos whose features are not there, or are those of another file."""
    todo, unsure = {}, 0
    for vid, path in videos.items():
        stored = video_feature_path(out, vid)
        if not is_made(stored, spec):
            todo[vid] = Path(path)
            continue
        was, now = stored_source(stored), source_digest(Path(path))
        unsure += not was
        if was and now and was != now:
            say(f"{path}: is another file than its features were made of: they are made again")
            todo[vid] = Path(path)
    if unsure:
        say(
            f"{out / 'video'}: {unsure} feature files do not say of which video files they were made, and are kept; "
            "delete those whose videos were replaced since"
        )
    return todo


class _Run:
    """Puts the features of videos together as they come, and writes each video when its last clip is there."""

    def __init__(
        self,
        videos: Mapping[str, Path],
        spec: FeatureSpec,
        out: Path,
        dtype: str,
        on_progress: Callable[[Progress], None],
        say: Callable[[str], None],
    ) -> None:
        self._videos, self._spec, self._out, self._dtype = list(videos.items()), spec, out, dtype
        self._on_progress, self._say = on_progress, say
        self._parts: dict[int, list[np.ndarray]] = {}  # n K V, of videos that are not whole yet
        self._endings: dict[int, Ending] = {}  # of videos whose last clip is decoded
        self._failed: set[int] = set()
        self.made = self.clips = 0
        self.failures: list[Failure] = []

    def pieces(self, messages: Iterable[Piece | Unusable]) -> Iterator[tuple[int, np.ndarray]]:
        """What there is to encode; endings and failures are noted on the way."""
        for message in messages:
            if isinstance(message, Unusable):
                self._fail(message.video, message.reason)
                continue
            if message.ending is not None:
                self._endings[message.video] = message.ending
            yield message.video, message.clips

    def take(self, video: int, features: np.ndarray) -> None:
        """The next features of a video, n K V."""
        if video in self._failed:  # clips that were in a batch already
            return
        parts = self._parts.setdefault(video, [])
        parts.append(features)
        ending = self._endings.get(video)
        if ending is not None and sum(map(len, parts)) == ending.clips:
            self._finish(video, np.concatenate(parts), ending)

    def _finish(self, video: int, features: np.ndarray, ending: Ending) -> None:
        vid, path = self._videos[video]
        for line in ending.warnings:
            self._say(line)
        try:
            values = _stored(features, self._dtype)
            facts = {"decoder": decoder_name(), "source": ending.source}
            stored = VideoFeatures(values, ending.duration_s, self._spec, **facts)
        except InputError as error:
            self._fail(video, f"{path}: {error}")
            return
        write_video_features(video_feature_path(self._out, vid), stored)
        del self._parts[video], self._endings[video]
        self.made, self.clips = self.made + 1, self.clips + len(features)
        self._report()

    def _fail(self, video: int, reason: str) -> None:
        vid, path = self._videos[video]
        self._parts.pop(video, None)
        self._say(f"failed: {reason}")
        self._failed.add(video)
        self.failures.append(Failure(vid, str(path), reason))
        write_jsonl(self._out / FAILURES, [asdict(failure) for failure in self.failures])  # now: a run may be killed
        self._report()

    def _report(self) -> None:
        self._on_progress(Progress(self.made + len(self.failures), len(self._videos), self.clips))


def _stored(features: np.ndarray, dtype: str) -> np.ndarray:
    """The features in the type of the file. Raises InputError when they do not fit it."""
    with np.errstate(over="ignore"):
        stored = features.astype(dtype)
    if not np.isfinite(stored).all():
        raise InputError(f"features hold NaN or infinity in {dtype}; use --precision fp32 or --dtype float32")
    return stored
