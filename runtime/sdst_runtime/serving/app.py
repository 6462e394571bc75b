"""The routes."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException

from ..distribution import own_version
from .refusals import FAULT, Refusal, responses
from .service import Service
from .uploads import read_body
from .videos import KeptVideo

PAGE = Path(__file__).parent / "page"
_FILES = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css", "/favicon.ico": "icon.svg"}
_KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_EVERYWHERE = ("bad_request", "unauthorized", "failed")
_BODY = ("upload_cut", "receive_timeout", "too_large", "unsupported_type", "bad_body")
_MODEL = ("queue_full", "model_died", "not_ready", "stopping", "timeout", "no_space")
_RANGE = re.compile(r"bytes=(\d{1,18})-")
_PART_BYTES = 4 << 20  # of a file at once: a player that pauses would hold up the server's end
_BYTES: dict[str, Any] = {
    "description": "the file", "content": {"video/*": {"schema": {"type": "string", "format": "binary"}}},
}  # fmt: skip
Given = TypeVar("Given", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class VideoPath(_Strict):
    """A video that the server can read by itself."""

    path: Annotated[str, Field(description="a file under the server's --root")]


class Video(_Strict):
    """A video that is ready for questions."""

    video: Annotated[str, Field(description="what to call it in questions")]
    duration_s: float
    clip_s: float
    clips: int
    warnings: Annotated[list[str], Field(description="what was wrong with the file and what was done about it")]
    kept_s: Annotated[float, Field(description="seconds without a question after which it is dropped")]


class VideoNames(_Strict):
    """Videos that the server can read by itself."""

    names: Annotated[list[str], Field(description="in order; a folder's ends with /")]
    more: Annotated[bool, Field(description="whether others follow: ask again with the last one as `after`")]


class Questions(_Strict):
    """Sentences about one video."""

    video: Annotated[str, Field(description="what POST /v1/videos called it")]
    sentences: Annotated[list[str], Field(min_length=1)]
    threshold: Annotated[
        float | None,
        Field(ge=0, le=1, allow_inf_nan=False, description="an answer whose presence is below has no moments"),
    ] = None


class MomentAnswer(_Strict):
    """A part of the video."""

    start_s: float
    end_s: float
    score: float


class SentenceAnswer(_Strict):
    """Moments by descending score, and how much each clip is a highlight."""

    query: str
    unknown_words: list[str]
    presence: Annotated[float | None, Field(description="0 to 1, how likely the video shows it; null: not known")]
    moments: list[MomentAnswer]
    saliency: Annotated[list[float], Field(description="of each clip, -1 to 1")]


class Answers(_Strict):
    """The JSON of `sdst ground --json`; `video` is the name that the server gave."""

    video: str
    duration_s: float
    clip_s: float
    results: list[SentenceAnswer]


class State(_Strict):
    """Health."""

    status: str


def make_app(service: Service, lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]]) -> FastAPI:
    """The application, to be put into a Guard."""
    app = FastAPI(
        title="SDST", version=own_version(), description="Moments of videos that sentences describe.",
        docs_url=None, redoc_url=None, lifespan=lifespan,
        openapi_tags=[],
    )  # fmt: skip
    _handle_faults(app)
    _add_work(app, service)
    _add_shelf(app, service)
    _add_health(app, service)
    _add_page(app)
    return app


def _add_work(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/videos", status_code=201, response_model=Video, operation_id="add_video",
        responses=responses(*_EVERYWHERE, *_BODY, "path_refused", "not_found", "bad_video", "video_too_long", *_MODEL),
        openapi_extra=_body({
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "video/*": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {"schema": VideoPath.model_json_schema()},
        }),
    )  # fmt: skip
    async def add_video(request: Request) -> Response:
        """Encode a video: the request's body, or a path under the server's root. It is kept for questions."""
        kind = _kind(request)
        if kind == "application/json":
            video = await service.take((await _parsed(VideoPath, request)).path)
        elif kind == "application/octet-stream" or kind.startswith("video/"):
            video = await service.upload(request)
        else:
            raise _unsupported("video/* or application/octet-stream with the bytes, or application/json", kind)
        return JSONResponse(_described(video, service.limits.age_s).model_dump(), 201)

    @app.post(
        "/v1/ground", response_model=Answers, operation_id="ground",
        responses=responses(*_EVERYWHERE, *_BODY, "video_unknown", "bad_sentence", "bad_threshold", *_MODEL),
        openapi_extra=_body({"application/json": {"schema": Questions.model_json_schema()}}),
    )  # fmt: skip
    async def ground(request: Request) -> Response:
        """Moments and saliency for each sentence, as `sdst ground --json` prints them."""
        if _kind(request) != "application/json":
            raise _unsupported("application/json", _kind(request))
        asked = await _parsed(Questions, request)
        return Response(await service.ask(asked.video, asked.sentences, asked.threshold), media_type="application/json")


def _add_shelf(app: FastAPI, service: Service) -> None:
    refused = responses(*_EVERYWHERE, "path_refused", "not_found")

    @app.get(
        "/v1/files", response_model=VideoNames, operation_id="list_files", responses=refused,
        openapi_extra=_query(
            folder="a folder under the root; default: the root", after="names behind this one only",
            part="names that hold this only, in upper or lower case",
        ),
    )  # fmt: skip
    async def files(request: Request) -> VideoNames:
        """Videos and folders in a folder under the server's root, at most 200; none when it was started without."""
        asked = request.query_params
        found = await service.names(asked.get("folder", ""), asked.get("after", ""), asked.get("part", ""))
        return VideoNames(names=list(found.names), more=found.more)

    @app.get(
        "/v1/file", response_class=FileResponse, operation_id="read_file",
        responses=refused | {200: _BYTES, 206: _BYTES | {"description": "a part, from where Range says"}},
        openapi_extra=_query(path="a video under the root"),
    )  # fmt: skip
    async def file(request: Request) -> FileResponse:
        """The bytes of a video under the server's root, or up to 4 MiB from where Range says: what a player needs."""
        found = await service.file(request.query_params.get("path", ""))
        wanted, size = _RANGE.fullmatch(request.headers.get("range", "")), found.stat().st_size
        headers = [pair for pair in request.scope["headers"] if pair[0] != b"range"]
        if wanted and int(wanted[1]) < size:  # what is no range of the file may be ignored
            end = min(size, int(wanted[1]) + _PART_BYTES) - 1
            headers.append((b"range", f"bytes={wanted[1]}-{end}".encode()))
        request.scope["headers"] = headers
        kind = mimetypes.guess_type(found.name)[0] or ""
        return FileResponse(found, media_type=kind if kind.startswith("video/") else "application/octet-stream")


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", response_model=State, operation_id="health")
    async def health() -> State:
        """The server runs."""
        return State(status="ok")

    refused = responses("failed", "model_died", "not_ready", "timeout")

    @app.get("/readyz", response_model=State, operation_id="ready", responses=refused)
    async def ready() -> State:
        """The models answer: an inference went well within the last seconds, or goes well now."""
        await service.require_ready()
        return State(status="ready")

    @app.get("/metrics", response_class=Response, operation_id="metrics", responses=_text_or_refusal())
    async def metrics() -> Response:
        """Counters in the text form of Prometheus."""
        return Response(generate_latest(service.counters.registry), media_type=CONTENT_TYPE_LATEST)


