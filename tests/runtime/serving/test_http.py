"""The interface of `sdst serve` over real connections: what it answers, and how it refuses."""

from __future__ import annotations

import http.client
import json
import re
import socket
from contextlib import suppress
from pathlib import Path

import pytest
from processes import wait_until
from served import OCTETS, QUERY, Served, serving

from sdst.cli import main
from sdst_runtime.serving.app import Answers, Video
from sdst_runtime.serving.refusals import STATUS, ProblemAnswer

OTHER = "a blue square blinks"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def root(place, video) -> Path:
    """A folder with a video, a link to it, a folder, and links to a file and a folder outside."""
    root = place / "root"
    (root / "inner").mkdir(parents=True)
    (root / "a.mp4").write_bytes(video.read_bytes())
    (root / "inner" / "link.mp4").symlink_to(root / "a.mp4")
    (root / "out.mp4").symlink_to(video)
    (root / "out").symlink_to(video.parent)
    (root / "circle").symlink_to(root / "circle")
    (root / "notes.txt").write_text("secret")
    (root / ".hidden.mp4").write_bytes(b"x")
    return root


@pytest.fixture(scope="module")
def server(exported, place, root):
    options = ("--root", str(root), "--upload-mib", "1", "--video-s", "20", "--sentences", "8")
    with serving(exported.directory, place / "tmp", *options) as served:
        yield served


@pytest.fixture(scope="module")
def name(server, video) -> str:
    """An encoded video."""
    return server.upload(video.read_bytes()).json["video"]


# ---------------------------------------------------------------- what it answers


def test_answers_are_those_of_sdst_ground(server, video, exported, capsys):
    sent = server.upload(video.read_bytes(), content_type="video/mp4; codecs=avc1")
    told = Video.model_validate_json(sent.body)
    got = server.ask(told.video, QUERY, OTHER)
    capsys.readouterr()
    main(["ground", str(video), QUERY, OTHER, "--bundle", str(exported.directory), "--json", "--threads", "1"])
    printed = json.loads(capsys.readouterr().out)

    assert (sent.status, got.status) == (201, 200)
    assert got.json == {**printed, "video": told.video}
    assert Answers.model_validate_json(got.body).model_dump() == got.json
    assert (told.clips, told.warnings, told.kept_s) == (len(printed["results"][0]["saliency"]), [], 3600)


@pytest.mark.parametrize("path", ["a.mp4", "inner/link.mp4", "inner/../a.mp4"])
def test_a_path_under_the_root(server, name, path):
    sent = server.post("/v1/videos", {"path": path})

    assert sent.status == 201, sent.body
    assert server.ask(sent.json["video"]).json["results"] == server.ask(name).json["results"]


def test_names_under_the_root(server):
    """Videos and folders; no other files, no hidden ones, nothing that leads out."""
    assert server.get("/v1/files").json == {"names": ["a.mp4", "inner/"], "more": False}
    assert server.get("/v1/files?folder=inner/").json == {"names": ["link.mp4"], "more": False}
    assert server.get("/v1/files?part=A.M").json == {"names": ["a.mp4"], "more": False}
    assert server.get("/v1/files?after=a.mp4").json == {"names": ["inner/"], "more": False}


@pytest.mark.parametrize(
    ("folder", "code"),
    [("..", "path_refused"), ("out", "path_refused"), ("/etc", "path_refused"), ("a%00b", "path_refused"),
     ("none", "not_found"), ("a.mp4", "not_found")],
)  # fmt: skip
def test_folders_that_are_refused(server, folder, code):
    answer = server.get(f"/v1/files?folder={folder}")

    assert (answer.status, answer.code) == (STATUS[code], code)


