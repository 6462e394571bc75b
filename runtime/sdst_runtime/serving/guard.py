"""Around every request: its id, who may ask, a line in the log, the counters, and headers for browsers."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .refusals import FAULT, Refusal
from .service import Service

LOG = logging.getLogger("sdst.serve")
POLICY = (
    "default-src 'self'; media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_ID = re.compile(r"[\w.-]{1,64}")
_PRIVATE = ("/v1/", "/metrics")  # what a token is asked for
HOME = ("127.0.0.1", "::1", "localhost")  # names of this machine for itself
_NAME = re.compile(r":\d*$")  # the port behind a name
_DRAIN_S = 2.0  # for the rest of a body whose request is refused: a client that still sends hears no answer


class JsonLines(logging.Formatter):
    """A record as one line of JSON: time, level, message, and what `extra` named."""

    _OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        when = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": when, "level": record.levelname.lower(), "message": record.getMessage()}
        line |= {key: value for key, value in vars(record).items() if key not in self._OWN}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class Guard:
    """The outermost application."""

    def __init__(self, app: ASGIApp, service: Service, token: str, host: str) -> None:
        """`token`: what /v1 and /metrics ask for as Bearer; empty: nothing. `host`: where the server listens.

        Without a token a server of this machine alone must be called by a name of this machine: another site may give
        its own name the address 127.0.0.1, and its page would then read here (DNS rebinding).
        """
        self._app, self._service, self._token = app, service, token.encode()
        self._home_only = host in HOME and not token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; what is no request passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await _Exchange(self._app, self._service, scope, receive, send).run(self._refusal(scope))

    def _refusal(self, scope: Scope) -> Refusal | None:
        if self._service.is_stopping and scope["method"] == "POST":
            return Refusal("stopping", "the server is about to end and takes no new work; ask another one", 1)
        if self._home_only and scope["path"].startswith(_PRIVATE):
            named = (_header(scope["headers"], b"host") or b"").decode("latin-1")
            if _NAME.sub("", named).strip("[]") not in ("", *HOME):
                said = f"Host: expected one of {', '.join(HOME)}, got {named[:100]!r}; or start the server with a token"
                return Refusal("bad_request", said)
        if self._token and scope["path"].startswith(_PRIVATE):
            given = _header(scope["headers"], b"authorization") or b""
            if not hmac.compare_digest(given, b"Bearer " + self._token):
                return Refusal("unauthorized", "expected the header  Authorization: Bearer  with this server's token")
        return None


class _Exchange:
    """One request and its answer."""

    def __init__(self, app: ASGIApp, service: Service, scope: Scope, receive: Receive, send: Send) -> None:
        self._app, self._service, self._scope, self._receive, self._send = app, service, scope, receive, send
        given = (_header(scope["headers"], b"x-request-id") or b"").decode("latin-1")
        self._id = given if _ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = self._id
        self._status, self._has_body = 0, scope["method"] in ("POST", "PUT", "PATCH")
        self._start_s = time.perf_counter()

    async def run(self, refusal: Refusal | None) -> None:
        try:
            if refusal is not None:
                await send_refusal(refusal, self._scope, self._take, self._answer)
            else:
                await self._app(self._scope, self._take, self._answer)
        except Exception:
            LOG.exception("a request failed", extra={"event": "fault", "request_id": self._id})
            if not self._status:
                await send_refusal(Refusal("failed", FAULT), self._scope, self._take, self._answer)
        finally:
            self._record()

    async def _take(self) -> Message:
        message = await self._receive()
        self._has_body = self._has_body and message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def _answer(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._drain()
            self._status = message["status"]
            more = _HEADERS | {"X-Request-ID": self._id}
            message["headers"] = [
                *message["headers"], *((key.lower().encode(), value.encode()) for key, value in more.items())
            ]  # fmt: skip
        await self._send(message)

    async def _drain(self) -> None:
        """Let go of what a client still sends, for a while; who waits for `100 Continue` sends nothing."""
        if not self._has_body or _header(self._scope["headers"], b"expect"):
            return

        async def drain() -> None:
            while self._has_body:
                await self._take()

        try:
            await asyncio.wait_for(drain(), _DRAIN_S)
        except asyncio.TimeoutError:
            self._has_body = False

    def _record(self) -> None:
        seconds, counters = time.perf_counter() - self._start_s, self._service.counters
        route = getattr(self._scope.get("route"), "path", "other")
        method = self._scope["method"] if route != "other" else "other"
        counters.requests.labels(method, route, str(self._status)).inc()
        counters.request_seconds.labels(route).observe(seconds)
        code = self._scope["state"].get("code")
        if code:
            counters.refusals.labels(code).inc()
        facts = {
            "event": "request", "request_id": self._id, "method": self._scope["method"], "path": self._scope["path"],
            "status": self._status, "seconds": round(seconds, 4),
        }  # fmt: skip
        LOG.info("request", extra=facts | ({"code": code} if code else {}))


async def send_refusal(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with a refusal."""
    from starlette.responses import JSONResponse

    scope["state"]["code"] = refusal.code
    response = JSONResponse(refusal.body(scope["state"]["request_id"]), refusal.status, refusal.headers())
    await response(scope, receive, send)


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    return next((value for key, value in headers if key == name), None)
