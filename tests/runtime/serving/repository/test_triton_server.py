"""sdst_ground in the real tritonserver, its models in the Python backend: equal to Grounder to the bit."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_noise
from triton_server import TritonServer, asked, make_repository, path, served, triton_python

from sdst_runtime import Grounder
from sdst_runtime.contracts import VideoFeatures
from sdst_runtime.corpus.ask import pooled_sentences
from sdst_runtime.corpus.store import SCALE, unit_vectors
from sdst_runtime.serving.triton.configuration import MOST_QUEUED, MOST_REQUESTS
from sdst_runtime.sessions.base import MODELS

CLIENT = Path(__file__).with_name("triton_client.py")
SENTENCES = ["a red circle moves to the left", "a blue square"]


@pytest.fixture(scope="module")
def repository(exported, video, tmp_path_factory) -> Path:
    return make_repository(exported.directory, video, tmp_path_factory.mktemp("triton") / "served")


@pytest.fixture(scope="module")
def grounder(exported) -> Iterator[Grounder]:
    with Grounder(exported.directory) as opened:
        yield opened


@pytest.fixture(scope="module")
def server(repository) -> Iterator[TritonServer]:
    with served(repository, "--log-verbose=1") as running:
        yield running


def client(*words: object) -> Any:
    """What a client of NVIDIA's says."""
    command = [triton_python(), CLIENT, *words]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def of_features(features: np.ndarray, duration_s: float) -> dict[str, Any]:
    return {
        "features": ("FP32", [1, *features.shape], features.astype(np.float64).ravel().tolist()),
        "duration_s": ("FP64", [1, 1], [duration_s]),
    }


def test_over_http(server, grounder, video):
    encoded = grounder.encode(video)
    expected = [answer.to_dict() for answer in grounder.ground(encoded, SENTENCES)]
    status, answer = server.infer(**asked(SENTENCES, **path("noise.mp4")))
    assert (status, answer["answers"]) == (200, expected)
    assert answer["video"] == [{"duration_s": encoded.duration_s, "clip_s": 1.0, "warnings": []}]


def test_features_over_http(server, grounder, video):
    """As numbers in JSON, whose last bit Triton's parser may lose: hence a duration that is exact in few digits."""
    features = VideoFeatures(grounder.encode(video).features, 7.5, grounder.spec)
    expected = [answer.to_dict() for answer in grounder.ground(features, SENTENCES)]
    assert server.infer(**asked(SENTENCES, **of_features(features.features, 7.5)))[1]["answers"] == expected


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_bytes_over_both_clients(server, grounder, video, protocol):
    expected = [answer.to_dict() for answer in grounder.ground(video, SENTENCES)]
    assert client("bytes", protocol, getattr(server, protocol), video, *SENTENCES) == expected


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_client_of_the_docs(server, grounder, video, protocol):
    encoded = grounder.encode(video)
    first, *others = client("documented", protocol, getattr(server, protocol), 4)
    assert first == [grounder.ground(encoded, "a red circle moves to the left").to_dict()]
    assert len(others) == 4
    for answer in others:
        assert_near(answer, [grounder.ground(encoded, "a blue square").to_dict()])


def test_the_client_of_the_docs_asks_again_when_an_answer_ends_in_the_middle():
    assert client("cut") == "[400] asked again!!"


def test_every_model_is_warm_before_the_server_is_ready(server):
    told = server.log.read_text().split("Started HTTPService")[0]
    for model in MODELS:
        for sample in ("shapes 0", "shapes 1"):
            assert f"model '{model}' instance {model}_0_0 is running warmup sample '{sample}'" in told


def test_the_second_question_about_a_file_encodes_nothing(server):
    first = server.infer(**asked(SENTENCES, **path("noise.mp4")))
    before = server.statistics("vision"), server.statistics("projection")
    assert server.infer(**asked(SENTENCES, **path("noise.mp4"))) == first
    assert (server.statistics("vision"), server.statistics("projection")) == before


