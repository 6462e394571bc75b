"""Workers of a Ray cluster, on the machines that RAY_ADDRESS names or on this one: an actor each.

Actors and not Ray Data, which tells a result at least once, holds a worker's death against the tasks that are queued
behind it (tried with 2.60), and needs pandas and pyarrow in every worker.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import sys
from collections.abc import Callable
from typing import Any

from ..errors import SdstError, SessionError, require_package
from .team import Died, Ready

_CPUS = 0.5  # of a worker, as Ray counts; the threads of its models are another matter
_STARTS = 3  # Ray gives itself 30 s to start, which a busy machine may miss
_CONNECT_S = 10  # Ray itself tries for more than three minutes
_STORE_BYTES = 100 << 20  # of Ray's object store, through which tasks and results pass; by default a third of memory


class RayTeam:
    """A Team of actors, each with the work that `open_work` gives; it must find the same paths on every machine.

    Raises DependencyError without Ray, SessionError when there is no cluster to work on.
    """

    def __init__(self, open_work: Callable[[], Callable[[Any], Any]]) -> None:
        self._own, self._ray = _connect()
        self._open_work = open_work
        self._actors: dict[int, Any] = {}
        self._awaited: dict[Any, int] = {}  # Ray's reference to a worker's next word -> worker
        self._started = 0

    def start(self) -> None:
        """Begin another actor, now or as soon as the cluster has room for it."""
        actor = self._ray.remote(CorpusWorker).options(num_cpus=_CPUS).remote()
        self._actors[self._started] = actor
        self._awaited[actor.open.remote(self._open_work)] = self._started
        self._started += 1

    def hear(self) -> tuple[int, Any]:
        """The next word of any worker. Raises SessionError when Ray or the work fails otherwise."""
        found: Any = self._ray.exceptions
        (word,), _ = self._ray.wait(list(self._awaited), num_returns=1)
        worker = self._awaited.pop(word)
        try:
            return worker, self._ray.get(word)
        except found.RayActorError as error:
            self._ray.kill(self._actors.pop(worker))  # it may live, where nobody reaches it
            return worker, Died(_shown(error))
        except found.RayError as error:
            raise SessionError(f"ray: {_shown(error)}; run again, which goes on where it ended") from error

    def give(self, worker: int, task: Any) -> None:
        """Send a task."""
        self._awaited[self._actors[worker].work.remote(task)] = worker

    def close(self) -> None:
        """End all actors, and Ray where it was started here."""
        for actor in self._actors.values():
            self._ray.kill(actor)
        if self._own:
            self._ray.shutdown()


class CorpusWorker:
    """The actor. What the work raises on purpose is a result: Ray would wrap it."""

    def open(self, open_work: Callable[[], Callable[[Any], Any]]) -> Ready | SdstError:
        """Open what it works with."""
        try:
            self._work = open_work()
        except SdstError as error:
            return error
        return Ready()

    def work(self, task: Any) -> Any:
        """What came of a task."""
        try:
            return self._work(task)
        except SdstError as error:
            return error


def _shown(error: Exception) -> str:
    """The end of Ray's words, which is where the reason is, as one line."""
    return " ".join(str(error).split())[-300:]


def _connect() -> tuple[bool, Any]:
    """Whether Ray was started here, and Ray: that of this process, of RAY_ADDRESS, or one on this machine alone."""
    address = os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not address and "ray" not in sys.modules:  # Ray reads them when it is imported
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # 0: it listens on the loopback only
        if "RAY_AUTH_MODE" not in os.environ:  # else Ray leaves a token in the home directory
            os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    ray: Any = require_package("ray", "corpus")
    if ray.is_initialized():
        return False, ray
    _require_listener(address or "")
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not address:
        settings |= {"address": "local", "include_dashboard": False, "object_store_memory": _STORE_BYTES}
        settings |= {"_system_config": {"worker_niceness": 0}}
    for left in reversed(range(1 if address else _STARTS)):
        try:
            ray.init(**settings)
            break
        except Exception as error:  # Ray raises bare ones too
            ray.shutdown()
            if not left:
                where = f"expected the cluster of RAY_ADDRESS {address!r}" if address else "expected it to start here"
                raise SessionError(f"ray: {where}, got {_shown(error)}") from error
    return True, ray


def _require_listener(address: str) -> None:
    """Raise SessionError when nobody listens at a `host:port` or `ray://host:port`; other forms are Ray's to read."""
    found = re.fullmatch(r"(?:ray://)?(.+):(\d{1,5})", address)
    if found is None:
        return
    try:
        socket.create_connection((found[1].strip("[]"), int(found[2])), _CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise SessionError(
            f"ray: expected the cluster of RAY_ADDRESS {address!r} to listen there ({error}); start it with  ray start "
            "--head, correct RAY_ADDRESS, or unset it for a Ray on this machine"
        ) from error
