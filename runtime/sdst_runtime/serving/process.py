"""The model's process, seen from the server: work goes in, answers come out, and a dead one is followed by another."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..machine import interrupts_ignored
from .counters import Counters
from .messages import Cancel, Fault, Forget, Ready, Reply, Unusable, Work
from .model import run_model
from .refusals import Refusal

LOG = logging.getLogger("sdst.serve")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0  # before another start, when a process died before it was ready
STUCK_S = 10.0  # how long work may go on after its time-out before the process is killed


class ModelProcess:
    """Keeps one process running. All methods belong to the event loop's thread, which must be the main one."""

    def __init__(self, bundle: Path, threads: int | None, encodings: int, counters: Counters) -> None:
        self._bundle, self._threads, self._encodings, self._counters = bundle, threads, encodings, counters
        self._waiting: dict[int, asyncio.Future[Any]] = {}  # by number: work that the process has
        self._numbers = 0
        self._ready = asyncio.Event()
        self._pipe: Connection | None = None
        self._process: Any = None
        self.unusable = ""  # why the bundle cannot be used

    @property
    def is_ready(self) -> bool:
        """Whether there is a process that has answered its first probe."""
        return self._ready.is_set()

    async def keep(self) -> None:
        """Start the process, and another whenever it died. Raises InputError when the first finds no usable bundle."""
        pause_s, was_ready = _FIRST_PAUSE_S, False
        while True:
            await self._live()
            if self.is_ready:
                self._ready.clear()
                pause_s, was_ready = _FIRST_PAUSE_S, True
            elif self.unusable and not was_ready:
                raise InputError(self.unusable)
            else:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _live(self) -> None:
        """One process from its start to its end."""
        context, ended = get_context("spawn"), asyncio.Event()
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, self._bundle, self._threads, self._encodings, os.getpid())
        with interrupts_ignored():
            process = self._process = context.Process(target=run_model, args=arguments, name="sdst model", daemon=True)
            process.start()
        theirs.close()
        self._counters.model_starts.inc()
        hear = (asyncio.get_running_loop(), self._pipe, self._hear, ended.set)
        threading.Thread(target=_listen, args=hear, name="sdst model pipe", daemon=True).start()
        await ended.wait()
        process.join()
        LOG.error("the model's process ended", extra={"event": "model_ended", "exit_code": process.exitcode})
        died = Refusal("model_died", "the model's process died at this request; another one starts: ask again", 1)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(died)
        self._waiting.clear()

    def _hear(self, message: Any) -> None:
        if isinstance(message, Ready):
            LOG.info("the model is ready", extra={"event": "model_ready", "pid": self._process.pid})
            self._ready.set()
        elif isinstance(message, Unusable):
            self.unusable = message.reason
            LOG.error(message.reason, extra={"event": "model_unusable"})
        elif isinstance(message, Reply):
            for stage, seconds in message.seconds:
                self._counters.stages.labels(stage).observe(seconds)
            future = self._waiting.pop(message.number, None)
            if future is not None and not future.done():
                future.set_result(message.value)

    async def do(self, work: Work, timeout_s: float) -> Any:
        """The answer to work, as soon as a process is ready and has it.

        Raises Refusal: with what the model found wrong, when the process died, and after `timeout_s`, but not before
        the process is free again: work that does not end by itself ends with its process.
        """
        try:
            await asyncio.wait_for(self._ready.wait(), timeout_s)
        except asyncio.TimeoutError as error:
            raise Refusal("not_ready", "the model is not ready yet; ask again", 1) from error
        self._numbers += 1
        number, future = self._numbers, asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        self._send(number, work)
        done, _ = await asyncio.wait([future], timeout=timeout_s)
        if not done:
            await self._give_up(number, future)
            raise Refusal("timeout", f"expected an answer within {timeout_s:.3g} s; ask for less, or later", 1)
        value = future.result()
        if isinstance(value, Fault):
            raise Refusal(value.code, value.message)
        return value

    async def _give_up(self, number: int, future: asyncio.Future[Any]) -> None:
        self._send(number, Cancel(number))
        done, _ = await asyncio.wait([future], timeout=STUCK_S)
        if done:
            future.exception()  # seen
        elif self._process is not None:
            LOG.error("the model's process is stuck and is killed", extra={"event": "model_stuck"})
            self._process.kill()

    def forget(self, kept: tuple[Path, ...]) -> None:
        """Drop videos from the process's memory."""
        if self.is_ready:
            self._send(0, Forget(kept))

    def _send(self, number: int, message: Work | Forget | Cancel) -> None:
        assert self._pipe is not None
        with suppress(OSError):  # it died: whoever waits hears of it from the thread that listens
            self._pipe.send((number, message))

    def stop(self) -> None:
        """End the process."""
        if self._process is not None and self._process.pid is not None:
            self._process.kill()
            self._process.join()


def _listen(
    loop: asyncio.AbstractEventLoop, pipe: Connection, hear: Callable[[Any], None], ended: Callable[[], None]
) -> None:
    """Pass what comes through a pipe to the event loop, and say when it is closed."""
    try:
        while True:
            loop.call_soon_threadsafe(hear, pipe.recv())
    except (EOFError, OSError, pickle.UnpicklingError):
        pass
    except RuntimeError:  # the loop is closed: the server has ended
        return
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(ended)