def _add_page(app: FastAPI) -> None:
    def add(route: str, name: str) -> None:
        @app.get(route, include_in_schema=False)
        async def page() -> FileResponse:
            return FileResponse(PAGE / name, media_type=_KINDS[Path(name).suffix])

    for route, name in _FILES.items():
        add(route, name)


def _handle_faults(app: FastAPI) -> None:
    def answer(request: Request, refusal: Refusal, more: dict[str, str] | None = None) -> Response:
        request.state.code = refusal.code
        return JSONResponse(refusal.body(request.state.request_id), refusal.status, refusal.headers() | (more or {}))

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> Response:
        return answer(request, refusal)

    @app.exception_handler(Exception)
    async def fault(request: Request, _: Exception) -> Response:  # raised again behind this, for the log
        return answer(request, Refusal("failed", FAULT))

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        said = f"{request.method} {request.url.path[:200]}: {error.detail}; see /openapi.json"
        return answer(request, Refusal(code, said), dict(error.headers or {}))


def _described(video: KeptVideo, kept_s: float) -> Video:
    known = video.encoded
    return Video(
        video=video.name, duration_s=known.duration_s, clip_s=known.clip_s, clips=known.clips,
        warnings=list(known.warnings), kept_s=kept_s,
    )  # fmt: skip


async def _parsed(kind: type[Given], request: Request) -> Given:
    body = await read_body(request)
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, fault["loc"])) or "the body"
        raise Refusal("bad_body", f"{place}: {fault['msg']}; see /openapi.json") from error


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _unsupported(expected: str, got: str) -> Refusal:
    return Refusal("unsupported_type", f"Content-Type: expected {expected}, got {got[:100] or 'none'}")


def _body(content: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": content}}


def _query(**described: str) -> dict[str, Any]:
    return {"parameters": [
        {"name": name, "in": "query", "description": what, "schema": {"type": "string"}}
        for name, what in described.items()
    ]}  # fmt: skip


def _text_or_refusal() -> dict[int | str, dict[str, Any]]:
    text = {"description": "Prometheus' text", "content": {"text/plain": {"schema": {"type": "string"}}}}
    return {200: text, **responses(*_EVERYWHERE)}
