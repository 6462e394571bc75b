"""The runtime from file to moments, against torch on the same frames."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parity_world import changed_bundle

from sdst_runtime import Grounder, Grounding, VideoFeatures
from sdst_runtime.data.dataset import pad_inputs
from sdst_runtime.errors import ContractError, InputError, SessionError
from sdst_runtime.grounding.decode import decode, prediction_row
from sdst_runtime.grounding.grounder import batches
from sdst_runtime.grounding.timings import Timings
from sdst_runtime.media.clips import read_clips
from sdst_train.backbone.feature_run import extract_sentences, extract_videos
from sdst_train.backbone.towers import load_backbone
from sdst_train.loop.checkpoint import load_checkpoint
from sdst_train.model.torch_session import TorchSession

QUERIES = ["a red circle moves to the left", "a ring grows", "when does something cyan shaped like a donut blink?"]


@pytest.fixture(scope="module")
def grounder(exported) -> Grounder:
    return Grounder.load(exported.directory, threads=1)


def test_encode_equals_the_tower_that_trained(grounder, exported, video):
    features = grounder.encode(video)
    clips, duration_s = read_clips(video, grounder.spec)
    with torch.no_grad():
        expected = load_backbone(exported.backbone_path).vision(torch.from_numpy(clips)).numpy()
    assert features.features.shape == (8, 2, 12)
    assert np.abs(features.features - expected).max() < 1e-5
    assert features.duration_s == duration_s == pytest.approx(7.4)
    assert features.warnings == ()


def test_training_features_equal_inference_features(grounder, exported, video, tmp_path):
    """Train/serve skew: the files that training reads hold what inference computes."""
    from sdst_runtime.data.features import (
        read_text_features,
        read_video_features,
        text_feature_path,
        video_feature_path,
    )

    backbone = load_backbone(exported.backbone_path)
    extract_videos({"v": video}, backbone.vision, tmp_path, workers=1, dtype="float32")
    extract_sentences([QUERIES[0], QUERIES[0]], backbone, tmp_path, dtype="float32")
    stored = read_video_features(video_feature_path(tmp_path, "v"), grounder.spec)
    live = grounder.encode(video)
    assert np.abs(stored.features - live.features).max() < 1e-5
    assert stored.duration_s == live.duration_s
    ids, mask = grounder.tokenizer.encode_batch([QUERIES[0]], grounder.spec.max_tokens)
    text = grounder.text.run({"token_ids": ids, "token_mask": mask})["features"][0]
    assert np.abs(read_text_features(text_feature_path(tmp_path, QUERIES[0])).features - text).max() < 1e-5
    assert len(list((tmp_path / "text").iterdir())) == 1


def test_ground_equals_torch(grounder, exported, video):
    """The same question to the trained model in torch, step by step."""
    features = grounder.encode(video)
    backbone, head = (
        load_backbone(exported.backbone_path),
        TorchSession(load_checkpoint(exported.checkpoint_path).model),
    )
    ids, mask = grounder.tokenizer.encode_batch(QUERIES, grounder.spec.max_tokens)
    with torch.no_grad():
        text = backbone.text(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    texts = [row[:, :n] for row, n in zip(text, mask.sum(1), strict=True)]
    outputs = head.run(pad_inputs([features.features] * 3, texts))
    expected = decode(outputs, QUERIES, [8] * 3, [7.4] * 3, 1.0)
    for one, other in zip(grounder.ground_batch(features, QUERIES), expected, strict=True):
        assert one.query == other.query
        assert np.abs(one.saliency - other.saliency).max() < 1e-4
        for mine, theirs in zip(one.moments, other.moments, strict=True):
            assert dataclasses.astuple(mine) == pytest.approx(dataclasses.astuple(theirs), abs=1e-3)


def test_an_encoded_video_says_what_decoded_it(grounder, video):
    import av

    assert grounder.encode(video).decoder == f"libavcodec {av.library_versions['libavcodec'][0]}"


def test_a_batch_of_queries_equals_single_ones(grounder, video):
    features = grounder.encode(video)
    for query, batched in zip(QUERIES, grounder.ground_batch(features, QUERIES), strict=True):
        alone = grounder.ground(features, query)
        assert np.abs(alone.saliency - batched.saliency).max() < 1e-5
        for one, other in zip(alone.moments, batched.moments, strict=True):
            assert dataclasses.astuple(one) == pytest.approx(dataclasses.astuple(other), abs=1e-4)


def test_timings_have_a_sample_a_call(exported, video):
    grounder = Grounder.load(exported.directory, threads=1)
    features = grounder.encode(video)
    grounder.ground(features, QUERIES[0])
    grounder.ground_batch(features, QUERIES)
    assert {stage: len(seconds) for stage, seconds in grounder.timings.samples.items()} == {
        "decode": 1,
        "vision": 1,
        "projection": 1,
        "text": 2,
        "head": 2,
    }
    assert all(second > 0 for seconds in grounder.timings.samples.values() for second in seconds)


def test_timings_keep_the_last_samples():
    timings = Timings()
    for number in range(10_001):
        with timings.call() as clock:
            clock.seconds["head"] = number
    assert len(timings.samples["head"]) == 10_000
    assert (timings.samples["head"][0], timings.samples["head"][-1]) == (1, 10_000)


def test_features_of_another_contract_are_refused(grounder, video):
    encoded = grounder.encode(video)
    other = dataclasses.replace(encoded.spec, frames_per_clip=8)
    for features in (dataclasses.replace(encoded, spec=other), VideoFeatures(encoded.features, 7.4, other)):
        with pytest.raises(
            ContractError, match="disagree on frames_per_clip: the video features has 8, the bundle needs 2"
        ):
            grounder.ground(features, QUERIES[0])


def test_a_video_projected_by_another_head_is_refused(grounder, video):
    encoded = dataclasses.replace(grounder.encode(video), projection_sha256="0" * 64)
    with pytest.raises(ContractError, match="made with the projection 000000000000, the bundle's is"):
        grounder.ground(encoded, QUERIES[0])


def test_queries_must_be_a_list(grounder, video):
    features = grounder.encode(video)
    with pytest.raises(InputError, match=r"use ground\(\) for one"):
        grounder.ground_batch(features, QUERIES[0])
    with pytest.raises(InputError, match="at least one sentence"):
        grounder.ground_batch(features, [])


def test_a_closed_grounder_says_so(exported, video):
    with Grounder.load(exported.directory, threads=1) as grounder:
        features = grounder.encode(video)
    grounder.close()
    for ask in (lambda: grounder.encode(video), lambda: grounder.ground(features, QUERIES[0])):
        with pytest.raises(SessionError, match="closed"):
            ask()


# ---------------------------------------------------------------- encode once, ask many


def random_video(spec, clips: int, seed: int = 0) -> VideoFeatures:
    """Noise; the last clip is cut short."""
    features = np.random.default_rng(seed).standard_normal((clips, spec.layers, spec.video_width), np.float32)
    return VideoFeatures(features, clips * spec.clip_s - 0.4, spec)


def assert_same(one: Grounding, other: Grounding, tolerance: float = 1e-4) -> None:
    assert (one.query, one.clip_s, len(one.moments)) == (other.query, other.clip_s, len(other.moments))
    assert np.abs(one.saliency - other.saliency).max() <= tolerance
    for mine, theirs in zip(one.moments, other.moments, strict=True):
        assert dataclasses.astuple(mine) == pytest.approx(dataclasses.astuple(theirs), abs=tolerance)


def test_the_projection_runs_once_a_video(exported, video):
    grounder = Grounder.load(exported.directory, threads=1)
    encoded = grounder.encode(video)
    again = VideoFeatures(encoded.features, encoded.duration_s, encoded.spec)
    for query in QUERIES:
        assert_same(grounder.ground(encoded, query), grounder.ground(again, query), tolerance=0)
    assert len(grounder.timings.samples["projection"]) == 1 + len(QUERIES)
    assert [window.clips for window in encoded.windows] == [8]
    assert (encoded.projected[0].shape, encoded.projected[0].dtype) == ((8, 2, 32), np.float32)


def test_surplus_layers_are_cut(grounder):
    spec = dataclasses.replace(grounder.spec, layers=3)
    deep = random_video(spec, 12)
    shallow = VideoFeatures(deep.features[:, 1:], deep.duration_s, grounder.spec)
    assert_same(grounder.ground(deep, QUERIES[0]), grounder.ground(shallow, QUERIES[0]), tolerance=0)


def test_half_features_are_taken(grounder):
    video = random_video(grounder.spec, 12)
    half = dataclasses.replace(video, features=video.features.astype(np.float16))
    single = dataclasses.replace(video, features=half.features.astype(np.float32))
    assert_same(grounder.ground(half, QUERIES[0]), grounder.ground(single, QUERIES[0]), tolerance=0)


def test_many_videos_share_batches_and_keep_their_order(grounder):
    lengths = (30, 9, 17, 64, 9)
    jobs = [(random_video(grounder.spec, T, seed=T), QUERIES[: 1 + i % 3]) for i, T in enumerate(lengths)]
    answers = grounder.ground_many(jobs)
    assert [[answer.query for answer in of_video] for of_video in answers] == [queries for _, queries in jobs]
    for (video, queries), of_video in zip(jobs, answers, strict=True):
        assert [len(answer.saliency) for answer in of_video] == [len(video.features)] * len(queries)
        for query, answer in zip(queries, of_video, strict=True):
            assert_same(answer, grounder.ground(video, query))
    assert grounder.ground_many([]) == []


def test_more_questions_than_a_batch_holds(exported):
    grounder = Grounder.load(exported.directory, threads=1)
    grounder.most_rows = 4
    video = grounder.project(random_video(grounder.spec, 20))
    queries = [QUERIES[i % 3] for i in range(11)]
    answers = grounder.ground_batch(video, queries)
    assert [answer.query for answer in answers] == queries
    for query, answer in zip(queries, answers, strict=True):
        assert_same(answer, grounder.ground(video, query))


def test_batches_are_bounded_by_rows_and_by_memory():
    assert [range(10)[rows] for rows in batches([75] * 10, 4)] == [range(4), range(4, 8), range(8, 10)]
    assert [rows.stop - rows.start for rows in batches([1200] * 5, 32)] == [2, 2, 1]
    assert [rows.stop - rows.start for rows in batches([100, 100, 1200, 1200, 1200], 32)] == [2, 2, 1]
    assert [rows.stop - rows.start for rows in batches([3600, 3600], 32)] == [1, 1]
    assert list(batches([], 32)) == []


def test_threads_may_share_a_grounder(grounder):
    videos = [grounder.project(random_video(grounder.spec, 20, seed)) for seed in range(8)]
    expected = [grounder.ground_batch(video, QUERIES) for video in videos]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda video: grounder.ground_batch(video, QUERIES), videos))
    for mine, theirs in zip(found, expected, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert_same(one, other)


# ---------------------------------------------------------------- long videos

WINDOW = 24


@pytest.fixture(scope="module")
def windowed(exported) -> Grounder:
    return Grounder.load(exported.directory, threads=1, window_clips=WINDOW)


def test_a_video_of_one_window_takes_the_plain_path_bit_for_bit(grounder, windowed):
    for clips in (1, WINDOW - 1, WINDOW):
        video = random_video(grounder.spec, clips)
        for one, other in zip(grounder.ground_batch(video, QUERIES), windowed.ground_batch(video, QUERIES)):
            assert one.moments == other.moments
            assert np.array_equal(one.saliency, other.saliency)


@settings(max_examples=20, deadline=None)
@given(st.integers(WINDOW + 1, 5 * WINDOW), st.integers(0, 99))
def test_a_long_video_says_what_its_windows_say(grounder, windowed, clips, seed):
    video = random_video(grounder.spec, clips, seed)
    encoded = windowed.project(video)
    answer = windowed.ground(encoded, QUERIES[0])
    duration_s, clip_s = video.duration_s, video.spec.clip_s
    assert answer.saliency.shape == (clips,)
    for window in encoded.windows:
        rest_s = min(window.clips * clip_s, duration_s - window.start * clip_s)
        part = VideoFeatures(video.features[window.start : window.stop], rest_s, video.spec)
        alone, offset_s = grounder.ground(part, QUERIES[0]), window.start * clip_s
        others = [other for other in encoded.windows if other is not window]
        own = [k for k in range(window.start, window.stop) if not any(o.start <= k < o.stop for o in others)]
        seen = alone.saliency[[k - window.start for k in own]]
        assert answer.saliency[own] == pytest.approx(seen, abs=1e-4)
        for moment in alone.moments:
            start_s, end_s = moment.start_s + offset_s, moment.end_s + offset_s
            if not any(start_s < o.stop * clip_s and o.start * clip_s < end_s for o in others):
                wanted = pytest.approx((start_s, end_s, moment.score), abs=1e-3)
                assert any(dataclasses.astuple(found) == wanted for found in answer.moments)
    scores = [moment.score for moment in answer.moments]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= moment.start_s <= moment.end_s <= duration_s for moment in answer.moments)


def test_windows_are_as_long_as_what_was_learnt(exported, tmp_path):
    """Up to the longest video of the training a video is seen whole, a longer one in windows of the median length."""

    def tell(model: onnx.ModelProto) -> None:
        told = {entry.key: entry.value for entry in model.metadata_props}
        onnx.helper.set_model_props(model, told | {"sdst.usual_clips": "12", "sdst.longest_clips": "20"})

    bundle = changed_bundle(exported.directory, tmp_path / "told", tell)
    with Grounder.load(bundle, threads=1) as grounder:
        windows = {T: grounder.project(random_video(grounder.spec, T)).windows for T in (5, 20, 21, 60)}
    sizes = {T: {window.clips for window in found} for T, found in windows.items()}
    assert sizes == {5: {5}, 20: {20}, 21: {12}, 60: {12}}
    with Grounder.load(bundle, threads=1, window_clips=30) as grounder:
        assert [window.clips for window in grounder.project(random_video(grounder.spec, 30)).windows] == [30]


def test_long_and_short_videos_share_batches(windowed):
    jobs = [(random_video(windowed.spec, T, seed=T), QUERIES) for T in (10, 100, 24, 55)]
    for (video, _), answers in zip(jobs, windowed.ground_many(jobs), strict=True):
        for query, answer in zip(QUERIES, answers, strict=True):
            assert_same(answer, windowed.ground(video, query), tolerance=1e-3)


@pytest.mark.parametrize(("clips", "says"), [(7, "at least 8 clips, got 7"), (1201, "at most 1200 clips")])
def test_windows_that_cannot_be_are_refused(exported, clips, says):
    with pytest.raises(InputError, match=says):
        Grounder.load(exported.directory, threads=1, window_clips=clips)


def test_decode_clamps_sorts_and_cuts():
    outputs = {
        "spans": np.array([[[0.0, 0.5], [0.5, 1.0], [0.1, 0.2]]], np.float32),
        "scores": np.array([[0.2, 0.9, 0.2]], np.float32),
        "saliency": np.array([[0.1, 0.2, 0.3, -1.0]], np.float32),
    }
    answer = decode(outputs, ["q"], [3], [5.5], 2.0)[0]  # three clips of 2 s, the last one cut short
    assert [(m.start_s, m.end_s) for m in answer.moments] == [
        pytest.approx((3.0, 5.5)),
        pytest.approx((0.0, 3.0)),
        pytest.approx((0.6, 1.2)),
    ]
    assert [m.score for m in answer.moments] == pytest.approx([0.9, 0.2, 0.2])
    assert answer.saliency.tolist() == pytest.approx([0.1, 0.2, 0.3])
    row = prediction_row({"qid": 4, "vid": "v", "query": "q"}, answer)
    assert row["pred_relevant_windows"][0] == pytest.approx([3.0, 5.5, 0.9])
    assert len(row["pred_saliency_scores"]) == 3
