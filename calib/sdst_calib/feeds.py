"""The inputs that real queries give each model of a bundle, one query at a time: no range should hold padding.

What the head gets is what the float32 projection makes, so that a fault is seen in the graph that has it. The vision
model takes frames, which a data set's features no longer hold: it is fed where the videos are named, with one clip a
query, from the middle of its moment. Shapes: T clips, K layers, L tokens.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np

from sdst_runtime.data.dataset import Sample, pad_inputs
from sdst_runtime.errors import InputError
from sdst_runtime.files import sha256_file
from sdst_runtime.grounding.bundle import DATA_SUFFIX, TOKENIZER, Bundle
from sdst_runtime.grounding.tokenizer import Tokenizer
from sdst_runtime.media.clips import ClipStream

from .taps import Feeds, Inputs

FED = ("text", "projection", "head")  # models that a data set's features and sentences reach


@dataclass(frozen=True)
class QueryFeeds:
    """The inputs that queries give the models of a float32 bundle."""

    bundle: Bundle
    samples: Sequence[Sample]
    videos: Mapping[str, Path] = field(default_factory=dict)  # by id; for the vision model

    @property
    def models(self) -> tuple[str, ...]:
        """What can be fed."""
        return ("vision", *FED) if self.videos else FED

    def of(self, model: str) -> Feeds:
        """The inputs of one of `models`, batch 1, one query after the other; of the projection one video after the
        other. Feeding vision raises InputError for a video that is missing or cannot be used."""
        return {"vision": self._clips, "text": self._sentences, "projection": self._videos, "head": self._queries}[
            model
        ]

    def model_sha256(self, model: str) -> str:
        """Digest of the model's files, and of the projection's where its result is the input."""
        return files_sha256(self.bundle, ("projection", "head") if model == "head" else (model,))

    def data_sha256(self, model: str) -> str:
        """Digest of what feeds a model: every feature and sentence; for vision every video and moment."""
        digest = hashlib.sha256()
        if model == "vision":
            for sample in self.samples:
                digest.update(f"{sha256_file(self._video(sample))} {_middle_s(sample)}".encode())
            return digest.hexdigest()
        for sample in self.samples:
            digest.update(sample.row["query"].encode())
            for array in (sample.video, sample.text):
                values = np.ascontiguousarray(array)
                digest.update(f"{values.dtype} {values.shape}".encode())
                digest.update(values.tobytes())
        return digest.hexdigest()

    def _clips(self) -> Iterator[Inputs]:
        return ({"clips": clip} for clip in self._middles)

    @cached_property
    def _middles(self) -> list[np.ndarray]:
        """Kept, as a large model is run in many passes: a clip is a megabyte, decoding up to it may take seconds."""
        return [self._middle(sample) for sample in self.samples]

    def _middle(self, sample: Sample) -> np.ndarray:
        spec = self.bundle.manifest.spec
        clips = islice(ClipStream(self._video(sample), spec, batch=1), int(_middle_s(sample) / spec.clip_s) + 1)
        (last,) = deque(clips, maxlen=1)
        return last

    def _video(self, sample: Sample) -> Path:
        vid = sample.row["vid"]
        if vid not in self.videos:
            raise InputError(f"video {vid!r}: expected it among the {len(self.videos)} of --videos; name their folder")
        return self.videos[vid]

    def _sentences(self) -> Iterator[Inputs]:
        tokenizer = Tokenizer.from_file(self.bundle.directory / TOKENIZER)
        for query in dict.fromkeys(sample.row["query"] for sample in self.samples):
            ids, mask = tokenizer.encode_batch([query], self.bundle.manifest.spec.max_tokens)
            yield {"token_ids": ids, "token_mask": mask}

    def _videos(self) -> Iterator[Inputs]:
        for sample in {sample.row["vid"]: sample for sample in self.samples}.values():
            inputs = self._padded(sample)
            yield {"video": inputs["video"], "video_mask": inputs["video_mask"]}

    def _queries(self) -> Iterator[Inputs]:
        with self.bundle.session("projection") as projection:
            for sample in self.samples:
                inputs = self._padded(sample)
                video = {name: inputs.pop(name) for name in ("video", "video_mask")}
                yield {**projection.run(video), "video_mask": video["video_mask"], **inputs}

    def _padded(self, sample: Sample) -> dict[str, np.ndarray]:
        return pad_inputs([sample.video], [sample.text], self.bundle.manifest.spec.layers)


def files_sha256(bundle: Bundle, models: Sequence[str]) -> str:
    """Digest of the files of some models, weights beside the graphs too; of one file its own."""
    names = [bundle.manifest.models[model] for model in models]
    files = [file for name in names for file in (name, name + DATA_SUFFIX) if file in bundle.manifest.files]
    digests = [bundle.manifest.files[file] for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most `count` samples, evenly over all. Raises InputError for a count below 1 and where there are none."""
    if count < 1:
        raise InputError(f"queries: expected at least 1, got {count}")
    if not samples:
        raise InputError("calibration data: expected at least one query, got none; give a split that has some")
    places = np.linspace(0, len(samples) - 1, min(count, len(samples))).round().astype(int)
    return [samples[place] for place in places]


def _middle_s(sample: Sample) -> float:
    windows = sample.row.get("relevant_windows") or [[0.0, sample.row["duration"]]]
    return (windows[0][0] + windows[0][1]) / 2
