"""What a request that cannot be answered gets: one JSON shape, whatever went wrong.

The body is {"error": {"code": "queue_full", "message": "...", "request_id": "..."}}, with the HTTP status of its code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pydantic import BaseModel

STATUS = {  # code: HTTP status
    "bad_request": 400,
    "upload_cut": 400,
    "unauthorized": 401,
    "path_refused": 403,
    "not_found": 404,
    "video_unknown": 404,
    "method_not_allowed": 405,
    "receive_timeout": 408,
    "too_large": 413,
    "unsupported_type": 415,
    "bad_body": 422,
    "bad_sentence": 422,
    "bad_threshold": 422,
    "bad_video": 422,
    "video_too_long": 422,
    "queue_full": 429,
    "failed": 500,
    "model_died": 503,
    "not_ready": 503,
    "stopping": 503,
    "timeout": 504,
    "no_space": 507,
}
FAULT = "a fault of the server; its log says more under this request_id"


@dataclass
class Refusal(Exception):
    """A request that is not answered. `retry_after_s`: when to come again, where that helps."""

    code: str  # of STATUS
    message: str  # one line: what was expected, what came, what to do
    retry_after_s: float = 0.0

    @property
    def status(self) -> int:
        """The HTTP status."""
        return STATUS[self.code]

    def body(self, request_id: str) -> dict[str, dict[str, str]]:
        """The JSON of the answer."""
        return {"error": {"code": self.code, "message": self.message, "request_id": request_id}}

    def headers(self) -> dict[str, str]:
        """Retry-After, in whole seconds, and what a 401 must carry."""
        wait = {"Retry-After": str(math.ceil(self.retry_after_s))} if self.retry_after_s else {}
        return wait | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


class Problem(BaseModel):
    """What went wrong."""

    code: str
    message: str
    request_id: str


class ProblemAnswer(BaseModel):
    """The answer to every request that is not answered otherwise."""

    error: Problem


def responses(*codes: str) -> dict[int | str, dict[str, object]]:
    """The part of a route's OpenAPI that says how it refuses."""
    statuses = sorted({STATUS[code] for code in codes})
    return {
        status: {
            "model": ProblemAnswer,
            "description": "error.code: " + ", ".join(code for code in codes if STATUS[code] == status),
        }
        for status in statuses
    }
