"""From a video file and sentences to moments: the whole line behind a few calls.

`encode` a video once, ask it many times: what the head computes from the video alone is kept with the video. Videos
longer than the head takes are grounded in windows (windows.py). Shapes: T clips, n clips of a window, K layers, V video
width, F width of the head, B rows of a batch, L tokens, X text width.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np

from ..contracts import EncodedVideo, Grounding, ProjectedVideo, VideoFeatures, require_projection
from ..errors import InputError
from ..media.clips import decoder_name, promised_clips
from ..media.memory import NAME, FrameStream
from ..media.workers import Ending, Piece, Unusable, decode_pieces, pieces_of
from ..sessions.base import PROJECTED, ClosedAtEnd, GroundingModel, Session, limit_of
from .bundle import TOKENIZER, Bundle
from .decode import PRESENCE, decode, require_finite
from .inputs import Askable, OnProgress, Source, copied, counted, refusal, require_queries
from .kept import KeptVideos
from .scores import without_absent
from .timings import Clock, Timings
from .tokenizer import Tokenizer
from .windows import SMALLEST, merge, require_window, split

MOST_CLIPS = 1200  # of a window, where the head's file does not say how many it takes (`sdst.max_clips`)
MOST_ROWS = 32  # of a batch, where the head's file does not say how many it takes (`sdst.max_batch`)
CLIP_PAIRS = 3_000_000  # of a batch: the head's memory is that of its attention between clips, B n n


class Grounder(ClosedAtEnd):
    """Grounds sentences in videos with the models of one bundle. A context manager; closed at its end.

    Several threads may share one where the sessions may be shared, as those of ONNX Runtime and TensorRT may; nothing
    of a video or a question is kept in memory. `timings` holds the seconds of decode, vision and projection (a sample a
    video) and of text and head (a sample a call of `ground`, `ground_batch` or `ground_many`).
    """

    def __init__(
        self, bundle: str | Path | Bundle, threads: int | None = None, *, window_clips: int | None = None,
        cache: str | Path | None = None, vision: bool = True, threshold: float | None = None,
    ) -> None:  # fmt: skip
        """See `load`, which does the same. Without `vision` the vision model, the largest, is not opened: it can be
        asked about videos that are encoded or projected already.
        """
        bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self.bundle, self.spec = bundle, bundle.manifest.spec
        self.tokenizer = Tokenizer.from_file(bundle.directory / TOKENIZER)
        self.vision, self.text, self.grounding_model = _opened(bundle, threads, vision)
        self.timings = Timings()
        head = self.grounding_model.head
        self.most_rows = _limit(head, "sdst.max_batch", MOST_ROWS)
        most_clips = _limit(head, "sdst.max_clips", MOST_CLIPS)
        usual, longest = (_limit(head, f"sdst.{name}_clips", most_clips) for name in ("usual", "longest"))
        self.window_clips = max(min(usual, most_clips), SMALLEST) if window_clips is None else window_clips
        self.whole_clips = min(longest, most_clips) if window_clips is None else window_clips
        if self.window_clips > most_clips:
            raise InputError(f"window: expected at most {most_clips} clips, which the head takes, got {window_clips}")
        require_window(self.window_clips)
        self._projection_sha256 = bundle.manifest.files[bundle.manifest.models["projection"]]
        self.kept = None if cache is None else self._kept_in(Path(cache))
        self.scores, self.threshold = bundle.scores(), threshold
        if threshold is not None:
            self.require_threshold(threshold)

    @classmethod
    def load(
        cls, bundle: str | Path, threads: int | None = None, *, window_clips: int | None = None,
        cache: str | Path | None = None, threshold: float | None = None,
    ) -> Grounder:  # fmt: skip
        """Open a bundle; `threads` for each model, default all cores.

        A video of more than `window_clips` clips is grounded in windows of that many. Default: a video longer than all
        that the model was trained on, in windows of their median length; where a bundle does not tell these, a video of
        more clips than the head takes, in windows of as many. `cache`: a folder where encoded video files are kept; a
        file of the same content is read from there. With `threshold` an answer whose presence is lower has no moments:
        nothing was found. Raises InputError or ContractError when a file is missing, changed
        or made under another contract, and DependencyError when a package is missing.
        """
        return cls(bundle, threads, window_clips=window_clips, cache=cache, threshold=threshold)

    def encode(
        self, video: Source, timestamps_s: Sequence[float] | np.ndarray | None = None, *,
        on_progress: OnProgress | None = None,
    ) -> EncodedVideo:  # fmt: skip
        """A video ready for questions: of a path, a binary file object, or frames uint8 [N, H, W, 3] in RGB.

        Each frame has its time in `timestamps_s`, seconds that rise; a file has none. A file object is read to its end
        and copied to a temporary file. `on_progress` hears of (clips done, all clips as the file's header has it).
        Raises InputError when the video cannot be decoded, or for anything else.
        """
        if isinstance(video, np.ndarray):
            if timestamps_s is None:
                raise InputError("timestamps_s: expected the time of each frame in seconds, got none")
            pieces = pieces_of(0, FrameStream(video, timestamps_s, self.spec))
            return self._encode(NAME, self._timed(pieces), 0, on_progress)
        if timestamps_s is not None:
            raise InputError("timestamps_s: expected with frames (uint8 [N, H, W, 3]) only, a file has its own")
        if isinstance(video, str | os.PathLike):
            return self._encode_file(Path(video), on_progress)
        if not callable(getattr(video, "read", None)):
            raise refusal(video)
        with copied(video) as (path, name):
            try:
                encoded = self._encode_file(path, on_progress)
            except InputError as error:
                raise InputError(str(error).replace(str(path), name)) from error
            return replace(encoded, warnings=tuple(line.replace(str(path), name) for line in encoded.warnings))

    def _encode_file(self, path: Path, on_progress: OnProgress | None) -> EncodedVideo:
        place = None if self.kept is None else self.kept.place(path)
        encoded = None if self.kept is None else self.kept.find(place)
        if encoded is None:
            promised = promised_clips(path, self.spec) if on_progress is not None else 0
            encoded = self._encode(path, self.decode(path), promised, on_progress)
            encoded = encoded if self.kept is None else self.kept.keep(place, encoded)
        return encoded

    def _encode(
        self, name: str | Path, pieces: Iterator[Piece | Unusable], promised: int, on_progress: OnProgress | None
    ) -> EncodedVideo:
        if on_progress is None:
            return self.project(*self.see(name, pieces))
        done = 0

        def tell(clips: int) -> None:
            nonlocal done
            done += clips
            on_progress(done, max(promised, done))

        on_progress(0, promised)
        encoded = self.project(*self.see(name, counted(pieces, tell)))
        on_progress(len(encoded.features), len(encoded.features))
        return encoded

    def decode(self, path: str | Path, video: int = 0) -> Iterator[Piece | Unusable]:
        """The clips of a video file, in pieces that carry the number `video`: the first step of `encode`."""
        return self._timed(decode_pieces(video, Path(path), self.spec, threads=0))

    def _timed(self, pieces: Iterator[Piece | Unusable]) -> Iterator[Piece | Unusable]:
        with self.timings.call() as clock:
            while True:
                with clock.stage("decode"):
                    piece = next(pieces)
                if isinstance(piece, Unusable) or piece.ending is not None:
                    break
                yield piece
        yield piece  # the last one, once the sample is complete

    def see(self, path: str | Path, pieces: Iterable[Piece | Unusable]) -> tuple[VideoFeatures, tuple[str, ...]]:
        """What the vision model makes of a video's pieces, and what was wrong with the file: the second step.

        Raises InputError when the file cannot be used, or without a vision model.
        """
        if self.vision is None:
            raise InputError("encoding: this Grounder was opened without the vision model; open it with vision=True")
        features: list[np.ndarray] = []
        with self.timings.call() as clock:
            for piece in pieces:
                if isinstance(piece, Unusable):
                    raise InputError(piece.reason)
                with clock.stage("vision"):
                    features.append(self._run("vision", self.vision, {"clips": piece.clips}, "features"))
                if piece.ending is not None:  # `pieces` may wait for another video before it says that it is at its end
                    return self._whole(path, features, piece.ending), piece.ending.warnings
        raise AssertionError("a video ends with an ending")

    def project(self, video: VideoFeatures, warnings: Sequence[str] = ()) -> EncodedVideo:
        """Features at hand, ready for questions; `warnings` go with them.

        Raises ContractError for features that were made under another contract than the bundle's.
        """
        video.spec.require(self.spec, have="the video features", need="the bundle")
        features = video.features[:, -self.spec.layers :]
        whole = len(features) <= self.whole_clips
        windows = split(len(features), max(len(features), SMALLEST) if whole else self.window_clips)
        projected: list[np.ndarray] = []
        with self.timings.call() as clock, clock.stage("projection"):
            for some in batches([window.clips for window in windows], self.most_rows):
                pieces = [features[window.start : window.stop] for window in windows[some]]
                clips, mask = _padded([piece.astype(np.float32, copy=False) for piece in pieces])
                inputs = {"video": clips, "video_mask": mask}
                projected.extend(self._run("projection", self.grounding_model.projection, inputs, PROJECTED, mask))
        return EncodedVideo(
            video.features, video.duration_s, video.spec, windows, tuple(projected), self._projection_sha256,
            tuple(warnings), decoder=video.decoder,
        )  # fmt: skip

    @overload
    def ground(self, video: Askable, query: str) -> Grounding: ...

    @overload
    def ground(self, video: Askable, query: list[str] | tuple[str, ...]) -> list[Grounding]: ...

    def ground(self, video: Askable, query: str | list[str] | tuple[str, ...]) -> Grounding | list[Grounding]:
        """Moments and saliency for one sentence, or for each of a list. Raises what `ground_many` does.

        A path or file object is encoded at every call, unless it is kept in `cache`: `encode` it once to ask again.
        """
        return self.ground_batch(video, [query])[0] if isinstance(query, str) else self.ground_batch(video, query)

    def ground_batch(self, video: Askable, queries: Sequence[str]) -> list[Grounding]:
        """One answer a sentence, in order, computed together. Raises what `ground_many` does."""
        return self.ground_many([(video, queries)])[0]

    def ground_many(self, jobs: Sequence[tuple[Askable, Sequence[str]]]) -> list[list[Grounding]]:
        """For each video, in order, one answer a sentence, in order. Sentences of different videos share batches.

        Memory beyond the videos and the answers is bounded. A video that is no EncodedVideo is encoded or projected
        first; `encode` or `project` it yourself to ask again. Raises InputError for a video or sentence that cannot be
        used or an empty list, ContractError for a video encoded with another bundle.
        """
        for _, queries in jobs:
            require_queries(queries)
            for query in queries:
                self.check(query)
        videos = [self._ready(video) for video, _ in jobs]
        questions = [_Question(video, query) for video, (_, queries) in zip(videos, jobs) for query in queries]
        order = sorted(range(len(questions)), key=lambda i: questions[i].video.windows[0].clips)
        answers: dict[int, Grounding] = {}
        with self.timings.call() as clock:
            for start in range(0, len(order), self.most_rows):
                some = order[start : start + self.most_rows]
                answers.update(zip(some, self._answer([questions[i] for i in some], clock)))
        left = iter(range(len(questions)))
        return [[answers[next(left)] for _ in queries] for _, queries in jobs]

    def check(self, query: str) -> None:
        """Raise InputError for a sentence that cannot be used, as asking it would, before any model runs."""
        self.tokenizer.encode(query, self.spec.max_tokens)
        self.tokenizer.require_known(query)

    def require_threshold(self, threshold: float) -> None:
        """Raise InputError unless it is a probability and the bundle says whether an event is in a video."""
        if not 0 <= threshold <= 1:
            raise InputError(f"threshold: expected a probability of 0 to 1, got {threshold}")
        if PRESENCE not in self.grounding_model.outputs:
            raise InputError(
                f"threshold: {self.bundle.directory} does not say whether an event is there; train with "
                "--data.negatives 0.33 and export again"
            )

    def read(self, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """What the text model makes of sentences, B K L X float32, and which tokens are valid, B L bool.

        Raises InputError for one that cannot be used.
        """
        ids, mask = self.tokenizer.encode_batch(sentences, self.spec.max_tokens)
        valid = np.repeat(mask[:, None], self.spec.layers, axis=1)  # B K L
        return self._run("text", self.text, {"token_ids": ids, "token_mask": mask}, "features", valid), mask

    def close(self) -> None:
        """Give back what the models hold; a second call does nothing."""
        for session in (self.vision, self.text, self.grounding_model):
            if session is not None:
                session.close()

    def _whole(self, path: str | Path, features: Sequence[np.ndarray], ending: Ending) -> VideoFeatures:
        try:
            return VideoFeatures(
                np.concatenate(features), ending.duration_s, self.spec, decoder=decoder_name(), source=ending.source
            )
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def _ready(self, video: Askable) -> EncodedVideo | ProjectedVideo:
        if not isinstance(video, EncodedVideo | ProjectedVideo):
            return self.project(video) if isinstance(video, VideoFeatures) else self.encode(video)
        video.spec.require(self.spec, have="the video features", need="the bundle")
        require_projection("the encoded video", video.projection_sha256, self._projection_sha256)
        return video

    def _kept_in(self, directory: Path) -> KeptVideos:
        windows = {"windows": f"{self.window_clips} of more than {self.whole_clips}"}
        made_with = self.bundle.digests("vision", "projection") | windows
        return KeptVideos(directory, self.spec, self._projection_sha256, made_with)

    def _answer(self, questions: Sequence[_Question], clock: Clock) -> list[Grounding]:
        """One answer a question, from one run of the text model and as many of the head as memory asks for."""
        sentences = list(dict.fromkeys(question.query for question in questions))
        with clock.stage("text"):
            text, text_mask = self.read(sentences)
        place = {sentence: i for i, sentence in enumerate(sentences)}
        rows = [_Row(i, q.video, w, q.query) for i, q in enumerate(questions) for w in range(len(q.video.windows))]
        parts: list[list[Grounding]] = [[] for _ in questions]  # of each question, an answer a window
        for some in batches([row.clips for row in rows], self.most_rows):
            batch = rows[some]
            which = [place[row.query] for row in batch]
            with clock.stage("head"):
                projected, video_mask = _padded([row.projected for row in batch])
                inputs = {"video_mask": video_mask, "text": text[which], "text_mask": text_mask[which]}
                outputs = self.grounding_model.head.run({PROJECTED: projected, **inputs})
            model = self.bundle.manifest.models["head"]
            for row, answer in zip(batch, _decoded(outputs, batch, self.spec.clip_s, model)):
                parts[row.question].append(answer)
        merged = (merge(question.video.windows, answers) for question, answers in zip(questions, parts))
        return [self._finished(answer) for answer in merged]

    def _finished(self, answer: Grounding) -> Grounding:
        """With probabilities where the bundle has them, and without moments where nothing was found."""
        answer = replace(answer, unknown_words=self.tokenizer.unknown_words(answer.query))
        answer = answer if self.scores is None else self.scores.apply(answer)
        return answer if self.threshold is None else without_absent(answer, self.threshold)

    def _run(
        self, name: str, model: Session, inputs: Mapping[str, np.ndarray], output: str, mask: np.ndarray | None = None
    ) -> np.ndarray:
        """One output of a model of the bundle. Raises SessionError unless it is finite (where `mask` is true)."""
        values = model.run(inputs)[output]
        require_finite(self.bundle.manifest.models[name], output, values if mask is None else values[mask])
        return values


def _opened(bundle: Bundle, threads: int | None, vision: bool) -> tuple[Session | None, Session, GroundingModel]:
    """Vision (None without), text, projection with head. The head's graph takes longest to open: beside the others."""

    def towers() -> tuple[Session | None, Session]:
        return bundle.session("vision", threads) if vision else None, bundle.session("text", threads)

    if bundle.path("head").suffix != ".onnx":  # engines share one GPU context, which is the thread's
        return *towers(), bundle.grounding_model(threads)
    with ThreadPoolExecutor(1) as beside:
        opening = beside.submit(bundle.grounding_model, threads)
        return *towers(), opening.result()


@dataclass(frozen=True)
class _Question:
    video: EncodedVideo | ProjectedVideo
    query: str


@dataclass(frozen=True)
class _Row:
    """A row of the head's batch: a question about one window of its video."""

    question: int
    video: EncodedVideo | ProjectedVideo
    window: int
    query: str

    @property
    def clips(self) -> int:
        return self.video.windows[self.window].clips

    @property
    def projected(self) -> np.ndarray:
        return self.video.projected[self.window]


def batches(lengths: Sequence[int], most_rows: int) -> Iterator[slice]:
    """Rows of so many clips, in order, as many at once as the head and its memory allow, and at least one."""
    start = longest = 0
    for row, length in enumerate(lengths):
        longest = max(longest, length)
        if row > start and (row - start == most_rows or (row + 1 - start) * longest**2 > CLIP_PAIRS):
            yield slice(start, row)
            start, longest = row, length
    if lengths:
        yield slice(start, len(lengths))


def _decoded(outputs: Mapping[str, np.ndarray], rows: Sequence[_Row], clip_s: float, model: str) -> list[Grounding]:
    """The head's rows as answers about windows, in which time 0 is the window's start."""
    starts_s = [row.video.windows[row.window].start * clip_s for row in rows]
    lengths_s = [max(0.0, row.video.duration_s - start_s) for row, start_s in zip(rows, starts_s)]
    return decode(outputs, [row.query for row in rows], [row.clips for row in rows], lengths_s, clip_s, model)


def _padded(pieces: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Arrays of n clips each as one, B T ..., zero at the end, and the mask of what is valid, B T."""
    lengths = np.array([len(piece) for piece in pieces])
    mask = np.arange(lengths.max()) < lengths[:, None]
    if mask.all():
        return np.stack(pieces), mask
    rows = np.zeros((*mask.shape, *pieces[0].shape[1:]), pieces[0].dtype)
    for row, piece in zip(rows, pieces):
        row[: len(piece)] = piece
    return rows, mask


def _limit(model: Session, key: str, default: int) -> int:
    """What an engine's metadata says of its profiles; ONNX files take any size."""
    return limit_of(model, key, default)