def test_a_file_that_was_replaced_is_encoded_again(server, repository, grounder, tmp_path):
    file = repository.parent / "root" / "replaced.mp4"
    for seed in (1, 2):
        write_noise(tmp_path / "new.mp4", seed=seed).rename(file)
        expected = [answer.to_dict() for answer in grounder.ground(file, SENTENCES)]
        for _ in range(2):
            assert server.infer(**asked(SENTENCES, **path(file.name)))[1]["answers"] == expected


def test_alignment_is_that_of_a_corpus(server, grounder, video):
    encoded = grounder.encode(video)
    vectors = np.concatenate([unit_vectors(piece) for piece in encoded.projected]) / SCALE  # N K F
    with grounder.bundle.session("sentence") as session:
        sentences = pooled_sentences(grounder, session, SENTENCES)  # Q K F
    expected = np.einsum("nkf,qkf->qnk", vectors, sentences).mean(2).max(1)
    status, answer = server.infer(**asked(SENTENCES, **path("noise.mp4")))
    assert status == 200, answer
    np.testing.assert_allclose(answer["alignment"], expected, atol=1e-5)


def test_mixed_lengths_in_one_batch(server, grounder):
    """Of features, long enough for windows too, many at once."""
    rng = np.random.default_rng(0)
    spec, lengths = grounder.spec, [9, 40, 170, 9, 12, 33, 300, 21] * 3
    videos = [
        VideoFeatures(rng.standard_normal((n, spec.layers, spec.video_width)).astype(np.float32), float(n), spec)
        for n in lengths
    ]
    before = server.statistics()
    with ThreadPoolExecutor(len(videos)) as pool:
        given = [asked(SENTENCES, **of_features(video.features, video.duration_s)) for video in videos]
        answers = list(pool.map(lambda one: server.infer(**one), given))
    for video, (status, answer) in zip(videos, answers):
        assert status == 200, answer
        assert_near(answer["answers"], [one.to_dict() for one in grounder.ground(video, SENTENCES)])
    requests, batches = (after - start for start, after in zip(before, server.statistics()))
    assert requests == len(videos)
    assert batches < requests


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
        (path("none.mp4"), "none.mp4: "),
        ({"bytes": ("BYTES", [1, 1], ["junk"])}, "the file object: not a video that can be read"),
        ({}, "expected one of the inputs path, bytes, features, got none"),
        ({**path("noise.mp4"), "bytes": ("BYTES", [1, 1], ["x"])}, "got path, bytes"),
        ({"features": ("FP32", [1, 9, 2, 12], [0.0] * 216)}, "duration_s: expected shape [1, 1], got None"),
    ],
)
def test_bad_input_is_refused_with_a_line(server, repository, given, words):
    status, error = server.infer(**asked(SENTENCES, **given))
    assert status == 400
    assert words in error
    assert str(repository.parent) not in error  # where the videos lie is nobody's business
    assert "\n" not in error


def test_a_sentence_of_unknown_words(server):
    status, error = server.infer(**asked(["zzz"], **path("noise.mp4")))
    assert (status, "no word that the model knows" in error) == (400, True)


def test_a_full_queue_refuses_the_surplus(server):
    given, most = asked(SENTENCES, **path("noise.mp4")), 2 * (MOST_QUEUED + MOST_REQUESTS)
    with ThreadPoolExecutor(most) as pool:
        answers = list(pool.map(lambda _: server.infer(**given), range(most)))
    accepted = [answer["answers"] for status, answer in answers if status == 200]
    refused = [error for status, error in answers if status == 503]
    assert len(accepted) + len(refused) == most
    assert len(accepted) >= MOST_QUEUED
    assert refused
    assert all("Exceeds maximum queue size" in error for error in refused)
    assert {len(answer) for answer in accepted} == {len(SENTENCES)}
