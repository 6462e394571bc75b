"""The process of the model: it encodes videos and answers questions, and ends when the server does.

Questions are answered one after the other, so that an answer is that of `sdst ground` to the bit; encoding goes on
beside them. Encoded videos are kept in memory and as files, from which a process that follows a dead one reads them.
"""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from ..children import end_with_parent
from ..contracts import EncodedVideo
from ..errors import InputError, SdstError
from ..grounding.decode import answer_json
from ..grounding.grounder import Grounder
from ..grounding.scores import without_absent
from ..strict_json import dump_json
from .messages import Ask, Cancel, Encode, Encoded, Fault, Forget, Probe, Ready, Reply, Unusable, Work


class _Stopped(Exception):
    """Work that ends early, for this reason."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.fault = Fault(code, message)


def run_model(pipe: Connection, bundle: Path, threads: int | None, encodings: int, parent: int) -> None:
    """Answer what comes through the pipe until its other end is closed."""
    end_with_parent(parent)
    for number in (signal.SIGINT, signal.SIGTERM):  # the server ends this process when its requests are done
        signal.signal(number, signal.SIG_IGN)
    try:
        model = Model(bundle, threads)
        model.do(0, Probe())
    except SdstError as error:
        pipe.send(Unusable(str(error)))
        return
    pipe.send(Ready())
    _Desk(pipe, model, encodings).serve()


class _Desk:
    """Gives what comes to threads, and sends what they answer."""

    def __init__(self, pipe: Connection, model: Model, encodings: int) -> None:
        self._pipe, self._model, self._sending = pipe, model, threading.Lock()
        self._asking = ThreadPoolExecutor(1, "ask")
        self._encoding = ThreadPoolExecutor(encodings, "encode")

    def serve(self) -> None:
        while True:
            try:
                number, message = self._pipe.recv()
            except (EOFError, OSError):
                os._exit(0)  # nobody waits for what the threads are at
            if isinstance(message, Cancel):
                self._model.cancelled.add(message.number)
            elif isinstance(message, Forget):
                self._model.forget(message.kept)
            else:
                (self._encoding if isinstance(message, Encode) else self._asking).submit(self._do, number, message)

    def _do(self, number: int, work: Work) -> None:
        try:
            value = self._model.do(number, work)
        except _Stopped as stop:
            value = stop.fault
        except InputError as error:
            value = Fault("bad_video" if isinstance(work, Encode) else "bad_sentence", str(error))
        except Exception as error:  # noqa: BLE001  one request ends no others
            value = Fault("failed", str(error) if isinstance(error, SdstError) else repr(error))
        if isinstance(work, Encode) and isinstance(value, Fault):
            value = Fault(value.code, value.message.replace(str(work.path), work.name))
        with self._sending:
            self._pipe.send(Reply(number, value, self._model.seconds()))


class Model:
    """A Grounder and the videos that it keeps."""

    def __init__(self, bundle: Path, threads: int | None) -> None:
        self._grounder = Grounder.load(bundle, threads)
        self._videos: dict[Path, EncodedVideo] = {}
        self.cancelled: set[int] = set()

    def do(self, number: int, work: Work) -> Encoded | str | None:
        """The answer. Raises SdstError or _Stopped when there is none."""
        if isinstance(work, Encode):
            return self._encode(number, work)
        return self._ask(work) if isinstance(work, Ask) else self._probe()

    def forget(self, kept: tuple[Path, ...]) -> None:
        """Drop videos from memory."""
        for path in kept:
            self._videos.pop(path, None)

    def seconds(self) -> tuple[tuple[str, float], ...]:
        """The samples of every stage, each given once."""
        taken = []
        for stage, samples in list(self._grounder.timings.samples.items()):
            while samples:
                taken.append((stage, samples.popleft()))
        return tuple(taken)

    def _encode(self, number: int, work: Encode) -> Encoded:
        clip_s = self._grounder.spec.clip_s

        def watch(done: int, total: int) -> None:
            if number in self.cancelled:
                raise _Stopped("timeout", f"{work.name}: encoding was given up; give a shorter video")
            if max(done, total) * clip_s >= work.longest_s + clip_s:
                raise _Stopped(
                    "video_too_long",
                    f"{work.name}: expected at most {work.longest_s:g} s of video, got {max(done, total) * clip_s:.0f} "
                    "s; cut it",
                )

        try:
            video = self._grounder.encode(work.path, on_progress=watch)
        finally:
            self.cancelled.discard(number)
        try:
            video.save(work.kept)
        except InputError as error:
            raise _Stopped("no_space", str(error)) from error
        self._videos[work.kept] = video
        warnings = tuple(line.replace(str(work.path), work.name) for line in video.warnings)
        return Encoded(video.duration_s, clip_s, len(video.features), video.size_bytes, warnings)

    def _ask(self, work: Ask) -> str:
        for sentence in work.sentences:  # before the video is looked for: what is wrong with a sentence stays wrong
            self._grounder.check(sentence)
        if work.threshold is not None:
            self._require_threshold(work.threshold)
        video = self._kept(work)
        answers = self._grounder.ground_batch(video, work.sentences)
        if work.threshold is not None:
            answers = [without_absent(answer, work.threshold) for answer in answers]
        return dump_json(answer_json(work.name, video, answers))

    def _require_threshold(self, threshold: float) -> None:
        try:
            self._grounder.require_threshold(threshold)
        except InputError as error:  # it names the bundle's folder, which is nobody's business
            said = str(error).replace(str(self._grounder.bundle.directory), "this server's model")
            raise _Stopped("bad_threshold", said) from error

    def _kept(self, work: Ask) -> EncodedVideo:
        video = self._videos.get(work.kept)
        if video is None:
            if not work.kept.is_file():
                raise _Stopped("video_unknown", f"{work.name}: this video is no longer kept; give it again")
            video = self._videos[work.kept] = EncodedVideo.load(work.kept)
        return video

    def _probe(self) -> None:
        size = self._grounder.spec.image_size
        frames = np.zeros((2, size, size, 3), np.uint8)
        video = self._grounder.encode(frames, [0.0, self._grounder.spec.clip_s])
        self._grounder.ground_batch(video, [self._grounder.tokenizer.known_word()])
