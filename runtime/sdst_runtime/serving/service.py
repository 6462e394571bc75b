"""What the server does, without HTTP: encode videos, answer questions, say whether it can."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.requests import Request

from .counters import Counters
from .lanes import Lane, Places
from .limits import Limits
from .messages import Ask, Encode, Probe
from .process import STUCK_S, ModelProcess
from .refusals import Refusal
from .shelf import Names, names_in, video_under
from .uploads import path_under, receive_file
from .videos import EncodedVideos, KeptVideo

_PROBED_S = 5.0  # how long an inference that went well speaks for the model
_PROBE_TIMEOUT_S = 5.0
_LATE_S = STUCK_S + 1.0  # after which nothing more comes of an encoding that was given up
_SWEEP_S = 5.0  # between two looks at the age of videos


class Service:
    """The model's process, the lines before it, and the videos that it keeps. Made in the event loop's thread."""

    def __init__(self, bundle: Path, root: Path | None, folder: Path, limits: Limits, threads: int | None) -> None:
        """`folder` is for uploads and encoded videos and is emptied by whoever made it."""
        self.limits, self.counters, self.is_stopping = limits, Counters(), False
        self._root, self._folder = root, folder
        self.model = ModelProcess(bundle, threads, limits.encodings, self.counters)
        self.counters.model_ready.set_function(lambda: float(self.model.is_ready))
        self.encoding = Lane(
            "encode", self.model, limits.encodings, limits.uploads, limits.encode_timeout_s, self.counters
        )
        self.receiving = Places("receive", limits.receives)
        self.counters.receiving.set_function(lambda: float(self.receiving.taken))
        self.asking = Lane("ask", self.model, 1, limits.queue, limits.ask_timeout_s, self.counters)
        self.videos = EncodedVideos(folder, limits.memory_mib << 20, limits.age_s, self.model.forget, self.counters)
        self._answered_s = -_PROBED_S  # when an inference last went well
        self._probing: asyncio.Task[Any] | None = None

    async def upload(self, request: Request) -> KeptVideo:
        """Receive a request's body and encode it: a place in the line is taken when all is here. Raises Refusal."""
        self.encoding.require_place()  # who would be refused after sending all is better refused before
        name, kept = self.videos.place()
        path = self._folder / f"{name}.upload"
        try:
            with self.receiving.place():
                await receive_file(request, path, self.limits)
            with self.encoding.place():
                return await self._encode(path, "the upload", name, kept)
        finally:
            path.unlink(missing_ok=True)

    async def names(self, folder: str, after: str, part: str) -> Names:
        """Names of videos and folders under the root. Raises Refusal."""
        return await asyncio.to_thread(names_in, self._root, folder, after, part)

    async def file(self, stated: str) -> Path:
        """A video under the root, to be sent as it is. Raises Refusal."""
        return await asyncio.to_thread(video_under, self._root, stated)

    async def take(self, stated: str) -> KeptVideo:
        """Encode a file under the root. Raises Refusal."""
        path = await asyncio.to_thread(path_under, self._root, stated)
        with self.encoding.place():
            return await self._encode(path, stated, *self.videos.place())

    async def _encode(self, path: Path, shown: str, name: str, kept: Path) -> KeptVideo:
        try:
            encoded = await self.encoding.do(Encode(path, shown, kept, self.limits.video_s))
        except Refusal:  # the model may be done with it all the same, a moment too late
            asyncio.get_running_loop().call_later(_LATE_S, self.videos.drop, kept)
            raise
        self._answered_s = time.monotonic()
        return self.videos.add(name, kept, encoded)

    async def ask(self, name: str, sentences: list[str], threshold: float | None = None) -> str:
        """The JSON of `sdst ground` about a kept video. Raises Refusal."""
        most = self.limits.sentences
        if not 1 <= len(sentences) <= most:
            raise Refusal("bad_sentence", f"sentences: expected 1 to {most}, got {len(sentences):,}; ask in parts")
        video = self.videos.get(name)
        with self.asking.place():
            answer = await self.asking.do(Ask(video.file, name, tuple(sentences), threshold))
        self._answered_s = time.monotonic()
        return answer

    async def require_ready(self) -> None:
        """Raise Refusal unless the models ran a moment ago, or do now."""
        if self.is_stopping or not self.model.is_ready:
            raise Refusal("not_ready", "the model is not ready: it starts, or the server stops", 1)
        if time.monotonic() - self._answered_s < _PROBED_S:
            return
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self.model.do(Probe(), self.limits.ask_timeout_s))
        done, _ = await asyncio.wait([self._probing], timeout=_PROBE_TIMEOUT_S)
        if not done:
            raise Refusal("not_ready", f"an inference did not end within {_PROBE_TIMEOUT_S:g} s", 1)
        self._probing.result()
        self._answered_s = time.monotonic()

    async def sweep(self) -> None:
        """Drop old videos, for ever."""
        while True:
            await asyncio.sleep(min(_SWEEP_S, self.limits.age_s))
            self.videos.expire()

    def stop(self) -> None:
        """End the model's process."""
        with suppress(OSError):
            self.model.stop()