def test_the_bytes_of_a_video_under_the_root(server, video):
    whole = video.read_bytes()
    got = server.get("/v1/file?path=a.mp4")
    rest, odd = (server.get("/v1/file?path=a.mp4", range=wanted) for wanted in ("bytes=1000-", "bytes=5-2,x"))

    assert (got.status, got.body, got.headers["content-type"]) == (200, whole, "video/mp4")
    assert got.headers["cross-origin-resource-policy"] == "same-origin"
    assert (rest.status, rest.body) == (206, whole[1000:])
    assert rest.headers["content-range"] == f"bytes 1000-{len(whole) - 1}/{len(whole)}"
    assert (odd.status, odd.body) == (200, whole)


@pytest.mark.parametrize(
    ("path", "code"),
    [("notes.txt", "path_refused"), ("../served/root/../../x.mp4", "path_refused"), ("out.mp4", "path_refused"),
     ("none.mp4", "not_found"), ("inner", "not_found"), ("", "not_found")],
)  # fmt: skip
def test_files_that_are_not_given(server, path, code):
    answer = server.get(f"/v1/file?path={path}")

    assert (answer.status, answer.code) == (STATUS[code], code)


def test_an_absolute_path_under_the_root(server, root):
    assert server.post("/v1/videos", {"path": str(root / "a.mp4")}).status == 201


def test_health_and_readiness(server):
    health, ready = server.get("/healthz"), server.get("/readyz")

    assert (health.status, health.json) == (200, {"status": "ok"})
    assert (ready.status, ready.json) == (200, {"status": "ready"})


def test_request_ids(server):
    given, odd, none = (
        server.get("/healthz", **kind) for kind in ({"x_request_id": "mine-1"}, {"x_request_id": "a b"}, {})
    )
    wait_until(lambda: none.headers["x-request-id"] in [line["request_id"] for line in server.events("request")])

    assert given.headers["x-request-id"] == "mine-1"
    assert re.fullmatch(r"[0-9a-f]{16}", odd.headers["x-request-id"])
    (line,) = [line for line in server.events("request") if line["request_id"] == none.headers["x-request-id"]]
    assert (line["method"], line["path"], line["status"], line["level"]) == ("GET", "/healthz", 200, "info")


def test_metrics(server, name):
    before = server.metric('sdst_refusals_total{code="video_unknown"}')
    asked = server.metric('sdst_requests_total{method="POST",route="/v1/ground",status="200"}')
    server.ask(name)
    server.ask("nobody")
    server.get("/no/such/place")

    assert server.metric('sdst_refusals_total{code="video_unknown"}') == before + 1
    assert server.metric('sdst_requests_total{method="POST",route="/v1/ground",status="200"}') == asked + 1
    assert server.metric('sdst_requests_total{method="other",route="other",status="404"}') >= 1
    assert server.metric('sdst_stage_seconds_count{stage="head"}') >= 1
    assert server.metric('sdst_stage_seconds_count{stage="wait_ask"}') >= 1
    assert server.metric("sdst_encoded_videos") >= 1
    assert server.metric("sdst_encoded_video_bytes") > 0
    assert (server.metric("sdst_model_starts_total"), server.metric("sdst_model_ready")) == (1, 1)
    assert server.metric('sdst_queue{lane="ask"}') == 0


