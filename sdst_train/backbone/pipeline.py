"""Features of many files: each video in one worker process, each distinct sentence once, nothing made twice.

A file that is already there, made under the same contract, is kept: an interrupted extraction goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import torch

from sdst_runtime.contracts import FeatureSpec, TextFeatures, VideoFeatures
from sdst_runtime.errors import InputError, SdstError
from sdst_runtime.features import (
    read_video_features,
    text_feature_path,
    video_feature_path,
    write_text_features,
    write_video_features,
)
from sdst_runtime.machine import interrupts_ignored, usable_cores
from sdst_runtime.media import ClipStream

from .extract import encode_clips, encode_sentences
from .towers import Backbone, load_backbone
from .vision import Pool


def extract_videos(
    videos: Mapping[str, Path],
    backbone_path: Path,
    out: Path,
    workers: int | None = None,
    on_video: Callable[[int, int], None] = lambda done, total: None,
    pool: Pool | None = None,
) -> list[str]:
    """Write out/video/{vid}.safetensors for every video id and file; returns what was wrong with files, a line each.

    Raises InputError for a video that cannot be used. `on_video` gets (done, total); `workers` default to all cores,
    `pool` to the backbone's own.
    """
    workers = workers or usable_cores()
    warnings: list[str] = []
    jobs = [(vid, path, out) for vid, path in videos.items()]
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (backbone_path, pool)) as executor:
        try:
            with interrupts_ignored():
                results = executor.map(_extract_video, jobs, chunksize=4)
            for done, lines in enumerate(results, 1):
                warnings += lines
                on_video(done, len(jobs))
        except BrokenProcessPool as error:
            raise InputError("a worker that extracts features died (out of memory?): use fewer workers") from error
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise
    return warnings


def extract_sentences(sentences: Iterable[str], backbone: Backbone, out: Path) -> None:
    """Write out/text/{digest}.safetensors for each distinct sentence. Raises InputError for an unusable one."""
    distinct = list(dict.fromkeys(sentences))
    features = encode_sentences(backbone.text, backbone.tokenizer(), distinct)
    for sentence, array in zip(distinct, features, strict=True):
        write_text_features(text_feature_path(out, sentence), TextFeatures(array, sentence, backbone.spec))


_backbone: Backbone  # of this worker process


def _start_worker(backbone_path: Path, pool: Pool | None) -> None:
    global _backbone
    torch.set_num_threads(1)
    _backbone = load_backbone(backbone_path, pool)


def _extract_video(job: tuple[str, Path, Path]) -> list[str]:
    vid, path, out = job
    target = video_feature_path(out, vid)
    if _is_made(target, _backbone.spec):
        return []
    stream = ClipStream(path, _backbone.spec, threads=1)
    features = encode_clips(_backbone.vision, stream)
    write_video_features(target, VideoFeatures(features, stream.duration_s, _backbone.spec))
    return stream.warnings


def _is_made(path: Path, spec: FeatureSpec) -> bool:
    try:
        return path.is_file() and read_video_features(path).spec == spec
    except SdstError:  # broken or older: made again
        return False
