"""From a video file and sentences to moments: the whole line behind two calls.

`encode` a video once, `ground` it many times. Shapes: T clips, K layers, V video width, B queries, L tokens.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .bundle import TOKENIZER, Bundle
from .contracts import Grounding, VideoFeatures
from .decode import decode
from .errors import InputError
from .media import ClipStream
from .text import Tokenizer

VISION_BATCH = 16  # clips that the vision model gets at once


class Timings:
    """Seconds of each stage, a sample a call."""

    def __init__(self) -> None:
        self.samples: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block as one sample of `name`."""
        start = time.perf_counter()
        yield
        self.samples[name].append(time.perf_counter() - start)


class Grounder:
    """Grounds sentences in videos with the models of one bundle. Not thread-safe: one a worker.

    `timings` holds the seconds of decode and vision (a sample a video) and of text and head (a sample a call of
    `ground` or `ground_batch`); `warnings` what was wrong with the last video and what was done about it.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self.bundle, self.spec = bundle, bundle.manifest.spec
        self.tokenizer = Tokenizer.from_file(bundle.directory / TOKENIZER)
        self.vision, self.text, self.head = (bundle.session(name, threads) for name in ("vision", "text", "head"))
        self.timings = Timings()
        self.warnings: list[str] = []

    @classmethod
    def load(cls, bundle: str | Path, threads: int | None = None) -> Grounder:
        """Open a bundle; `threads` for each model, default all cores.

        Raises InputError or ContractError when a file is missing, changed or made under another contract, and
        DependencyError when a package is missing.
        """
        return cls(Bundle.open(bundle), threads)

    def encode(self, path: str | Path) -> VideoFeatures:
        """Features of a video file, T K V. Raises InputError when it cannot be decoded."""
        stream = ClipStream(path, self.spec, batch=VISION_BATCH)
        decode_s = vision_s = 0.0
        pieces = []
        last = time.perf_counter()
        for clips in stream:
            decoded = time.perf_counter()
            pieces.append(self.vision.run({"clips": clips})["features"])
            decode_s, vision_s = decode_s + decoded - last, vision_s + time.perf_counter() - decoded
            last = time.perf_counter()
        self.timings.samples["decode"].append(decode_s + time.perf_counter() - last)
        self.timings.samples["vision"].append(vision_s)
        self.warnings = stream.warnings
        return VideoFeatures(np.concatenate(pieces), stream.duration_s, self.spec)

    def ground(self, video: VideoFeatures, query: str) -> Grounding:
        """Moments and saliency for one sentence. Raises InputError for a sentence that cannot be used."""
        return self.ground_batch(video, [query])[0]

    def ground_batch(self, video: VideoFeatures, queries: Sequence[str]) -> list[Grounding]:
        """One answer a sentence, in order, from one run of the text model and one of the head.

        Raises InputError for a sentence that cannot be used or an empty list, ContractError for features that were
        made under another contract than the bundle's.
        """
        if isinstance(queries, str):
            raise InputError("queries: expected a list of sentences, got one; use ground() for one")
        video.spec.require(self.spec, have="the video features", need="the bundle")
        with self.timings.stage("text"):
            ids, mask = self.tokenizer.encode_batch(queries, self.spec.max_tokens)
            text = self.text.run({"token_ids": ids, "token_mask": mask})["features"]
        with self.timings.stage("head"):
            features = video.features[:, -self.spec.layers :].astype(np.float32, copy=False)
            B, T = len(queries), len(features)
            inputs = {
                "video": np.broadcast_to(features, (B, *features.shape)),
                "video_mask": np.ones((B, T), bool),
                "text": text,
                "text_mask": mask,
            }
            outputs = self.head.run(inputs)
        return decode(outputs, queries, [T] * B, [video.duration_s] * B, self.spec.clip_s)