def test_openapi_says_what_is_answered(server):
    document = server.get("/openapi.json").json
    routes = {(route, method): what for route, ways in document["paths"].items() for method, what in ways.items()}
    refused = {
        (route, status): answer["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        for (route, _), what in routes.items()
        for status, answer in what["responses"].items()
        if int(status) >= 400
    }

    assert set(routes) == {
        ("/v1/videos", "post"), ("/v1/ground", "post"), ("/v1/files", "get"), ("/v1/file", "get"),
        ("/healthz", "get"), ("/readyz", "get"), ("/metrics", "get"),
    }  # fmt: skip
    assert set(refused.values()) == {"ProblemAnswer"}
    assert set(routes["/v1/videos", "post"]["requestBody"]["content"]) == {OCTETS, "video/*", "application/json"}
    assert set(routes["/v1/ground", "post"]["responses"]) == {
        "200", *(str(status) for status in (400, 401, 404, 408, 413, 415, 422, 429, 500, 503, 504, 507))
    }  # fmt: skip
    assert "HTTPValidationError" not in document["components"]["schemas"]
    assert {"Video", "Answers", "ProblemAnswer", "State"} <= set(document["components"]["schemas"])


def test_headers_for_browsers(server):
    answer = server.get("/")

    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["content-security-policy"].startswith("default-src 'self'; ")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not [key for key in answer.headers if key.startswith("access-control")]
    assert server.send("OPTIONS", "/v1/ground", origin="http://example.org").status == 405


# ---------------------------------------------------------------- how it refuses


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("../a.mp4", "path_refused"),
        ("/etc/passwd", "path_refused"),
        ("out.mp4", "path_refused"),
        ("out/noise.mp4", "path_refused"),
        ("inner/../../root2/a.mp4", "path_refused"),
        ("a\0.mp4", "path_refused"),
        ("circle", "path_refused"),
        ("x" * 5000, "path_refused"),
        ("none.mp4", "not_found"),
        ("inner", "not_found"),
        ("", "not_found"),
    ],
)
def test_paths_that_are_refused(server, path, code):
    answer = server.post("/v1/videos", {"path": path})

    assert (answer.status, answer.code) == (STATUS[code], code)


BODIES = [
    ("/v1/ground", b"no JSON", "bad_body"),
    ("/v1/ground", b"\xff\xfe", "bad_body"),
    ("/v1/ground", b"[]", "bad_body"),
    ("/v1/ground", b"[" * 100_000, "bad_body"),
    ("/v1/ground", b'{"video": "x"}', "bad_body"),
    ("/v1/ground", b'{"video": "x", "sentences": "one"}', "bad_body"),
    ("/v1/ground", b'{"video": "x", "sentences": []}', "bad_body"),
    ("/v1/ground", b'{"video": "x", "sentences": ["a"], "top": 3}', "bad_body"),
    ("/v1/ground", b'{"video": "x", "sentences": ["a"], "threshold": 1.01}', "bad_body"),
    ("/v1/ground", b'{"video": "x", "sentences": ["a"], "threshold": -0.01}', "bad_body"),
    ("/v1/ground", b'{"video": "x", "sentences": ["a"], "threshold": NaN}', "bad_body"),
    ("/v1/ground", b'{"video": "x", "sentences": ["a"], "threshold": "0.5"}', "bad_body"),
    ("/v1/ground", b'{"video": "x", "sentences": ["a"], "threshold": true}', "bad_body"),
    ("/v1/ground", b'{"video": "x", "sentences": ["a"]}', "video_unknown"),
    ("/v1/ground", b'{"video": "../x", "sentences": ["a"]}', "video_unknown"),
    ("/v1/ground", b" " * 1_100_000, "too_large"),
    ("/v1/videos", b'{"path": 3}', "bad_body"),
    ("/v1/videos", b"{}", "bad_body"),
]


@pytest.mark.parametrize(("path", "body", "code"), BODIES)
def test_bodies_that_are_refused(server, path, body, code):
    answer = server.send("POST", path, body, content_type="application/json")

    assert (answer.status, answer.code) == (STATUS[code], code)
    ProblemAnswer.model_validate_json(answer.body)


@pytest.mark.parametrize(
    ("sentences", "said"),
    [
        ([QUERY] * 10_000, "expected 1 to 8, got 10,000"),
        ([QUERY] * 9, "expected 1 to 8, got 9"),
        ([QUERY, "zzz qqq"], "no word that the model knows"),
        ([QUERY, "  "], "is empty"),
        (["a circle " * 200], "too long"),
        (["\ud800"], ""),
    ],
)
def test_sentences_that_are_refused(server, name, sentences, said):
    answer = server.ask(name, *sentences)

    assert answer.status == 422
    assert answer.code in ("bad_sentence", "bad_body")
    assert said in answer.json["error"]["message"]


