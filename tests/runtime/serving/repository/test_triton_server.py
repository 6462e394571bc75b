"""sdst_ground in the real tritonserver, its models in the Python backend: equal to Grounder to the bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from triton_server import TritonServer, served, triton_python

from sdst_runtime import Grounder
from sdst_runtime.contracts import VideoFeatures
from sdst_runtime.serving.triton.configuration import MOST_QUEUED, MOST_REQUESTS

CLIENT = Path(__file__).with_name("triton_client.py")
SENTENCES = ["a red circle moves to the left", "a blue square"]


def write(bundle: Path, out: Path, kind: str, *options: object) -> subprocess.CompletedProcess[str]:
    """`sdst triton` in the environment that has tritonclient."""
    command = [triton_python(), "-m", "sdst", "triton", bundle, "--out", out, "--kind", kind, *options]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def repository(exported, video, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("triton")
    (folder / "outside.mp4").write_bytes(video.read_bytes())
    (folder / "root").mkdir()
    (folder / "root" / "noise.mp4").write_bytes(video.read_bytes())
    (folder / "root" / "link.mp4").symlink_to(folder / "outside.mp4")
    done = write(exported.directory, folder / "models", "cpu", "--root", folder / "root")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"tritonserver --model-repository={folder / 'models'}\n"
    return folder / "models"


@pytest.fixture(scope="module")
def server(repository) -> Iterator[TritonServer]:
    with served(repository) as running:
        yield running


@pytest.fixture(scope="module")
def grounder(exported) -> Iterator[Grounder]:
    with Grounder(exported.directory) as opened:
        yield opened


def asked(sentences: list[str] = SENTENCES, **more: Any) -> dict[str, Any]:
    return {"sentences": ("BYTES", [1, len(sentences)], sentences), **more}


def path(name: str) -> dict[str, Any]:
    return {"path": ("BYTES", [1, 1], [name])}


def of_features(features: np.ndarray, duration_s: float) -> dict[str, Any]:
    return {
        "features": ("FP32", [1, *features.shape], features.astype(np.float64).ravel().tolist()),
        "duration_s": ("FP64", [1, 1], [duration_s]),
    }


def test_over_http(server, grounder, video):
    encoded = grounder.encode(video)
    expected = [answer.to_dict() for answer in grounder.ground(encoded, SENTENCES)]
    status, answer = server.infer(**asked(**path("noise.mp4")))
    assert (status, answer["answers"]) == (200, expected)
    assert answer["video"] == [{"duration_s": encoded.duration_s, "clip_s": 1.0, "warnings": []}]


def test_features_over_http(server, grounder, video):
    """As numbers in JSON, whose last bit Triton's parser may lose: hence a duration that is exact in few digits."""
    features = VideoFeatures(grounder.encode(video).features, 7.5, grounder.spec)
    expected = [answer.to_dict() for answer in grounder.ground(features, SENTENCES)]
    assert server.infer(**asked(**of_features(features.features, 7.5)))[1]["answers"] == expected


def test_over_grpc(server, grounder, video):
    command = [triton_python(), CLIENT, "grpc", server.grpc, video, *SENTENCES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [answer.to_dict() for answer in grounder.ground(video, SENTENCES)]


def test_mixed_lengths_in_one_batch(server, grounder):
    """Of features, long enough for windows too, many at once."""
    rng = np.random.default_rng(0)
    spec, lengths = grounder.spec, [9, 40, 170, 9, 12, 33, 300, 21] * 3
    videos = [
        VideoFeatures(rng.standard_normal((n, spec.layers, spec.video_width)).astype(np.float32), float(n), spec)
        for n in lengths
    ]
    before = statistics(server)
    with ThreadPoolExecutor(len(videos)) as pool:
        given = [asked(**of_features(video.features, video.duration_s)) for video in videos]
        answers = list(pool.map(lambda one: server.infer(**one), given))
    for video, (status, answer) in zip(videos, answers):
        assert status == 200, answer
        assert_near(answer["answers"], [one.to_dict() for one in grounder.ground(video, SENTENCES)])
    requests, batches = (after - start for start, after in zip(before, statistics(server)))
    assert requests == len(videos)
    assert batches < requests


def statistics(server: TritonServer) -> tuple[int, int]:
    """Requests and batches of sdst_ground so far."""
    (stats,) = server.get("models/sdst_ground/stats")[1]["model_stats"]
    return int(stats["inference_count"]), int(stats["execution_count"])


def assert_near(got: Any, expected: Any) -> None:
    """The same moments and saliency but for the order of additions in another batch."""
    for one, other in zip(got, expected, strict=True):
        assert one["query"] == other["query"]
        np.testing.assert_allclose(one["saliency"], other["saliency"], atol=1e-4)
        scores = [[m["score"] for m in answer["moments"]] for answer in (one, other)]
        np.testing.assert_allclose(*scores, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (path("../outside.mp4"), "path: expected one below the server's root, got '../outside.mp4'"),
        (path("link.mp4"), "path: expected one below the server's root, got 'link.mp4'"),
        (path("/etc/passwd"), "path: expected one below the server's root, got '/etc/passwd'"),
        (path("none.mp4"), "none.mp4"),
        ({"bytes": ("BYTES", [1, 1], ["junk"])}, "the file object: not a video that can be read"),
        ({}, "expected one of the inputs path, bytes, features, got none"),
        ({**path("noise.mp4"), "bytes": ("BYTES", [1, 1], ["x"])}, "got path, bytes"),
        ({"features": ("FP32", [1, 9, 2, 12], [0.0] * 216)}, "duration_s: expected shape [1, 1], got None"),
    ],
)
def test_bad_input_is_refused_with_a_line(server, given, words):
    status, error = server.infer(**asked(**given))
    assert status == 400
    assert words in error
    assert "\n" not in error


def test_a_sentence_of_unknown_words(server):
    status, error = server.infer(**asked(["zzz"], **path("noise.mp4")))
    assert (status, "no word that the model knows" in error) == (400, True)


def test_a_full_queue_refuses_the_surplus(server):
    given, most = asked(**path("noise.mp4")), 2 * (MOST_QUEUED + MOST_REQUESTS)
    with ThreadPoolExecutor(most) as pool:
        answers = list(pool.map(lambda _: server.infer(**given), range(most)))
    accepted = [answer["answers"] for status, answer in answers if status == 200]
    refused = [error for status, error in answers if status == 503]
    assert len(accepted) + len(refused) == most
    assert len(accepted) >= MOST_QUEUED
    assert refused
    assert all("Exceeds maximum queue size" in error for error in refused)
    assert {len(answer) for answer in accepted} == {len(SENTENCES)}


def test_a_killed_model_shows_at_an_inference_only(repository):
    """So health is to be asked by a real question."""
    with served(repository) as server:
        assert server.infer(**asked(**path("noise.mp4")))[0] == 200
        os.kill(server.stub("head"), signal.SIGKILL)
        time.sleep(1)
        assert server.get("health/ready")[0] == 200
        assert server.get("models/head/ready")[0] == 200
        status, error = server.infer(**asked(**path("noise.mp4")))
        assert status == 500
        assert error.startswith("head: ")


def test_sigterm_ends_the_server_and_its_models(repository):
    with served(repository) as server:
        stubs = [server.stub(model) for model in ("vision", "sdst_ground")]
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in stubs)
