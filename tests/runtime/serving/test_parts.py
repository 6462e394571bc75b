"""Parts of the server by themselves: what is kept, and what a fault of ours looks like."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import uvicorn

from sdst_runtime.errors import InputError
from sdst_runtime.serving.counters import Counters
from sdst_runtime.serving.guard import Guard, JsonLines
from sdst_runtime.serving.limits import Limits
from sdst_runtime.serving.messages import Encoded
from sdst_runtime.serving.refusals import STATUS, Refusal, responses
from sdst_runtime.serving.run import Server
from sdst_runtime.serving.service import Service
from sdst_runtime.serving.shelf import names_in
from sdst_runtime.serving.uploads import receive_file
from sdst_runtime.serving.videos import EncodedVideos


class Kept:
    """Videos in a folder of 100 bytes, for 10 s by a clock that the test sets."""

    def __init__(self, folder: Path) -> None:
        self.now_s, self.forgotten, self.counters = 0.0, [], Counters()
        self.videos = EncodedVideos(folder, 100, 10, self.forgotten.extend, self.counters, lambda: self.now_s)

    def add(self, size_bytes: int) -> str:
        name, file = self.videos.place()
        file.write_bytes(b"x")
        return self.videos.add(name, file, Encoded(1.0, 1.0, 1, size_bytes, ())).name

    def has(self, name: str) -> bool:
        try:
            return self.videos.get(name).file.is_file()
        except Refusal:
            return False


@pytest.fixture
def kept(tmp_path) -> Kept:
    return Kept(tmp_path)


def test_the_least_recently_used_video_makes_room(kept, tmp_path):
    first, second = kept.add(40), kept.add(40)
    assert kept.has(first)
    third = kept.add(40)

    assert [kept.has(name) for name in (first, second, third)] == [True, False, True]
    assert [path.stem for path in kept.forgotten] == [second]
    assert {path.stem for path in tmp_path.iterdir()} == {first, third}
    assert kept.counters.registry.get_sample_value("sdst_encoded_video_bytes") == 80
    assert kept.counters.registry.get_sample_value("sdst_encoded_videos") == 2


def test_a_question_keeps_a_video_young(kept):
    old, young = kept.add(1), kept.add(1)
    kept.now_s = 9
    kept.has(young)
    kept.now_s = 11

    assert (kept.has(old), kept.has(young)) == (False, True)


def test_a_video_larger_than_the_budget_leaves_the_others(kept, tmp_path):
    small = kept.add(40)
    with pytest.raises(Refusal) as caught:
        kept.add(101)

    assert caught.value.code == "video_too_long"
    assert kept.has(small)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_video_that_is_encoded_too_late_is_not_left(tmp_path, monkeypatch):
    async def late(work: Any) -> None:
        work.kept.write_bytes(b"x")
        raise Refusal("timeout", "late")

    async def take() -> list[Path]:
        service = Service(tmp_path / "bundle", tmp_path, tmp_path, Limits(), None)
        monkeypatch.setattr(service.encoding, "do", late)
        with pytest.raises(Refusal):
            await service.take("a.mp4")
        before = list(tmp_path.glob("*.safetensors"))
        await asyncio.sleep(0.1)
        return before

    monkeypatch.setattr("sdst_runtime.serving.service._LATE_S", 0.01)
    (tmp_path / "a.mp4").touch()

    assert len(asyncio.run(take())) == 1
    assert list(tmp_path.glob("*.safetensors")) == []


class Upload:
    """A request whose body comes as it is told."""

    headers: ClassVar[dict[str, str]] = {}

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self.stream = lambda: pieces


async def comes(*pieces: bytes, then_stops: bool = False) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
    if then_stops:
        await asyncio.Event().wait()


def receive(path: Path, pieces: AsyncIterator[bytes], **limits: float) -> None:
    request: Any = Upload(pieces)
    asyncio.run(receive_file(request, path, Limits(**limits)))


def test_an_upload_that_is_fast_enough_arrives(tmp_path):
    receive(tmp_path / "x", comes(b"a" * 1024, b"b" * 1024))

    assert (tmp_path / "x").read_bytes() == b"a" * 1024 + b"b" * 1024


@pytest.mark.parametrize(
    ("seconds", "limits"), [(0.05, {"receive_kib_s": 1e6}), (60.0, {"receive_timeout_s": 0.05})]
)  # fmt: skip
def test_an_upload_that_is_too_slow_is_cut_off(tmp_path, monkeypatch, seconds, limits):
    """By its rate, or by its time in all."""
    monkeypatch.setattr("sdst_runtime.serving.uploads._WHILE_S", seconds)
    with pytest.raises(Refusal, match="send it faster") as caught:
        receive(tmp_path / "x", comes(b"a" * 1024, then_stops=True), **limits)

    assert caught.value.code == "receive_timeout"


def test_names_come_in_parts(tmp_path, monkeypatch):
    for name in ("b.mp4", "a.MKV", "d.mp4", "c.webm", "x.txt"):
        (tmp_path / name).touch()
    (tmp_path / "bb").mkdir()
    monkeypatch.setattr("sdst_runtime.serving.shelf.MOST_NAMES", 2)
    parts, after = [], ""
    while True:
        names = names_in(tmp_path, "", after, "")
        parts.append(names.names)
        if not names.more:
            break
        after = names.names[-1]

    assert parts == [("a.MKV", "b.mp4"), ("bb/", "c.webm"), ("d.mp4",)]


@pytest.mark.parametrize("wrong", [{"queue": 0}, {"age_s": -1.0}, {"memory_mib": 10**10}, {"grace_s": float("nan")}])
def test_limits_that_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Limits(**wrong)


def test_codes_of_one_status_share_a_description():
    said = responses("bad_body", "bad_video", "queue_full")

    assert said[422]["description"] == "error.code: bad_body, bad_video"
    assert set(said) == {422, 429}
    assert {status // 100 for status in STATUS.values()} == {4, 5}


def test_a_fault_of_ours_has_the_shape_of_all_others():
    """The traceback is in the log, not in the answer."""

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("secret")

    sent: list[dict[str, Any]] = []
    service: Any = SimpleNamespace(counters=Counters(), is_stopping=False)
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(JsonLines().format(record))
    logger = logging.getLogger("sdst.serve")
    logger.addHandler(handler)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    scope = {"type": "http", "method": "GET", "path": "/x", "headers": []}
    try:
        asyncio.run(Guard(broken, service, "", "127.0.0.1")(scope, receive, send))
    finally:
        logger.removeHandler(handler)

    assert sent[0]["status"] == 500
    error = json.loads(sent[1]["body"])["error"]
    assert error["code"] == "failed"
    assert "secret" not in error["message"]
    (line,) = [json.loads(line) for line in lines if "traceback" in line]
    assert (line["request_id"], "secret" in line["traceback"]) == (error["request_id"], True)


def test_a_signal_before_uvicorn_listens_to_it(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    try:
        server = Server(uvicorn.Config("none:none"), Service(tmp_path, None, tmp_path, Limits(), 1))
        signal.raise_signal(signal.SIGTERM)
        assert server.should_exit
    finally:
        signal.signal(signal.SIGTERM, before)