def test_a_threshold_for_a_model_without_presence(server, name, exported):
    answer = server.post("/v1/ground", {"video": name, "sentences": [QUERY], "threshold": 0.5})

    assert (answer.status, answer.code) == (422, "bad_threshold")
    said = answer.json["error"]["message"]
    assert said.startswith("threshold: this server's model does not say whether an event is there; train with")
    assert str(exported.directory) not in answer.body.decode()
    assert server.ask(name).json["results"][0]["presence"] is None


def test_a_threshold(present, tmp_path, video):
    """Of a question: the next one is answered without it. 0 and 1 are thresholds too, and null is none."""
    asked = [QUERY, OTHER, "a ring grows", "a green star spins"]
    with serving(present.directory, tmp_path) as served:
        video_name = served.upload(video.read_bytes()).json["video"]
        free = served.ask(video_name, *asked).json["results"]
        known = [result["presence"] for result in free]
        limit = sum(sorted(known)[1:3]) / 2
        question = {"video": video_name, "sentences": asked}
        got = served.post("/v1/ground", {**question, "threshold": limit})
        none, every, null = (
            served.post("/v1/ground", {**question, "threshold": limit}).json["results"] for limit in (1, 0, None)
        )

        expected = [{**result, "moments": result["moments"] * (result["presence"] >= limit)} for result in free]
        assert got.json["results"] == expected
        assert Answers.model_validate_json(got.body).model_dump() == got.json
        assert [result["moments"] for result in none] == [[]] * 4
        assert every == null == free == served.ask(video_name, *asked).json["results"]


def test_unknown_words_among_known_ones_are_named(server, name):
    answer = server.ask(name, "a red zzz moves")

    assert answer.json["results"][0]["unknown_words"] == ["zzz"]


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"]
)
def test_types_that_a_foreign_page_could_send(server, kind):
    """A browser sends these from any page without asking; others it asks about first, and hears no."""
    given = {"content_type": kind} if kind else {}

    assert server.send("POST", "/v1/videos", b"x", **given).code == "unsupported_type"
    assert server.send("POST", "/v1/ground", b"{}", **given).code == "unsupported_type"


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/v2", "not_found"),
        ("GET", "/docs", "not_found"),
        ("GET", "/page/../run.py", "not_found"),
        ("GET", "/v1/ground", "method_not_allowed"),
        ("POST", "/healthz", "method_not_allowed"),
    ],
)
def test_routes_that_are_not_there(server, method, path, code):
    answer = server.send(method, path)

    assert (answer.status, answer.code) == (STATUS[code], code)


@pytest.mark.parametrize(
    "body", [b"", b"junk" * 1000, b"#EXTM3U\nhttp://127.0.0.1/x.mp4\n", b"ffconcat version 1.0\nfile /etc/passwd\n"]
)
def test_uploads_that_are_no_video(server, body):
    answer = server.upload(body)

    assert (answer.status, answer.code) == (422, "bad_video")
    assert str(server.temporary) not in answer.json["error"]["message"]
    assert server.left_over() == []


