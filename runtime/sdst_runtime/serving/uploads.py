"""Videos that arrive: the body of a request into a file, or a path under the server's root."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from starlette.requests import ClientDisconnect, Request

from .limits import Limits
from .refusals import Refusal
from .roots import path_inside

BODY_BYTES = 1 << 20  # of a request with JSON
_BODY_S = 10.0  # in which it must have arrived
_WHILE_S = 10.0  # over which the least rate of an upload is looked at
_BLOCK = 1 << 20  # bytes that are written at once


class _Pace:
    """How long to wait for the next bytes: all must be here in time, and every while must bring enough of them."""

    def __init__(self, limits: Limits) -> None:
        self._end_s = time.monotonic() + limits.receive_timeout_s
        self._least_bytes = limits.receive_kib_s * 1024 * _WHILE_S
        self._begin()

    def _begin(self) -> None:
        self._while_end_s, self._got = time.monotonic() + _WHILE_S, 0

    def add(self, count: int) -> None:
        self._got += count
        if self._got >= self._least_bytes:
            self._begin()

    def left_s(self) -> float:
        return max(0.0, min(self._end_s, self._while_end_s) - time.monotonic())


async def receive_file(request: Request, path: Path, limits: Limits) -> None:
    """Stream a request's body into a file. Raises Refusal."""
    most_bytes = limits.upload_mib << 20
    require_length(request, most_bytes)
    try:
        got = await _stream(request, path, most_bytes, _Pace(limits))
    except asyncio.TimeoutError as error:
        raise Refusal(
            "receive_timeout",
            f"expected the upload within {limits.receive_timeout_s:g} s and {limits.receive_kib_s:g} KiB a second; "
            "send it faster",
        ) from error
    except ClientDisconnect as error:
        raise Refusal("upload_cut", "the connection ended in the middle of the upload; send it again") from error
    except OSError as error:
        said = f"the upload cannot be stored ({error.strerror or error}); send a smaller one, or later"
        raise Refusal("no_space", said) from error
    if not got:
        raise Refusal("bad_video", "expected the bytes of a video as the body, got none")


async def _stream(request: Request, path: Path, most_bytes: int, pace: _Pace) -> int:
    got, block, pieces = 0, bytearray(), request.stream()
    with path.open("wb") as file:
        while (piece := await asyncio.wait_for(anext(pieces, None), pace.left_s())) is not None:
            got += len(piece)
            pace.add(len(piece))
            if got > most_bytes:
                raise _too_large(most_bytes)
            block += piece
            if len(block) >= _BLOCK:
                await asyncio.to_thread(file.write, block)
                block = bytearray()
        await asyncio.to_thread(file.write, block)
    return got


async def read_body(request: Request) -> bytes:
    """A small body. Raises Refusal."""
    require_length(request, BODY_BYTES)

    async def read() -> bytes:
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > BODY_BYTES:
                raise _too_large(BODY_BYTES)
        return bytes(body)

    try:
        return await asyncio.wait_for(read(), _BODY_S)
    except asyncio.TimeoutError as error:
        raise Refusal("receive_timeout", f"the body took longer than {_BODY_S:g} s; send it faster") from error
    except ClientDisconnect as error:
        raise Refusal("upload_cut", "the connection ended in the middle of the request; send it again") from error


def require_length(request: Request, most_bytes: int) -> None:
    """Raise Refusal when the body says that it is too large."""
    if int(request.headers.get("content-length", 0)) > most_bytes:
        raise _too_large(most_bytes)


def _too_large(most_bytes: int) -> Refusal:
    return Refusal("too_large", f"expected at most {most_bytes / 2**20:g} MiB, got more; send a smaller file")


def path_under(root: Path | None, stated: str) -> Path:
    """The file that a client means, links followed. Raises Refusal unless it is a plain file inside the root."""
    if root is None:
        raise Refusal("path_refused", "this server takes no paths: upload the video, or start it with --root DIR")
    path = path_inside(root, stated)
    if path is None:
        raise Refusal("path_refused", f"{stated[:200]!r} is not a path inside the server's root; give one that is")
    if not path.is_file():
        raise Refusal("not_found", f"no file {stated[:200]!r} under the server's root; check the path")
    return path
