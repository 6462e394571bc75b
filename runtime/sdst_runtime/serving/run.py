"""A server from its start to its end: the port, the signals, the folder, the log."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import InputError
from ..files import temporary_folder
from .app import make_app
from .guard import HOME, Guard, JsonLines
from .limits import Limits
from .service import Service

LOG = logging.getLogger("sdst.serve")
TOKEN = "SDST_SERVE_TOKEN"  # of the environment
_HEAD_S = 10.0  # in which a request's head must have come, and between two requests of a connection
_BACKLOG = 2048


@dataclass(frozen=True)
class Options:
    """What a server is started with."""

    bundle: Path
    root: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8080  # 0: any that is free
    threads: int | None = None
    token: str = ""


def serve(options: Options, limits: Limits, listening: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT. Raises InputError for a root, port or bundle that cannot be used.

    `listening` hears the address; then the log tells of what went wrong only.
    """
    if options.root is not None and not options.root.is_dir():
        raise InputError(f"--root: {options.root}: no such folder; give the one whose videos may be asked for")
    _log_as_json(logging.INFO if listening is None else logging.WARNING)
    _allow_connections()
    with _listening(options.host, options.port) as listener, temporary_folder(Path(tempfile.gettempdir())) as folder:
        asyncio.run(_serve(options, limits, listener, folder, listening or (lambda address: None)))
    LOG.info("stopped", extra={"event": "stopped"})


async def _serve(
    options: Options, limits: Limits, listener: socket.socket, folder: Path, listening: Callable[[str], None]
) -> None:
    service = Service(options.bundle, options.root, folder, limits, options.threads)
    failed: list[InputError] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(service.model.keep()), asyncio.create_task(service.sweep())]
        tasks[0].add_done_callback(ended)
        listening(_announce(options, listener))
        yield
        for task in tasks:
            task.cancel()
        service.stop()

    def ended(task: asyncio.Task[Any]) -> None:
        if not task.cancelled():
            error = task.exception()
            failed.append(error if isinstance(error, InputError) else InputError(f"the model cannot run: {error!r}"))
            server.should_exit = True

    app = Guard(make_app(service, lifespan), service, options.token, options.host)
    config = uvicorn.Config(
        app, lifespan="on", http=_Hurried, ws="none",
        log_config=None, access_log=False, server_header=False, backlog=_BACKLOG, proxy_headers=False,
        timeout_keep_alive=int(_HEAD_S), timeout_graceful_shutdown=max(1, round(limits.grace_s)),
    )  # fmt: skip
    server = Server(config, service)
    await server.serve(sockets=[listener])
    if failed:
        raise failed[0]


class Server(uvicorn.Server):
    """Tells the service when a signal asks it to end; uvicorn then closes the port and waits for what is there."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        signal.signal(signal.SIGTERM, self._hear_early)

    def _hear_early(self, sig: int, frame: FrameType | None) -> None:
        """A signal before uvicorn listens to it; and again when all is done, as an orderly end is no failure."""
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal."""
        LOG.info("stopping", extra={"event": "stopping", "signal": signal.Signals(sig).name})
        self._service.is_stopping = True
        super().handle_exit(sig, frame)


class _Hurried(H11Protocol):
    """A connection that is closed when no request has come whole for a while: slow ones must not pile up."""

    def connection_made(self, transport: Any) -> None:
        """Begin to watch it."""
        super().connection_made(transport)
        self._seen: Any = None
        self._watch = self.loop.call_later(_HEAD_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        self._watch.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self._seen is self.cycle:
            self.transport.close()
            return
        self._seen = self.cycle if idle else object()
        self._watch = self.loop.call_later(_HEAD_S, self._look)


def _listening(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise InputError(f"--port: expected 0 to 65535, got {port}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"--port: {port} of {host} is in use; stop its user or choose another") from error
        raise InputError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from error
    return listener


def _announce(options: Options, listener: socket.socket) -> str:
    """The address, which the log tells."""
    port = listener.getsockname()[1]
    host = f"[{options.host}]" if ":" in options.host else options.host
    address = f"http://{host}:{port}"
    LOG.info(f"listening on {address}", extra={"event": "listening", "port": port})
    if options.host not in HOME and not options.token:
        LOG.warning(f"anyone who reaches {host} may ask: set {TOKEN}", extra={"event": "open"})
    return address


def _log_as_json(level: int) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name, least in (("sdst.serve", level), ("uvicorn", logging.WARNING), ("asyncio", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(least)


def _allow_connections() -> None:
    """As many open files as the machine allows: each connection is one."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536) if hard > 0 else 65536, hard))


def token_of_environment() -> str:
    """The bearer token that clients must send; empty: none."""
    return os.environ.get(TOKEN, "")