def test_a_video_that_was_cut_before_it_was_sent(server, video):
    whole = video.read_bytes()
    answer = server.upload(whole[: len(whole) // 2])

    assert (answer.status, answer.code) == (422, "bad_video")
    assert "the upload" in answer.json["error"]["message"]


def test_uploads_that_are_too_large(server):
    told = server.upload(b"x" * (1 << 20) + b"x")
    in_pieces = server.upload(iter([b"x" * 65536] * 64))  # no length is said

    assert (told.status, told.code, in_pieces.status, in_pieces.code) == (413, "too_large", 413, "too_large")
    assert server.left_over() == []


def test_an_upload_that_claims_to_be_large(server):
    connection = server.connect()
    connection.putrequest("POST", "/v1/videos")
    for header in (("Content-Type", OCTETS), ("Content-Length", str(10**12)), ("Expect", "100-continue")):
        connection.putheader(*header)
    connection.endheaders()

    assert connection.getresponse().status == 413


def test_an_upload_that_is_cut_in_the_middle(server, video):
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        head = f"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Type: {OCTETS}\r\nContent-Length: 100000\r\n"
        client.sendall(head.encode() + b"X-Request-ID: cut\r\n\r\n" + video.read_bytes()[:5000])
        wait_until(server.left_over)
    wait_until(lambda: [line for line in server.events("request") if line["request_id"] == "cut"])

    (line,) = [line for line in server.events("request") if line["request_id"] == "cut"]
    assert line["code"] == "upload_cut"
    wait_until(lambda: not server.left_over())


def test_a_video_that_is_too_long(server, tmp_path, video):
    from conftest import write_noise

    longer = write_noise(tmp_path / "x.mp4", frames=400)
    answer = server.upload(longer.read_bytes())

    assert (answer.status, answer.code) == (422, "video_too_long")
    assert "expected at most 20 s" in answer.json["error"]["message"]


def test_without_a_root_no_path_is_taken(exported, tmp_path, root):
    with serving(exported.directory, tmp_path, wait=False) as served:
        wait_until(lambda: served.events("listening"))
        assert served.post("/v1/videos", {"path": str(root / "a.mp4")}).code == "path_refused"
        assert served.get("/v1/files").json == {"names": [], "more": False}
        assert served.get("/v1/file?path=a.mp4").code == "path_refused"


def test_a_token(exported, tmp_path):
    with serving(exported.directory, tmp_path, wait=False, environment={"SDST_SERVE_TOKEN": "s3cret"}) as served:
        wait_until(lambda: served.events("listening"))
        right = {"authorization": "Bearer s3cret"}
        assert served.ask("x").status == 401
        assert served.ask("x").headers["www-authenticate"] == "Bearer"
        assert served.get("/metrics").code == "unauthorized"
        assert served.get("/metrics", authorization="Bearer s3cre").code == "unauthorized"
        assert served.get("/metrics", **right).status == 200
        assert served.get("/v1/files").code == served.get("/v1/file?path=a.mp4").code == "unauthorized"
        assert served.post("/v1/ground", {"video": "x", "sentences": ["a"]}, **right).code == "video_unknown"
        assert (served.get("/healthz").status, served.get("/").status) == (200, 200)


def test_a_name_that_another_site_gave_this_machine(exported, tmp_path):
    """DNS rebinding: the page of a site whose name now leads to 127.0.0.1."""
    with serving(exported.directory, tmp_path, wait=False) as served:
        wait_until(lambda: served.events("listening"))
        for name in ("evil.example", f"evil.example:{served.port}", "127.0.0.1.evil.example", "localhost:1:x"):
            refused = served.get("/v1/files", host=name)
            assert (refused.status, refused.code) == (400, "bad_request"), name
            assert served.get("/metrics", host=name).code == "bad_request"
            assert served.get("/healthz", host=name).status == 200
        for name in ("localhost", f"localhost:{served.port}", "[::1]", "[::1]:80", "127.0.0.1:1"):
            assert served.get("/v1/files", host=name).status == 200, name
    with serving(exported.directory, tmp_path, wait=False, environment={"SDST_SERVE_TOKEN": "s3cret"}) as served:
        wait_until(lambda: served.events("listening"))
        assert served.get("/v1/files", host="a.example", authorization="Bearer s3cret").status == 200


def test_a_full_disk(exported, tmp_path, video):
    def small_files() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    assert video.stat().st_size > 8192
    with serving(exported.directory, tmp_path, before=small_files) as served:
        answer = served.upload(video.read_bytes())

        assert (answer.status, answer.code) == (507, "no_space")
        assert served.left_over() == []
        assert served.get("/readyz").status == 200


def raw(server: Served, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=120) as client:
        with suppress(OSError):  # it may answer and close before it has heard all
            client.sendall(data)
        return client.recv(65536)


def test_what_is_no_http(server):
    assert raw(server, b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert raw(server, b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 200_000 + b"\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert http.client.responses[server.get("/healthz").status] == "OK"
